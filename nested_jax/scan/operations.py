"""The two operations a network is written against, and the four ways to run them.

A network is a function `network(operations, x)` of tokens x [T, D_in] that touches its weights only through
`operations.dense(name, x)`, which is `x @ w`, and `operations.vector(name)`, a row per token. Everything between them
(activations, residuals, normalisation) is ordinary code that never mixes tokens. Each name may be used once.

Because a dense layer's gradient for token i is the outer product of its input x_i and its output's error delta_i,
recording x and delta is enough to know every token's gradient, and a query can be sent through the weights of *its*
token without ever forming them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from nested_jax.scan.response import Response

Weights = Mapping[str, jax.Array]


class Operations(Protocol):
    """What a network may do with its weights."""

    def dense(self, name: str, x: jax.Array) -> jax.Array:
        """[T, D_in] -> [T, D_out], `x @ weights[name]`."""
        ...

    def vector(self, name: str) -> jax.Array:
        """[T, D] or [1, D], the vector `weights[name]` as rows."""
        ...


class Network(Protocol):
    """A memory's function, without its weights."""

    def init(self, key: jax.Array, dim_k: int, dim_v: int) -> dict[str, jax.Array]:
        """Initial weights, a flat dict."""
        ...

    def dims(self, weights: Weights) -> tuple[int, int]:
        """(D_k, D_v) of some weights."""
        ...

    def __call__(self, operations: Operations, x: jax.Array) -> jax.Array:
        """[T, D_k] -> [T, D_v]."""
        ...


Objective = Callable[[jax.Array, jax.Array], jax.Array]  # ([T, D], [T, D]) -> [T]


class Plain:
    """One set of weights for all tokens."""

    def __init__(self, weights: Weights):
        self.weights = weights

    def dense(self, name: str, x: jax.Array) -> jax.Array:
        return x @ self.weights[name]

    def vector(self, name: str) -> jax.Array:
        return self.weights[name][None, :]


class PerToken:
    """Weights of its own for every token: leaves [T, ...]."""

    def __init__(self, weights: Weights):
        self.weights = weights

    def dense(self, name: str, x: jax.Array) -> jax.Array:
        return jnp.einsum("td,tde->te", x, self.weights[name])

    def vector(self, name: str) -> jax.Array:
        return self.weights[name]


class Recorded:
    """`Plain`, with a perturbation added to every output and every dense input written down.

    `keep` scales each token's weights (the already decayed weights of `retain_first`): name -> [T, 1] or 1.
    """

    def __init__(self, weights: Weights, perturbations: Weights, keep: Mapping[str, jax.Array] | None = None):
        self.weights, self.perturbations, self.keep = weights, perturbations, keep
        self.inputs: dict[str, jax.Array] = {}
        self._used: set[str] = set()

    def dense(self, name: str, x: jax.Array) -> jax.Array:
        self._once(name)
        self.inputs[name] = x
        return self._scaled(name, x @ self.weights[name]) + self.perturbations[name]

    def vector(self, name: str) -> jax.Array:
        self._once(name)
        return self._scaled(name, self.weights[name][None, :]) + self.perturbations[name]

    def _scaled(self, name: str, x: jax.Array) -> jax.Array:
        return x if self.keep is None else self.keep[name] * x

    def _once(self, name: str) -> None:
        if name in self._used:
            raise ValueError(
                f"network: expected every weight to be used once, got {name!r} used twice; give it two names"
            )
        self._used.add(name)


class Mixed:
    """Token t's own weights W_t = P[t] Z + sum_s K[t, s] G_s, applied without being formed.

        dense:  y_t = sum_j P[t, j] (x_t Z_j) + [(K * (X_q X^T)) Delta]_t         one masked attention per layer
        vector: w_t = sum_j P[t, j] Z_j + [K Delta]_t

    Args:
      start: name -> n arrays, the weight and the rule's state for it at the chunk's start.
      responses: name -> the `Response` of its group, K already times the window.
      inputs, errors: name -> [S, D_in], [S, D_out] of the tokens that were written.
    """

    def __init__(
        self,
        start: Mapping[str, Sequence[jax.Array]],
        responses: Mapping[str, Response],
        inputs: Mapping[str, jax.Array],
        errors: Mapping[str, jax.Array],
    ):
        self.start, self.responses, self.inputs, self.errors = start, responses, inputs, errors

    def dense(self, name: str, x: jax.Array) -> jax.Array:
        response = self.responses[name]
        scores = response.K * (x @ self.inputs[name].T)
        y = scores @ self.errors[name]
        for j, part in enumerate(self.start[name]):
            scale = response.P[:, j, None]
            y += (scale * x) @ part if part.shape[0] <= part.shape[1] else scale * (x @ part)
        return y

    def vector(self, name: str) -> jax.Array:
        response = self.responses[name]
        return combine(response.P, self.start[name]) + response.K @ self.errors[name]


class Factors(NamedTuple):
    """Every token's gradient in factors: `outer(inputs[s], errors[s])` for a dense leaf, `errors[s]` for a vector."""

    inputs: dict[str, jax.Array]
    errors: dict[str, jax.Array]


def record(
    network: Network,
    objective: Objective,
    weights: Weights,
    keys: jax.Array,
    values: jax.Array,
    live: jax.Array,
    keep: Mapping[str, jax.Array] | None = None,
) -> Factors:
    """All tokens' gradients of the objective by one backward pass.

    The naive code is `jax.vmap(jax.grad(loss), (None, 0, 0))(weights, keys, values)`, which forms S copies of the
    weights.

    Args:
      network: the memory's network.
      objective: the memory's objective.
      weights: the weights at which all gradients are taken.
      keys: [S, D_k].
      values: [S, D_v].
      live: [S], weight of each token's loss, 0 for tokens that are not there.
      keep: see `Recorded`.

    Returns:
      The `Factors`.

    Raises:
      ValueError: if the network does not use every weight exactly once.
    """
    zeros = {name: jnp.zeros((keys.shape[0], w.shape[-1]), w.dtype) for name, w in weights.items()}

    def loss(perturbations):
        operations = Recorded(weights, perturbations, keep)
        losses = objective(network(operations, keys), values)
        if unused := sorted(set(weights) - operations._used):
            raise ValueError(f"network: expected every weight to be used, got {unused} unused")
        return jnp.sum(live * losses), operations.inputs

    errors, inputs = jax.grad(loss, has_aux=True)(zeros)
    return Factors(inputs, errors)


def combine(rows: jax.Array, parts: Sequence[jax.Array]):
    """`sum_j rows[r, j] parts[j]`: [R, n] and n arrays of one shape -> [R, ...shape]; 0 where n is 0."""
    return sum(rows[:, j].reshape(-1, *[1] * part.ndim) * part[None] for j, part in enumerate(parts))


def mixed_gradient(factors: Factors, name: str, mix: jax.Array) -> jax.Array:
    """`sum_s mix[s] G_s`: [S] -> [...leaf], without forming any G_s."""
    errors = factors.errors[name]
    if name not in factors.inputs:
        return mix @ errors
    inputs = factors.inputs[name]
    if inputs.shape[1] <= errors.shape[1]:
        return (mix[:, None] * inputs).T @ errors
    return inputs.T @ (mix[:, None] * errors)
