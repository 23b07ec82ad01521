"""WISE: a routed side memory."""

from curerec.methods.wise.method import WiseConfig, wise

__all__ = ["WiseConfig", "wise"]
