"""CURE: circuit, contributions, groups, and an update rule for each group."""

from curerec.methods.cure.method import CureConfig, cure, explain

__all__ = ["CureConfig", "cure", "explain"]
