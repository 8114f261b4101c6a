"""The language model: embedding, pre-norm residual blocks, tied output; one set of weights run in three ways."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from nested_jax.models.block import STATES, Block, BlockState, LevelsState
from nested_jax.models.config import ModelConfig
from nested_jax.models.layer_stack import Run, Turn, blocks, loop, scan
from nested_jax.models.layers import RMSNorm, at_least_float32
from nested_jax.models.placement import PLACES, constrain


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
      >>> variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
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
        if config.stacked:
            self.stack = Turn(config)
        else:
            self.blocks = blocks(config, config.layers)
        self.norm = RMSNorm()
        if not config.tie_embeddings:
            self.head = self.param("head", nn.initializers.lecun_normal(), (config.dim, config.vocab_size), jnp.float32)

    def start(self, batch_size: int) -> tuple[BlockState, ...]:
        """Returns the state before the first token, for ``apply(..., method="start")``.

        It has one entry per block, arrays [B, ...]; where layers are stacked, one per block of the pattern, with the
        turns as second axis, see :func:`nested_jax.models.unstack_states`.
        """
        _, states = self._through(lambda block, hidden, state: (hidden, block.start(batch_size)), (), None)
        return states

    def __call__(
        self,
        tokens: jax.Array,
        state: tuple[BlockState, ...] | None = None,
        reset: jax.Array | None = None,
        places: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[BlockState, ...]]:
        """Predicts the token after each of a sequence's.

        Args:
          tokens: integers [B, T], in [0, vocab_size).
          state: what a call before returned; None for the beginning of a document.
          reset: optional bool [B, ceil(T / chunk_size)], true where a chunk begins a new document: nothing from
            before reaches it, as if its document were a sequence of its own.
          places: optional integers [B, K], in [0, T), the places of each row whose logits are wanted: with a large
            vocabulary and few answers those of all places are most of the work.

        Returns:
          Logits [B, T, vocab_size] in float32, [B, K, vocab_size] with `places`, and the state after the last token.

        Raises:
          ValueError: for tokens, resets or places of a wrong shape or type, or a state of another model or batch.
        """
        hidden, after = self.read(tokens, state, reset)
        return self._logits(at(hidden, places)), after

    def read(
        self, tokens: jax.Array, state: tuple[BlockState, ...] | None = None, reset: jax.Array | None = None
    ) -> tuple[jax.Array, tuple[BlockState, ...]]:
        """What a call does before the logits: features [B, T, dim] behind the last block, and the next state."""
        self._check_tokens(tokens, ndim=2)
        segments = None if reset is None else self._segments(reset, tokens)
        states = None if state is None else self._check_state(state, tokens.shape[0])

        def run(block: Block, x: jax.Array, before: BlockState | None) -> tuple[jax.Array, BlockState]:
            x, after = block(x, before, segments)
            return constrain(x, PLACES), after  # else a loop over stacked layers copies all rows to every device

        return self._through(run, constrain(self._embed(tokens), PLACES), states)

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
        states = self._check_state(state, tokens.shape[0])
        embedded = self._embed(tokens)
        hidden, after = self._through(lambda block, x, before: block.step(x, before, learn), embedded, states)
        return self._logits(hidden), after

    def _through(
        self, run: Run, hidden: Any, states: tuple[BlockState, ...] | None
    ) -> tuple[Any, tuple[BlockState, ...]]:
        """Runs all blocks."""
        states = (None,) * self._entries if states is None else states
        if self.config.stacked:
            return scan(self.stack, run, hidden, states)
        return loop(self.blocks, run, hidden, states)

    @property
    def _entries(self) -> int:
        """Entries of a state."""
        return self.config.pattern if self.config.stacked else self.config.layers

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
        config, count = self.config, self._entries
        kinds = [STATES[kind] for kind in config.kinds[:count]]
        one = config.topology != "sequential"
        own = [min(len(levels), 1) if one else len(levels) for levels in config.block_levels[:count]]
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
        turns = config.layers // count
        for leaf in jax.tree.leaves(state):
            if config.stacked and jnp.shape(leaf)[1:2] != (turns,):
                raise ValueError(
                    f"state must have the {turns} turns of the stack as second axis, got a leaf of shape "
                    f"{jnp.shape(leaf)}"
                )
            if jnp.shape(leaf)[:1] != (batch,):
                raise ValueError(f"state must be of {batch} rows like tokens, got a leaf of shape {jnp.shape(leaf)}")
        return state


def at(hidden: jax.Array, places: jax.Array | None) -> jax.Array:
    """Features [B, T, dim] at some places of each row, integers [B, K] → [B, K, dim]; None is all of them.

    Raises:
      ValueError: for places of another shape or type.
    """
    if places is None:
        return hidden
    if jnp.ndim(places) != 2 or len(places) != len(hidden) or not jnp.issubdtype(jnp.result_type(places), jnp.integer):
        raise ValueError(
            f"places must be integers [B, K] with B = {len(hidden)}, "
            f"got {jnp.result_type(places)} of shape {jnp.shape(places)}"
        )
    return jnp.take_along_axis(hidden, places[..., None], axis=1)


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
