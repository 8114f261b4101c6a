"""Newton-Schulz orthogonalisation of matrices: the reference for Muon, Atlas (32-33) and Nested Learning (42-44)."""

import math
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp

Triple = tuple[float, float, float]


def _with_safety(table: Sequence[Triple], factor: float) -> tuple[Triple, ...]:
    """Every polynomial but the last evaluated at x / factor, so that rounding cannot leave its interval."""
    *moving, limit = table
    return (*((a / factor, b / factor**3, c / factor**5) for a, b, c in moving), limit)


CUBIC: tuple[Triple, ...] = ((1.5, -0.5, 0.0),)
MUON: tuple[Triple, ...] = ((3.4445, -4.7750, 2.0315),)
POLAR_EXPRESS: tuple[Triple, ...] = _with_safety(
    (
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
        (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
        (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
        (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
        (1.875, -1.25, 0.375),
    ),
    factor=1.01,
)
TABLES: dict[str, tuple[Triple, ...]] = {"cubic": CUBIC, "muon": MUON, "polar_express": POLAR_EXPRESS}


def polynomials(coefficients: str | Sequence[Sequence[float]], steps: int) -> tuple[Triple, ...]:
    """The (a, b, c) of every Newton-Schulz step.

    Args:
      coefficients: `"cubic"`, `"muon"`, `"polar_express"` or a sequence of triples (a, b, c).
      steps: number of steps, at least 1. A table that is longer is cut, one that is shorter repeats its last triple.

    Returns:
      `steps` triples of Python floats.

    Raises:
      ValueError: for an unknown name, a table that is not one of triples, or fewer than one step.

    Example:
      >>> polynomials("cubic", 2)
      ((1.5, -0.5, 0.0), (1.5, -0.5, 0.0))
    """
    try:
        count = operator.index(steps)
    except TypeError:
        count = 0
    if count < 1 or isinstance(steps, bool):
        raise ValueError(f"steps must be an integer of at least 1, got {steps!r}.")
    if isinstance(coefficients, str):
        if coefficients not in TABLES:
            names = ", ".join(repr(name) for name in TABLES)
            raise ValueError(f"coefficients must be one of {names} or a sequence of triples, got {coefficients!r}.")
        table = TABLES[coefficients]
    else:
        try:
            table = tuple((float(a), float(b), float(c)) for a, b, c in coefficients)
        except (TypeError, ValueError):
            table = ()
        if not table:
            raise ValueError(f"coefficients must be a non-empty sequence of triples (a, b, c), got {coefficients!r}.")
    return tuple(table[min(step, len(table) - 1)] for step in range(count))


def orthogonalize(
    x: jax.Array,
    coefficients: str | Sequence[Sequence[float]] = "muon",
    steps: int = 5,
    eps: float = 1e-7,
) -> jax.Array:
    r"""Pushes all singular values of a matrix towards 1 and keeps its singular vectors.

    .. math::
      X_0 = x / (\lVert x \rVert_F + \epsilon), \qquad
      X_{i+1} = a_i X_i + (b_i A_i + c_i A_i^2)\, X_i, \qquad A_i = X_i X_i^\top

    Each step is the odd polynomial :math:`a\sigma + b\sigma^3 + c\sigma^5` applied to every singular value. In code::

      x = x / (norm(x) + eps)
      for a, b, c in polynomials(coefficients, steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x

    The result is the polar factor :math:`UV^\top` only in the limit, and only where the polynomials have 1 as an
    attracting fixed point:

    - `"cubic"` (1.5, -0.5, 0) is the classical iteration. It converges to :math:`UV^\top`, slowly: small singular
      values grow by 1.5 a step. Texts that call it "Newton-Schulz 5" mean this polynomial with five steps; what Muon's
      users call so is the next one, a different polynomial.
    - `"muon"` (3.4445, -4.7750, 2.0315) is tuned for slope at zero and does *not* converge to 1: five steps leave
      singular values in about [0.7, 1.2], however many more steps are added.
    - `"polar_express"` has one minimax-optimal triple per step and converges, from the ninth step on by
      (1.875, -1.25, 0.375). All triples but that last one carry the paper's safety factor
      :math:`(a/1.01, b/1.01^3, c/1.01^5)`; the input is divided by its Frobenius norm as for the other tables.

    A tall matrix is transposed first, so that the Gram matrix is the small one. Inputs narrower than float32 are
    multiplied as they are with float32 accumulation, and the iterate is held in float32.

    At an input of exactly zero both the result and its derivative are zero (our choice). The derivative elsewhere grows
    as one over the norm of the input, so the one-sided limit would be some 1e10 and a padded token would carry it.

    Args:
      x: matrices [..., m, n] of a floating dtype.
      coefficients: `"cubic"`, `"muon"`, `"polar_express"`, or a sequence of triples (a, b, c), the last of which
        repeats.
      steps: number of iterations, at least 1.
      eps: added to the Frobenius norm; inputs of that size or smaller are not brought to norm 1.

    Returns:
      Matrices [..., m, n] in the dtype of `x`.

    Raises:
      ValueError: if `x` has fewer than two axes or is not floating, or for bad `coefficients` or `steps`.

    Example:
      >>> x = jnp.array([[3.0, 0.0], [0.0, -0.5]])
      >>> print(jnp.round(orthogonalize(x, "polar_express", steps=8), 4))
      [[ 1.  0.]
       [ 0. -1.]]

    References:
      Jordan et al., `Muon <https://kellerjordan.github.io/posts/muon/>`_, 2024 (`"muon"`).
      Amsel et al., `The Polar Express <https://arxiv.org/abs/2505.16932>`_, 2025, Algorithm 1 (`"polar_express"`).
      Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025, equations (42-44).
    """
    x = jnp.asarray(x)
    triples = polynomials(coefficients, steps)
    if x.ndim < 2:
        raise ValueError(f"x must be a matrix or a batch of them, [..., m, n], got shape {x.shape}.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must have a floating dtype, got {x.dtype}.")
    *batch, rows, columns = x.shape
    held = jnp.promote_types(x.dtype, jnp.float32)
    # One batch axis: dots with several are slow or miscompiled on some backends.
    matrix = x.reshape(math.prod(batch), rows, columns).astype(held)
    if rows > columns:
        matrix = matrix.mT

    def multiply(left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.matmul(left.astype(x.dtype), right.astype(x.dtype), preferred_element_type=held)

    matrix = matrix * _reciprocal_norm(matrix, eps)
    for a, b, c in triples:
        gram = multiply(matrix, matrix.mT)
        polynomial = b * gram + c * multiply(gram, gram) if c else b * gram
        matrix = a * matrix + multiply(polynomial, matrix)
    if rows > columns:
        matrix = matrix.mT
    return matrix.astype(x.dtype).reshape(x.shape)


def _reciprocal_norm(matrix: jax.Array, eps: float) -> jax.Array:
    """1 / (Frobenius norm + eps) over the last two axes, kept; 0 with derivative 0 where the norm is 0."""
    squares = jnp.sum(matrix * matrix, axis=(-2, -1), keepdims=True)
    positive = squares > 0
    norm = jnp.sqrt(jnp.where(positive, squares, 1.0))
    return jnp.where(positive, 1.0 / (norm + eps), 0.0)
