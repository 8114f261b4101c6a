"""Polynomial features with learnable Taylor weights: capacity O(d^p) instead of O(d) (Atlas §3.1, eqs 4-5, 22-23)."""

import dataclasses
import itertools
import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np

_LAYOUTS = ("symmetric", "tensor")


@dataclasses.dataclass(frozen=True)
class Polynomial:
    """All monomials of x up to a degree, weighted so that `φ(q)·φ(k) = Σ_i a_i (q·k)^i` exactly.

    Elsewhere `PolynomialFeatures` with a `polynomial_degree`, and `LearnableTaylorKernel` where the a_i are learned.

    The a_i are the Taylor weights: 1/i! approximates exp(q·k), and `a = (0, 1, 0, ...)` gives back φ(x) = x. The
    degree-i block is multiplied by √a_i on keys and queries alike, so that the weights must not be negative.

    Attributes:
      degree: p >= 1.
      layout: "symmetric" holds each monomial once with the root of its multinomial coefficient, width C(d + p, p);
        "tensor" holds the blocks 1, x, x⊗x, ... as they are, width Σ d^i. Both give the same inner products.

    Example:
      >>> import jax.numpy as jnp, nested_jax as nj
      >>> phi = nj.features.Polynomial(degree=2)
      >>> q, k = jnp.array([1.0, 2.0]), jnp.array([0.5, 1.0])
      >>> round(float(phi(q) @ phi(k)), 5), 1 + 2.5 + 2.5**2 / 2
      (6.625, 6.625)
      >>> phi.dim(64)
      2145

    References:
      Atlas eqs 4-5 (polynomial kernel, learnable a_i initialised at 1/i!), 22-23 (the features of exp).
    """

    degree: int = 2
    layout: str = "symmetric"

    def __post_init__(self):
        if not isinstance(self.degree, int) or self.degree < 1:
            raise ValueError(f"Polynomial(degree): expected an integer >= 1, got {self.degree!r}")
        if self.layout not in _LAYOUTS:
            raise ValueError(f"Polynomial(layout): expected one of {_LAYOUTS}, got {self.layout!r}")

    def dim(self, dim: int) -> int:
        """The width of φ(x) for x of width `dim`."""
        if self.layout == "symmetric":
            return math.comb(dim + self.degree, self.degree)
        return sum(dim**i for i in range(self.degree + 1))

    def coefficients(self) -> jax.Array:
        """The initial Taylor weights a_i = 1/i!, [degree + 1]."""
        return jnp.array([1 / math.factorial(i) for i in range(self.degree + 1)])

    def __call__(self, x: jax.Array, coefficients: jax.Array | None = None) -> jax.Array:
        """The features of x.

        Args:
          x: [..., d].
          coefficients: the Taylor weights a, [degree + 1], none negative; by default 1/i!.

        Returns:
          φ(x), [..., dim(d)].

        Raises:
          ValueError: if `coefficients` has another shape.
        """
        a = self.coefficients() if coefficients is None else coefficients
        if a.shape != (self.degree + 1,):
            raise ValueError(f"coefficients: expected shape ({self.degree + 1},), got {a.shape}")
        a = a.astype(x.dtype)
        blocks = [jnp.ones((*x.shape[:-1], 1), x.dtype)]
        if self.layout == "tensor":
            for _ in range(self.degree):
                outer = blocks[-1][..., :, None] * x[..., None, :]
                blocks.append(outer.reshape(*x.shape[:-1], -1))
        else:
            for i in range(1, self.degree + 1):
                index, weight = _monomials(x.shape[-1], i)
                products = jnp.prod(x[..., index], axis=-1)
                blocks.append(products * jnp.broadcast_to(jnp.asarray(weight, x.dtype), products.shape))
        return jnp.concatenate([_root(a[i]) * block for i, block in enumerate(blocks)], axis=-1)


def _root(a: jax.Array) -> jax.Array:
    """√a with a finite gradient at 0."""
    positive = a > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, a, 1)), 0)


def _monomials(dim: int, degree: int) -> tuple[np.ndarray, np.ndarray]:
    """All monomials of a degree as index tuples [count, degree], and the roots of their multinomial coefficients."""
    index = np.array(list(itertools.combinations_with_replacement(range(dim), degree)))
    weight = [
        math.sqrt(math.factorial(degree) / math.prod(math.factorial(n) for n in Counter(row).values()))
        for row in index.tolist()
    ]
    return index, np.array(weight)


def l2_normalise(inputs: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    r"""Scales vectors to length one, smoothly at zero: :math:`x / \sqrt{\|x\|^2 + \epsilon}`.

    Args:
      inputs: [..., D].
      epsilon: keeps value and gradient finite at zero.

    Returns:
      [..., D], of length just below one.

    Example:
      >>> l2_normalise(jnp.array([3.0, 4.0])).round(3).tolist()
      [0.6000000238418579, 0.800000011920929]
      >>> jax.grad(lambda x: l2_normalise(x).sum())(jnp.zeros(2)).tolist()
      [1000.0, 1000.0]
    """
    return inputs * jax.lax.rsqrt(jnp.sum(jnp.square(inputs), axis=-1, keepdims=True) + epsilon)
