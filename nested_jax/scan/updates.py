"""What a chunk's tokens do to the weights, formed or in factors: gradients, and Newton-Schulz of short windows.

The gradient of a dense layer is an outer product, so a query meets it as attention: `x (sum_s K[t, s] X_s^T Delta_s)`
is `[(K * (x X^T)) Delta]_t`. A window's sum has the rank of the window, S_t = L^T R; an odd polynomial of a matrix
keeps it, NS(S_t) = L^T Z_t R (see `nested_jax.kernels.low_rank_orthogonalize`), so per-token Muon (Atlas eq 32 without
momentum between windows) is attention through one c × c matrix per token.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from nested_jax.scan.operations import Factors, mix


class Updates(Protocol):
    """The updates of a chunk's tokens, [C, ...leaf] each, formed or not."""

    def mix(self, name: str, weights: jax.Array) -> jax.Array:
        """`sum_t weights[t] u_t`: [C], or per channel [1, D, C], -> [...leaf]."""
        ...

    def formed(self) -> dict[str, jax.Array]:
        """name -> [C, ...leaf]."""
        ...


class Formed(NamedTuple):
    """Updates as arrays: name -> [C, ...leaf]."""

    arrays: dict[str, jax.Array]

    def mix(self, name: str, weights: jax.Array) -> jax.Array:
        return mix(weights[..., None, :], self.arrays[name])[0]

    def formed(self) -> dict[str, jax.Array]:
        return self.arrays


class Factored(NamedTuple):
    """Gradients as factors.

    Attributes:
      factors: of S tokens.
      bands: name -> [C, S], the weights of a window's gradients in each update; None for a window of 1.
    """

    factors: Factors
    bands: Mapping[str, jax.Array] | None

    def _banded(self, name: str, weights: jax.Array) -> jax.Array:
        return weights if self.bands is None else weights @ self.bands[name]

    def mix(self, name: str, weights: jax.Array) -> jax.Array:
        return _mixed_gradient(self.factors, name, self._banded(name, weights))

    def formed(self) -> dict[str, jax.Array]:
        inputs, errors = self.factors
        each = {
            name: e if name not in inputs else inputs[name][:, :, None] * e[:, None, :] for name, e in errors.items()
        }
        return each if self.bands is None else {name: mix(self.bands[name], g) for name, g in each.items()}

    def attend(self, name: str, mask: jax.Array, x: jax.Array) -> jax.Array:
        inputs, errors, K = self.factors.inputs[name], self.factors.errors[name], self._banded(name, mask)
        if K.ndim == 2:
            return (K * (x @ inputs.T)) @ errors
        if K.shape[0] == 1:
            return jnp.einsum("dts,ts,sd->td", K[0], x @ inputs.T, errors)
        return jnp.einsum("dts,td,sd->ts", K[:, 0], x, inputs) @ errors

    def rows(self, name: str, mask: jax.Array) -> jax.Array:
        return mix(self._banded(name, mask), self.factors.errors[name])


class LowRank(NamedTuple):
    """Updates `X_t^T Z_t Delta_t` of windows: X_t and Delta_t are the factors of the c tokens up to t.

    Attributes:
      factors: of S = c - 1 + C tokens.
      middles: name -> Z [C, c, c].
    """

    factors: Factors
    middles: Mapping[str, jax.Array]

    @classmethod
    def of(cls, gradients: Factored, window: int, middle: Callable[..., jax.Array]) -> "LowRank":
        """A map of matrices over windowed gradients, of matrices alone; `middle(left, right)` is its Z."""
        inputs, errors = gradients.factors
        found = {}
        for name, x in inputs.items():
            left, right = _windows(x, window), _windows(errors[name], window)
            scale = jnp.ones((len(left), window), x.dtype)
            if gradients.bands is not None:
                count = len(left)
                shifted = [jnp.diagonal(gradients.bands[name], age)[:count] for age in range(window)]
                scale = jnp.stack(shifted, -1)
            found[name] = scale[:, :, None] * middle(scale[:, :, None] * left, right)
        return cls(gradients.factors, found)

    @property
    def _window(self) -> int:
        return next(iter(self.middles.values())).shape[-1]

    def mix(self, name: str, weights: jax.Array) -> jax.Array:
        errors = self.middles[name] @ _windows(self.factors.errors[name], self._window)
        return self.factors.inputs[name].T @ _overlap(weights[:, None, None] * errors)

    def formed(self) -> dict[str, jax.Array]:
        def form(name, middle):
            left, right = (_windows(part[name], self._window) for part in self.factors)
            return left.mT @ (middle @ right)

        return {name: form(name, middle) for name, middle in self.middles.items()}

    def attend(self, name: str, mask: jax.Array, x: jax.Array) -> jax.Array:
        scores = _windows((x @ self.factors.inputs[name].T).T, self._window)
        through = jnp.einsum("iat,iab->ibt", scores, self.middles[name]) * mask.T[:, None, :]
        return _overlap(through).T @ self.factors.errors[name]

    def rows(self, name: str, mask: jax.Array) -> jax.Array:
        return mix(mask, self.formed()[name])


def _windows(rows: jax.Array, size: int) -> jax.Array:
    """[S, D] -> [C, c, D], the c rows up to each of the last C = S - c + 1, oldest first."""
    count = len(rows) - size + 1
    return jnp.stack([rows[i : i + count] for i in range(size)], 1)


def _overlap(windows: jax.Array) -> jax.Array:
    """[C, c, D] -> [S, D], the transpose of `_windows`: what windows say of a row, added up."""
    _, size, _ = windows.shape
    placed = [jnp.pad(windows[:, i], ((i, size - 1 - i), (0, 0))) for i in range(size)]
    return sum(placed[1:], placed[0])


def _mixed_gradient(factors: Factors, name: str, weights: jax.Array) -> jax.Array:
    """`sum_s weights[s] G_s`: [S], or per channel [1, D_out, S], -> [...leaf], without forming any G_s."""
    errors = factors.errors[name]
    if name not in factors.inputs:
        return mix(weights[..., None, :], errors)[0]
    inputs = factors.inputs[name]
    if weights.ndim == 1:
        on_inputs, weights = inputs.shape[1] <= errors.shape[1], weights[:, None]
    else:
        on_inputs = weights.shape[0] > 1
        weights = weights[:, 0].T if on_inputs else weights[0].T
    return (weights * inputs).T @ errors if on_inputs else inputs.T @ (weights * errors)
