"""Fine-tuning with flipped answers on the data to forget."""

from curerec.methods.label_flip.method import LabelFlipConfig, label_flip

__all__ = ["LabelFlipConfig", "label_flip"]
