"""The engine: a memory over a sequence, chunk by chunk as its plan says; and one token at a time."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from nested_jax import rules
from nested_jax.scan import delta, dual, materialize, per_chunk, stages, structure, token
from nested_jax.scan import plan as planning
from nested_jax.scan.plan import Plan
from nested_jax.scan.state import (
    Carry,
    Chunk,
    MemoryState,
    Open,
    Specification,
    Window,
    begin,
    chunk_start,
    like,
    select,
    view,
)

_TOKENS_PER_CHECKPOINT = 64


def start(spec: Specification, weights: Mapping[str, jax.Array], dim_k: int, dim_v: int) -> MemoryState:
    """The state of a memory that has seen nothing.

    Args:
      spec: the memory.
      weights: its initial weights.
      dim_k: features of a key.
      dim_v: features of a value.

    Returns:
      The state.

    Raises:
      ValueError: with `retain_first`, if the rule's state begins as something made of the weights.
    """
    if spec.retain_first and structure.carries_weights(spec.rule, weights):
        raise ValueError(
            "retain_first: expected a rule whose state begins without the weights, got "
            f"{rules.describe_rule(spec.rule)}, of which it is not known what decays"
        )
    weights = {name: w.astype(jnp.promote_types(w.dtype, jnp.float32)) for name, w in weights.items()}
    rule_state = begin(spec.rule, weights)
    dtype = next(iter(weights.values())).dtype
    window = open_chunk = None
    if spec.window > 1:
        before = spec.window - 1
        window = Window(jnp.zeros((before, dim_k), dtype), jnp.zeros((before, dim_v), dtype), jnp.zeros((), jnp.int32))
    if spec.chunk_size > 1:
        open_chunk = Open(jnp.zeros((), jnp.int32), weights)
        if spec.step_per == "chunk":
            sums = {name: jnp.zeros((), dtype) for name in rules.gates(spec.rule, weights)}
            open_chunk = open_chunk._replace(
                rule_state=rule_state, gradient=jax.tree.map(jnp.zeros_like, weights), gates=sums
            )
    return MemoryState(weights, rule_state, weights, window, open_chunk)


def make_plan(spec: Specification, state: MemoryState, gates: Mapping[str, Any]) -> Plan:
    """The plan for one token's gates, arrays or shapes, without "window"."""
    return planning.make(spec, state.weights, state.rule_state, gates)


def scan(
    spec: Specification,
    state: MemoryState,
    keys: jax.Array,
    values: jax.Array,
    queries: jax.Array,
    gates: Mapping[str, jax.Array],
    reset: jax.Array | None,
) -> tuple[jax.Array, MemoryState]:
    """Runs a memory over a sequence; see `nested_jax.memory.Memory.scan`."""
    tokens, size = keys.shape[0], spec.chunk_size
    dtype = next(iter(state.weights.values())).dtype
    inputs = jax.tree.map(lambda x: jnp.asarray(x, dtype), (keys, values, queries, dict(gates)))
    one_token = {name: jax.ShapeDtypeStruct(g.shape[1:], dtype) for name, g in inputs[3].items() if name != "window"}
    plan = make_plan(spec, state, one_token)
    carry = Carry(state.weights, state.rule_state, state.window)
    full, rest = divmod(tokens, size)
    outputs = []
    if full:
        chunks = jax.tree.map(lambda x: x[: full * size].reshape(full, size, *x.shape[1:]), inputs)
        carry, y = _chunks(spec, plan, state, carry, chunks, None if reset is None else reset[:full])
        outputs.append(y.reshape(full * size, -1))
    after = MemoryState(*carry[:2], state.initial, carry.window, state.open)
    if state.open is not None:
        after = dataclasses.replace(after, open=state.open._replace(position=jnp.zeros_like(state.open.position)))
    if rest:
        if reset is not None:
            carry = select(reset[full], _fresh(spec, state), carry)
        y, after = _short_chunk(spec, plan, after, carry, *jax.tree.map(lambda x: x[full * size :], inputs))
        outputs.append(y)
    y = jnp.concatenate(outputs) if outputs else jnp.zeros((0, values.shape[-1]), dtype)
    return like(y, values), after


def _fresh(spec: Specification, state: MemoryState) -> Carry:
    window = None if state.window is None else state.window._replace(seen=jnp.zeros_like(state.window.seen))
    return Carry(state.initial, begin(spec.rule, state.initial), window)


def _chunks(
    spec: Specification, plan: Plan, state: MemoryState, carry: Carry, inputs, reset
) -> tuple[Carry, jax.Array]:
    """N chunks one after the other; `inputs` are keys, values, queries and gates with leading axes [N, C]."""
    count, length = inputs[0].shape[:2]
    rule_gates = {name: gate for name, gate in inputs[3].items() if name != "window"}
    fresh = None if reset is None else _fresh(spec, state)
    prepared, layouts = [], []
    if plan.stages:
        flags = jnp.zeros(count, bool) if reset is None else reset
        driven = plan.driven(carry)
        prepared, layouts = stages.prepare(
            plan,
            driven.weights,
            driven.rule_state,
            driven.rule_state if fresh is None else plan.driven(fresh).rule_state,
            rule_gates,
            flags,
            length,
            plan.implementation == "dual",
        )
    if plan.implementation == "delta" and length == 1:
        tokens = jax.tree.map(lambda x: x[:, 0], inputs)
        carry, y = delta.scan(spec, plan, layouts, prepared, carry, fresh, tokens, reset)
        return carry, y[:, None]

    def body(carry, xs):
        (keys, values, queries, gates), reset, prepared = xs
        if fresh is not None:
            carry = select(reset, fresh, carry)
        tokens, window = view(carry.window, keys, values, queries, gates)
        carry, y, _ = _chunk(spec, plan, layouts, carry, tokens, prepared)
        return carry._replace(window=window), y

    return _checkpointed_scan(body, carry, (inputs, reset, prepared), count, max(1, _TOKENS_PER_CHECKPOINT // length))


def _chunk(spec: Specification, plan: Plan, layouts, carry: Carry, tokens: Chunk, prepared):
    """One chunk by the plan's implementation: the state after it, y, and with `step_per="chunk"` the chunk's sums."""
    if spec.step_per == "chunk":
        return per_chunk.chunk(spec, plan.implementation, carry, tokens)
    if plan.implementation == "scan":
        return *token.chunk(spec, carry, tokens), None
    run = materialize.chunk if plan.implementation == "materialize" else dual.chunk
    return *run(spec, plan, layouts, carry, tokens, prepared), None


def _checkpointed_scan(body: Callable, carry, xs, count: int, group: int):
    """`jax.lax.scan` over `count` chunks that keeps only the state between groups of chunks for the backward pass."""
    run = jax.checkpoint(lambda carry, xs: jax.lax.scan(body, carry, xs), prevent_cse=False)
    if group == 1:
        return jax.lax.scan(jax.checkpoint(body, prevent_cse=False), carry, xs)
    groups = count // group
    outputs = []
    if groups:
        grouped = jax.tree.map(lambda x: x[: groups * group].reshape(groups, group, *x.shape[1:]), xs)
        carry, y = jax.lax.scan(run, carry, grouped)
        outputs.append(y.reshape(groups * group, *y.shape[2:]))
    if count > groups * group:
        carry, y = run(carry, jax.tree.map(lambda x: x[groups * group :], xs))
        outputs.append(y)
    return carry, jnp.concatenate(outputs)


def _short_chunk(
    spec: Specification, plan: Plan, state: MemoryState, carry: Carry, keys, values, queries, gates
) -> tuple[jax.Array, MemoryState]:
    """The last chunk of a sequence, shorter than the others: it writes like any other and stays open for `step`."""
    prepared, layouts = [], []
    if plan.stages:
        rule_gates = {name: gate[None] for name, gate in gates.items() if name != "window"}
        driven = plan.driven(carry)
        prepared, layouts = stages.prepare(
            plan,
            driven.weights,
            driven.rule_state,
            driven.rule_state,
            rule_gates,
            jnp.zeros(1, bool),
            keys.shape[0],
            plan.implementation == "dual",
        )
        prepared = jax.tree.map(lambda x: x[0], prepared)
    tokens, window = view(carry.window, keys, values, queries, gates)
    after, y, sums = _chunk(spec, plan, layouts, carry, tokens, prepared)
    assert state.open is not None
    opened = state.open._replace(position=jnp.full_like(state.open.position, keys.shape[0]), weights=carry.weights)
    if sums is not None:
        opened = opened._replace(
            rule_state=carry.rule_state, gradient=sums.gradient, gates={**(state.open.gates or {}), **sums.gates}
        )
    return y, MemoryState(after.weights, after.rule_state, state.initial, window, opened)


def step(
    spec: Specification,
    state: MemoryState,
    key: jax.Array,
    value: jax.Array,
    query: jax.Array,
    gates: Mapping[str, Any],
) -> tuple[jax.Array, MemoryState]:
    """One token; see `nested_jax.memory.Memory.step`."""
    dtype = next(iter(state.weights.values())).dtype
    inputs = jax.tree.map(lambda x: jnp.asarray(x, dtype)[None], (key, value, query, dict(gates)))
    tokens, window = view(state.window, *inputs)
    opened = state.open
    begins = jnp.asarray(True) if opened is None else opened.position == 0
    start_weights = chunk_start(state).weights
    if spec.step_per == "chunk":
        weights, rule_state, opened = _step_per_chunk(spec, state, tokens, begins, start_weights)
    else:
        importance = jnp.ones(1, dtype) if tokens.band is None else tokens.band[0]
        now = {name: gate[0] for name, gate in tokens.gates.items()}
        weights, rule_state = token.write(
            spec, start_weights, state.weights, state.rule_state, tokens.keys, tokens.values, importance, now
        )
    if opened is not None:
        opened = opened._replace(position=(opened.position + 1) % spec.chunk_size, weights=start_weights)
    read = {"after": weights, "before": state.weights, "start": start_weights}[spec.read]
    y = token.predict(spec, read, tokens.queries[0])
    return like(y, value), MemoryState(weights, rule_state, state.initial, window, opened)


def _step_per_chunk(spec: Specification, state: MemoryState, tokens: Chunk, begins: jax.Array, start_weights):
    """The weights that the open chunk would leave if it ended with this token."""
    found = per_chunk.totals(spec, "dual", start_weights, tokens)
    opened, rule_state, count = state.open, state.rule_state, 1
    if opened is not None:
        so_far = select(
            begins, jax.tree.map(jnp.zeros_like, (opened.gradient, opened.gates)), (opened.gradient, opened.gates)
        )
        rule_state = select(begins, state.rule_state, opened.rule_state)
        gradient = jax.tree.map(jnp.add, so_far[0], found.gradient)
        found = per_chunk.Totals(gradient, {name: so_far[1][name] + gate for name, gate in found.gates.items()})
        opened = opened._replace(rule_state=rule_state, gradient=gradient, gates={**so_far[1], **found.gates})
        count = opened.position + 1
    after = per_chunk.step(spec, start_weights, rule_state, found.gradient, per_chunk.chunk_gates(found.gates, count))
    return *after, opened
