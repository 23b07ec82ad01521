"""RecEraser: shards of like users, attention over shards."""

from curerec.methods.receraser.method import ReceraserConfig, receraser

__all__ = ["ReceraserConfig", "receraser"]
