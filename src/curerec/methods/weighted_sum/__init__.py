"""The plain sum of both gradients."""

from curerec.methods.weighted_sum.method import WeightedSumConfig, weighted_sum

__all__ = ["WeightedSumConfig", "weighted_sum"]
