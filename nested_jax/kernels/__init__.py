"""Numerical kernels: references first, accelerated backends beside them."""

from nested_jax.kernels.implementations import orthogonalize

__all__ = ["orthogonalize"]
