"""CRAGRU: forgetting at retrieval."""

from curerec.methods.cragru.method import CragruConfig, cragru

__all__ = ["CragruConfig", "cragru"]
