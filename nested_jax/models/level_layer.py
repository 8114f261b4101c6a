"""A level of a continuum memory as a feed-forward layer that learns while it reads (Nested Learning 70-71)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from nested_jax.models.config import MemoryConfig
from nested_jax.models.gates import Gate, gate_table
from nested_jax.models.layers import at_least_float32
from nested_jax.models.memory_layer import Memories, MemoryLayerState


def level_gates(config: MemoryConfig, dim: int) -> dict[str, Gate]:
    """The gates of a level whose keys have a squared length of `dim`, see :class:`LevelLayer`."""
    table = gate_table(config, dim)
    if config.max_learning_rate is not None:
        return table
    share = 1 / (8 * dim)
    return {name: gate.scaled(share) if gate.kind == "learning_rate" else gate for name, gate in table.items()}


class LevelLayer(Memories):
    """A gated feed-forward layer that takes one step per period, on the tokens of the period.

        y_t = M(W; x_t)                                     M the SwiGLU, W frozen inside a period
        W ← rule(Σ_t learning_rate_t ∇ objective(M(W; x_t), x_t V))      at its end

    Keys and queries are the layer's input as it is, whose squared length is about `dim` behind a norm; the learning
    rate's maximum is therefore the usual one (:mod:`nested_jax.models.gates`) over `dim`, and an eighth of that: a
    SwiGLU's features are products of two maps of the input and grow as training goes on. With the whole of it small
    models diverged within 200 steps, with an eighth they did not. The learned target x V stands for the task's
    loss, which is not known inside a layer (our choice; the paper names the task's).

    Attributes:
      config: the level as a memory of one head, see :meth:`nested_jax.models.LevelConfig.memory`.
      dim: features of a token.
      dtype: of the value projection; the level itself runs in float32 or better.
    """

    def setup(self):
        super().setup()
        self.value = nn.Dense(self.dim, use_bias=False, dtype=self.dtype)

    def gate_table(self) -> dict[str, Gate]:
        """The gates, their learning rates an eighth of those for keys of length √dim unless configured."""
        return level_gates(self.config, self.dim)

    def start(self, batch_size: int) -> MemoryLayerState:
        """Returns the state before the first token: the learned initial weights for every row."""
        return MemoryLayerState(self._fresh(batch_size), None)

    def __call__(
        self, inputs: jax.Array, state: MemoryLayerState | None = None, segments: jax.Array | None = None
    ) -> tuple[jax.Array, MemoryLayerState]:
        """Runs over T tokens, [B, T, dim] → [B, T, dim] and the next state; see :class:`MemoryLayer`."""
        state = self.start(inputs.shape[0]) if state is None else state
        read, memory = self._scan(state.memory, self._arguments(inputs), segments)
        return read[:, :, 0].astype(self.dtype), MemoryLayerState(memory, None)

    def step(
        self, inputs: jax.Array, state: MemoryLayerState, learn: bool = True
    ) -> tuple[jax.Array, MemoryLayerState]:
        """Runs one token, [B, dim] → [B, dim] and the next state; written only if `learn`."""
        arguments = self._arguments(inputs)
        if not learn:
            return self._recall(state.memory, arguments)[:, 0].astype(self.dtype), state
        read, memory = self._step(state.memory, arguments)
        return read[:, 0].astype(self.dtype), MemoryLayerState(memory, None)

    def _arguments(self, inputs: jax.Array) -> tuple[Any, ...]:
        """Key, value and query, [..., 1, dim] each, and gates."""
        wide = at_least_float32(self.dtype)
        key, value = (jnp.expand_dims(x.astype(wide), -2) for x in (inputs, self.value(inputs)))
        return key, value, key, self.gates(inputs)
