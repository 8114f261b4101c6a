"""A network whose weights are averaged with others, by shares that each query brings (Memory Caching 14-15)."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from nested_jax.scan.operations import Network, Operations


@dataclasses.dataclass(frozen=True, eq=False)
class Soup:
    """A network of averaged weights: a query [D_k + 1 + N] carries how much of its own and of N other weights to take.

    A key [D_k], which writes, meets the memory's weights alone.
    """

    network: Network
    weights: Mapping[str, jax.Array]
    width: int

    def init(self, key: jax.Array, dim_k: int, dim_v: int) -> dict[str, jax.Array]:
        return self.network.init(key, dim_k, dim_v)

    def dims(self, weights: Mapping[str, jax.Array]) -> tuple[int, int]:
        return self.network.dims(weights)

    def __call__(self, operations: Operations, x: jax.Array) -> jax.Array:
        if x.shape[-1] == self.width:
            return self.network(operations, x)
        return self.network(_Averaged(operations, self.weights, x[:, self.width :]), x[:, : self.width])


class _Averaged:
    """Operations with the weights `mixture[t, 0] W_t + sum_i mixture[t, 1 + i] W_i`, W_t those of other operations."""

    def __init__(self, operations: Operations, weights: Mapping[str, jax.Array], mixture: jax.Array):
        self.operations, self.weights, self.mixture = operations, weights, mixture

    def dense(self, name: str, x: jax.Array) -> jax.Array:
        others = jnp.einsum("tn,td,nde->te", self.mixture[:, 1:], x, self.weights[name])
        return self.mixture[:, :1] * self.operations.dense(name, x) + others

    def vector(self, name: str) -> jax.Array:
        return self.mixture[:, :1] * self.operations.vector(name) + self.mixture[:, 1:] @ self.weights[name]
