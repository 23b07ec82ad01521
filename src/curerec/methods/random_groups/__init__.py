"""CURE with groups of equal sizes drawn at random, and its own choice of weights inside them."""

from curerec.methods.random_groups.method import random_groups

__all__ = ["random_groups"]
