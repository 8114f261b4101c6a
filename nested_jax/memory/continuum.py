"""`Continuum`: memories of several periods as one system, the continuum memory of Hope (Nested Learning 70-74).

    sequential (70, 73)   y_t = M^k(... M^2(M^1(x_t)))          starts learned outside, by backpropagation
    nested (72)           the same y_t; at every end of a chunk of level s, level s + 1 begins again at a start that is
                          one of the weights of level s
    independent (74)      y_t = Σ_l softmax(c)_l M^l(x_t)       starts and c learned outside

    (71)  W^l ← rule^l(Σ_{t in chunk} learning_rate_t ∇ objective(M^l(x^l_t), v^l_t))       at the end of its chunks

where x^l is the input of level l, and inside a chunk W^l does not move. All tokens of a chunk are read at once.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nested_jax.memory import objectives
from nested_jax.memory.memory import Memory
from nested_jax.scan import restarts
from nested_jax.scan.operations import Network, Plain
from nested_jax.scan.state import MemoryState

TOPOLOGIES = ("sequential", "nested", "independent")
Gates = Mapping[str, jax.Array]
LevelState = MemoryState | restarts.RestartsState | dict[str, jax.Array]


class ContinuumState(NamedTuple):
    """What a continuum carries.

    Attributes:
      levels: of each level its `MemoryState`; for one that begins again, its starts by owner; for a plain network, its
        weights.
      combine: [levels], the weights of the sum before their softmax; None unless the levels are independent.
    """

    levels: tuple[LevelState, ...]
    combine: jax.Array | None


def check_periods(name: str, periods: Sequence[int | None]) -> int:
    """The longest of some periods, which must be a multiple of all others; 1 if nothing ever changes.

    Args:
      name: what to call them in the message.
      periods: tokens from one step of a level to the next; None for a level that never changes.

    Returns:
      The grid on which all levels begin a chunk together.

    Raises:
      ValueError: if a period does not divide every longer one.

    Example:
      >>> check_periods("periods", [512, None, 32, 4])
      512
    """
    found = sorted({period for period in periods if period is not None})
    for short, long in itertools.pairwise(found):
        if long % short:
            raise ValueError(f"{name}: expected every period to divide the longer ones, got {long} and {short}")
    return found[-1] if found else 1


def check_nested(name: str, periods: Sequence[int | None]) -> None:
    """Periods of nested levels fall from one to the next; those that never change come first.

    Args:
      name: what to call them in the message.
      periods: as for `check_periods`.

    Raises:
      ValueError: if they do not.

    Example:
      >>> check_nested("levels", [None, None, 8, 2])
    """
    pace = [float("inf") if period is None else period for period in periods]
    for slow, fast in itertools.pairwise(pace):
        if fast > slow or fast == slow < float("inf"):
            raise ValueError(f"{name}: expected nested levels from slow to fast, got the periods {tuple(periods)}")


@dataclasses.dataclass(frozen=True)
class Continuum:
    """Levels of a network, each learning at its own pace while it reads.

    A level is a `Memory` with `step_per="chunk"` and `read="start"`, whose `chunk_size` is the level's period in
    tokens, or a bare network, which never changes: the feed-forward layer of a Transformer. Keys and queries are the
    level's input, so that a level learns where it is asked. One sequence; `jax.vmap` over a batch.

    The paper's levels follow the gradient of the task's loss, which is not known inside a layer. Here a level is drawn
    to a value v_t by its own objective (our choice); where v_t comes from is the caller's, a learned projection, say.

    "nested", as the paper gives an aim but no algorithm (our choice): level l has its weights once for each level s ≤ l
    that learns. The copy of l itself answers. At the end of a chunk of level s its copy makes a step, by the rule of s
    with the gates of s, on the gradients of level l summed over that chunk, wherever the answering weights then were (a
    first-order meta-gradient); then the copies of the levels between s and l, and of l, begin again at it, with new
    rule states. All starts begin at the learned weights of `init`.

    Attributes:
      levels: in the order of the chain.
      topology: "sequential", "nested" or "independent".

    Raises:
      ValueError: if a level is of another kind, a period does not divide a longer one, or nested levels do not go from
        slow to fast.

    Example:
      >>> import jax, jax.numpy as jnp, nested_jax as nj
      >>> network, rule = nj.networks.Linear(), nj.rules.gradient_descent(0.1)
      >>> slow, fast = (nj.Memory(network, rule=rule, chunk_size=n, step_per="chunk", read="start") for n in (4, 2))
      >>> continuum = nj.memory.Continuum((nj.networks.MLP(), slow, fast))
      >>> state = continuum.start(continuum.init(jax.random.key(0), 3))
      >>> y, state = jax.eval_shape(continuum.scan, state, jnp.ones((6, 3)), jnp.zeros((6, 3)))
      >>> y.shape, continuum.periods, continuum.grid
      ((6, 3), (None, 4, 2), 4)

    References:
      Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025, equations (70-74). A level across the
      steps of an optimizer is :func:`nested_jax.rules.every`.
    """

    levels: tuple[Memory | Network, ...]
    topology: str = "sequential"

    def __post_init__(self):
        if self.topology not in TOPOLOGIES:
            raise ValueError(f"topology: expected one of {TOPOLOGIES}, got {self.topology!r}")
        if not isinstance(self.levels, tuple) or not self.levels:
            raise ValueError(f"levels: expected a tuple of memories and networks, not empty, got {self.levels!r}")
        for number, level in enumerate(self.levels):
            if isinstance(level, Memory):
                if level.step_per != "chunk":
                    raise ValueError(f"levels[{number}]: expected step_per='chunk', got {level.step_per!r}")
                if self.topology == "nested" and level.window > 1:
                    raise ValueError(f"levels[{number}]: expected window=1 where levels are nested, got {level.window}")
            elif not callable(level) or not hasattr(level, "dims"):
                raise ValueError(f"levels[{number}]: expected a Memory or a network, got {type(level).__name__}")
        check_periods("levels", self.periods)
        if self.topology == "nested":
            check_nested("levels", self.periods)

    @property
    def periods(self) -> tuple[int | None, ...]:
        """Tokens from one step of each level to its next; None for a level that never changes."""
        return tuple(level.chunk_size if isinstance(level, Memory) else None for level in self.levels)

    @property
    def grid(self) -> int:
        """The longest period: where scans hand over and documents begin; 1 if nothing ever changes."""
        return check_periods("levels", self.periods)

    def init(self, key: jax.Array, dim: int) -> dict[str, Any]:
        """Initial weights: outer (meta-learned) parameters.

        Args:
          key: a PRNG key.
          dim: features of inputs, values and outputs.

        Returns:
          {"level_0": the flat dict of its network, ...}, and "combine" [levels], zeros, if they are independent.
        """
        keys = jax.random.split(key, len(self.levels))
        params: dict[str, Any] = {
            f"level_{number}": self._network(number).init(keys[number], dim, dim) for number in range(len(self.levels))
        }
        return params | ({"combine": jnp.zeros(len(self.levels))} if self.topology == "independent" else {})

    def start(self, params: Mapping[str, Any]) -> ContinuumState:
        """The state of levels that have seen nothing.

        Args:
          params: the initial weights, see `init`.

        Returns:
          The state.
        """
        levels: list[LevelState] = []
        for number, level in enumerate(self.levels):
            weights = params[f"level_{number}"]
            if self._owners(number):
                levels.append(restarts.start(self._owners(number), weights))
            elif isinstance(level, Memory):
                levels.append(level.start(weights))
            else:
                levels.append(dict(weights))
        return ContinuumState(tuple(levels), params.get("combine"))

    def scan(
        self,
        state: ContinuumState,
        inputs: jax.Array,
        values: jax.Array | Sequence[jax.Array | None],
        gates: Gates | Sequence[Gates | None] | None = None,
        reset: jax.Array | None = None,
    ) -> tuple[jax.Array, ContinuumState]:
        """Reads a sequence and learns from it. Opens new chunks; hand over between scans at multiples of `grid`.

        Args:
          state: where to start from: `start(params)` or what a scan or step returned.
          inputs: [T, D].
          values: [T, D], the target of every level, or one such array per level (None for a plain network).
          gates: gates of every memory, as for `Memory.scan`, or one such dict per level.
          reset: bool [ceil(T / grid)], True where a document begins: every level returns to its start.

        Returns:
          y [T, D] and the state after the last token.

        Raises:
          ValueError: if a shape does not fit, or a gate is missing or unknown.
        """
        tokens = inputs.shape[0]
        if inputs.ndim != 2:
            raise ValueError(f"inputs: expected one sequence, shape [T, D], got {inputs.shape}; use jax.vmap over rows")
        if reset is not None and jnp.shape(reset) != (-(-tokens // self.grid),):
            raise ValueError(
                f"reset: expected shape ({-(-tokens // self.grid)},), one flag per chunk of {self.grid}, "
                f"got {jnp.shape(reset)}"
            )
        return self._run(state, inputs, values, gates, reset, scan=True)

    def step(
        self,
        state: ContinuumState,
        inputs: jax.Array,
        values: jax.Array | Sequence[jax.Array | None],
        gates: Gates | Sequence[Gates | None] | None = None,
    ) -> tuple[jax.Array, ContinuumState]:
        """One token: the same numbers as `scan`, whose open chunks it continues.

        Args:
          state: the state before the token.
          inputs: [D].
          values: [D], or one per level.
          gates: as in `scan`, a number each.

        Returns:
          y [D] and the state after the token.

        Raises:
          ValueError: as for `scan`.
        """
        if inputs.ndim != 1:
            raise ValueError(f"inputs: expected one token, shape [D], got {inputs.shape}")
        return self._run(state, inputs, values, gates, None, scan=False)

    def recall(self, state: ContinuumState, queries: jax.Array) -> jax.Array:
        """What the levels answer as they are; nothing is learned.

        Args:
          state: any state.
          queries: [N, D].

        Returns:
          y [N, D].
        """
        x, outputs = queries, []
        for number, level in enumerate(self.levels):
            weights = state.levels[number]
            if isinstance(weights, restarts.RestartsState):
                weights = weights.copies[-1].weights
            if isinstance(weights, MemoryState):
                assert isinstance(level, Memory)
                y = level.recall(weights, x)
            else:
                dtype = next(iter(weights.values())).dtype
                y = self._network(number)(Plain(weights), x.astype(dtype)).astype(x.dtype)
            outputs.append(y)
            x = queries if self.topology == "independent" else y
        return self._answer(state, outputs)

    def _run(self, state, inputs, values, gates, reset, scan: bool) -> tuple[jax.Array, ContinuumState]:
        targets = self._each("values", values, (jax.Array, np.ndarray))
        given = self._each("gates", {} if gates is None else gates, Mapping)
        x, outputs, after = inputs, [], []
        for number in range(len(self.levels)):
            y, new = self._level(number, state.levels[number], x, targets[number], given, reset, scan)
            outputs.append(y)
            after.append(new)
            x = inputs if self.topology == "independent" else y
        return self._answer(state, outputs), ContinuumState(tuple(after), state.combine)

    def _answer(self, state: ContinuumState, outputs: Sequence[jax.Array]) -> jax.Array:
        """What all levels together answer."""
        if state.combine is None:
            return outputs[-1]
        return jnp.tensordot(jax.nn.softmax(state.combine).astype(outputs[0].dtype), jnp.stack(outputs), axes=1)

    def _level(self, number: int, state, x: jax.Array, values, given, reset, scan: bool):
        level, owners = self.levels[number], self._owners(number)
        if not isinstance(level, Memory):
            dtype = next(iter(state.values())).dtype
            rows = jnp.asarray(x if scan else x[None], dtype)
            y = level(Plain(state), rows).astype(x.dtype)
            return (y if scan else y[0]), state
        if values is None or values.shape != x.shape:
            got = None if values is None else values.shape
            raise ValueError(f"values: expected shape {x.shape} as the inputs of level {number}, got {got}")
        gates = given[number] or {}
        if not owners:
            if not scan:
                return level.step(state, x, values, x, gates)
            flags = None if reset is None else self._flags(reset, level.chunk_size, x.shape[0])
            return level.scan(state, x, values, x, gates, flags)
        weights = state.initial
        all_gates = [self._owner_gates(other, given, weights, x.shape[:-1]) for other in self._numbers(number)]
        arrays = jax.tree.map(jnp.asarray, (x, values, x, dict(gates), all_gates))
        if not scan:
            arrays = jax.tree.map(lambda a: a[None], arrays)
        dtype = next(iter(weights.values())).dtype
        keys, values, queries, own, rule_gates = jax.tree.map(lambda a: jnp.asarray(a, dtype), arrays)
        spec, packed, _ = level._split(values, own)
        tokens = restarts.Tokens(keys, packed, queries, tuple(rule_gates))
        if scan:
            y, new = restarts.scan(spec, owners, state, tokens, reset)
        else:
            y, new = restarts.step(spec, owners, state, tokens)
        y = y.astype(x.dtype)
        return (y if scan else y[0]), new

    def _owner_gates(self, number: int, given, weights, leading: tuple[int, ...]) -> dict[str, jax.Array]:
        """The gates of a level's rule, one number per token."""
        level, gates = self.levels[number], jax.tree.map(jnp.asarray, dict(given[number] or {}))
        assert isinstance(level, Memory)
        level._check_gates(weights, gates, leading)
        of_rule = {name: gate for name, gate in gates.items() if name not in objectives.gates(level.objective)}
        for name, gate in of_rule.items():
            if gate.shape != leading:
                raise ValueError(f"gates[{name!r}]: expected one number per token in nested levels, got {gate.shape}")
        return of_rule

    def _flags(self, reset: jax.Array, period: int, tokens: int) -> jax.Array:
        """Resets on the grid as resets of a level's chunks."""
        count, every = -(-tokens // period), self.grid // period
        first = jnp.zeros((len(reset), every), bool).at[:, 0].set(reset)
        return first.reshape(-1)[:count]

    def _network(self, number: int) -> Network:
        level = self.levels[number]
        return level.network if isinstance(level, Memory) else level

    def _numbers(self, number: int) -> list[int]:
        """The levels that learn, up to this one."""
        return [other for other in range(number + 1) if isinstance(self.levels[other], Memory)]

    def _owners(self, number: int) -> tuple[Memory, ...]:
        """Who has a copy of a level's weights, itself last; none if no other level puts it back."""
        numbers = self._numbers(number)
        if self.topology != "nested" or not isinstance(self.levels[number], Memory) or len(numbers) == 1:
            return ()
        return tuple(level for level in self.levels[: number + 1] if isinstance(level, Memory))

    def _each(self, name: str, given: Any, kind: type | tuple[type, ...]) -> list[Any]:
        """One entry per level."""
        if isinstance(given, kind):
            return [given if isinstance(level, Memory) else None for level in self.levels]
        if not isinstance(given, Sequence) or len(given) != len(self.levels):
            count = len(given) if isinstance(given, Sequence) else type(given).__name__
            raise ValueError(f"{name}: expected one for all or a sequence of {len(self.levels)}, got {count}")
        return list(given)
