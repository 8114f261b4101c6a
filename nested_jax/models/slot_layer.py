"""The slot layer: a `nj.memory.slots.SlotMemory` in place of attention."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from nested_jax.memory.slots import SlotMemory, SlotState
from nested_jax.models.layers import RMSNorm, at_least_float32
from nested_jax.models.memory_layer import resets
from nested_jax.models.placement import ROWS, on_own


class SlotLayer(nn.Module):
    """A sequence layer whose state is slots, of which a token reads what was written before it.

    Queries and events are both made of the layer's inputs. Our choice, as in :class:`nested_jax.models.MemoryLayer`:
    the answer is normalised (CMS §9.1) and multiplied by SiLU of a linear map of the input before it is projected.

    Attributes:
      memory: the slots.
      dim: features of a token.
      dtype: of the projections around the slots, which run in float32 or better.
    """

    memory: SlotMemory
    dim: int
    dtype: DTypeLike = jnp.float32

    def setup(self):
        self.slots = self.param("slots", self._initial)
        self.norm = RMSNorm()
        self.gate = nn.Dense(self.memory.context_dim, use_bias=False, dtype=self.dtype)
        self.output = nn.Dense(self.dim, use_bias=False, dtype=self.dtype)

    def start(self, batch_size: int) -> SlotState:
        """Returns the slots before the first token, of every row."""
        one = self.memory.start(self._params())
        return jax.tree.map(lambda x: jnp.broadcast_to(x[None], (batch_size, *x.shape)), one)

    def __call__(
        self, inputs: jax.Array, state: SlotState | None = None, segments: jax.Array | None = None
    ) -> tuple[jax.Array, SlotState]:
        """[B, T, dim] → [B, T, dim] and the next state; see :meth:`nested_jax.models.MemoryLayer.__call__`."""
        params, state = self._params(), self.start(inputs.shape[0]) if state is None else state
        if self.is_initializing():
            read = jnp.zeros((*inputs.shape[:2], self.memory.context_dim))
        else:
            reset = None if segments is None else resets(segments, self.memory.chunk_size)
            scan = jax.vmap(self.memory.scan, (None, 0, 0, None, 0))
            run = on_own(scan, (P(), P(ROWS), P(ROWS), P(), P(ROWS)), P(ROWS))
            read, state = run(params, state, self._wide(inputs), None, reset)
        return self._answer(read, inputs), state

    def step(self, inputs: jax.Array, state: SlotState, learn: bool = True) -> tuple[jax.Array, SlotState]:
        """[B, dim] → [B, dim] and the next state; slots are only read unless `learn`."""
        params, x = self._params(), self._wide(inputs)
        if learn:
            read, state = jax.vmap(self.memory.step, (None, 0, 0))(params, state, x)
        else:
            read = jax.vmap(self.memory.recall, (None, 0, 0))(params, state, x[:, None])[:, 0]
        return self._answer(read, inputs), state

    def _initial(self, key: jax.Array) -> dict[str, Any]:
        return jax.tree.map(jnp.float32, self.memory.init(key, self.dim))

    def _params(self) -> dict[str, Any]:
        return jax.tree.map(self._wide, self.slots)

    def _wide(self, x: jax.Array) -> jax.Array:
        return x.astype(at_least_float32(self.dtype))

    def _answer(self, read: jax.Array, inputs: jax.Array) -> jax.Array:
        return self.output(self.norm(read).astype(self.dtype) * nn.silu(self.gate(inputs)))
