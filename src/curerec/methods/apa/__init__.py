"""APA: adapters by partition, aggregated for each prompt."""

from curerec.methods.apa.method import ApaConfig, apa

__all__ = ["ApaConfig", "apa"]
