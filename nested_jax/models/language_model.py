"""The language model: embedding, pre-norm residual blocks, tied output; one set of weights run in three ways."""

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
from nested_jax.models.layers import RMSNorm, SwiGLU, at_least_float32
from nested_jax.models.level_layer import LevelLayer
from nested_jax.models.lstm import LSTMLayer, LSTMState
from nested_jax.models.memory_layer import MemoryLayer, MemoryLayerState
from nested_jax.models.self_modifying_layer import SelfModifyingLayer
from nested_jax.models.slot_layer import SlotLayer

BlockState = Any  # by the kind of block, see _STATES

_HYBRIDS = {"mag": MemoryAsGate, "mal": MemoryAsLayer, "mac": MemoryAsContext, "lact": LargeChunk}
_STATES = {
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


class LanguageModel(nn.Module):
    """A causal language model over tokens, its memory an explicit pytree that goes in and comes out.

    The same parameters run over whole sequences (training), in pieces with the state handed on (any length in constant
    memory) and token by token (generation), with the same numbers. A piece that another piece follows is a multiple of
    ``config.chunk_size`` long; the last one, and one that only single steps follow, may have any length.

    With ``mutable=["diagnostics"]`` every memory layer records the mean of each gate and two inner losses per token:
    ``inner_loss``, of reading the keys from the weights of the chunk's start, and ``inner_loss_after``, of reading
    them as the layer's queries are read; a layer whose memory is not a single `nj.Memory` records gates alone.

    Attributes:
      config: sizes and kinds of block; checked when the model is used.

    Example:
      >>> from nested_jax.models import MemoryConfig, ModelConfig
      >>> model = LanguageModel(ModelConfig(dim=16, layers=1, memory=MemoryConfig(heads=2)))
      >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
      >>> logits, state = jax.jit(model.apply)(variables, jnp.array([[72, 105]]))
      >>> logits.shape
      (1, 2, 256)
      >>> logits, state = model.apply(variables, jnp.array([33]), state, method="step")
      >>> logits.shape
      (1, 256)
    """

    config: ModelConfig

    def setup(self):
        config = self.config
        config.validate()
        self.embedding = self.param(
            "embedding", nn.initializers.normal(0.02), (config.vocab_size, config.dim), jnp.float32
        )
        block = nn.remat(Block, methods=["__call__"]) if config.remat else Block
        self.blocks = [
            block(*each) for each in zip(config.kinds, [config] * config.layers, config.block_levels, strict=True)
        ]
        self.norm = RMSNorm()
        if not config.tie_embeddings:
            self.head = self.param("head", nn.initializers.lecun_normal(), (config.dim, config.vocab_size), jnp.float32)

    def start(self, batch_size: int) -> tuple[BlockState, ...]:
        """Returns the state before the first token, one entry per block, for ``apply(..., method="start")``."""
        return tuple(block.start(batch_size) for block in self.blocks)

    def __call__(
        self, tokens: jax.Array, state: tuple[BlockState, ...] | None = None, reset: jax.Array | None = None
    ) -> tuple[jax.Array, tuple[BlockState, ...]]:
        """Predicts the token after each of a sequence's.

        Args:
          tokens: integers [B, T], in [0, vocab_size).
          state: what a call before returned; None for the beginning of a document.
          reset: optional bool [B, ceil(T / chunk_size)], true where a chunk begins a new document: nothing from
            before reaches it, as if its document were a sequence of its own.

        Returns:
          Logits [B, T, vocab_size] in float32 and the state after the last token.

        Raises:
          ValueError: for tokens or resets of a wrong shape or type, or a state of another model or batch.
        """
        hidden, after = self.read(tokens, state, reset)
        return self._logits(hidden), after

    def read(
        self, tokens: jax.Array, state: tuple[BlockState, ...] | None = None, reset: jax.Array | None = None
    ) -> tuple[jax.Array, tuple[BlockState, ...]]:
        """What a call does before the logits: features [B, T, dim] behind the last block, and the next state."""
        self._check_tokens(tokens, ndim=2)
        segments = None if reset is None else self._segments(reset, tokens)
        states = (None,) * len(self.blocks) if state is None else self._check_state(state, tokens.shape[0])
        hidden, after = self._embed(tokens), []
        for block, before in zip(self.blocks, states, strict=True):
            hidden, new = block(hidden, before, segments)
            after.append(new)
        return hidden, tuple(after)

    def step(
        self, tokens: jax.Array, state: tuple[BlockState, ...], learn: bool = True
    ) -> tuple[jax.Array, tuple[BlockState, ...]]:
        """Predicts the next token, for ``apply(..., method="step")``.

        Args:
          tokens: integers [B], one per row.
          state: what :meth:`start`, :meth:`__call__` or a step returned.
          learn: whether memories write the token. If not, they answer from the weights they have and stay as they are,
            their place in a chunk included; convolutions and attention go on.

        Returns:
          Logits [B, vocab_size] in float32 and the state after the token.
        """
        self._check_tokens(tokens, ndim=1)
        hidden, after = self._embed(tokens), []
        for block, before in zip(self.blocks, self._check_state(state, tokens.shape[0]), strict=True):
            hidden, new = block.step(hidden, before, learn)
            after.append(new)
        return self._logits(hidden), tuple(after)

    def _embed(self, tokens: jax.Array) -> jax.Array:
        return jnp.take(self.embedding, tokens, axis=0).astype(self.config.dtype)

    def _logits(self, hidden: jax.Array) -> jax.Array:
        weights = self.embedding.T if self.config.tie_embeddings else self.head
        wide = at_least_float32(self.config.dtype)
        return jnp.matmul(self.norm(hidden), weights.astype(self.config.dtype), preferred_element_type=wide)

    def _segments(self, reset: jax.Array, tokens: jax.Array) -> jax.Array:
        batch, length = tokens.shape
        chunk = self.config.chunk_size
        expected = (batch, -(-length // chunk))
        if jnp.shape(reset) != expected or jnp.result_type(reset) != jnp.bool_:
            raise ValueError(
                f"reset must be bool of shape [B, ceil(T / chunk_size)] = {expected}, "
                f"got {jnp.result_type(reset)} of shape {jnp.shape(reset)}"
            )
        return jnp.repeat(jnp.cumsum(reset, axis=1, dtype=jnp.int32), chunk, axis=1)[:, :length]

    def _check_tokens(self, tokens: jax.Array, ndim: int) -> None:
        shape = jnp.shape(tokens)
        if len(shape) != ndim or 0 in shape or not jnp.issubdtype(jnp.result_type(tokens), jnp.integer):
            axes = "[B, T]" if ndim == 2 else "[B]"
            raise ValueError(
                f"tokens must be integers of shape {axes}, not empty, got {jnp.result_type(tokens)} of shape {shape}"
            )

    def _check_state(self, state: tuple[BlockState, ...], batch: int) -> tuple[BlockState, ...]:
        kinds = [_STATES[kind] for kind in self.config.kinds]
        one = self.config.topology != "sequential"
        own = [min(len(levels), 1) if one else len(levels) for levels in self.config.block_levels]
        expected = list(zip(kinds, own, strict=True))

        def kind(entry: BlockState) -> tuple[type, int]:
            """The mixer's kind of state and the number of levels."""
            return (type(entry.mixer), len(entry.levels)) if isinstance(entry, LevelsState) else (type(entry), 0)

        if not isinstance(state, tuple) or [kind(entry) for entry in state] != expected:

            def names(kinds: list[tuple[type, int]]) -> list[str]:
                return [name.__name__ + (f" and {count} levels" if count else "") for name, count in kinds]

            raise ValueError(
                f"state must be a tuple of {names(expected)}, one per block of this model, "
                f"got {names([kind(entry) for entry in state]) if isinstance(state, tuple) else type(state).__name__}"
            )
        for leaf in jax.tree.leaves(state):
            if jnp.shape(leaf)[:1] != (batch,):
                raise ValueError(f"state must be of {batch} rows like tokens, got a leaf of shape {jnp.shape(leaf)}")
        return state


def parameter_count(params: Any) -> int:
    """Returns how many numbers a tree of parameters holds.

    Example:
      >>> parameter_count({"w": jnp.zeros((3, 4)), "b": jnp.zeros(4)})
      16
    """
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def state_bytes(state: Any) -> int:
    """Returns how many bytes a state takes; works on arrays and on the shapes of ``jax.eval_shape``.

    Example:
      >>> state_bytes({"w": jnp.zeros((3, 4), jnp.float32)})
      48
    """
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
