"""One level of a slot memory: events, addresses, reading and writing (CMS §3.2-3.3, §4, §9.2, §11.1-11.2)."""

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nested_jax.memory.slots import rows as store
from nested_jax.memory.slots.rows import STORAGES, Rows

Weights = Mapping[str, jax.Array]


class LevelState(NamedTuple):
    """What a level carries.

    Attributes:
      values: M, N rows of the level's width.
      keys: K, N rows of the key's width.
      usage: [N], how much each slot was read and written of late; None where addresses do not ask.
      frozen: [N, d_k], the keys at the start of the chunk; None where chunks are of one token.
    """

    values: Rows
    keys: Rows
    usage: jax.Array | None
    frozen: jax.Array | None


class Address(NamedTuple):
    """Weights [K] of some slots and which ones they are, [K]; None for all of them in order."""

    weights: jax.Array
    index: jax.Array | None


class Event(NamedTuple):
    """What a token does to a level.

    Attributes:
      gate: g, [...].
      value: v, [..., w].
      key: k, [..., d_k].
      decay: d, [...].
    """

    gate: jax.Array
    value: jax.Array
    key: jax.Array
    decay: jax.Array


@dataclasses.dataclass(frozen=True)
class Level:
    r"""Slots that fade at one pace (CMS §4.5).

    .. math::
      M_t = (1 - d)\, M_{t-1} + g_t\, \tilde\alpha_t \otimes v_t, \qquad
      K_t = (1 - d)\, K_{t-1} + g_t\, \tilde\alpha_t \otimes k_t

    Attributes:
      slots: N.
      width: w, features of a value. The source's :math:`d_\ell` is both this (§2.1) and the decay.
      decay: d in (0, 1), what a step forgets; where it is `adaptive`, what it is for an event of zeros.
      content: λ in [0, 1], the share of content in write addresses: 1 writes where keys are alike, 0 to the least
        recently used slot, in between both (§4.4, options 1, 2, 3).
      threshold: writes whose gate is not above it are left out (§9.2).
      adaptive: whether events change the decay (§11.1).
      top_k: reads and content addresses keep to so many slots, those of the best keys; None for all (§11.2).
      storage: what rows are kept as between steps: "int8", "float16", "bfloat16", or None for float32 (§9.3).

    Raises:
      ValueError: if a field is out of range.

    Example:
      >>> print(round(Level(64, 128, decay=0.1).half_life, 1))
      6.6
    """

    slots: int
    width: int
    decay: float
    content: float = 1.0
    threshold: float = 0.0
    adaptive: bool = False
    top_k: int | None = None
    storage: str | None = None

    def __post_init__(self):
        for name, largest in (("slots", None), ("width", None), ("top_k", self.slots)):
            value = getattr(self, name)
            if name == "top_k" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1 or (largest and value > largest):
                upper = f" and <= slots={largest}" if largest else ""
                raise ValueError(f"{name}: expected an integer >= 1{upper}, got {value!r}")
        if not 0 < self.decay < 1:
            raise ValueError(f"decay: expected a number inside (0, 1), got {self.decay}")
        for name in ("content", "threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a number in [0, 1], got {getattr(self, name)}")
        if self.storage is not None and self.storage not in STORAGES:
            raise ValueError(f"storage: expected None or one of {STORAGES}, got {self.storage!r}")

    @property
    def half_life(self) -> float:
        """Steps until half of a value is forgotten, log 0.5 / log(1 − d) (§5.2)."""
        return math.log(0.5) / math.log1p(-self.decay)

    def init(self, key: jax.Array, inputs: int, key_dim: int, event_dim: int, context_dim: int) -> dict[str, jax.Array]:
        """Parameters of the level: slots before the first event, and the maps of §3.4 (U) and §4.1-4.3.

        Our choice: keys of unit variance, so that slots differ from the start, values of zero; maps of variance one
        over their inputs; gates of one half for every event.

        Args:
          key: a PRNG key.
          inputs: features that events are made of.
          key_dim: d_k.
          event_dim: d_z.
          context_dim: d_c.

        Returns:
          A flat dict.
        """
        shapes = {
            "event": (inputs, event_dim),
            "value": (event_dim, self.width),
            "key": (event_dim, key_dim),
            "project": (self.width, context_dim),
        }
        first, *keys = jax.random.split(key, 1 + len(shapes))
        maps = {
            name: jax.random.normal(k, shape) / math.sqrt(shape[0])
            for k, (name, shape) in zip(keys, shapes.items(), strict=True)
        }
        slots = {"keys": jax.random.normal(first, (self.slots, key_dim)), "values": jnp.zeros((self.slots, self.width))}
        gates = {name: jnp.zeros(event_dim) for name in ("gate", *["decay"] * self.adaptive)}
        return slots | maps | gates

    def start(self, weights: Weights, chunked: bool) -> LevelState:
        """The state before the first event; `chunked` where addresses of a chunk are those of its start."""
        keys = store.encode(weights["keys"], self.storage)
        usage = jnp.zeros_like(keys.scale) if self.content < 1 else None
        frozen = store.decode(keys) if chunked else None
        return LevelState(store.encode(weights["values"], self.storage), keys, usage, frozen)

    def event(self, weights: Weights, inputs: jax.Array) -> Event:
        """z = SiLU(inputs E), then gate, value, key and decay from z (§4.1-4.3, §11.1): [..., D] each at once.

        Our choice where CMS names a network only: one layer with SiLU for Z, linear maps behind it.
        """
        event = jax.nn.silu(inputs @ weights["event"])
        gate = jax.nn.sigmoid(event @ weights["gate"])
        start = math.log(self.decay) - math.log1p(-self.decay)
        decay = jax.nn.sigmoid(start + event @ weights["decay"]) if self.adaptive else jnp.full_like(gate, self.decay)
        return Event(
            jnp.where(gate > self.threshold, gate, 0.0), event @ weights["value"], event @ weights["key"], decay
        )

    def attend(self, state: LevelState, vector: jax.Array) -> Address:
        r"""Content-based weights, :math:`\mathrm{softmax}(K x / \sqrt{d_k})` (§3.2; §4.4, option 1).

        Args:
          state: the level; in a chunk its keys are those of the chunk's start.
          vector: a query or a write key, [d_k].

        Returns:
          All slots, or the `top_k` of the largest weights, by an exact search (`jax.lax.top_k`) over N scores.
        """
        if self.top_k is not None:
            index = self.search(state, vector)
            return Address(_near(store.take(state.keys, index), vector), index)
        keys = state.keys if state.frozen is None else Rows(state.frozen, jnp.ones_like(state.keys.scale))
        return Address(_near(keys, vector), None)

    def search(self, state: LevelState, vector: jax.Array) -> jax.Array:
        """The `top_k` slots whose keys are best for a vector [d_k], int [top_k]: exact, over N scores."""
        assert self.top_k is not None
        scores = (state.keys.codes.astype(vector.dtype) @ vector) * state.keys.scale
        return jax.lax.top_k(jax.lax.stop_gradient(scores), self.top_k)[1]

    def read(self, state: LevelState, address: Address) -> jax.Array:
        """c = α^T M (§3.3), [w]."""
        return address.weights @ store.decode(store.take(state.values, address.index))

    def token(self, state: LevelState, query: jax.Array, event: Event) -> tuple[jax.Array, LevelState]:
        """What a token reads, [w], and the level after it: `attend`, `read`, `place` and `write`.

        With `top_k` the rows of both addresses are gathered once: beside the search and the fading of scales nothing
        then depends on N, as XLA puts the new rows in the place of the old ones.
        """
        if self.top_k is None:
            read, written = self.attend(state, query), self.place(state, event.key)
            return self.read(state, read), self.write(state, read, written, event)
        near = [self.search(state, vector) for vector in ([query, event.key] if self.content > 0 else [query])]
        oldest = [] if state.usage is None else [jnp.argmin(state.usage)[None]]
        asked, count = jnp.concatenate([*near, *oldest]), self.top_k
        keys, values = (store.take(rows, asked) for rows in (state.keys, state.values))
        read = Address(_near(_part(keys, slice(count)), query), near[0])
        written, behind = Address(jnp.ones_like(keys.scale[:1]), asked[count:]), slice(count, None)
        if self.content > 0:
            written = Address(_near(_part(keys, slice(count, 2 * count)), event.key), near[1])
        if oldest and self.content > 0:
            written = self._with_oldest(written, oldest[0][0], state.keys.scale.shape[0])
        context = read.weights @ store.decode(_part(values, slice(count)))
        return context, self.write(state, read, written, event, (_part(values, behind), _part(keys, behind)))

    def place(self, state: LevelState, key: jax.Array) -> Address:
        """Where an event is written (§4.4)."""
        if state.usage is None:
            return self.attend(state, key)
        if self.content == 0:
            return Address(jnp.ones_like(state.usage[:1]), jnp.argmin(state.usage)[None])
        near = self.attend(state, key)
        if near.index is None:
            return Address(self.blend(near.weights, state.usage), None)
        return self._with_oldest(near, jnp.argmin(state.usage), state.usage.shape[0])

    def _with_oldest(self, near: Address, oldest: jax.Array, count: int) -> Address:
        """`blend` for a few slots: the oldest of all `count` is among them, or is one more."""
        assert near.index is not None
        rest, found = 1 - self.content, near.index == oldest
        extra = jnp.where(found.any(), count, oldest)  # beyond the last slot nothing is written
        return Address(jnp.append(self.content * near.weights + rest * found, rest), jnp.append(near.index, extra))

    def blend(self, weights: jax.Array, usage: jax.Array) -> jax.Array:
        """λ content + (1 − λ) one_hot(argmin usage), [N] each (§4.4, options 2 and 3)."""
        oldest = jax.nn.one_hot(jnp.argmin(usage), usage.shape[0], dtype=usage.dtype)
        return self.content * weights + (1 - self.content) * oldest

    def write(
        self,
        state: LevelState,
        read: Address,
        written: Address,
        event: Event,
        gathered: tuple[Rows, Rows] | None = None,
    ) -> LevelState:
        """Decay and write, of values and keys alike (§4.5).

        Usage, which CMS leaves open, is told of both addresses and fades with the slots (our choice):
        :math:`u_t = (1 - d)\\, u_{t-1} + \\alpha_t + g_t \\tilde\\alpha_t`. Writes to all slots
        that the threshold leaves out are skipped in a single sequence; under `jax.vmap` they are computed and dropped.

        Args:
          state: before the token.
          read: where it was read.
          written: where it is written.
          event: what is written.
          gathered: the values and keys at `written`, if they were gathered before.
        """
        kept = 1 - event.decay
        strength = event.gate * written.weights

        def add(state: LevelState) -> LevelState:
            index = written.index
            if self.threshold and index is not None:
                index = jnp.where(event.gate > 0, index, state.keys.scale.shape[0])
            old = [store.take(rows, written.index) for rows in (state.values, state.keys)]
            if gathered is not None:
                old = [store.scaled(rows, kept) for rows in gathered]
            values, keys = (
                store.put(rows, index, store.encode(store.decode(before) + jnp.outer(strength, new), self.storage))
                for rows, before, new in zip((state.values, state.keys), old, (event.value, event.key), strict=True)
            )
            return state._replace(values=values, keys=keys)

        usage = state.usage
        if usage is not None:
            usage = kept * usage
            for weights, index in (read, Address(strength, written.index)):
                usage = usage + weights if index is None else usage.at[index].add(weights)
        faded = state._replace(
            values=store.scaled(state.values, kept), keys=store.scaled(state.keys, kept), usage=usage
        )
        if self.threshold and written.index is None:
            return jax.lax.cond(event.gate > 0, add, lambda state: state, faded)
        return add(faded)


def _near(keys: Rows, vector: jax.Array) -> jax.Array:
    """softmax(K x / sqrt(d_k)) over some rows of keys."""
    codes = keys.codes.astype(vector.dtype)
    return jax.nn.softmax((codes @ (vector / math.sqrt(codes.shape[-1]))) * keys.scale)


def _part(rows: Rows, part: slice) -> Rows:
    return Rows(rows.codes[part], rows.scale[part])
