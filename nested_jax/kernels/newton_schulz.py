"""Newton-Schulz orthogonalisation of matrices: the reference for Muon, Atlas (32-33) and Nested Learning (42-44)."""

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


def iterate(matrices: jax.Array, triples: Sequence[Triple], eps: float, dtype: jax.typing.DTypeLike) -> jax.Array:
    """The iteration as it is written, the reference of every other implementation.

    Args:
      matrices: [N, m, n] with m <= n, of the dtype in which the iterate is held.
      triples: (a, b, c) of every step.
      eps: added to the Frobenius norm.
      dtype: what the operands of the products are rounded to; their sums are in the dtype of `matrices`. Where the two
        are one, products are in full precision, on accelerators too.

    Returns:
      The result, like `matrices`.
    """

    precision = jax.lax.Precision.HIGHEST if dtype == matrices.dtype else None

    def multiply(left: jax.Array, right: jax.Array) -> jax.Array:
        left, right = left.astype(dtype), right.astype(dtype)
        return jnp.matmul(left, right, precision=precision, preferred_element_type=matrices.dtype)

    matrices = normalize(matrices, eps)
    for a, b, c in triples:
        gram = multiply(matrices, matrices.mT)
        polynomial = b * gram + c * multiply(gram, gram) if c else b * gram
        matrices = a * matrices + multiply(polynomial, matrices)
    return matrices


def normalize(matrices: jax.Array, eps: float) -> jax.Array:
    """Matrices over (Frobenius norm + eps)."""
    return matrices * reciprocal(jnp.sum(matrices * matrices, axis=(-2, -1), keepdims=True), eps)


def reciprocal(squares: jax.Array, eps: float) -> jax.Array:
    """1 / (norm + eps) for the square of a norm; 0 with derivative 0 where the norm is 0."""
    positive = squares > 0
    norm = jnp.sqrt(jnp.where(positive, squares, 1.0))
    return jnp.where(positive, 1.0 / (norm + eps), 0.0)
