"""PCGrad."""

from curerec.methods.pcgrad.method import PcgradConfig, pcgrad

__all__ = ["PcgradConfig", "pcgrad"]
