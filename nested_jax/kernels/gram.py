r"""Newton-Schulz in Gram form: m × m products alone between restarts, for matrices m × n with n well above m.

Every step multiplies the iterate from the left by a polynomial of its Gram matrix, so the polynomials of several steps
can be multiplied with each other before the long matrix is touched. With :math:`R = X X^\top` and :math:`Q = I`:

.. math::
  Z = bR + cR^2, \qquad Q \leftarrow Q\,(aI + Z), \qquad R \leftarrow (aI + Z)\, R\, (aI + Z), \qquad
  \text{at the end} \quad X \leftarrow Q X
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from nested_jax.kernels.newton_schulz import Triple, normalize

_FIRST, _REST = 2, 3
"""Steps before the first restart, and between the later ones: rounding in R, which is never seen again by X, grows."""


def iterate(matrices: jax.Array, triples: Sequence[Triple], eps: float) -> jax.Array:
    """What `newton_schulz.iterate` computes, with other roundings; for float32 and float64 alone.

    Not for products of bfloat16 operands: their rounding in R and Q takes singular values near 1 to 2 and far beyond.

    Args:
      matrices: [N, m, n] with m <= n.
      triples: (a, b, c) of every step.
      eps: added to the Frobenius norm.

    Returns:
      The result, like `matrices`.
    """
    matrices = normalize(matrices, eps)
    for segment in segments(triples):
        matrices = _product(_step_matrix(matrices, segment), matrices)
    return matrices


def segments(triples: Sequence[Triple]) -> list[Sequence[Triple]]:
    """The steps between restarts: two, then three at a time."""
    return [triples[:_FIRST], *(triples[i : i + _REST] for i in range(_FIRST, len(triples), _REST))]


def operations(rows: int, columns: int, triples: Sequence[Triple]) -> tuple[int, int]:
    """Floating point operations of the products for one matrix: (as written, in Gram form).

    Example:
      >>> written, gram = operations(512, 2048, ((3.4445, -4.7750, 2.0315),) * 5)
      >>> round(gram / written, 2)
      0.67
    """
    square, long = 2 * rows**3, 2 * rows**2 * columns
    quintic = sum(1 for _, _, c in triples if c)
    written = 2 * len(triples) * long + quintic * square
    parts = segments(triples)
    return written, 2 * len(parts) * long + (quintic + 3 * (len(triples) - len(parts))) * square


def _step_matrix(matrices: jax.Array, segment: Sequence[Triple]) -> jax.Array:
    """Q after the steps of a segment that begins at these matrices."""
    gram = _product(matrices, matrices.mT)
    (first, *_), last = segment, len(segment) - 1
    total = first[0] * jnp.eye(gram.shape[-1], dtype=gram.dtype)[None]
    for i, (a, b, c) in enumerate(segment):
        polynomial = b * gram + c * _product(gram, gram) if c else b * gram
        total = a * total + _product(total, polynomial) if i else total + polynomial
        if i < last:
            gram = a * gram + _product(gram, polynomial)
            gram = a * gram + _product(polynomial, gram)
    return total


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)
