"""Numerical kernels: references first, accelerated backends beside them."""

from nested_jax.kernels.newton_schulz import orthogonalize

__all__ = ["orthogonalize"]
