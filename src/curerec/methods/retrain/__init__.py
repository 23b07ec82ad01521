"""The reference: the original's recipe on what is left."""

from curerec.methods.retrain.method import retrain

__all__ = ["retrain"]
