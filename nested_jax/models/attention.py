"""Causal softmax attention with rotary positions and an explicit cache: the mixer of the Transformer++ baseline."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from nested_jax.models import sequence
from nested_jax.models.config import AttentionConfig
from nested_jax.models.layers import at_least_float32
from nested_jax.models.placement import HEADS, PLACES, ROWS, TIME, constrain, on_own
from nested_jax.scan import ring

_STREAMS, _CACHES = P(ROWS, TIME, HEADS), P(ROWS, None, HEADS)  # [B, T, H, ...]


class AttentionState(NamedTuple):
    """The last keys and values, oldest first, so that the newest are at the end.

    Keys are stored before rotation: rotary scores depend on distances only, so places inside the cache serve as
    positions and stay small however long the sequence gets.

    Attributes:
      key: [B, S, H, D], S being the window, or the longest context where there is no window.
      value: [B, S, H, D].
      length: [B] int32, how many places at the end are filled with the current document.
    """

    key: jax.Array
    value: jax.Array
    length: jax.Array


def rotate(inputs: jax.Array, positions: jax.Array, base: float | None) -> jax.Array:
    r"""Turns pairs of features by angles proportional to the position (RoPE, Su et al. 2021, eq 34).

    Args:
      inputs: [B, T, H, D] with even D; features i and i + D/2 are a pair, turned by position · base^(−2i/D).
      positions: [T].
      base: the slowest pair turns by almost 1 / base per position; None turns nothing.

    Returns:
      [B, T, H, D] in the dtype of ``inputs``.
    """
    if base is None:
        return inputs
    half = inputs.shape[-1] // 2
    frequency = base ** (-jnp.arange(half, dtype=at_least_float32(inputs.dtype)) / half)
    angle = (positions.astype(frequency.dtype)[:, None] * frequency[None])[None, :, None]
    first, second = inputs[..., :half], inputs[..., half:]
    turned = [first * jnp.cos(angle) - second * jnp.sin(angle), first * jnp.sin(angle) + second * jnp.cos(angle)]
    return jnp.concatenate(turned, axis=-1).astype(inputs.dtype)


Persistent = tuple[jax.Array, jax.Array]  # keys and values [P, H, D] that every query sees


def weigh(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_at: jax.Array,
    key_at: jax.Array,
    mask: jax.Array,
    rope_base: float | None,
    persistent: Persistent | None = None,
) -> jax.Array:
    """Softmax attention at given places. Scores and their softmax are in float32 or better.

    Args:
      query: [B, T, H, D].
      key: [B, S, H, D].
      value: [B, S, H, D].
      query_at: [T], the queries' positions.
      key_at: [S], the keys' positions.
      mask: bool [B, T, S], which keys a query sees.
      rope_base: see :func:`rotate`.
      persistent: keys and values that all queries see, at no position: neither they nor the queries that meet them are
        rotated (our choice; Titans is silent).

    Returns:
      [B, T, H, D].
    """
    wide, scale = at_least_float32(query.dtype), query.shape[-1] ** -0.5

    turned, keys = rotate(query, query_at, rope_base), rotate(key, key_at, rope_base)
    scores = jnp.einsum("bthd,bshd->bhts", turned, keys, preferred_element_type=wide)
    scores = jnp.where(mask[:, None], scores * scale, -jnp.inf)
    if persistent is None:
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        return jnp.einsum("bhts,bshd->bthd", weights, value)
    fixed = jnp.einsum("bthd,phd->bhtp", query, persistent[0], preferred_element_type=wide) * scale
    weights = jax.nn.softmax(jnp.concatenate([fixed, scores], axis=-1), axis=-1).astype(value.dtype)
    count = len(persistent[0])
    read = jnp.einsum("bhts,bshd->bthd", weights[..., count:], value)
    return read + jnp.einsum("bhtp,phd->bthd", weights[..., :count], persistent[1])


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_segments: jax.Array,
    key_segments: jax.Array,
    window: int | None,
    rope_base: float | None,
    persistent: Persistent | None = None,
) -> jax.Array:
    """Softmax attention of each of T queries over itself and the earlier keys of its document.

    Args:
      query: [B, T, H, D]; query t stands at the place of key S − T + t.
      key: [B, S, H, D], S ≥ T.
      value: [B, S, H, D].
      query_segments: [B, T], the document of each query.
      key_segments: [B, S], the document of each key; −1 for an empty place.
      window: how many last places a query sees, itself included; None for all.
      rope_base: see :func:`rotate`.
      persistent: see :func:`weigh`.

    Returns:
      [B, T, H, D].
    """
    earlier = key.shape[1] - query.shape[1]
    query_at, key_at = jnp.arange(query.shape[1]) + earlier, jnp.arange(key.shape[1])
    distance = query_at[:, None] - key_at[None]
    near = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    mask = near[None] & (query_segments[:, :, None] == key_segments[:, None])
    return weigh(query, key, value, query_at, key_at, mask, rope_base, persistent)


def attend_in_blocks(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_segments: jax.Array,
    key_segments: jax.Array,
    window: int,
    rope_base: float | None,
    persistent: Persistent | None = None,
) -> jax.Array:
    """The same numbers as :func:`attend` for a window, with work and memory in T · window instead of T · S.

    Queries are cut into blocks of ``window``, each of which sees its own block and the one before.

    Args:
      query: [B, T, H, D].
      key: [B, window + T, H, D].
      value: [B, window + T, H, D].
      query_segments: [B, T].
      key_segments: [B, window + T].
      window: how many last places a query sees, itself included.
      rope_base: see :func:`rotate`.
      persistent: see :func:`weigh`.

    Returns:
      [B, T, H, D].
    """
    batch, length = query.shape[:2]
    blocks = -(-length // window)

    def cut(x: jax.Array) -> jax.Array:
        padding = [(0, 0), (0, -length % window)] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(x, padding).reshape(batch, -1, window, *x.shape[2:])

    def fold(x: jax.Array) -> jax.Array:
        return x.reshape(batch * blocks, *x.shape[2:])

    def pair(x: jax.Array) -> jax.Array:
        x = cut(x)
        return fold(jnp.concatenate([x[:, :-1], x[:, 1:]], axis=2))

    read = attend(
        fold(cut(query)),
        pair(key),
        pair(value),
        fold(cut(query_segments)),
        pair(key_segments),
        window,
        rope_base,
        persistent,
    )
    return read.reshape(batch, blocks * window, *query.shape[2:])[:, :length]


class Tokens(NamedTuple):
    """Tokens: query, key and value [B, T, H, D], and the document of each, [B, T]."""

    query: jax.Array
    key: jax.Array
    value: jax.Array
    segments: jax.Array


Past = tuple[jax.Array, jax.Array, jax.Array]  # keys, values [B, S, H, D], documents [B, S] of the places before


def _extend(
    new: Tokens, past: Past, window: int | None, rope_base: float | None, persistent: Persistent | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Attention over cached and new places: [B, T, H, D], and the last S keys and values."""
    keys, values, segments = (jnp.concatenate(x, axis=1) for x in zip(past, new[1:], strict=True))
    if window is not None and new.query.shape[1] > window:
        read = attend_in_blocks(new.query, keys, values, new.segments, segments, window, rope_base, persistent)
    else:
        read = attend(new.query, keys, values, new.segments, segments, window, rope_base, persistent)
    places = past[0].shape[1]
    return read, keys[:, -places:], values[:, -places:]


def _split_window(
    new: Tokens, past: Past, window: int, rope_base: float | None, persistent: Persistent | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """:func:`_extend` for a window over a split sequence: a piece's cache is the end of the pieces before it."""

    def piece(streams: Any, segments: jax.Array, cache: Any, filled: jax.Array, persistent: Persistent | None):
        query, key, value = streams
        earlier_key, earlier_value = sequence.before(key, cache[0]), sequence.before(value, cache[1])
        earlier = earlier_key, earlier_value, sequence.before(segments, filled)
        read, keys, values = _extend(Tokens(query, key, value, segments), earlier, window, rope_base, persistent)
        return read, *ring.from_last(TIME, (keys, values))

    before = _STREAMS, PLACES, _CACHES, P(ROWS), P(None, HEADS)
    run = on_own(piece, before, (_STREAMS, _CACHES, _CACHES))
    return run((new.query, new.key, new.value), new.segments, past[:2], past[2], persistent)


class Attention(nn.Module):
    """Attention over given queries, keys and values, with the cache written out; it has no parameters of its own.

    Attributes:
      config: heads, window, cache length.
      dim: features of a token.
      dtype: of the computation; parameters are float32.
    """

    config: AttentionConfig
    dim: int
    dtype: DTypeLike = jnp.float32

    def start(self, batch_size: int) -> AttentionState:
        """Returns the empty cache."""
        places = self.config.window or self.config.max_length
        shape = (batch_size, places, self.config.heads, self.dim // self.config.heads)
        zeros = jnp.zeros(shape, self.dtype)
        return AttentionState(zeros, zeros, jnp.zeros(batch_size, jnp.int32))

    def read(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        state: AttentionState | None = None,
        segments: jax.Array | None = None,
        persistent: Persistent | None = None,
    ) -> tuple[jax.Array, AttentionState]:
        """Reads and extends the cache by T tokens.

        Args:
          query: [B, T, H, D].
          key: [B, T, H, D], not rotated.
          value: [B, T, H, D].
          state: what came before; None at the beginning of a document.
          segments: optional [B, T], the document of each token; the cache is in document 0.
          persistent: keys and values that every token sees.

        Returns:
          [B, T, H, D] and the next cache.

        Raises:
          ValueError: without a window, if the context gets longer than ``max_length``. Under ``jit`` with a
            carried state the length is not known; the oldest tokens are then dropped.
        """
        batch, length = query.shape[:2]
        base, window = self.config.rope_base, self.config.window
        self._check_room(length, state)
        segments = jnp.zeros((batch, length), jnp.int32) if segments is None else segments.astype(jnp.int32)
        past = self.start(batch) if state is None else state
        places = past.key.shape[1]
        filled = jnp.where(jnp.arange(places)[None] >= places - past.length[:, None], 0, -1)
        query, key, value = constrain((query, key, value), _STREAMS)
        new, old = Tokens(query, key, value, segments), (past.key, past.value, filled)
        members = sequence.members()
        if window is not None and members > 1 and length % members == 0:
            read, keys, values = _split_window(new, old, window, base, persistent)
        elif state is None and (window is None or length <= window):
            read = attend(query, key, value, segments, segments, window, base, persistent)
            keys, values = (jnp.concatenate(x, axis=1)[:, -places:] for x in ((past.key, key), (past.value, value)))
        else:
            read, keys, values = _extend(new, old, window, base, persistent)
        last = segments[:, -1:]
        seen = jnp.sum(segments == last, axis=1) + jnp.where(last[:, 0] == 0, past.length, 0)
        keys, values = constrain((keys, values), _CACHES)
        count = constrain(jnp.minimum(seen, places).astype(jnp.int32), P(ROWS))
        return read, AttentionState(keys, values, count)

    def _check_room(self, length: int, state: AttentionState | None) -> None:
        if self.config.window is not None:
            return
        total = length
        if state is not None and not isinstance(state.length, jax.core.Tracer):
            total += int(jnp.max(state.length))
        if total > self.config.max_length:
            raise ValueError(
                f"attention without a window holds at most max_length={self.config.max_length} tokens, got {total}; "
                "set a larger max_length or a window"
            )


class AttentionLayer(Attention):
    """Multi-head causal attention, over the whole document or a sliding window.

    Without biases, as in Llama; packed documents do not see one another. Persistent tokens are learned inputs whose
    keys and values every token sees (Titans eq 19); what they would read themselves goes nowhere and is left out.
    """

    def setup(self):
        features = (self.config.heads, self.dim // self.config.heads)

        def dense() -> nn.DenseGeneral:
            return nn.DenseGeneral(features, use_bias=False, dtype=self.dtype)

        self.query, self.key, self.value = dense(), dense(), dense()
        if self.config.persistent:
            self.tokens = self.param("persistent", nn.initializers.normal(1.0), (self.config.persistent, self.dim))
        self.output = nn.DenseGeneral(self.dim, axis=(-2, -1), use_bias=False, dtype=self.dtype)

    def persistent(self) -> Persistent | None:
        """Returns the keys and values of the persistent tokens, [P, H, D] each; None where there are none."""
        if not self.config.persistent:
            return None
        tokens = self.tokens.astype(self.dtype)
        return self.key(tokens), self.value(tokens)

    def __call__(
        self, inputs: jax.Array, state: AttentionState | None = None, segments: jax.Array | None = None
    ) -> tuple[jax.Array, AttentionState]:
        """Reads and extends the cache by T tokens: [B, T, dim] → [B, T, dim], see :meth:`Attention.read`."""
        query, key, value = self.query(inputs), self.key(inputs), self.value(inputs)
        read, state = self.read(query, key, value, state, segments, self.persistent())
        return self.output(read), state

    def step(self, inputs: jax.Array, state: AttentionState) -> tuple[jax.Array, AttentionState]:
        """Reads and extends the cache by one token: [B, dim] → [B, dim]."""
        outputs, state = self(inputs[:, None], state)
        return outputs[:, 0], state
