"""`Cached`: a memory that keeps its last weights of every segment and reads from all of them (Memory Caching eqs 7-17).

residual:  y_t = M_t(q_t) + Σ_i M^(i)(q_t)                                            i over the cached segments
grm:       y_t = g_t M_t(q_t) + Σ_i g_t^(i) M^(i)(q_t),   (g_t, g_t^(i)) = softmax(⟨u_t, mean of the segment's keys⟩)
soup:      y_t = M*(q_t) with the weights g_t W_t + Σ_i g_t^(i) W^(i)
ssc:       grm over the `top_k` cached segments of the highest scores, and the present one
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nested_jax.memory.memory import Memory, check_reset
from nested_jax.memory.soup import Soup
from nested_jax.scan.operations import Plain
from nested_jax.scan.state import MemoryState, select

COMBINATIONS = ("residual", "grm", "soup", "ssc")


class Cache(NamedTuple):
    """The segments that ended, oldest first.

    Attributes:
      weights: name -> [N, ...], the last weights of each.
      keys: [N, D_k], the mean of its keys.
      live: bool [N], whether there is one.
    """

    weights: dict[str, jax.Array]
    keys: jax.Array
    live: jax.Array


class CachedState(NamedTuple):
    """What a `Cached` carries.

    Attributes:
      position: int32, tokens of the open segment, in [0, segment_size).
      memory: the memory's own state.
      key_sum: [D_k], the sum of the open segment's keys.
      cache: the segments before.
    """

    position: jax.Array
    memory: MemoryState
    key_sum: jax.Array
    cache: Cache


@dataclasses.dataclass(frozen=True)
class Cached:
    r"""A memory with a cache of what it was at the end of every segment.

    With :math:`M_t` the memory now and :math:`M^{(i)}` those at the ends of the segments before,

    .. math::
      y_t = g_t M_t(q_t) + \sum_i g^{(i)}_t M^{(i)}(q_t), \qquad
      (g_t, g^{(i)}_t) = \mathrm{softmax}_i \langle u_t, \mathrm{mean}\,k^{(i)} \rangle

    or one of the variants below. It is called as `nj.Memory` is, with the gates of the memory inside and one more that
    may be left out: `route` [T, D_k], u; by default the query. The mean of the present segment's keys goes up to t:
    that of all would let tokens see later ones.

    Attributes:
      memory: the memory inside.
      segment_size: tokens of a segment, a multiple of the memory's `chunk_size`.
      combine: "residual" (a plain sum), "grm" (as above), "soup" (the weights are averaged instead of the answers; the
        same for a linear memory), "ssc" ("grm" over the `top_k` cached segments with the highest scores and the present
        one; answers of the others are computed and not used).
      top_k: for "ssc", and only there.
      capacity: how many segments the cache holds; the oldest is dropped for a new one.
      restart: whether every segment begins at the initial weights, so that segments run side by side (except with
        "soup", where a read needs the weights of the segments before); otherwise at the previous segment's end.

    Raises:
      ValueError: if a field is out of range, or `segment_size` no multiple of the memory's chunk.

    Example:
      >>> import jax, jax.numpy as jnp, nested_jax as nj
      >>> rule = nj.rules.gradient_descent(1.0)
      >>> inner = nj.Memory(nj.networks.Linear(), nj.objectives.dot_product, rule, chunk_size=2)
      >>> memory = nj.memory.Cached(inner, segment_size=4, combine="residual", restart=True)
      >>> state = memory.start(memory.init(jax.random.key(0), 4))
      >>> keys, values, queries = jax.random.normal(jax.random.key(1), (3, 10, 4))
      >>> y, state = jax.jit(memory.scan)(state, keys, values, queries)
      >>> bool(jnp.allclose(y, jnp.tril(queries @ keys.T) @ values, atol=1e-5)), int(state.cache.live.sum())
      (True, 2)

    References:
      Behrouz et al., `Memory Caching <https://arxiv.org/abs/2602.24281>`_, 2026, equations (7), (9), (14-17).

    .. note::
      `nj.memory.TNT` also restarts memories, and forgets what they were.
    """

    memory: Memory
    segment_size: int = 256
    combine: str = "grm"
    top_k: int | None = None
    capacity: int = 16
    restart: bool = False

    def __post_init__(self):
        if not isinstance(self.memory, Memory):
            raise ValueError(f"memory: expected an nj.Memory, got {type(self.memory).__name__}")
        for name in ("segment_size", "capacity", *(["top_k"] if self.top_k is not None else [])):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {value!r}")
        if self.segment_size % self.memory.chunk_size:
            raise ValueError(
                f"segment_size: expected a multiple of the memory's chunk_size={self.memory.chunk_size}, "
                f"got {self.segment_size}"
            )
        if self.combine not in COMBINATIONS:
            raise ValueError(f"combine: expected one of {COMBINATIONS}, got {self.combine!r}")
        if (self.combine == "ssc") != (self.top_k is not None) or (self.top_k or 0) > self.capacity:
            raise ValueError(
                f"top_k: expected a number up to capacity={self.capacity} with combine='ssc' and None with others, "
                f"got {self.top_k} with {self.combine!r}"
            )

    @property
    def chunk_size(self) -> int:
        """The grid on which scans are handed over and documents begin: the segments."""
        return self.segment_size

    @property
    def parts(self) -> dict[str, Memory]:
        """The memory inside, under the empty name."""
        return {"": self.memory}

    @property
    def routed(self) -> bool:
        """Whether the gate `route` is used."""
        return self.combine != "residual"

    @property
    def about(self) -> str:
        """What is done with the memory, in words."""
        best = f", the best {self.top_k}" if self.combine == "ssc" else ""
        start = "from the initial weights" if self.restart else "from the end of the one before"
        return (
            f"the last {self.capacity} segments of {self.segment_size:,} tokens are cached, combined by {self.combine}"
            f"{best}; a segment begins {start}"
        )

    def init(self, key: jax.Array, dim: int | tuple[int, int]) -> dict[str, jax.Array]:
        """Initial weights; see `Memory.init`."""
        return self.memory.init(key, dim)

    def constrain(self, params: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Initial weights from free parameters; see `Memory.constrain`."""
        return self.memory.constrain(params)

    def start(self, params: Mapping[str, jax.Array]) -> CachedState:
        """The state before the first token, with an empty cache; see `Memory.start`."""
        return self._empty(self.memory.start(params))

    def gates(self, weights: Mapping[str, jax.Array] | None = None) -> dict[str, Any]:
        """The gates of the memory inside; without "route". See `Memory.gates`."""
        return self.memory.gates(weights)

    def scan(
        self,
        state: CachedState,
        keys: jax.Array,
        values: jax.Array,
        queries: jax.Array,
        gates: Mapping[str, jax.Array] | None = None,
        reset: jax.Array | None = None,
    ) -> tuple[jax.Array, CachedState]:
        """Writes and reads a sequence. Opens a new segment; hand over between scans at multiples of `segment_size`.

        Args:
          state: where to start from. A segment that is still open ends there and goes into the cache.
          keys: [T, D_k].
          values: [T, D_v].
          queries: [T, D_k].
          gates: as for `Memory.scan`, and optionally "route" [T, D_k].
          reset: bool [ceil(T / segment_size)], True where a document begins: the memory returns to its start, and the
            cache is emptied.

        Returns:
          y [T, D_v] and the state after the last token.

        Raises:
          ValueError: as `Memory.scan`, and for a "route" of a wrong shape.
        """
        self.memory._check_sequence(state.memory, keys, values, queries)
        tokens, size = keys.shape[0], self.segment_size
        check_reset(reset, tokens, size)
        given, route = self._given(state, dict(gates or {}), queries)
        flags = jnp.zeros(-(-tokens // size), bool) if reset is None else reset
        state = select(state.position > 0, self._end(state), state)
        full, rest = divmod(tokens, size)
        inputs, outputs = (keys, values, queries, given, route), []
        if full:
            pieces = jax.tree.map(lambda x: x[: full * size].reshape(full, size, *x.shape[1:]), inputs)
            y, state = (self._soups if self.combine == "soup" else self._segments)(state, pieces, flags[:full])
            outputs.append(y.reshape(full * size, -1))
        if rest:
            state = select(flags[full], self._fresh(state.memory), state)
            y, state = self._segment(state, *jax.tree.map(lambda x: x[full * size :], inputs))
            outputs.append(y)
        return jnp.concatenate(outputs) if outputs else jnp.zeros_like(values), state

    def step(
        self,
        state: CachedState,
        key: jax.Array,
        value: jax.Array,
        query: jax.Array,
        gates: Mapping[str, jax.typing.ArrayLike] | None = None,
    ) -> tuple[jax.Array, CachedState]:
        """One token: the same numbers as `scan`, whose open segment it continues; see `Memory.step`."""
        self.memory._check_arrays(state.memory, key, value, query, 1)
        given, route = self._given(state, {name: jnp.asarray(gate) for name, gate in (gates or {}).items()}, query)
        position, key_sum = state.position + 1, state.key_sum + key
        mixture = self._mixture(state.cache, route[None], key_sum[None] / position)
        if self.combine == "soup":
            asked = jnp.concatenate([query, mixture[0].astype(query.dtype)])
            y, memory = self._soup(state.cache)._step(state.memory, key, value, asked, given)
        else:
            y, memory = self.memory.step(state.memory, key, value, query, given)
            y = self._mix(state.cache, mixture, y[None], query[None])[0]
        state = CachedState(position, memory, key_sum, state.cache)
        return y, select(position == self.segment_size, self._end(state), state)

    def recall(self, state: CachedState, queries: jax.Array, route: jax.Array | None = None) -> jax.Array:
        """What memory and cache answer as they are, without writing.

        Args:
          state: the state.
          queries: [T, D_k].
          route: [T, D_k]; by default the queries.

        Returns:
          y [T, D_v].
        """
        now = self.memory.recall(state.memory, queries)
        mean = state.key_sum / jnp.maximum(state.position, 1)
        means = jnp.broadcast_to(mean[None], queries.shape)
        mixture = self._mixture(state.cache, queries if route is None else route, means)
        if self.combine != "soup":
            return self._mix(state.cache, mixture, now, queries)
        network, weights = self._soup(state.cache).network, state.memory.weights
        asked = jnp.concatenate([queries, mixture.astype(queries.dtype)], axis=1).astype(mixture.dtype)
        return network(Plain(weights), asked).astype(queries.dtype)

    def _segments(self, state: CachedState, pieces, flags: jax.Array) -> tuple[jax.Array, CachedState]:
        """Whole segments: first the memory, then what the caches add. `pieces` have leading axes [n, segment_size]."""
        keys, values, queries, given, route = pieces
        count, fresh = len(flags), self._fresh(state.memory)
        if self.restart:
            run = lambda *xs: self.memory.scan(fresh.memory, *xs)
            y, states = jax.vmap(run)(keys, values, queries, given)
            ends, memory = states.weights, fresh.memory
        else:

            def body(memory, xs):
                *inputs, flag = xs
                y, memory = self.memory.scan(select(flag, fresh.memory, memory), *inputs)
                return memory, (y, memory.weights)

            memory, (y, ends) = jax.lax.scan(body, state.memory, (keys, values, queries, given, flags))
        means = jax.vmap(_running_means)(keys)
        document = jnp.cumsum(flags)
        found = Cache(ends, means[:, -1], jnp.ones(count, bool))
        cached = jax.tree.map(lambda old, new: jnp.concatenate([old, new.astype(old.dtype)]), state.cache, found)
        documents = jnp.concatenate([jnp.zeros(self.capacity, document.dtype), document])

        def before(segment, at) -> Cache:
            """The cache of a segment of document `at`."""
            cut = lambda x: jax.lax.dynamic_slice_in_dim(x, segment, self.capacity)
            window = jax.tree.map(cut, cached)
            return window._replace(live=window.live & (cut(documents) == at))

        @jax.checkpoint
        def read(xs):
            segment, y, queries, route, means = xs
            cache = before(segment, document[segment])
            return self._mix(cache, self._mixture(cache, route, means), y, queries)

        y = jax.lax.map(read, (jnp.arange(count), y, queries, route, means))
        return y, CachedState(
            jnp.zeros_like(state.position), memory, jnp.zeros_like(state.key_sum), before(count, document[-1])
        )

    def _soups(self, state: CachedState, pieces, flags: jax.Array) -> tuple[jax.Array, CachedState]:
        """Whole segments one after the other, as a soup reads the memory's weights together with the cached ones."""
        fresh = self._fresh(state.memory)

        def body(state, xs):
            inputs, flag = xs
            y, state = self._segment(select(flag, fresh, state), *inputs)
            return self._end(state), y

        state, y = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), state, (pieces, flags))
        return y, state

    def _segment(self, state: CachedState, keys, values, queries, given, route) -> tuple[jax.Array, CachedState]:
        """A segment from its first token on, which stays open."""
        mixture = self._mixture(state.cache, route, _running_means(keys))
        if self.combine == "soup":
            asked = jnp.concatenate([queries, mixture.astype(queries.dtype)], axis=1)
            y, memory = self._soup(state.cache)._scan(state.memory, keys, values, asked, given)
        else:
            y, memory = self.memory.scan(state.memory, keys, values, queries, given)
            y = self._mix(state.cache, mixture, y, queries)
        key_sum = jnp.sum(keys, axis=0).astype(state.key_sum.dtype)
        return y, CachedState(jnp.full_like(state.position, len(keys)), memory, key_sum, state.cache)

    def _mixture(self, cache: Cache, route: jax.Array, means: jax.Array) -> jax.Array:
        """g [T, 1 + N]: of the memory, then of the cache; `means` [T, D_k] are those of the open segment's keys."""
        if self.combine == "residual":
            live = jnp.concatenate([jnp.ones(1, bool), cache.live]).astype(cache.keys.dtype)
            return jnp.broadcast_to(live[None], (len(route), len(live)))
        route = route.astype(cache.keys.dtype)
        scores = jnp.where(cache.live[None], route @ cache.keys.T, -jnp.inf)
        if self.top_k is not None:
            _, best = jax.lax.top_k(scores, self.top_k)
            chosen = jnp.any(best[:, :, None] == jnp.arange(self.capacity)[None, None], axis=1)
            scores = jnp.where(chosen, scores, -jnp.inf)
        own = jnp.sum(route * means, axis=-1, keepdims=True)
        return jax.nn.softmax(jnp.concatenate([own, scores], axis=-1), axis=-1)

    def _mix(self, cache: Cache, mixture: jax.Array, y: jax.Array, queries: jax.Array) -> jax.Array:
        """The memory's answers y [T, D_v] and the cache's, weighed."""
        asked = queries.astype(mixture.dtype)
        answers = jax.vmap(lambda weights: self.memory.network(Plain(weights), asked))(cache.weights)
        return (mixture[:, :1] * y + jnp.einsum("tn,ntd->td", mixture[:, 1:], answers)).astype(y.dtype)

    def _soup(self, cache: Cache) -> Memory:
        """The memory whose queries bring their mixture along: [T, D_k + 1 + N]."""
        how = "scan" if self.memory.chunk_size == 1 else self.memory.implementation
        network = Soup(self.memory.network, cache.weights, cache.keys.shape[-1])
        return dataclasses.replace(self.memory, network=network, implementation=how)

    def _fresh(self, memory: MemoryState) -> CachedState:
        """The state before the first token of a document."""
        return self._empty(self.memory.start(memory.initial))

    def _empty(self, memory: MemoryState) -> CachedState:
        """A state of this memory with nothing cached."""
        width, _ = self.memory.network.dims(memory.weights)
        dtype = next(iter(memory.weights.values())).dtype
        held = jax.tree.map(lambda w: jnp.broadcast_to(w[None], (self.capacity, *w.shape)), memory.initial)
        cache = Cache(held, jnp.zeros((self.capacity, width), dtype), jnp.zeros(self.capacity, bool))
        return CachedState(jnp.zeros((), jnp.int32), memory, jnp.zeros(width, dtype), cache)

    def _end(self, state: CachedState) -> CachedState:
        """The state after the open segment has gone into the cache."""
        mean = state.key_sum / jnp.maximum(state.position, 1)
        ended = Cache(state.memory.weights, mean, jnp.ones((), bool))
        cache = jax.tree.map(lambda old, new: jnp.concatenate([old[1:], new[None]]), state.cache, ended)
        memory = self.memory.start(state.memory.initial) if self.restart else state.memory
        return CachedState(jnp.zeros_like(state.position), memory, jnp.zeros_like(state.key_sum), cache)

    def _given(self, state: CachedState, gates: dict[str, jax.Array], queries: jax.Array):
        """The gates of the memory inside, and u."""
        route = gates.pop("route", queries) if self.routed else queries
        if jnp.shape(route) != queries.shape:
            raise ValueError(f"gates['route']: expected shape {queries.shape} as the queries, got {jnp.shape(route)}")
        self.memory._check_gates(state.memory.weights, gates, queries.shape[:-1])
        return gates, route


def _running_means(keys: jax.Array) -> jax.Array:
    """The mean of a segment's keys up to each, [T, D]."""
    return jnp.cumsum(keys, axis=0) / jnp.arange(1, len(keys) + 1, dtype=keys.dtype)[:, None]
