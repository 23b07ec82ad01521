"""Uniform NPO: one weighted sum of forget and retain loss on all parameters."""

from curerec.methods.npo.method import npo_uniform

__all__ = ["npo_uniform"]
