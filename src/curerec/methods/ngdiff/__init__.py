"""Normalised gradient difference."""

from curerec.methods.ngdiff.method import NgdiffConfig, ngdiff

__all__ = ["NgdiffConfig", "ngdiff"]
