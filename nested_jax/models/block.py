"""One block: a mixer and feed-forward layers or levels behind norms, and the states that it carries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from nested_jax.memory import SelfModifying
from nested_jax.memory.slots import SlotState
from nested_jax.models.attention import AttentionLayer, AttentionState
from nested_jax.models.config import WITH_MEMORY, LevelConfig, ModelConfig
from nested_jax.models.continuum_layer import ContinuumLayer
from nested_jax.models.hybrids import (
    ContextState,
    HybridState,
    LargeChunk,
    MemoryAsContext,
    MemoryAsGate,
    MemoryAsLayer,
)
from nested_jax.models.layers import RMSNorm, SwiGLU
from nested_jax.models.level_layer import LevelLayer
from nested_jax.models.lstm import LSTMLayer, LSTMState
from nested_jax.models.memory_layer import MemoryLayer, MemoryLayerState
from nested_jax.models.self_modifying_layer import SelfModifyingLayer
from nested_jax.models.slot_layer import SlotLayer

BlockState = Any  # by the kind of block, see `STATES`

_HYBRIDS = {"mag": MemoryAsGate, "mal": MemoryAsLayer, "mac": MemoryAsContext, "lact": LargeChunk}
STATES = {
    "memory": MemoryLayerState,
    "attention": AttentionState,
    "lstm": LSTMState,
    "mag": HybridState,
    "mal": HybridState,
    "mac": ContextState,
    "lact": HybridState,
    "slots": SlotState,
}


class LevelsState(NamedTuple):
    """What a block with levels carries.

    Attributes:
      mixer: its mixer's state.
      levels: of each level its state, None for one that never changes; a single one where they are one layer.
    """

    mixer: Any
    levels: tuple[MemoryLayerState | None, ...]


class Block(nn.Module):
    """x + mixer(norm(x)), then x + SwiGLU(norm(x)), or such a layer for every level of a continuum memory.

    Titans prints residual connections and no more; the SwiGLU layer after each mixer is our choice, after
    Gated DeltaNet, whose recipe Titans follows.

    Attributes:
      kind: one of `BLOCKS`.
      config: the model's.
      level_configs: this block's levels; none for one SwiGLU layer without a state.
    """

    kind: str
    config: ModelConfig
    level_configs: tuple[LevelConfig, ...] = ()

    def setup(self):
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        if self.kind == "memory":
            layer = SelfModifyingLayer if isinstance(config.memory.memory, SelfModifying) else MemoryLayer
            self.mixer = layer(config.memory, config.dim, dtype)
        elif self.kind == "attention":
            self.mixer = AttentionLayer(config.attention, config.dim, dtype)
        elif self.kind == "slots":
            self.mixer = SlotLayer(config.slots, config.dim, dtype)
        elif self.kind == "lstm":
            self.mixer = LSTMLayer(config.dim, dtype)
        else:
            self.mixer = _HYBRIDS[self.kind](config.memory, config.attention, config.dim, dtype)
        self.mixer_norm = RMSNorm()
        if not self.level_configs:
            self.mlp_norm, self.mlp = RMSNorm(), SwiGLU(config.hidden, dtype)
        hidden = config.level_hidden
        if self.level_configs and config.topology != "sequential":
            self.levels = [ContinuumLayer(self.level_configs, config.topology, hidden, config.dim, dtype)]
        else:
            self.levels = [
                SwiGLU(hidden, dtype) if level.period is None else LevelLayer(level.memory(hidden), config.dim, dtype)
                for level in self.level_configs
            ]
        self.level_norms = [RMSNorm() for _ in self.levels]

    def start(self, batch_size: int) -> BlockState:
        """Returns the mixer's state before the first token, with the levels' where there are levels."""
        mixer = self.mixer.start(batch_size)
        if not self.level_configs:
            return mixer
        states = (None if isinstance(level, SwiGLU) else level.start(batch_size) for level in self.levels)
        return LevelsState(mixer, tuple(states))

    def __call__(
        self, inputs: jax.Array, state: BlockState | None, segments: jax.Array | None
    ) -> tuple[jax.Array, BlockState]:
        """[B, T, dim] → [B, T, dim] and the next state."""
        mixer, levels = self._parts(state)
        mixed, mixer = self.mixer(self.mixer_norm(inputs), mixer, segments)
        return self._feed_forward(inputs + mixed, mixer, levels, lambda level, x, before: level(x, before, segments))

    def step(self, inputs: jax.Array, state: BlockState, learn: bool = True) -> tuple[jax.Array, BlockState]:
        """[B, dim] → [B, dim] and the next state; a memory or a level is only read unless `learn`."""
        options = {"learn": learn} if self.kind in WITH_MEMORY | {"slots"} else {}
        mixer, levels = self._parts(state)
        mixed, mixer = self.mixer.step(self.mixer_norm(inputs), mixer, **options)
        return self._feed_forward(inputs + mixed, mixer, levels, lambda level, x, before: level.step(x, before, learn))

    def _parts(self, state: BlockState | None) -> tuple[Any, tuple[MemoryLayerState | None, ...]]:
        if state is None or not self.level_configs:
            return state, (None,) * len(self.levels)
        return state

    def _feed_forward(
        self, inputs: jax.Array, mixer: Any, levels: tuple, run: Callable
    ) -> tuple[jax.Array, BlockState]:
        """The layers behind the mixer; `run(level, inputs, state)` runs one that learns."""
        if not self.level_configs:
            return inputs + self.mlp(self.mlp_norm(inputs)), mixer
        after = []
        for norm, level, state in zip(self.level_norms, self.levels, levels, strict=True):
            normed = norm(inputs)
            change, state = (level(normed), None) if isinstance(level, SwiGLU) else run(level, normed, state)
            inputs = inputs + change
            after.append(state)
        return inputs, LevelsState(mixer, tuple(after))
