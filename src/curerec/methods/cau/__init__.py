"""Curriculum approximate unlearning."""

from curerec.methods.cau.method import CauConfig, cau

__all__ = ["CauConfig", "cau"]
