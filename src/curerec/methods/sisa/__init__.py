"""SISA: shards of users, slices of shards."""

from curerec.methods.sisa.method import SisaConfig, sisa

__all__ = ["SisaConfig", "sisa"]
