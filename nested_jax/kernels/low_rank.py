r"""Newton-Schulz on a product of thin factors, in the space of the factors: per-token Muon at the cost of attention.

The momentum of a short window is a sum of c outer products, :math:`S = L^\top R`. Every odd polynomial of it keeps that
form, :math:`L^\top Z R`, so that only the c × c matrix Z has to be iterated.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from nested_jax.kernels.newton_schulz import polynomials, reciprocal


def low_rank_orthogonalize(
    left: jax.Array,
    right: jax.Array,
    coefficients: str | Sequence[Sequence[float]] = "muon",
    steps: int = 5,
    eps: float = 1e-7,
) -> jax.Array:
    r"""The matrix between two thin factors that orthogonalises their product.

    For :math:`S = L^\top R`, with `NS` the map of `orthogonalize`, it returns the Z of
    :math:`\mathrm{NS}(S) = L^\top Z R`:

    .. math::
      P = R R^\top, \quad Q = L L^\top, \quad s = \lVert S \rVert_F = \sqrt{\textstyle\sum_{ij} P_{ij} Q_{ij}}, \quad
      W_0 = P Q / (s + \epsilon)^2, \quad Z_0 = I

    .. math::
      F_i = a_i I + b_i W_i + c_i W_i^2, \qquad Z_{i+1} = Z_i F_i, \qquad W_{i+1} = F_i W_i F_i, \qquad
      Z = Z_k / (s + \epsilon)

    because :math:`S (S^\top S)^j = L^\top (P Q)^j R`. A query q is applied to the result without forming a d × d
    matrix, as `((q @ left.T) @ z) @ right`. In code, what the whole computation stands for::

      orthogonalize(left.T @ right, coefficients, steps, eps)    # == left.T @ z @ right

    No inverse is taken: factors may be rank deficient, and c may exceed their width. The polynomials amplify rounding,
    in float32 after five steps of `"muon"` to this much of the largest entry (c = 16, width 64):

    ========================================  ========  ==================
    factors                                   this      `orthogonalize`
    ========================================  ========  ==================
    independent                               1e-6      2e-5
    one row repeated                          1e-4      1e-4
    correlation 0.99 on both sides            5e-4      1e-4
    ========================================  ========  ==================

    After nine steps the last is beyond use. :math:`W_i` equals :math:`W_0 Z_i^2`, but computing it so amplifies
    rounding by orders of magnitude more.

    As there, a product of exactly zero gives zero, with derivative zero. Each of the `steps` takes products of c × c
    matrices only, about 40 c³ operations in five quintic steps against 30 d³.

    Args:
      left: L [..., c, m] of a floating dtype.
      right: R [..., c, n], with the same leading axes and dtype.
      coefficients: as for `orthogonalize`.
      steps: number of iterations, at least 1.
      eps: added to the Frobenius norm of the product.

    Returns:
      Z [..., c, c], in float32, or float64 for float64 factors.

    Raises:
      ValueError: if the factors are not floating, of different dtypes or do not fit together, or for bad `coefficients`
        or `steps`.

    Example:
      >>> left, right = jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([[0.0, 3.0], [-1.0, 0.0]])
      >>> z = low_rank_orthogonalize(left, right, "polar_express", steps=8)
      >>> print(jnp.abs(jnp.round(left.T @ z @ right, 4)))
      [[0. 1.]
       [1. 0.]]

    References:
      Behrouz et al., `Atlas <https://arxiv.org/abs/2505.23735>`_, 2025, equation (32), whose window makes the factors.

    .. note::
      `orthogonalize` takes the product itself, whatever its rank. Here the norm comes from the Gram matrices of the
      factors: where a product is much smaller than its factors because their terms cancel, it loses digits in float32.
    """
    left, right = jnp.asarray(left), jnp.asarray(right)
    triples = polynomials(coefficients, steps)
    if left.ndim < 2 or left.shape[:-1] != right.shape[:-1]:
        raise ValueError(
            "left and right must be [..., c, m] and [..., c, n] with equal leading axes and c, "
            f"got shapes {left.shape} and {right.shape}."
        )
    if left.dtype != right.dtype or not jnp.issubdtype(left.dtype, jnp.floating):
        raise ValueError(f"left and right must have one floating dtype, got {left.dtype} and {right.dtype}.")
    *batch, rank, _ = left.shape
    gram_left, gram_right = (_gram(x.reshape(-1, *x.shape[-2:])) for x in (left, right))
    scale = reciprocal(jnp.sum(gram_left * gram_right, axis=(-2, -1), keepdims=True), eps)
    weights = _product(gram_right * scale, gram_left * scale)
    identity = jnp.eye(rank, dtype=weights.dtype)[None]
    z, last = identity, len(triples) - 1
    for i, (a, b, c) in enumerate(triples):
        factor = a * identity + b * weights
        if c:
            factor = factor + c * _product(weights, weights)
        z = _product(z, factor) if i else factor
        if i < last:
            weights = _product(_product(factor, weights), factor)
    return (z * scale).reshape(*batch, rank, rank)


def _gram(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return _product(x, x.mT)


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)
