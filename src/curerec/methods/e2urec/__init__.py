"""E2URec."""

from curerec.methods.e2urec.method import E2urecConfig, e2urec

__all__ = ["E2urecConfig", "e2urec"]
