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
        keys, scale = state.keys.codes.astype(vector.dtype), state.keys.scale
        if state.frozen is not None:
            keys, scale = state.frozen, jnp.ones_like(scale)
        query = vector / math.sqrt(keys.shape[-1])
        if self.top_k is None:
            return Address(jax.nn.softmax((keys @ query) * scale), None)
        index = jax.lax.top_k(jax.lax.stop_gradient((keys @ query) * scale), self.top_k)[1]
        return Address(jax.nn.softmax((keys[index] @ query) * scale[index]), index)

    def read(self, state: LevelState, address: Address) -> jax.Array:
        """c = α^T M (§3.3), [w]."""
        return address.weights @ store.decode(store.take(state.values, address.index))

    def read_and_write(
        self, state: LevelState, read: Address, written: Address, event: Event
    ) -> tuple[jax.Array, LevelState]:
        """`read`, then `write`. Where both ask for a few slots their values are gathered once, and none is copied."""
        if read.index is None or written.index is None:
            return self.read(state, read), self.write(state, read, written, event)
        both = store.take(state.values, jnp.concatenate([read.index, written.index]))
        first, second = (jax.tree.map(lambda x, part=part: x[part], both) for part in _halves(read.index.shape[0]))
        return read.weights @ store.decode(first), self.write(state, read, written, event, second)

    def place(self, state: LevelState, key: jax.Array) -> Address:
        """Where an event is written (§4.4)."""
        if state.usage is None:
            return self.attend(state, key)
        if self.content == 0:
            return Address(jnp.ones_like(state.usage[:1]), jnp.argmin(state.usage)[None])
        weights, index = self.attend(state, key)
        if index is None:
            return Address(self.blend(weights, state.usage), None)
        rest, oldest = 1 - self.content, jnp.argmin(state.usage)
        found = index == oldest
        extra = jnp.where(found.any(), state.usage.shape[0], oldest)  # beyond the last slot nothing is written
        return Address(jnp.append(self.content * weights + rest * found, rest), jnp.append(index, extra))

    def blend(self, weights: jax.Array, usage: jax.Array) -> jax.Array:
        """λ content + (1 − λ) one_hot(argmin usage), [N] each (§4.4, options 2 and 3)."""
        oldest = jax.nn.one_hot(jnp.argmin(usage), usage.shape[0], dtype=usage.dtype)
        return self.content * weights + (1 - self.content) * oldest

    def write(
        self, state: LevelState, read: Address, written: Address, event: Event, values: Rows | None = None
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
          values: the values at `written`, if they were gathered before.
        """
        kept = 1 - event.decay
        strength = event.gate * written.weights

        def add(state: LevelState) -> LevelState:
            index = written.index
            if self.threshold and index is not None:
                index = jnp.where(event.gate > 0, index, state.keys.scale.shape[0])
            after = []
            for rows, known, new in ((state.values, values, event.value), (state.keys, None, event.key)):
                old = store.take(rows, written.index) if known is None else store.scaled(known, kept)
                after.append(
                    store.put(rows, index, store.encode(store.decode(old) + jnp.outer(strength, new), self.storage))
                )
            return state._replace(values=after[0], keys=after[1])

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


def _halves(place: int) -> tuple[slice, slice]:
    return slice(None, place), slice(place, None)
