"""Gradient rectified unlearning."""

from curerec.methods.gru.method import GruConfig, gru

__all__ = ["GruConfig", "gru"]
