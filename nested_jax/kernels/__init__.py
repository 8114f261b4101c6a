"""Numerical kernels: references first, accelerated backends beside them."""

from nested_jax.kernels.implementations import check_implementation, orthogonalize
from nested_jax.kernels.low_rank import low_rank_orthogonalize

__all__ = ["check_implementation", "low_rank_orthogonalize", "orthogonalize"]
