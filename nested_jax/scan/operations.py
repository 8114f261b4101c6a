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
        """[T, D_k] -> [T, D_v]; asks for its layers itself, not inside of `jax.jit`, `jax.checkpoint` or a loop."""
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

    `keep` scales each token's weights (the already decayed weights of `retain_first`): name -> [T], or one number per
    channel, [1, D, T] for a layer's outputs, [D, 1, T] for its inputs, [D, T] for a vector.
    """

    def __init__(self, weights: Weights, perturbations: Weights, keep: Mapping[str, jax.Array] | None = None):
        self.weights, self.perturbations, self.keep = weights, perturbations, keep
        self.inputs: dict[str, jax.Array] = {}
        self._used: set[str] = set()

    def dense(self, name: str, x: jax.Array) -> jax.Array:
        self._once(name)
        self.inputs[name] = x
        w = self.weights[name]
        return (x @ w if self.keep is None else _scaled_product(self.keep[name], x, w)) + self.perturbations[name]

    def vector(self, name: str) -> jax.Array:
        self._once(name)
        w = self.weights[name]
        row = w[None, :] if self.keep is None else combine(self.keep[name][..., None], [w])
        return row + self.perturbations[name]

    def _once(self, name: str) -> None:
        if name in self._used:
            raise ValueError(
                f"network: expected every weight to be used once, got {name!r} used twice; give it two names"
            )
        self._used.add(name)


class Attended(Protocol):
    """Updates G_s that need not be formed to be read."""

    def attend(self, name: str, mask: jax.Array, x: jax.Array) -> jax.Array:
        """`x_t (sum_s mask[t, s] G_s)` of a dense layer: [R, C] and [R, D_in] -> [R, D_out]."""
        ...

    def rows(self, name: str, mask: jax.Array) -> jax.Array:
        """`sum_s mask[t, s] G_s` of a vector: [R, C] -> [R, D]."""
        ...


class Mixed:
    """Token t's own weights W_t = P[t] Z + sum_s K[t, s] G_s, applied without being formed.

        dense:  y_t = sum_j P[t, j] (x_t Z_j) + [(K * (X_q X^T)) Delta]_t         one masked attention per layer
        vector: w_t = sum_j P[t, j] Z_j + [K Delta]_t

    Where gates have a value per channel, P and K have one matrix per channel of the outputs or the inputs (see
    `Response`), and so has the attention.

    Args:
      start: name -> n arrays, the weight and the rule's state for it at the chunk's start.
      responses: name -> the `Response` of its group.
      written: the updates of the tokens that were written.
    """

    def __init__(self, start: Mapping[str, Sequence[jax.Array]], responses: Mapping[str, Response], written: Attended):
        self.start, self.responses, self.written = start, responses, written

    def dense(self, name: str, x: jax.Array) -> jax.Array:
        response = self.responses[name]
        y = self.written.attend(name, response.K, x)
        for j, part in enumerate(self.start[name]):
            y += _scaled_product(response.P[..., j], x, part)
        return y

    def vector(self, name: str) -> jax.Array:
        response = self.responses[name]
        return combine(response.P, self.start[name]) + self.written.rows(name, response.K)


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
    zeros = _zeros(weights, keys.shape[0])

    def loss(perturbations):
        operations = Recorded(weights, perturbations, keep)
        losses = objective(network(operations, keys), values)
        if unused := sorted(set(weights) - operations._used):
            raise ValueError(f"network: expected every weight to be used, got {unused} unused")
        return jnp.sum(live * losses), operations.inputs

    errors, inputs = jax.grad(loss, has_aux=True)(zeros)
    return Factors(inputs, errors)


def _zeros(weights: Weights, tokens: int) -> dict[str, jax.Array]:
    return {name: jnp.zeros((tokens, w.shape[-1]), w.dtype) for name, w in weights.items()}


def layer_inputs(network: Network, weights: Weights, x: jax.Array) -> dict[str, jax.Array]:
    """The input of every dense layer, name -> [T, D_in]; ones [T, 1] for vectors, the weights of a constant input."""
    operations = Recorded(weights, _zeros(weights, len(x)))
    network(operations, x)
    return {name: operations.inputs.get(name, jnp.ones((len(x), 1), w.dtype)) for name, w in weights.items()}


def mix(matrix: jax.Array, arrays: jax.Array) -> jax.Array:
    """`sum_s matrix[r, s] arrays[s]`: [R, S] and [S, ...leaf] -> [R, ...leaf]; one matrix per channel, [1, D, R, S]."""
    channels, shape = matrix.shape[:-2], matrix.shape[-2:]
    if not channels:
        return jnp.tensordot(matrix, arrays, axes=1)
    axis = 1 + max(range(len(channels)), key=lambda i: channels[i])
    each = jax.vmap(lambda m, a: jnp.tensordot(m, a, axes=1), (0, axis), axis)
    return each(matrix.reshape(-1, *shape), arrays)


def combine(rows: jax.Array, parts: Sequence[jax.Array]):
    """`sum_j rows[r, j] parts[j]`: [R, n] and n arrays of one shape -> [R, ...shape]; 0 where n is 0."""
    scales = jnp.moveaxis(rows, -2, 0)
    shape = scales.shape[1:-1]
    return sum(
        scales[..., j].reshape(len(scales), *(shape or [1] * part.ndim)) * part[None] for j, part in enumerate(parts)
    )


def _scaled_product(scale: jax.Array, x: jax.Array, w: jax.Array) -> jax.Array:
    """`x @ w` with every token's weights scaled: [T], or one number per channel [1, D_out, T] or [D_in, 1, T]."""
    if scale.ndim == 1:
        scale = scale[:, None]
        return (scale * x) @ w if w.shape[0] <= w.shape[1] else scale * (x @ w)
    return scale[0].T * (x @ w) if scale.shape[0] == 1 else (scale[:, 0].T * x) @ w
