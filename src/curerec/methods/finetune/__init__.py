"""Fine-tuning on what is left."""

from curerec.methods.finetune.method import FinetuneConfig, finetune

__all__ = ["FinetuneConfig", "finetune"]
