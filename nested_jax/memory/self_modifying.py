"""Self-modifying memories: keys, values and gates come from memories that learn as well (Nested Learning 83-93)."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nested_jax import rules
from nested_jax.memory import networks
from nested_jax.memory.features import l2_normalise
from nested_jax.memory.memory import Memory, check_reset
from nested_jax.scan.state import MemoryState, chunk_start, select

VECTORS = ("query", "key", "value")


def _generators() -> Memory:
    return Memory(rule=rules.hope(), chunk_size=8, read="start")


def _memory() -> Memory:
    return Memory(rule=rules.hope(), chunk_size=64, read="start")


class SelfModifyingState(NamedTuple):
    """What a `SelfModifying` carries.

    Attributes:
      memory: the state of the memory that is read.
      generators: name of what is generated → the state of the memory that does.
      bias: gate → the constant that is added to what its memory answers.
    """

    memory: MemoryState
    generators: dict[str, MemoryState]
    bias: dict[str, jax.Array]

    @property
    def position(self) -> jax.Array | None:
        """Tokens of the memory's open chunk that were written."""
        return self.memory.position


@dataclasses.dataclass(frozen=True)
class SelfModifying:
    r"""A memory whose projections are memories, each of which writes its own values.

    With frozen weights :math:`\bar M` (those of the present chunk's start) and :math:`b` among the memories,

    .. math::
      k_t = \bar M_k(x_t), \quad v_t = \bar M_v(x_t), \quad \eta_t = \bar M_\eta(x_t), \quad
      \alpha_t = \bar M_\alpha(x_t), \qquad y_t = \bar M_{mem}(q_t)

      M_{b,t} = \mathrm{rule}\big(M_{b,t-1};\ \nabla\tfrac12\lVert \bar M_b(k_t) - \bar M_b(v_t)\rVert^2,\
      \eta_t, \alpha_t\big)

    :math:`\bar M_b(v_t)` is a constant of the inner loss; outer gradients go through everything. The rule decides what
    is switched on: `rules.hope()` is the paper's (delta gradient descent that forgets), `rules.titans()` and others are
    its ablations. Every gate that a rule has no constant for is generated.

    Our choices, where the paper is silent: not only keys and queries but values, too, are divided by their length,
    without which a memory's answers come back as its own targets and grow beyond all bounds (small models diverged
    within 25 steps); a gate is a number, sigmoid(M(x) + b) times its maximum, with an outer parameter b that begins at
    the values below, and its memory, which cannot be residual (D features to one), has an MLP's hidden width of
    expansion · D. Without b a gate cannot stay where it is useful: delta gradient descent takes out of M what it
    answers, within some twenty tokens all of it. On a layer's own input (the hidden activations of an MLP) delta
    gradient descent is that of `rules.delta_gradient_descent`.

    Attributes:
      memory: the one that is read; `read="start"`.
      generators: the form of all others; its chunks divide the memory's.
      static: which of "query", "key", "value" and the gates are given by the caller and not generated.
      max_learning_rate: upper end of the learning rate; None for 1 / memory.chunk_size. Before training it is at half
        of it where its generator answers 0.
      momentum: of a momentum, likewise, in (0, 1).
      decay: of a decay, likewise, in (0, 1).
      bounded: whether learning rates that are no constants are divided by max(1, 1 - v·k) (our choice). A linear memory
        that descends in the explicit form on a dot product with its own answer to v keeps 1 - η (1 - v·k) of what it
        answers to k. With η up to 2 that is -3 at the least, and training favours it where a memory has to turn around
        at every token, until it overflows in float32 some sixty tokens later; with the division it is -1.

    Raises:
      ValueError: if the memories do not read the chunk's start, the chunks do not divide, a name is unknown, or
        `momentum` or `decay` is out of range.

    Example:
      >>> import nested_jax as nj
      >>> hope = nj.memory.SelfModifying(static=("query",))
      >>> list(hope.generated)
      ['key', 'value', 'learning_rate', 'decay']
      >>> state = hope.start(hope.init(jax.random.key(0), 16))
      >>> x = jax.random.normal(jax.random.key(1), (128, 16)) / 4
      >>> y, state = hope.scan(state, x, {"query": x})
      >>> y.shape
      (128, 16)

    References:
      Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025, equations (83-93). Equation (92) has
      a slip in the sign of its last term; (93) forgets twice, by the delta rule and by the l2 loss, and is what is
      computed here.
    """

    memory: Memory = dataclasses.field(default_factory=_memory)
    generators: Memory = dataclasses.field(default_factory=_generators)
    static: tuple[str, ...] = ("query",)
    max_learning_rate: float | None = None
    momentum: float = 0.5
    decay: float = 0.002
    bounded: bool = False

    def __post_init__(self):
        for name in ("memory", "generators"):
            given: Memory = getattr(self, name)
            if given.read != "start" or given.step_per != "token" or given.window != 1:
                raise ValueError(
                    f"{name}: expected read='start', step_per='token', window=1, got {given.read!r}, "
                    f"{given.step_per!r}, {given.window}"
                )
        if self.memory.chunk_size % self.generators.chunk_size:
            raise ValueError(
                f"generators: expected a chunk_size that divides the memory's, {self.memory.chunk_size}, got "
                f"{self.generators.chunk_size}"
            )
        for name in ("momentum", "decay"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(
                    f"{name}: expected a number in (0, 1), where a sigmoid begins, got {getattr(self, name)}"
                )
        for name in self.static:
            if name not in (*VECTORS, *self.gate_names):
                raise ValueError(f"static: expected names among {(*VECTORS, *self.gate_names)}, got {name!r}")

    @property
    def gate_names(self) -> tuple[str, ...]:
        """The gates that a rule of the two has no constant for."""
        both = (*self.memory.gates().items(), *self.generators.gates().items())
        return tuple(dict.fromkeys(name for name, constant in both if constant is None))

    @property
    def generated(self) -> tuple[str, ...]:
        """What memories generate."""
        return tuple(name for name in (*VECTORS, *self.gate_names) if name not in self.static)

    @property
    def chunk_size(self) -> int:
        """The grid on which states are handed over and documents begin: the memory's chunk."""
        return self.memory.chunk_size

    @property
    def parts(self) -> dict[str, Memory]:
        """No parts whose gates a layer would compute: they are generated."""
        return {}

    def constrain(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Initial weights as they are."""
        return dict(params)

    def init(self, key: jax.Array, dim: int | tuple[int, int]) -> dict[str, dict[str, jax.Array]]:
        """Initial weights of all memories: outer (meta-learned) parameters.

        Args:
          key: a PRNG key.
          dim: features of inputs, keys, values and queries.

        Returns:
          "memory" and the name of everything generated → a flat dict of weights; "bias" → one number per gate that is
          generated, 0 for the values that the attributes give.

        Raises:
          ValueError: for two different widths.
        """
        if not isinstance(dim, int):
            if dim[0] != dim[1]:
                raise ValueError(f"dim: expected one width for keys and values, got {dim}")
            dim = dim[0]
        names = ("memory", *self.generated)
        keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
        gates = self._maker("gates")
        if isinstance(gates.network, networks.MLP | networks.GatedMLP):
            wide = dataclasses.replace(gates.network, expansion=gates.network.expansion * dim)
            gates = dataclasses.replace(gates, network=wide)
        weights = {"memory": self.memory.init(keys["memory"], dim)}
        for name in self.generated:
            vector = name in VECTORS
            weights[name] = self.generators.init(keys[name], dim) if vector else gates.init(keys[name], (dim, 1))
        return weights | {"bias": {name: jnp.zeros(()) for name in self._groups().get("gates", ())}}

    def start(self, params: Mapping[str, Mapping[str, jax.Array]]) -> SelfModifyingState:
        """The state of memories that have seen nothing: weights `params`, see `init`.

        Raises:
          ValueError: if a memory's weights are missing.
        """
        missing = [name for name in ("memory", *self.generated, "bias") if name not in params]
        if missing:
            raise ValueError(f"params: expected memory, {', '.join(self.generated)} and bias, got no {missing}")
        makers = {
            name: self._maker(group).start(params[name]) for group, names in self._groups().items() for name in names
        }
        return SelfModifyingState(self.memory.start(params["memory"]), makers, dict(params["bias"]))

    def scan(
        self,
        state: SelfModifyingState,
        inputs: jax.Array,
        given: Mapping[str, jax.Array] | None = None,
        reset: jax.Array | None = None,
    ) -> tuple[jax.Array, SelfModifyingState]:
        """Writes and reads a sequence. Opens a new chunk; hand over between scans at multiples of `chunk_size`.

        Args:
          state: `start(params)` or what a scan or step returned.
          inputs: x [T, D], best of about length 1.
          given: what is static: "query", "key" and "value" [T, D] (queries and keys as they shall be used), gates [T].
          reset: bool [ceil(T / chunk_size)], True where a document begins.

        Returns:
          y [T, D] and the state after the last token.

        Raises:
          ValueError: if `given` does not have the static names, or a shape does not fit.
        """
        given = self._check(inputs, given, 2)
        tokens, size = inputs.shape[0], self.chunk_size
        full, rest = divmod(tokens, size)
        check_reset(reset, tokens, size)
        flags = jnp.zeros(full + bool(rest), bool) if reset is None else reset
        fresh, outputs = None if reset is None else self._fresh(state), []

        def body(state, xs):
            chunk, flag = xs
            if fresh is not None:
                state = select(flag, fresh, state)
            y, state = self._chunk(state, *chunk)
            return state, y

        if full:
            chunks = jax.tree.map(lambda x: x[: full * size].reshape(full, size, *x.shape[1:]), (inputs, given))
            state, y = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), state, (chunks, flags[:full]))
            outputs.append(y.reshape(full * size, -1))
        if rest:
            last = jax.tree.map(lambda x: x[full * size :], (inputs, given))
            state, y = body(state, (last, flags[-1]))
            outputs.append(y)
        return jnp.concatenate(outputs) if outputs else jnp.zeros_like(inputs), state

    def step(
        self, state: SelfModifyingState, inputs: jax.Array, given: Mapping[str, jax.Array] | None = None
    ) -> tuple[jax.Array, SelfModifyingState]:
        """One token, [D] each and gates of no axes: the same numbers as `scan`, whose open chunk it continues."""
        given = self._check(inputs, given, 1)
        row = jax.tree.map(lambda x: jnp.asarray(x)[None], (inputs, given))
        groups = self._stack(state.generators)
        frozen = {group: jax.vmap(chunk_start)(makers) for group, makers in groups.items()}
        made, gates = self._generate(frozen, state.bias, *row)
        written = _of(self.generators, {name: gate[0] for name, gate in gates.items()})

        def write(maker: Memory, state: MemoryState, start: MemoryState) -> MemoryState:
            target = maker.recall(start, made["value"])[0]
            return maker.step(state, made["key"][0], target, made["key"][0], written)[1]

        after = {
            group: jax.vmap(functools.partial(write, self._maker(group)))(makers, frozen[group])
            for group, makers in groups.items()
        }
        target = self.memory.recall(chunk_start(state.memory), made["value"])[0]
        written = _of(self.memory, {gate: value[0] for gate, value in gates.items()})
        y, memory = self.memory.step(state.memory, made["key"][0], target, made["query"][0], written)
        return y, SelfModifyingState(memory, self._unstack(after), state.bias)

    def recall(
        self, state: SelfModifyingState, inputs: jax.Array, given: Mapping[str, jax.Array] | None = None
    ) -> jax.Array:
        """What the memory answers to inputs [T, D] as it is, without writing; see `scan`."""
        given = self._check(inputs, given, 2)
        if "query" not in given:
            given["query"] = l2_normalise(self.generators.recall(state.generators["query"], inputs))
        return self.memory.recall(state.memory, given["query"])

    def _maker(self, group: str) -> Memory:
        network: Any = self.generators.network
        if group == "gates" and getattr(network, "residual", False):
            return dataclasses.replace(self.generators, network=dataclasses.replace(network, residual=False))
        return self.generators

    def _fresh(self, state: SelfModifyingState) -> SelfModifyingState:
        makers = {name: maker.initial for name, maker in state.generators.items()}
        return self.start({"memory": state.memory.initial, "bias": state.bias, **makers})

    def _chunk(
        self, state: SelfModifyingState, inputs: jax.Array, given: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, SelfModifyingState]:
        """One chunk of the memory, or the beginning of one: the generators' chunks first, one after the other."""
        size = self.generators.chunk_size
        full, rest = divmod(inputs.shape[0], size)

        def small(groups, xs):
            made, gates = self._generate(groups, state.bias, *xs)

            def write(maker: Memory, before: MemoryState) -> MemoryState:
                target = maker.recall(before, made["value"])
                return maker.scan(before, made["key"], target, made["key"], _of(self.generators, gates))[1]

            after = {
                group: jax.vmap(functools.partial(write, self._maker(group)))(makers)
                for group, makers in groups.items()
            }
            return after, (made, gates)

        groups, parts = self._stack(state.generators), []
        if full:
            chunks = jax.tree.map(lambda x: x[: full * size].reshape(full, size, *x.shape[1:]), (inputs, given))
            groups, made = jax.lax.scan(small, groups, chunks)
            parts.append(jax.tree.map(lambda x: x.reshape(full * size, *x.shape[2:]), made))
        if rest:
            groups, made = small(groups, jax.tree.map(lambda x: x[full * size :], (inputs, given)))
            parts.append(made)
        made, gates = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
        target = self.memory.recall(state.memory, made["value"])
        y, memory = self.memory.scan(state.memory, made["key"], target, made["query"], _of(self.memory, gates))
        return y, SelfModifyingState(memory, self._unstack(groups), state.bias)

    def _groups(self) -> dict[str, list[str]]:
        """What is generated, by the shape of its memory, so that equal memories run as one."""
        groups = {
            "vectors": [name for name in self.generated if name in VECTORS],
            "gates": [name for name in self.generated if name not in VECTORS],
        }
        return {group: names for group, names in groups.items() if names}

    def _stack(self, makers: Mapping[str, MemoryState]) -> dict[str, MemoryState]:
        return {
            group: jax.tree.map(lambda *x: jnp.stack(x), *(makers[name] for name in names))
            for group, names in self._groups().items()
        }

    def _unstack(self, groups: Mapping[str, MemoryState]) -> dict[str, MemoryState]:
        return {
            name: jax.tree.map(lambda x, place=place: x[place], groups[group])
            for group, names in self._groups().items()
            for place, name in enumerate(names)
        }

    def _generate(
        self,
        groups: Mapping[str, MemoryState],
        bias: Mapping[str, jax.Array],
        inputs: jax.Array,
        given: Mapping[str, jax.Array],
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Queries, keys and values [C, D], and gates [C], at the makers' weights."""
        made = dict(given)
        for group, names in self._groups().items():
            answers = jax.vmap(self._maker(group).recall, (0, None))(groups[group], inputs)
            for name, answer in zip(names, answers, strict=True):
                if group == "gates":
                    made[name] = self._gate(name, answer[:, 0] + bias[name])
                else:
                    made[name] = l2_normalise(answer)
        if self.bounded:
            size = jnp.maximum(1, 1 - jnp.sum(made["value"] * made["key"], axis=-1))
            made |= {name: made[name] / size for name in self.gate_names if name.endswith("learning_rate")}
        return {name: made[name] for name in VECTORS}, {name: made[name] for name in self.gate_names}

    def _gate(self, name: str, answer: jax.Array) -> jax.Array:
        if name.endswith("learning_rate"):
            largest = 1 / self.memory.chunk_size if self.max_learning_rate is None else self.max_learning_rate
            return largest * jax.nn.sigmoid(answer)
        start = {"momentum": self.momentum, "decay": self.decay}
        value = next((value for ending, value in start.items() if name.endswith(ending)), 0.5)
        return jax.nn.sigmoid(answer + math.log(value / (1 - value)))

    def _check(self, inputs: jax.Array, given: Mapping[str, jax.Array] | None, ndim: int) -> dict[str, jax.Array]:
        given = dict(given or {})
        if inputs.ndim != ndim:
            form = "[T, D]" if ndim == 2 else "[D]"
            raise ValueError(f"inputs: expected shape {form}, got {inputs.shape}; use jax.vmap over heads and batch")
        if sorted(given) != sorted(self.static):
            raise ValueError(f"given: expected what is static, {sorted(self.static)}, got {sorted(given)}")
        for name, array in given.items():
            expected = inputs.shape if name in VECTORS else inputs.shape[:-1]
            if jnp.shape(array) != expected:
                raise ValueError(f"given[{name!r}]: expected shape {expected}, got {jnp.shape(array)}")
        return given


def _of(memory: Memory, gates: Mapping[str, jax.Array]) -> dict[str, Any]:
    return {name: gates[name] for name, constant in memory.gates().items() if constant is None}
