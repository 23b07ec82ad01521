"""Gradient ascent on the forget data, alone and with a KL retain term."""

from curerec.methods.grad_ascent.method import GradAscentConfig, ga_kl, grad_ascent

__all__ = ["GradAscentConfig", "ga_kl", "grad_ascent"]
