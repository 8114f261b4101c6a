"""`Memory`: a network, an objective and a rule, run over a sequence (Titans eqs 11-15; MIRAS §3)."""

import dataclasses
import difflib
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nested_jax import rules
from nested_jax.memory import networks, objectives
from nested_jax.scan import engine
from nested_jax.scan.operations import Network, Objective, Plain
from nested_jax.scan.plan import IMPLEMENTATIONS, Plan
from nested_jax.scan.state import MemoryState, like


@dataclasses.dataclass(frozen=True)
class Memory:
    """An optimizer run over a sequence: each token writes (key -> value) by one step of a rule, and a query reads.

        g_t = ∇ Σ_j window_t[j] · objective(network(W; k_{t-j}), v_{t-j})         at W, the weights of the chunk's start
        W_t = W_{t-1} + rule(g_t, W_{t-1}; gates_t)
        y_t = network(W_t; q_t)

    One sequence of one head; `jax.vmap` over heads and batch. Everything is differentiable, jittable and free of hidden
    state.

    Attributes:
      network: the function that is the memory: `nj.networks.Linear()`, `MLP(...)`, `GatedMLP(...)`.
      objective: the inner loss, ([T, D], [T, D]) -> [T]: `nj.objectives.l2`, `dot_product`, `lp(p)`, any other. It may
        read gates of its own (`huber()` reads `delta`).
      rule: what is done with a gradient: one of `nj.rules`, or any optax transformation.
      chunk_size: tokens whose gradients are taken at the same weights, those at the chunk's start; 1 is the exact
        online rule.
      window: how many last tokens the loss at t sums over (the c of the Omega rule, elsewhere `context_window`), >= 1.
      step_per: "token", or "chunk": one step per chunk on the sum of its gradients weighted by their learning rates,
        the other gates averaged; then only `read="start"` is causal.
      read: the weights that a query reads: "after" its own token's write (Titans), "before" it, or those of the chunk's
        "start" (Hope, LaCT).
      retain_first: whether gradients are taken at the already decayed weights, (1 − decay_t) W (Gated DeltaNet).
      implementation: "auto", "scan" (token by token), "dual" (masked attention over a chunk), "delta" (gradients that
        depend on the weights as they are: exact online gradients of a linear network in blocks of tokens, and delta
        gradient descent over a chunk of any network), "materialize" (associative scan). All give the same numbers;
        `nj.explain(memory)` says what "auto" chose and why.

    Raises:
      ValueError: if a field is out of range or two do not go together.

    Example:
      >>> import jax, jax.numpy as jnp, nested_jax as nj
      >>> memory = nj.Memory(network=nj.networks.Linear(), rule=nj.rules.gradient_descent(), chunk_size=1)
      >>> state = memory.start(memory.init(jax.random.key(0), 4))
      >>> keys = jnp.eye(4)[:3]
      >>> values = jnp.arange(12.0).reshape(3, 4)
      >>> y, state = memory.scan(state, keys, values, keys, {"learning_rate": jnp.ones(3)})
      >>> bool(jnp.allclose(y, values))
      True
    """

    network: Network = dataclasses.field(default_factory=networks.MLP)
    objective: Objective = objectives.l2
    rule: optax.GradientTransformation = dataclasses.field(default_factory=rules.titans)
    chunk_size: int = 64
    window: int = 1
    step_per: str = "token"
    read: str = "after"
    retain_first: bool = False
    implementation: str = "auto"

    def __post_init__(self):
        for name in ("chunk_size", "window"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {value!r}")
        choices = {
            "step_per": ("token", "chunk"),
            "read": ("after", "before", "start"),
            "implementation": IMPLEMENTATIONS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {allowed}, got {getattr(self, name)!r}")
        rule, network = isinstance(self.rule, optax.GradientTransformation), hasattr(self.network, "dims")
        _check_part("rule", self.rule, rule, "an optax.GradientTransformation")
        _check_part("network", self.network, network and callable(self.network), "a network such as MLP()")
        _check_part("objective", self.objective, callable(self.objective), "a function ([T, D], [T, D]) -> [T]")
        if self.step_per == "chunk" and self.read != "start":
            raise ValueError(
                f"read: expected 'start' with step_per='chunk', got {self.read!r}: "
                "the one step of a chunk knows all of its tokens"
            )
        if self.step_per == "chunk" and self.retain_first:
            raise ValueError(
                "retain_first: expected False with step_per='chunk', where no token has decayed weights of its own"
            )

    @property
    def parts(self) -> dict[str, "Memory"]:
        """The memories this one is made of, by name: itself, under the empty name."""
        return {"": self}

    def init(self, key: jax.Array, dim: int | tuple[int, int]) -> dict[str, jax.Array]:
        """Initial weights: outer (meta-learned) parameters.

        Args:
          key: a PRNG key.
          dim: features of keys, queries and values; or (dim_k, dim_v).

        Returns:
          The network's flat dict of weights.
        """
        dim_k, dim_v = (dim, dim) if isinstance(dim, int) else dim
        return self.network.init(key, dim_k, dim_v)

    def constrain(self, params: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Initial weights from parameters that are free to take any value.

        Args:
          params: arrays like the weights.

        Returns:
          The parameters, or where the weights are a map of an accumulator (`nj.rules.mirror`), their image.
        """
        mirrored = getattr(self.rule, "mirrored", None)
        return dict(params) if mirrored is None else jax.tree.map(mirrored[1].forward, dict(params))

    def start(self, params: Mapping[str, jax.Array]) -> MemoryState:
        """The state of a memory that has seen nothing: weights `params`, held in f32 or wider.

        Args:
          params: the initial weights, see `init`.

        Returns:
          The state.

        Raises:
          ValueError: if the objective gives anything but one loss per token; with `retain_first`, for a rule whose
            state begins as a copy of the weights or a map of them.
        """
        dim_k, dim_v = self.network.dims(params)
        self._check_objective(dim_v)
        return engine.start(self, params, dim_k, dim_v * (1 + len(objectives.gates(self.objective))))

    def gates(self, weights: Mapping[str, jax.Array] | None = None) -> dict[str, Any]:
        """The gates of the rule and of the objective, with the constants that stand in for them or None.

        Args:
          weights: the memory's weights or their shapes, for a rule that looks at them.

        Returns:
          gate name -> constant or None; without "window".

        Raises:
          ValueError: if rule and objective have a gate of the same name.
        """
        of_rule, of_objective = rules.gates(self.rule, weights), objectives.gates(self.objective)
        both = sorted(of_rule.keys() & of_objective.keys())
        if both:
            raise ValueError(f"gates: expected different names for rule and objective, got {both} in both")
        return of_rule | of_objective

    def _split(self, values: jax.Array, given: Mapping[str, jax.Array]):
        """The memory, values and gates with the objective's gates packed behind the values."""
        own = objectives.gates(self.objective)
        if not own:
            return self, values, dict(given)
        packed = dataclasses.replace(self, objective=objectives.Packed(self.objective))
        rest = {name: gate for name, gate in given.items() if name not in own}
        return packed, objectives.pack(self.objective, values, given), rest

    def scan(
        self,
        state: MemoryState,
        keys: jax.Array,
        values: jax.Array,
        queries: jax.Array,
        gates: Mapping[str, jax.Array] | None = None,
        reset: jax.Array | None = None,
    ) -> tuple[jax.Array, MemoryState]:
        """Writes and reads a sequence. Opens a new chunk; hand over between scans at multiples of `chunk_size`.

        Args:
          state: where to start from: `start(params)` or what a scan or step returned.
          keys: [T, D_k]. L2-normalised keys keep the inner loop stable (learning_rate · C · ‖k‖² below about 2).
          values: [T, D_v].
          queries: [T, D_k].
          gates: for each gate of the rule [T], or [T, D] for a value per channel, which `nj.rules.scale` fits to the
            weights; for each gate of the objective [T] or [T, D_v]. A gate that has a constant may be left out. With
            `window=c`, the optional gate "window" [T, c] weighs the losses of the last c tokens, newest first.
          reset: bool [ceil(T / chunk_size)], True where a document begins: weights and rule state return to the start,
            and no window reaches back.

        Returns:
          y [T, D_v] and the state after the last token.

        Raises:
          ValueError: if a shape does not fit, a gate is missing or unknown, or the implementation cannot run the rule.
        """
        gates = {name: jnp.asarray(gate) for name, gate in (gates or {}).items()}
        reset = None if reset is None else jnp.asarray(reset)
        self._check_sequence(state, keys, values, queries)
        self._check_gates(state.weights, gates, (keys.shape[0],))
        check_reset(reset, keys.shape[0], self.chunk_size)
        return self._scan(state, keys, values, queries, gates, reset)

    def _scan(self, state: MemoryState, keys, values, queries, gates: Mapping[str, jax.Array], reset=None):
        """`scan` without its checks, so that queries may be anything the network takes."""
        spec, packed, rest = self._split(values, gates)
        y, after = engine.scan(spec, state, keys, packed, queries, rest, reset)
        return y[:, : values.shape[-1]], after

    def step(
        self,
        state: MemoryState,
        key: jax.Array,
        value: jax.Array,
        query: jax.Array,
        gates: Mapping[str, jax.typing.ArrayLike] | None = None,
    ) -> tuple[jax.Array, MemoryState]:
        """One token: the same numbers as `scan`, whose open chunk it continues.

        Args:
          state: the state before the token.
          key: [D_k].
          value: [D_v].
          query: [D_k].
          gates: for each gate a number, or [D] as in `scan`; "window" [c].

        Returns:
          y [D_v] and the state after the token.

        Raises:
          ValueError: as for `scan`.
        """
        now = {name: jnp.asarray(gate) for name, gate in (gates or {}).items()}
        self._check_arrays(state, key, value, query, 1)
        self._check_gates(state.weights, now, ())
        return self._step(state, key, value, query, now)

    def _step(self, state: MemoryState, key, value, query, gates: Mapping[str, jax.Array]):
        """`step` without its checks."""
        spec, packed, rest = self._split(value, gates)
        return engine.step(spec, state, key, packed, query, rest)

    def recall(self, state: MemoryState, queries: jax.Array) -> jax.Array:
        """What the memory answers as it is, without writing.

        Args:
          state: the state.
          queries: [T, D_k].

        Returns:
          y [T, D_v].

        Raises:
          ValueError: if `queries` is not one sequence of the state's width.
        """
        width, _ = self.network.dims(state.weights)
        if queries.ndim != 2 or queries.shape[-1] != width:
            raise ValueError(f"queries: expected shape [T, {width}], got {queries.shape}")
        dtype = next(iter(state.weights.values())).dtype
        return like(self.network(Plain(state.weights), queries.astype(dtype)), queries)

    def plan(self, dim: int | tuple[int, int] = 64, channels: Collection[str] = ()) -> Plan:
        """How this memory will be run on keys and values of width `dim`, and why.

        Args:
          dim: features of keys and values; or (dim_k, dim_v).
          channels: the gates that are given per channel, [T, D_v]. Those with a constant in the rule are not given
            unless they are named here.

        Returns:
          The plan.
        """
        state = jax.eval_shape(lambda key: self.start(self.init(key, dim)), jax.random.key(0))
        wide = (dim if isinstance(dim, int) else dim[1],)
        gates = {
            name: jax.ShapeDtypeStruct(wide if name in channels else (), jnp.float32)
            for name, constant in rules.gates(self.rule, state.weights).items()
            if constant is None or name in channels
        }
        return engine.make_plan(self, state, gates)

    def _check_objective(self, dim_v: int) -> None:
        two = jax.ShapeDtypeStruct((2, dim_v), jnp.float32)
        own = dict.fromkeys(objectives.gates(self.objective), two)
        expected = "objective: expected one loss per token, ([T, D], [T, D]) -> [T]"
        try:
            shape = jnp.shape(jax.eval_shape(self.objective, two, two, **own))
        except Exception as error:
            made = str(error).splitlines()[0][:200] if str(error) else ""
            raise ValueError(f"{expected}, but with T = 2 it raised {type(error).__name__}: {made}") from error
        if shape != (2,):
            raise ValueError(f"{expected}, got shape {shape} with T = 2: sum over the last axis alone")

    def _check_arrays(self, state: MemoryState, keys, values, queries, ndim: int) -> None:
        if not isinstance(state, MemoryState):
            raise ValueError(f"state: expected what start(params) or a scan returned, got {type(state).__name__}")
        for name, array in (("keys", keys), ("values", values), ("queries", queries)):
            if array.ndim != ndim:
                form = "[T, D]" if ndim == 2 else "[D]"
                raise ValueError(
                    f"{name}: expected one sequence of one head, shape {form}, got shape {array.shape}; "
                    "use jax.vmap over heads and batch"
                )
        if keys.shape[-1] != queries.shape[-1]:
            raise ValueError(f"queries: expected {keys.shape[-1]} features as in keys, got {queries.shape[-1]}")
        expected, got = self.network.dims(state.weights), (keys.shape[-1], values.shape[-1])
        if got != expected:
            raise ValueError(f"keys, values: expected {expected} features as in the state's weights, got {got}")

    def _check_sequence(self, state: MemoryState, keys, values, queries) -> None:
        self._check_arrays(state, keys, values, queries, 2)
        tokens = keys.shape[0]
        if values.shape[0] != tokens or queries.shape[0] != tokens:
            raise ValueError(
                f"values, queries: expected {tokens} tokens as in keys, got {values.shape[0]} and {queries.shape[0]}"
            )

    def _check_gates(
        self, weights: Mapping[str, jax.Array], gates: Mapping[str, jax.Array], leading: tuple[int, ...]
    ) -> None:
        known = self.gates(weights)
        allowed = [*known, *(["window"] if self.window > 1 else [])]
        for name, gate in gates.items():
            if name not in allowed:
                near = difflib.get_close_matches(name, allowed, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"gates: expected names among {allowed}, got {name!r}{hint}")
            shapes = [(*leading, self.window)] if name == "window" else [leading]
            wide = name != "window" and gate.ndim == len(leading) + 1 and gate.shape[: len(leading)] == leading
            if gate.shape not in shapes and not wide:
                raise ValueError(f"gates[{name!r}]: expected shape {shapes[0]}, got {gate.shape}")
            if wide and name == "learning_rate" and self.step_per == "chunk":
                raise ValueError(
                    "gates['learning_rate']: expected one number per token with step_per='chunk', got one per channel"
                )
        missing = [name for name, constant in known.items() if constant is None and name not in gates]
        if missing:
            raise ValueError(
                f"gates: expected a value for {missing} at every token, or a constant in the rule; got {sorted(gates)}"
            )


def _check_part(name: str, value: Any, fits: bool, expected: str) -> None:
    """Raises a ValueError for a field of a memory that does not fit, or is what makes one that would."""
    uncalled = isinstance(value, type) or (not fits and callable(value))
    if not fits or uncalled:
        hint = "; did you forget the ()?" if uncalled else ""
        raise ValueError(f"{name}: expected {expected}, got {getattr(value, '__name__', type(value).__name__)}{hint}")


def check_reset(reset: jax.Array | None, tokens: int, chunk_size: int) -> None:
    """Raises a ValueError unless there is one flag per chunk, or none at all."""
    chunks = -(-tokens // chunk_size)
    if reset is not None and jnp.shape(reset) != (chunks,):
        raise ValueError(f"reset: expected shape ({chunks},), one flag per chunk, got {jnp.shape(reset)}")
