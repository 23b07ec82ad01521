"""Reference-free negative preference optimisation."""

from curerec.methods.simnpo.method import SimnpoConfig, simnpo

__all__ = ["SimnpoConfig", "simnpo"]
