"""SCRUB: alternate leaving and following the original."""

from curerec.methods.scrub.method import ScrubConfig, scrub

__all__ = ["ScrubConfig", "scrub"]
