"""Gradient ascent on the forget data, with a KL retain term."""

from curerec.methods.grad_ascent.method import ga_kl

__all__ = ["ga_kl"]
