"""CURE's twin with groups of equal sizes drawn at random."""

from curerec.methods.random_modules.method import random_modules

__all__ = ["random_modules"]
