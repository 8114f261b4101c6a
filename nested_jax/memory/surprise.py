"""What surprises a memory, token by token: past and momentary surprise (Titans eq 10)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nested_jax import rules
from nested_jax.memory import objectives
from nested_jax.memory.memory import Memory
from nested_jax.scan.state import MemoryState
from nested_jax.scan.structure import rule_step

_TRACES = {
    rules.MomentumState: "trace",
    rules.AverageState: "average",
    optax.TraceState: "trace",
    optax.EmaState: "ema",
}


def surprise(
    memory: Memory,
    state: MemoryState,
    keys: jax.Array,
    values: jax.Array,
    gates: Mapping[str, jax.Array] | None = None,
) -> dict[str, jax.Array]:
    """How much of each token's momentum comes from before, and how much from the token itself.

        S_t = η_t S_{t−1}  −  θ_t ∇ℓ_t
              past            momentary

    The past is what the momentum would be if the token's gradient were zero, the momentary surprise what the gradient
    adds to it; so any rule with a momentum in it can be looked at, whatever stands before or behind.

    Args:
      memory: a memory with `step_per="token"`, whose rule has a momentum: `nj.rules.momentum`, `average`,
        `optax.trace` or `optax.ema`, anywhere in it.
      state: where to start from.
      keys: [T, D_k].
      values: [T, D_v].
      gates: as for `memory.scan`.

    Returns:
      "past" and "momentary", [T] each: norms over all weights.

    Raises:
      ValueError: if the rule has no momentum or steps once per chunk; and as `memory.step` does.

    Example:
      >>> import jax, jax.numpy as jnp, nested_jax as nj
      >>> rule = nj.rules.titans(0.1, 0.5, 0.0)
      >>> memory = nj.Memory(nj.networks.Linear(), nj.objectives.dot_product, rule, chunk_size=1)
      >>> state = memory.start(memory.init(jax.random.key(0), 2))
      >>> found = nj.surprise(memory, state, jnp.eye(2)[:1].repeat(3, 0), jnp.ones((3, 2)))
      >>> [round(float(x / found["momentary"][0]), 3) for x in found["past"]]
      [0.0, 0.5, 0.75]
    """
    if memory.step_per != "token":
        raise ValueError(
            f"memory: expected step_per='token', got {memory.step_per!r}: a chunk's one step has no tokens"
        )
    if not _traces(state.rule_state):
        raise ValueError(f"memory: expected a rule with a momentum, got {rules.describe_rule(memory.rule)}")
    own = objectives.gates(memory.objective)
    step = rule_step(memory.rule)

    def token(state, inputs):
        key, value, now = inputs
        _, after = memory.step(state, key, value, key, now)
        of_rule = {name: gate for name, gate in now.items() if name not in own and name != "window"}
        nothing = jax.tree.map(jnp.zeros_like, state.weights)
        _, without = step(nothing, state.rule_state, state.weights, of_rule)
        past, total = _traces(without), _traces(after.rule_state)
        momentary = jax.tree.map(jnp.subtract, total, past)
        return after, {"past": optax.tree.norm(past), "momentary": optax.tree.norm(momentary)}

    return jax.lax.scan(token, state, (keys, values, dict(gates or {})))[1]


def _traces(rule_state: Any) -> list[Any]:
    """The momenta in a rule's state."""
    parts = jax.tree.leaves(rule_state, is_leaf=lambda part: type(part) in _TRACES)
    return [getattr(part, _TRACES[type(part)]) for part in parts if type(part) in _TRACES]
