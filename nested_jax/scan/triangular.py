"""The inverse of I + A for strictly lower triangular A, by a ladder of exact block merges: all matmuls, no powers of A.

The system behind every exact online linear rule (Gated DeltaNet §3.3; DeltaNet, arXiv 2406.06484 §3): the errors of a
block of tokens, each measured after the writes before it, solve (I + A) E = R.
"""

import math

import jax
import jax.numpy as jnp


def unit_lower_inverse(lower: jax.Array) -> jax.Array:
    r"""The inverse of a lower triangular matrix with ones on its diagonal.

    .. math::
      X = (I + A)^{-1}, \qquad
      \begin{pmatrix} I + A_1 & 0 \\ L & I + A_2 \end{pmatrix}^{-1} =
      \begin{pmatrix} X_1 & 0 \\ -X_2 L X_1 & X_2 \end{pmatrix}

    The ladder inverts all 2 × 2 diagonal blocks, and merges neighbours until one block is left. The naive code is
    `jax.scipy.linalg.solve_triangular(lower, eye, lower=True, unit_diagonal=True)`, which is one row after the other.

    The derivative is :math:`dX = -X\, \mathrm{strict\_lower}(dA)\, X`, two matmuls in either direction, so nothing
    differentiates through the ladder; it can be differentiated again, to any order.

    Args:
      lower: A, [..., C, C] of a floating dtype, any C >= 1. Only what is below the diagonal is read.

    Returns:
      X [..., C, C] in float32 or wider: ones on the diagonal, exact zeros above it.

    Raises:
      ValueError: if `lower` is not a batch of square matrices of a floating dtype.

    Example:
      >>> print(unit_lower_inverse(jnp.array([[0.0, 0.0], [0.5, 0.0]])))
      [[ 1.   0. ]
       [-0.5  1. ]]

    References:
      Yang et al., `Parallelizing Linear Transformers with the Delta Rule <https://arxiv.org/abs/2406.06484>`_, 2024, §3
      (the system); the merge is the textbook inverse of a block triangular matrix.

    .. note::
      The product :math:`\prod_j (I + (-A)^{2^j})` is exact on paper as well, and has as few matmuls. In float32 it is
      useless for correlated keys: the powers of A grow to 1e9 and more before they cancel. No power is formed here.
    """
    lower = jnp.asarray(lower)
    if lower.ndim < 2 or lower.shape[-1] != lower.shape[-2] or not lower.shape[-1]:
        raise ValueError(f"lower: expected square matrices [..., C, C], got shape {lower.shape}")
    if not jnp.issubdtype(lower.dtype, jnp.floating):
        raise ValueError(f"lower: expected a floating dtype, got {lower.dtype}")
    size = lower.shape[-1]
    padding = (1 << (size - 1).bit_length()) - size
    # One batch axis: dots with several are slow or miscompiled on some backends.
    flat = lower.reshape(math.prod(lower.shape[:-2]), size, size).astype(jnp.promote_types(lower.dtype, jnp.float32))
    inverse = _inverse(jnp.pad(flat, [(0, 0), (0, padding), (0, padding)]))
    return inverse[:, :size, :size].reshape(lower.shape)


@jax.custom_jvp
def _inverse(lower: jax.Array) -> jax.Array:
    return _ladder(lower)


@_inverse.defjvp
def _inverse_jvp(primals, tangents):
    inverse = _inverse(*primals)
    return inverse, -_dot(_dot(inverse, jnp.tril(tangents[0], -1)), inverse)


def _ladder(lower: jax.Array) -> jax.Array:
    """[N, C, C], C a power of two; every level has the blocks of all matrices on its one batch axis."""
    count, size, _ = lower.shape
    if size <= 2:
        return jnp.eye(size, dtype=lower.dtype)[None] - jnp.tril(lower, -1)
    half = size // 2
    both = _ladder(jnp.concatenate([lower[:, :half, :half], lower[:, half:, half:]]))
    first, second = both[:count], both[count:]
    merged = -_dot(_dot(second, lower[:, half:, :half]), first)
    upper = jnp.concatenate([first, jnp.zeros_like(first)], -1)
    return jnp.concatenate([upper, jnp.concatenate([merged, second], -1)], -2)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
