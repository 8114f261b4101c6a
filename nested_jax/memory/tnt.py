"""`TNT`: a global memory over large chunks, and local memories that begin anew in every shard (TNT eqs 5-7).

V_{(n+1) C_G} = V_{n C_G} − Σ_{t in chunk n} η_t ∇ℓ(V_{n C_G}; k_t, v_t)             global, one after the other
W_t = W_{ξ(t, C_L)} − Σ_i η_i ∇ℓ(W_{ξ(t, C_L)}; k_i, v_i),   W = W_init at t ≡ 0 mod S_L      local, in parallel
y_t = V_{ξ(t, C_G)}(q_t) + Σ_local W_t(P_t q_t),             P_t = Σ_{τ ≤ t} k_τ k_τ^T / ‖k_τ‖²
"""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nested_jax import rules
from nested_jax.memory import objectives
from nested_jax.memory.memory import Memory, check_reset
from nested_jax.memory.networks import Linear
from nested_jax.scan.state import MemoryState, select

# P q is what linear attention over (k / ‖k‖, k / ‖k‖) answers to q: a memory as any other.
_PROJECTION = Memory(Linear(), objectives.dot_product, rules.gradient_descent(1.0), chunk_size=1)


class Shard(NamedTuple):
    """A local memory in its shard.

    Attributes:
      memory: its state.
      projection: the state of the linear memory that maps queries to the span of the shard's keys; None without.
    """

    memory: MemoryState
    projection: MemoryState | None


class TNTState(NamedTuple):
    """What a `TNT` carries.

    Attributes:
      position: int32, tokens since the last common boundary of chunks and shards, in [0, chunk_size).
      global_memory: the global memory's state.
      local_memories: one `Shard` per local memory.
    """

    position: jax.Array
    global_memory: MemoryState
    local_memories: tuple[Shard, ...]


@dataclasses.dataclass(frozen=True)
class TNT:
    r"""A global memory over large chunks, and local memories over small ones that begin anew in every shard.

    .. math::
      y_t = V_{\xi(t, C_G)}(q_t) + \sum_i W^{(i)}_t(P^{(i)}_t q_t), \qquad
      P_t = \sum_{\tau \le t} \frac{k_\tau k_\tau^\top}{\lVert k_\tau\rVert^2}

    :math:`\xi(t, C)` is the start of the chunk of t, the sum over τ begins with the shard. Shards do not depend on each
    other and run side by side; only the global memory is sequential, in few large chunks. It is called as `nj.Memory`
    is, with one sequence of one head.

    Every memory has gates of its own, under its name: `global_learning_rate`, `local1_learning_rate`,
    `local2_momentum`, ... A gate given under its plain name (`learning_rate`) goes to all memories that read it and are
    not given their own.

    Attributes:
      global_memory: V, with a large `chunk_size`; the paper's reads the weights of the chunk's start, `read="start"`.
      local_memories: W, a tuple of one or more, with small chunks.
      shard_size: S_L, tokens after which a local memory returns to its initial weights: one number for all, or one per
        local memory; multiples of their `chunk_size`.
      project: whether queries of local memories are mapped by P first. P is not normalised: it grows with the keys of
        the shard that are alike.

    Raises:
      ValueError: if a field is of a wrong type, or a shard is not a multiple of its memory's chunk.

    Example:
      >>> import jax, jax.numpy as jnp, nested_jax as nj
      >>> rule = nj.rules.gradient_descent(0.1)
      >>> coarse = nj.Memory(nj.networks.MLP(), rule=rule, chunk_size=8, read="start")
      >>> tnt = nj.memory.TNT(coarse, (nj.Memory(nj.networks.MLP(), rule=rule, chunk_size=2),), shard_size=8)
      >>> state = tnt.start(tnt.init(jax.random.key(0), 4))
      >>> keys, values, queries = jax.random.normal(jax.random.key(1), (3, 20, 4))
      >>> y, state = jax.jit(tnt.scan)(state, keys, values, queries)
      >>> y.shape, int(state.position)
      ((20, 4), 4)

    References:
      `TNT <https://arxiv.org/abs/2511.07343>`_, 2025, equations (5-7), appendices C (the sum over keys begins with the
      shard; equation 7 prints the chunk) and E (several local memories).

    .. note::
      An `nj.Memory` has one chunk length, which trades quality for speed; this has one of each kind.
    """

    global_memory: Memory
    local_memories: tuple[Memory, ...]
    shard_size: int | tuple[int, ...] = 2048
    project: bool = True

    def __post_init__(self):
        if not isinstance(self.global_memory, Memory):
            raise ValueError(f"global_memory: expected an nj.Memory, got {type(self.global_memory).__name__}")
        given = self.local_memories
        if not isinstance(given, tuple) or not given or not all(isinstance(memory, Memory) for memory in given):
            raise ValueError(f"local_memories: expected a tuple of one or more nj.Memory, got {given!r}")
        if len(self.shard_sizes) != len(given):
            raise ValueError(
                f"shard_size: expected a number, or one for each of {len(given)} local memories, got {self.shard_size}"
            )
        for memory, size in zip(given, self.shard_sizes, strict=True):
            if not isinstance(size, int) or isinstance(size, bool) or size < 1 or size % memory.chunk_size:
                raise ValueError(
                    f"shard_size: expected multiples >= 1 of the local memories' chunk_size={memory.chunk_size}, "
                    f"got {size!r}"
                )

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """The shard length of every local memory."""
        return self.shard_size if isinstance(self.shard_size, tuple) else (self.shard_size,) * len(self.local_memories)

    @property
    def chunk_size(self) -> int:
        """The grid on which scans are handed over and documents begin: the common boundaries of chunks and shards."""
        return math.lcm(self.global_memory.chunk_size, *self.shard_sizes)

    @property
    def parts(self) -> dict[str, Memory]:
        """The memories by name: "global", "local1", "local2", ..."""
        local = {f"local{number}": memory for number, memory in enumerate(self.local_memories, 1)}
        return {"global": self.global_memory} | local

    @property
    def about(self) -> str:
        """What is done with the parts, in words."""
        lengths = ", ".join(f"{size:,}" for size in self.shard_sizes)
        how = "queries projected on the shard's keys" if self.project else "queries as they are"
        return f"local memories begin anew every {lengths} tokens, {how}"

    def init(self, key: jax.Array, dim: int | tuple[int, int]) -> dict[str, dict[str, jax.Array]]:
        """Initial weights of every memory, by its name; see `Memory.init`."""
        parts = self.parts
        keys = jax.random.split(key, len(parts))
        return {name: part.init(k, dim) for k, (name, part) in zip(keys, parts.items(), strict=True)}

    def constrain(self, params: Mapping[str, Mapping[str, jax.Array]]) -> dict[str, dict[str, jax.Array]]:
        """Initial weights from free parameters, memory by memory; see `Memory.constrain`."""
        return {name: part.constrain(params[name]) for name, part in self.parts.items()}

    def start(self, params: Mapping[str, Mapping[str, jax.Array]]) -> TNTState:
        """The state before the first token; see `Memory.start`.

        Raises:
          ValueError: if `params` are not the weights of these memories.
        """
        parts = self.parts
        if set(params) != set(parts):
            raise ValueError(f"params: expected weights for {[*parts]}, got {[*params]}")
        (first, *rest) = [part.start(params[name]) for name, part in parts.items()]
        local = tuple(self._shard(memory, state) for memory, state in zip(self.local_memories, rest, strict=True))
        return TNTState(jnp.zeros((), jnp.int32), first, local)

    def gates(self, weights: Mapping[str, Mapping[str, jax.Array]] | None = None) -> dict[str, object]:
        """Every memory's gates under its name, with the constants that stand in for them; see `Memory.gates`."""
        return {
            f"{name}_{gate}": constant
            for name, part in self.parts.items()
            for gate, constant in part.gates(None if weights is None else weights[name]).items()
        }

    def scan(
        self,
        state: TNTState,
        keys: jax.Array,
        values: jax.Array,
        queries: jax.Array,
        gates: Mapping[str, jax.Array] | None = None,
        reset: jax.Array | None = None,
    ) -> tuple[jax.Array, TNTState]:
        """Writes and reads a sequence. Opens a new chunk and new shards; hand over at multiples of `chunk_size`.

        Args:
          state: where to start from.
          keys: [T, D_k].
          values: [T, D_v].
          queries: [T, D_k].
          gates: as for `Memory.scan`, under the names of `gates()`, or plain ones for several memories.
          reset: bool [ceil(T / chunk_size)], True where a document begins: the global memory returns to its start, as
            the local ones do anyway.

        Returns:
          y [T, D_v] and the state after the last token.

        Raises:
          ValueError: as `Memory.scan`.
        """
        tokens = jnp.shape(keys)[0] if jnp.ndim(keys) else 0
        self.global_memory._check_sequence(state.global_memory, keys, values, queries)
        check_reset(reset, tokens, self.chunk_size)
        given = self._given(state, dict(gates or {}))
        flags = None if reset is None else self._global_reset(reset, tokens)
        y, after = self.global_memory.scan(state.global_memory, keys, values, queries, given["global"], flags)
        y, shards = self._with_local(y, state.local_memories, keys, values, queries, given)
        return y, TNTState(jnp.full_like(state.position, tokens % self.chunk_size), after, shards)

    def step(
        self,
        state: TNTState,
        key: jax.Array,
        value: jax.Array,
        query: jax.Array,
        gates: Mapping[str, jax.typing.ArrayLike] | None = None,
    ) -> tuple[jax.Array, TNTState]:
        """One token: the same numbers as `scan`, whose open chunks and shards it continues; see `Memory.step`."""
        self.global_memory._check_arrays(state.global_memory, key, value, query, 1)
        given = self._given(state, {name: jnp.asarray(gate) for name, gate in (gates or {}).items()})
        y, after = self.global_memory.step(state.global_memory, key, value, query, given["global"])
        shards = []
        for number, (memory, size, shard) in enumerate(
            zip(self.local_memories, self.shard_sizes, state.local_memories, strict=True), 1
        ):
            shard = select(state.position % size == 0, self._fresh(memory, shard), shard)
            asked, projection = query, shard.projection
            if projection is not None:
                unit = _unit(key)
                asked, projection = _PROJECTION.step(projection, unit, unit, query)
            read, local = memory.step(shard.memory, key, value, asked, given[f"local{number}"])
            y += read
            shards.append(Shard(local, projection))
        return y, TNTState((state.position + 1) % self.chunk_size, after, tuple(shards))

    def recall(self, state: TNTState, queries: jax.Array) -> jax.Array:
        """What the memories answer together as they are, without writing; see `Memory.recall`."""
        y = self.global_memory.recall(state.global_memory, queries)
        for memory, shard in zip(self.local_memories, state.local_memories, strict=True):
            asked = queries if shard.projection is None else _PROJECTION.recall(shard.projection, queries)
            y += memory.recall(shard.memory, asked)
        return y

    def _global_reset(self, reset: jax.Array, tokens: int) -> jax.Array:
        """Where documents begin, on the grid of the global memory's chunks."""
        starts = jnp.arange(-(-tokens // self.global_memory.chunk_size)) * self.global_memory.chunk_size
        return reset[starts // self.chunk_size] & (starts % self.chunk_size == 0)

    def _with_local(
        self, y: jax.Array, shards: tuple[Shard, ...], keys, values, queries, given: Mapping[str, Mapping]
    ) -> tuple[jax.Array, tuple[Shard, ...]]:
        """What the global memory answered and what the local ones add to it, and the shards after the last token."""
        after = []
        for (name, memory), size, shard in zip([*self.parts.items()][1:], self.shard_sizes, shards, strict=True):
            read, shard = self._shards(memory, size, shard, (keys, values, queries, given[name]))
            y += read
            after.append(shard)
        return y, tuple(after)

    def _shards(self, memory: Memory, size: int, shard: Shard, inputs) -> tuple[jax.Array, Shard]:
        """All shards of one local memory, the full ones side by side: y [T, D_v] and the last one's state.

        The naive code is `memory.scan(..., reset=...)` with a reset at every `size` tokens, on queries projected one by
        one.
        """
        fresh, tokens = self._fresh(memory, shard), inputs[0].shape[0]
        full = tokens // size
        outputs = []

        def run(keys, values, queries, gates):
            projection = fresh.projection
            if projection is not None:
                unit = _unit(keys)
                queries, projection = _PROJECTION.scan(projection, unit, unit, queries)
            y, after = memory.scan(fresh.memory, keys, values, queries, gates)
            return y, Shard(after, projection)

        if full:
            pieces = jax.tree.map(lambda x: x[: full * size].reshape(full, size, *x.shape[1:]), inputs)
            y, shards = jax.vmap(run)(*pieces)
            outputs.append(y.reshape(full * size, -1))
            shard = jax.tree.map(lambda x: x[-1], shards)
        if tokens > full * size:
            y, shard = run(*jax.tree.map(lambda x: x[full * size :], inputs))
            outputs.append(y)
        return jnp.concatenate(outputs) if outputs else jnp.zeros_like(inputs[1]), shard

    def _shard(self, memory: Memory, state: MemoryState) -> Shard:
        """A shard that begins with this state."""
        if not self.project:
            return Shard(state, None)
        width, _ = memory.network.dims(state.weights)
        dtype = next(iter(state.weights.values())).dtype
        return Shard(state, _PROJECTION.start({"w": jnp.zeros((width, width), dtype)}))

    def _fresh(self, memory: Memory, shard: Shard) -> Shard:
        """The shard at its first token."""
        return self._shard(memory, memory.start(shard.memory.initial))

    def _given(self, state: TNTState, gates: Mapping[str, jax.Array]) -> dict[str, dict[str, jax.Array]]:
        """The gates of every memory by its name."""
        states = [state.global_memory, *(shard.memory for shard in state.local_memories)]
        found, named, plain, missing = {}, [], [], []
        for (name, part), at in zip(self.parts.items(), states, strict=True):
            known = part.gates(at.weights) | ({"window": 1.0} if part.window > 1 else {})
            found[name] = {gate: gates[gate] for gate in known if gate in gates}
            found[name] |= {gate: gates[f"{name}_{gate}"] for gate in known if f"{name}_{gate}" in gates}
            named += [f"{name}_{gate}" for gate in known]
            plain += [gate for gate in known if gate not in plain]
            missing += [f"{name}_{g}" for g, constant in known.items() if constant is None and g not in found[name]]
        for name in gates:
            if name not in named and name not in plain:
                near = difflib.get_close_matches(name, [*named, *plain], 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"gates: expected names among {[*named, *plain]}, got {name!r}{hint}")
        if missing:
            raise ValueError(
                f"gates: expected a value for {missing} at every token, or a constant in the rule; got {sorted(gates)}"
            )
        return found


def _unit(keys: jax.Array) -> jax.Array:
    """Keys of length one; zero where they are zero."""
    squared = jnp.sum(jnp.square(keys), axis=-1, keepdims=True)
    return jnp.where(squared > 0, keys * jax.lax.rsqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)
