"""Memory and attention in one layer: as gate, layer and context (Titans §4.1-4.3), on shared projections (LaCT §4)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from nested_jax.memory.features import l2_normalise
from nested_jax.models.attention import Attention, AttentionLayer, AttentionState, weigh
from nested_jax.models.config import AttentionConfig, MemoryConfig
from nested_jax.models.layers import Affine, RMSNorm, at_least_float32
from nested_jax.models.memory_layer import MemoryLayer, MemoryLayerState


class HybridState(NamedTuple):
    """What a layer of memory and attention carries, each as it does alone."""

    memory: MemoryLayerState
    attention: AttentionState


class Gated(nn.Module):
    r""":math:`\mathrm{norm}(y) \odot \sigma(\mathrm{norm}(m))`, the gating of Titans eqs 25 and 28.

    The paper normalises both with learned vectors and applies a non-linearity it does not name. Our choice: RMSNorm,
    and a sigmoid on the memory, which is the gate.
    """

    def setup(self):
        self.read_norm, self.gate_norm = RMSNorm(), RMSNorm()

    def __call__(self, read: jax.Array, memory: jax.Array) -> jax.Array:
        """[..., dim] and [..., dim] → [..., dim]."""
        return self.read_norm(read) * nn.sigmoid(self.gate_norm(memory))


class _Hybrid(nn.Module):
    """One memory layer and one attention layer.

    Attributes:
      memory_config: of the memory.
      attention_config: of the attention, with its window and persistent tokens.
      dim: features of a token.
      dtype: of the computation.
    """

    memory_config: MemoryConfig
    attention_config: AttentionConfig
    dim: int
    dtype: DTypeLike = jnp.float32

    def setup(self):
        self.memory = MemoryLayer(self.memory_config, self.dim, self.dtype)
        self.attention = AttentionLayer(self.attention_config, self.dim, self.dtype)


class _Beside(_Hybrid):
    """Memory and attention that each carry their own state."""

    def start(self, batch_size: int) -> HybridState:
        """Returns the state before the first token."""
        return HybridState(self.memory.start(batch_size), self.attention.start(batch_size))


class MemoryAsGate(_Beside):
    """MAG: sliding-window attention and a memory side by side, the memory gating what attention read.

    Titans eqs 26-28. Persistent tokens are in the attention alone (our choice): for a memory, learned initial weights
    are what tokens written before the first one would be.
    """

    def setup(self):
        super().setup()
        self.combine = Gated()

    def __call__(
        self, inputs: jax.Array, state: HybridState | None = None, segments: jax.Array | None = None
    ) -> tuple[jax.Array, HybridState]:
        """[B, T, dim] → [B, T, dim] and the next state; see `MemoryLayer`."""
        before = (None, None) if state is None else state
        remembered, memory = self.memory(inputs, before[0], segments)
        read, attention = self.attention(inputs, before[1], segments)
        return self.combine(read, remembered), HybridState(memory, attention)

    def step(self, inputs: jax.Array, state: HybridState, learn: bool = True) -> tuple[jax.Array, HybridState]:
        """[B, dim] → [B, dim] and the next state; the memory is only read unless `learn`."""
        remembered, memory = self.memory.step(inputs, state.memory, learn)
        read, attention = self.attention.step(inputs, state.attention)
        return self.combine(read, remembered), HybridState(memory, attention)


class MemoryAsLayer(_Beside):
    """MAL: a memory, and sliding-window attention over what it answers (Titans eqs 29-31).

    The norm between them is our choice; the paper says nothing.
    """

    def setup(self):
        super().setup()
        self.combine = RMSNorm()

    def __call__(
        self, inputs: jax.Array, state: HybridState | None = None, segments: jax.Array | None = None
    ) -> tuple[jax.Array, HybridState]:
        """[B, T, dim] → [B, T, dim] and the next state; see `MemoryLayer`."""
        before = (None, None) if state is None else state
        remembered, memory = self.memory(inputs, before[0], segments)
        read, attention = self.attention(self.combine(remembered), before[1], segments)
        return read, HybridState(memory, attention)

    def step(self, inputs: jax.Array, state: HybridState, learn: bool = True) -> tuple[jax.Array, HybridState]:
        """[B, dim] → [B, dim] and the next state; the memory is only read unless `learn`."""
        remembered, memory = self.memory.step(inputs, state.memory, learn)
        read, attention = self.attention.step(self.combine(remembered), state.attention)
        return read, HybridState(memory, attention)


class LargeChunk(_Hybrid):
    """LaCT's layer: a memory of large chunks, and window attention on the same queries, keys and values, added.

    The window is a chunk of the memory at least, so that attention sees what the memory, read at a chunk's start, does
    not know yet. The attention gets the projections as they are, q and k through a scale and a shift per channel; the
    memory gets them as in `MemoryLayer`. One output projection serves both.
    """

    def setup(self):
        self.memory = MemoryLayer(self.memory_config, self.dim, self.dtype)
        self.local = Attention(self.attention_config, self.dim, self.dtype)
        self.query_affine, self.key_affine = Affine(self.dtype), Affine(self.dtype)

    def start(self, batch_size: int) -> HybridState:
        """Returns the state before the first token."""
        return HybridState(self.memory.start(batch_size), self.local.start(batch_size))

    def __call__(
        self, inputs: jax.Array, state: HybridState | None = None, segments: jax.Array | None = None
    ) -> tuple[jax.Array, HybridState]:
        """[B, T, dim] → [B, T, dim] and the next state; see `MemoryLayer`."""
        before = (None, None) if state is None else state
        remembered, memory = self.memory.read(inputs, before[0], segments)
        read, attention = self._attend(inputs, before[1], segments)
        return self.memory.output(remembered + read), HybridState(memory, attention)

    def step(self, inputs: jax.Array, state: HybridState, learn: bool = True) -> tuple[jax.Array, HybridState]:
        """[B, dim] → [B, dim] and the next state; the memory is only read unless `learn`."""
        remembered, memory = self.memory.read_step(inputs, state.memory, learn)
        read, attention = self._attend(inputs[:, None], state.attention, None)
        return self.memory.output(remembered + read[:, 0]), HybridState(memory, attention)

    def _attend(
        self, inputs: jax.Array, state: AttentionState | None, segments: jax.Array | None
    ) -> tuple[jax.Array, AttentionState]:
        """[B, T, dim] → [B, T, dim], before the output projection."""
        streams = self.memory.project(inputs)
        rows = self.query_affine(streams["query"]), self.key_affine(streams["key"]), streams["value"]
        query, key, value = (row.reshape(*row.shape[:2], self.attention_config.heads, -1) for row in rows)
        read, state = self.local.read(query, key, value, state, segments)
        return read.reshape(inputs.shape), state


class ContextState(NamedTuple):
    """What MAC carries.

    Attributes:
      memory: the memory layer's state, which goes on inside a segment.
      retrieved: the memory as it was at the segment's start, which all its tokens retrieve from.
      key: [B, 2 · segment, H, D], the segment's keys: of retrieved tokens, then of its own; not yet rotated.
      value: [B, 2 · segment, H, D].
      position: [B] int32, tokens of the segment that were read; 0 between segments.
    """

    memory: MemoryLayerState
    retrieved: Any
    key: jax.Array
    value: jax.Array
    position: jax.Array


class MemoryAsContext(_Hybrid):
    r"""MAC: attention over a segment and what the memory knows of it; the memory then learns what attention read.

    For each segment S, with M from the segments before (Titans eqs 21-25):

    .. math::
      h = M(S W_Q), \quad y = \mathrm{Attn}([p \| h \| S]), \quad M' = M(y), \quad o = y \otimes M'(y)

    Deliberate deviations, without which a token would see later ones of its segment: token t attends to the retrieved
    tokens :math:`h_j` with j ≤ t only, and is gated by the memory that has learned y up to t (the memory's `read`). Our
    choices where the paper is silent: h and S share their positions; the query of h has a SiLU and length 1 and no
    convolution; y is normalised before the memory, whose chunks diverge where values grow (as a memory layer's inputs
    are everywhere). The attention's window is the segment, a multiple of the memory's chunk.
    """

    def setup(self):
        super().setup()
        self.retrieve_query = nn.Dense(self.memory.key_width, use_bias=False, dtype=self.dtype)
        self.retrieve_norm, self.write_norm = RMSNorm(), RMSNorm()
        self.retrieve_output = nn.Dense(self.dim, use_bias=False, dtype=self.dtype)
        self.combine = Gated()

    @property
    def _segment(self) -> int:
        assert self.attention_config.window is not None
        return self.attention_config.window

    def start(self, batch_size: int) -> ContextState:
        """Returns the state before the first token."""
        memory = self.memory.start(batch_size)
        empty = self.attention.start(batch_size).key
        cache = jnp.concatenate([empty, empty], axis=1)
        return ContextState(memory, memory.memory, cache, cache, jnp.zeros(batch_size, jnp.int32))

    def __call__(
        self, inputs: jax.Array, state: ContextState | None = None, segments: jax.Array | None = None
    ) -> tuple[jax.Array, ContextState]:
        """Runs over T tokens, segment by segment; opens a new segment.

        Args:
          inputs: [B, T, dim].
          state: what came before; None at the beginning of a document.
          segments: optional [B, T], the document of each token. Documents begin where segments do.

        Returns:
          [B, T, dim] and the next state.
        """
        batch, length = inputs.shape[:2]
        size = self._segment
        first = self.start(batch)
        state = first if state is None else state
        fresh = self._fresh(segments, batch, -(-length // size))
        full, rest = divmod(length, size)
        outputs = []
        if full:
            parts = jnp.moveaxis(inputs[:, : full * size].reshape(batch, full, size, -1), 1, 0)

            def body(layer: MemoryAsContext, carry: ContextState, xs: tuple[jax.Array, jax.Array]):
                part, begins = xs
                read, carry = layer._part(part, layer._begin(carry, first, begins), None)
                return carry, read

            scan = nn.scan(
                nn.remat(body, prevent_cse=False),
                variable_broadcast="params",
                variable_axes={"diagnostics": 0},
                split_rngs={"params": False},
            )
            state, read = scan(self, state, (parts, fresh[:full]))
            outputs.append(jnp.moveaxis(read, 0, 1).reshape(batch, full * size, -1))
        if rest:
            read, state = self._part(inputs[:, full * size :], self._begin(state, first, fresh[full]), None)
            outputs.append(read)
        return jnp.concatenate(outputs, axis=1), state

    def step(self, inputs: jax.Array, state: ContextState, learn: bool = True) -> tuple[jax.Array, ContextState]:
        """[B, dim] → [B, dim] and the next state; goes on with an open segment; see `MemoryLayer.step`."""
        read, state = self._part(inputs[:, None], state, state.position, learn)
        return read[:, 0], state

    def _part(
        self, inputs: jax.Array, state: ContextState, position: jax.Array | None, learn: bool = True
    ) -> tuple[jax.Array, ContextState]:
        """Tokens of one segment from its start, at most all; or one token of every row at its position."""
        size, (batch, length) = self._segment, inputs.shape[:2]
        retrieved, begin = state.memory.memory, jnp.zeros(batch, jnp.int32)
        if position is not None:
            begin, retrieved = position, _choose(position == 0, retrieved, state.retrieved)
        context = self._retrieve(inputs, retrieved)
        key, value = (
            _fill(old, project(context), project(inputs), begin)
            for old, project in ((state.key, self.attention.key), (state.value, self.attention.value))
        )
        places, persistent = jnp.tile(jnp.arange(size), 2), self.attention.persistent()

        def attend(query: jax.Array, key: jax.Array, value: jax.Array, begin: jax.Array) -> jax.Array:
            at, base = begin + jnp.arange(length), self.attention_config.rope_base
            mask = places[None] <= at[:, None]
            return weigh(query[None], key[None], value[None], at, places, mask[None], base, persistent)[0]

        read = self.attention.output(jax.vmap(attend)(self.attention.query(inputs), key, value, begin))
        written = self.write_norm(read)
        if position is None:
            gate, memory = self.memory(written, state.memory, None)
        else:
            gate, memory = self.memory.step(written[:, 0], state.memory, learn)
            gate = gate[:, None]
        after = (begin + length) % size
        return self.combine(read, gate), ContextState(memory, retrieved, key, value, after)

    def _retrieve(self, inputs: jax.Array, memory: Any) -> jax.Array:
        """h: what the memory of the segments before answers, [B, T, dim]."""
        heads = self.memory_config.heads
        query = nn.silu(self.retrieve_query(inputs)).astype(at_least_float32(self.dtype))
        query = self.memory.expand(l2_normalise(query.reshape(*inputs.shape[:2], heads, -1)))
        recall = jax.vmap(jax.vmap(self.memory_config.memory.recall))
        answer = jnp.moveaxis(recall(memory, jnp.moveaxis(query, 2, 1)), 1, 2)
        normed = self.retrieve_norm(answer).reshape(*inputs.shape[:2], -1).astype(self.dtype)
        return self.retrieve_output(normed)

    def _fresh(self, segments: jax.Array | None, batch: int, count: int) -> jax.Array:
        """[N, B], whether a segment begins a document."""
        if segments is None:
            return jnp.zeros((count, batch), bool)
        now = segments[:, :: self._segment]
        return (now != jnp.concatenate([jnp.zeros_like(now[:, :1]), now[:, :-1]], axis=1)).T

    def _begin(self, state: ContextState, first: ContextState, begins: jax.Array) -> ContextState:
        """The state at a segment's start, that of an empty layer in the rows where a document begins."""
        return state._replace(memory=_choose(begins, first.memory, state.memory))


def _choose(rows: jax.Array, new: Any, old: Any) -> Any:
    """Trees [B, ...]: `new` in the rows that are set."""
    return jax.tree.map(lambda a, b: jnp.where(rows.reshape(-1, *[1] * (b.ndim - 1)), a, b), new, old)


def _fill(old: jax.Array, context: jax.Array, own: jax.Array, begin: jax.Array) -> jax.Array:
    """A segment's cache [B, 2 · segment, ...], new entries from `begin` [B] on, the retrieved in its first half."""
    put = jax.vmap(lambda half, new, at: jax.lax.dynamic_update_slice_in_dim(half, new.astype(half.dtype), at, 0))
    first, second = jnp.split(old, 2, axis=1)
    return jnp.concatenate([put(first, context, begin), put(second, own, begin)], axis=1)
