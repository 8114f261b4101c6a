"""The levels of a block as one layer, nested or independent (Nested Learning 72, 74)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from nested_jax.memory import Memory, across
from nested_jax.memory.continuum import Continuum
from nested_jax.memory.networks import GatedMLP
from nested_jax.models import sequence
from nested_jax.models.config import LevelConfig
from nested_jax.models.gates import Gates
from nested_jax.models.layers import at_least_float32
from nested_jax.models.level_layer import level_gates
from nested_jax.models.memory_layer import MemoryLayerState, resets
from nested_jax.models.placement import ROWS, TIME, on_own


class ContinuumLayer(nn.Module):
    r"""All levels of a block on one normalised input, as `nj.memory.Continuum` runs them.

        nested       y = M^k(... M^2(M^1(x))) − x     each M^l(z) = z + SwiGLU(z), drawn to x + x V^l
        independent  y = Σ_l softmax(c)_l M^l(x)      each M^l a SwiGLU, drawn to x V^l

    Keys, gates and the largest learning rates are those of :class:`nested_jax.models.LevelLayer`, all from x, the
    layer's input (our choice; in a sequential chain each level has its own norm and residual connection).

    Attributes:
      configs: the levels.
      topology: "nested" or "independent".
      hidden: hidden features of a level.
      dim: features of a token.
      dtype: of the value projections; the levels themselves run in float32 or better.
    """

    configs: tuple[LevelConfig, ...]
    topology: str
    hidden: int
    dim: int
    dtype: DTypeLike = jnp.float32

    def setup(self):
        self.initial = self.param("initial", self._initial_weights)
        learning = [number for number, level in enumerate(self.configs) if level.period is not None]
        self.values = {number: nn.Dense(self.dim, use_bias=False, dtype=self.dtype) for number in map(str, learning)}
        self.gates = {
            str(number): Gates(level_gates(self.configs[number].memory(self.hidden), self.dim), heads=1)
            for number in learning
        }

    @property
    def system(self) -> Continuum:
        """The levels as one system."""
        network = GatedMLP(activation=nn.silu, residual=self.topology == "nested", hidden=self.hidden)

        def level(config: LevelConfig) -> Memory | GatedMLP:
            if config.period is None:
                return network
            memory = config.memory(self.hidden).memory
            assert isinstance(memory, Memory)
            return dataclasses.replace(memory, network=network)

        return Continuum(tuple(map(level, self.configs)), self.topology)

    def _initial_weights(self, key: jax.Array) -> dict[str, Any]:
        return jax.tree.map(jnp.float32, self.system.init(key, self.dim))

    def start(self, batch_size: int) -> MemoryLayerState:
        """Returns the state before the first token: the learned initial weights for every row."""
        weights = jax.tree.map(lambda x: x.astype(at_least_float32(self.dtype)), self.initial)
        one = self.system.start(weights)
        return MemoryLayerState(jax.tree.map(lambda x: jnp.broadcast_to(x[None], (batch_size, *x.shape)), one), None)

    def __call__(
        self, inputs: jax.Array, state: MemoryLayerState | None = None, segments: jax.Array | None = None
    ) -> tuple[jax.Array, MemoryLayerState]:
        """Runs over T tokens, [B, T, dim] → [B, T, dim] and the next state; see :class:`MemoryLayer`."""
        state = self.start(inputs.shape[0]) if state is None else state
        x, values, gates = self._arguments(inputs)
        if self.is_initializing():
            return jnp.zeros_like(inputs), state
        reset = None if segments is None else resets(segments, self.system.grid)
        scan, time = jax.vmap(self.system.scan), P(ROWS)
        if sequence.splits(self.system, x.shape[1]):
            scan, time = functools.partial(across.scan_across, self.system, TIME), P(ROWS, TIME)
        run = on_own(scan, (P(ROWS), time, time, time, time), (time, P(ROWS)))
        read, memory = run(state.memory, x, values, gates, reset)
        return self._change(inputs, read), MemoryLayerState(memory, None)

    def step(
        self, inputs: jax.Array, state: MemoryLayerState, learn: bool = True
    ) -> tuple[jax.Array, MemoryLayerState]:
        """Runs one token, [B, dim] → [B, dim] and the next state; written only if `learn`."""
        x, values, gates = self._arguments(inputs)
        if not learn:
            read = jax.vmap(self.system.recall)(state.memory, x[:, None])[:, 0]
            return self._change(inputs, read), state
        read, memory = jax.vmap(self.system.step)(state.memory, x, values, gates)
        return self._change(inputs, read), MemoryLayerState(memory, None)

    def _arguments(self, inputs: jax.Array) -> tuple[jax.Array, list[Any], list[Any]]:
        """Inputs, and of each level that learns its targets and gates."""
        wide = at_least_float32(self.dtype)
        values: list[jax.Array | None] = [None] * len(self.configs)
        gates: list[dict[str, jax.Array] | None] = [None] * len(self.configs)
        x = inputs.astype(wide)
        for number, project in self.values.items():
            target = project(inputs).astype(wide)
            values[int(number)] = x + target if self.topology == "nested" else target
            gates[int(number)] = {name: gate[..., 0] for name, gate in self.gates[number](inputs).items()}
        return x, values, gates

    def _change(self, inputs: jax.Array, read: jax.Array) -> jax.Array:
        return (read - inputs if self.topology == "nested" else read).astype(self.dtype)
