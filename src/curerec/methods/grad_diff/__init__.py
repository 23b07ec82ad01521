"""Gradient difference."""

from curerec.methods.grad_diff.method import GradDiffConfig, grad_diff

__all__ = ["GradDiffConfig", "grad_diff"]
