"""The self-modifying layer: memories that make keys, values and gates for one another (Nested Learning 83-97)."""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from nested_jax.memory.features import l2_normalise
from nested_jax.memory.self_modifying import VECTORS, SelfModifying
from nested_jax.models.layers import CausalConvolution
from nested_jax.models.memory_layer import Mixer


class SelfModifyingLayer(Mixer):
    """A sequence layer of `nj.memory.SelfModifying`, one per head.

    As in Nested Learning §8.3: a causal convolution of width 4, and queries and keys of length one. Our choices, where
    it is silent: the heads share the token's features out between them; the inputs pass a convolution and are brought
    to length one; static projections (the query's, unless it is generated as well) are those of
    :class:`nested_jax.models.MemoryLayer`, as are the norm and the gate before the output projection.

    Attributes:
      config: with a `SelfModifying` for a memory; its heads and convolution.
      dim: features of a token.
      dtype: of projections; the memories themselves run in float32 or better.
    """

    def setup(self):
        super().setup()
        self.static = {name: self.dense(self._head_dim) for name in self._static}
        if self.config.conv:
            self.convolutions = {name: CausalConvolution(self.config.conv, self.dtype) for name in self.streams()}

    @property
    def _static(self) -> list[str]:
        return [name for name in VECTORS if name in cast(SelfModifying, self.config.memory).static]

    def streams(self) -> dict[str, int]:
        """The token itself, and what is projected."""
        return dict.fromkeys(["inputs", *self._static], self._head_dim)

    def arguments(
        self, inputs: jax.Array, buffers: dict[str, jax.Array] | None, segments: jax.Array | None
    ) -> tuple[tuple[Any, ...], dict[str, jax.Array] | None]:
        """Inputs and what is static."""
        streams = {"inputs": inputs.astype(self.dtype), **{name: map_(inputs) for name, map_ in self.static.items()}}
        mixed, buffers = self._convolve(streams, self.convolutions if self.config.conv else {}, buffers, segments)
        given = {name: nn.silu(mixed[name]) for name in self._static}
        given = {name: x * self._head_dim**-0.5 if name == "value" else l2_normalise(x) for name, x in given.items()}
        return (l2_normalise(mixed["inputs"]), given), buffers

    def _recall(self, state: Any, arguments: tuple[Any, ...]) -> jax.Array:
        inputs, given = jax.tree.map(lambda x: x[:, :, None], arguments)
        recall = cast(SelfModifying, self.config.memory).recall
        return jax.vmap(jax.vmap(recall))(state, inputs, given)[:, :, 0]

    def _diagnose(self, *arguments: Any) -> None:
        """Records how long the first memory's answers are."""
        state, inputs, given, _ = arguments
        read = jax.vmap(cast(SelfModifying, self.config.memory).recall)(state, inputs, given)
        self._record("answer", jnp.mean(jnp.linalg.norm(read, axis=-1)))
