"""Rank-one model editing."""

from curerec.methods.rome.method import RomeConfig, rome

__all__ = ["RomeConfig", "rome"]
