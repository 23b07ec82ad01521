"""CAGrad."""

from curerec.methods.cagrad.method import CagradConfig, cagrad

__all__ = ["CagradConfig", "cagrad"]
