"""The stages of a plan over chunks: what depends on gates alone, for all chunks at once, and the walk through one
chunk.

Gates are known before any chunk is processed, so clocks, linear systems and responses are computed outside the
sequential loop over chunks. Inside it a chunk's updates go from stage to stage: linear stages by their response or by
an associative scan, timewise ones by `vmap` over the tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nested_jax.scan import response, structure
from nested_jax.scan.operations import Operations
from nested_jax.scan.plan import Plan, Stage
from nested_jax.scan.response import Response
from nested_jax.scan.state import Carry, Chunk, Specification
from nested_jax.scan.structure import Step, System
from nested_jax.scan.updates import Factored, Formed, LowRank, Updates


class Prepared(NamedTuple):
    """What one stage needs of its gates; leading axis [N] for chunks.

    Attributes:
      clocks: the clock leaves before each token, [N, C, ...].
      after: the clock leaves after each chunk, [N, ...].
      systems: the linear systems, A [N, C, n, n]; empty for a timewise stage, and where they depend on layers' inputs.
      responses: their roll-outs; empty for a timewise stage, and where the systems are scanned. None for a system with
        channels, which `roll` rolls out in its chunk: D × C × C numbers are too many to keep for all chunks.
    """

    clocks: list[jax.Array]
    after: list[jax.Array]
    systems: list[System]
    responses: list[Response | None]


class Layout(NamedTuple):
    """Which system each leaf of the weights has, and which leaves of the stage's state make up its z."""

    groups: list[int]
    members: list[list[int]]


def last(plan: Plan, index: int) -> bool:
    """Whether stage `index` is the one that writes the weights."""
    return index == len(plan.stages) - 1


def stage_view(plan: Plan, index: int, weights, rule_state):
    """The step and the state of a stage; the last one carries the weights in its state."""
    stage: Stage = plan.stages[index]
    states = stage.states(rule_state)
    return (structure.weight_step(stage.step), (weights, states)) if last(plan, index) else (stage.step, states)


def prepare(
    plan: Plan,
    weights,
    rule_state,
    fresh_state,
    gates: Mapping[str, jax.Array],
    resets: jax.Array,
    length: int,
    roll: bool,
) -> tuple[list[Prepared], list[Layout]]:
    """Clocks, systems and (with `roll`) responses of every stage.

    Args:
      plan: the plan; its stages are linear and timewise in turn, the last is linear.
      weights: the weights before the first chunk.
      rule_state: the rule's state before the first chunk.
      fresh_state: the rule's state of a memory that has seen nothing.
      gates: name -> [N, C].
      resets: bool [N].
      length: C.
      roll: whether to compute the responses.

    Returns:
      Per stage the `Prepared` arrays and the `Layout`.
    """
    prepared, layouts = [], []
    for index, stage in enumerate(plan.stages):
        step, state = stage_view(plan, index, weights, rule_state)
        _, fresh = stage_view(plan, index, weights, fresh_state)
        ticking = _with_ones(step, weights) if plan.erases else step
        clocks, after = structure.advance_clocks(ticking, weights, state, gates, resets, fresh, length)
        found, responses, layout = [], [], Layout([], [])
        if stage.kind == "linear" and not plan.erases:
            flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (dict(gates), clocks))
            flat_gates, flat_clocks = flat
            count = resets.shape[0] * length
            found, groups, members = structure.systems(step, weights, state, flat_gates, flat_clocks, count)
            found = jax.tree.map(lambda x: x.reshape(resets.shape[0], length, *x.shape[1:]), found)
            layout = Layout(groups, members)
            responses = [response.roll_out(s) if s.A.ndim == 4 else None for s in found] if roll else []
        prepared.append(Prepared(clocks, after, found, responses))
        layouts.append(layout)
    return prepared, layouts


def _with_ones(step: Step, weights) -> Step:
    """A step that is shown inputs which its clocks do not depend on."""
    inputs = {name: jnp.ones((1, w.shape[0] if w.ndim > 1 else 1), w.dtype) for name, w in weights.items()}
    importance = jnp.ones(1, next(iter(weights.values())).dtype)
    return lambda updates, state, weights, gates: step(
        updates, state, weights, {"inputs": inputs, "importance": importance, **gates}
    )


def with_inputs(
    plan: Plan, carry: Carry, gates: Mapping[str, jax.Array], inputs: Mapping[str, jax.Array], ready: Prepared
) -> tuple[Prepared, Layout]:
    """The one stage of a rule that erases, in a chunk whose layers' inputs are known.

    Args:
      plan: the plan.
      carry: the state before the chunk.
      gates: name -> [C].
      inputs: the inputs of dense layers, name -> [C, D_in].
      ready: what was prepared without them.

    Returns:
      The stage with its systems, A [C, n, n], and its layout.
    """
    step, state = stage_view(plan, 0, carry.weights, carry.rule_state)
    count = len(next(iter(inputs.values())))
    ones = jnp.ones((count, 1, 1), next(iter(inputs.values())).dtype)
    known = {name: inputs[name][:, None, :] if name in inputs else ones for name in carry.weights}
    known = {"inputs": known, "importance": ones[:, 0], **gates}
    found, groups, members = structure.systems(step, carry.weights, state, known, ready.clocks, count)
    return ready._replace(systems=found, responses=[None] * len(found)), Layout(groups, members)


def roll(prepared: Sequence[Prepared]) -> list[Prepared]:
    """One chunk's stages with the responses that were left to it."""

    def rolled(ready: Prepared) -> Prepared:
        pairs = zip(ready.responses, ready.systems, strict=True)
        return ready._replace(
            responses=[response.roll_out(response.tokens_last(s)) if r is None else r for r, s in pairs]
        )

    return [rolled(ready) for ready in prepared]


# One leaf's state in a stage: n arrays of the leaf's shape.
Z = Sequence[jax.Array]

# (z, system, response or None, name, updates) -> (outputs [C, ...leaf], z after the chunk)
LinearStage = Callable[[Z, System, Response | None, str, Updates], tuple[jax.Array, Z]]


def gather(weights: Mapping[str, jax.Array], state, layout: Layout) -> dict[str, Z]:
    """The stage's state as one z per leaf of the weights."""
    leaves = jax.tree.leaves(state)
    return {name: [leaves[i] for i in members] for name, members in zip(sorted(weights), layout.members, strict=True)}


def scatter(weights, state, layout: Layout, z: Mapping[str, Z], clocks: Sequence[jax.Array]):
    """The stage's state with every z put back and its clock leaves replaced."""
    leaves, treedef = jax.tree.flatten(state)
    remaining = iter(clocks)
    for i, owner in enumerate(structure.owners(weights, state)):
        if owner is None:
            leaves[i] = next(remaining)
    for name, members in zip(sorted(weights), layout.members, strict=True):
        for row, i in enumerate(members):
            leaves[i] = z[name][row].astype(leaves[i].dtype)
    return treedef.unflatten(leaves)


class Last(NamedTuple):
    """What the stage that writes the weights works on; every dict is by leaf of the weights.

    z at the chunk's start, whose first entry is the weight; the leaf's `System` and, where rolled out, its `Response`;
    the updates of the chunk's tokens.
    """

    z: dict[str, Z]
    systems: dict[str, System]
    responses: dict[str, Response]
    updates: Updates


# How the last stage ends: the operations that queries are read with, and z after the chunk.
Finish = Callable[[Last], tuple[Operations, Mapping[str, Z]]]


def by_leaf(layout: Layout, weights, found: Sequence) -> dict:
    """Systems or responses by the name of the leaf they belong to; empty where there are none."""
    return {name: found[group] for name, group in zip(sorted(weights), layout.groups, strict=True) if found}


def chunk(
    spec: Specification,
    plan: Plan,
    layouts: Sequence[Layout],
    carry: Carry,
    tokens: Chunk,
    prepared: Sequence[Prepared],
    updates: Updates,
    linear: LinearStage,
    finish: Finish,
) -> tuple[Carry, jax.Array]:
    """Sends a chunk's updates through all stages and reads its queries.

    Args:
      spec: the memory.
      plan: its plan.
      layouts: per stage.
      carry: the state at the chunk's start.
      tokens: the chunk.
      prepared: per stage, this chunk's.
      updates: the gradients.
      linear: how a linear stage before the last is run.
      finish: how the last stage is run.

    Returns:
      The state after the chunk (its window is the caller's) and y [C, D_v].
    """
    weights, rule_state = carry.weights, carry.rule_state
    for stage, layout, ready in zip(plan.stages[:-1], layouts, prepared, strict=False):
        states = stage.states(rule_state)
        if stage.kind == "timewise" and plan.low_rank:
            assert isinstance(updates, Factored)
            assert stage.factored is not None
            updates = LowRank.of(updates, spec.window, stage.factored)
        elif stage.kind == "timewise":
            updates = Formed(_timewise(stage, states, weights, tokens.gates, ready, updates.formed()))
            states = scatter(weights, states, Layout([], [[] for _ in weights]), {}, ready.after)
        else:
            z = gather(weights, states, layout)
            systems, rolled = by_leaf(layout, weights, ready.systems), by_leaf(layout, weights, ready.responses)
            ended = {name: linear(z[name], systems[name], rolled.get(name), name, updates) for name in z}
            if plan.low_rank:
                updates = _scaled(updates, systems)
            else:
                updates = Formed({name: outputs for name, (outputs, _) in ended.items()})
            states = scatter(weights, states, layout, {name: end for name, (_, end) in ended.items()}, ready.after)
        rule_state = stage.replace(rule_state, states)

    stage, layout, ready = plan.stages[-1], layouts[-1], prepared[-1]
    state = (weights, stage.states(rule_state))
    systems, rolled = by_leaf(layout, weights, ready.systems), by_leaf(layout, weights, ready.responses)
    operations, after = finish(Last(gather(weights, state, layout), systems, rolled, updates))
    y = spec.network(operations, tokens.queries)
    weights, states = scatter(weights, state, layout, after, ready.after)
    return Carry(weights, stage.replace(rule_state, states), None), y


def retained(spec: Specification, layouts: Sequence[Layout], weights, prepared: Sequence[Prepared]):
    """With `retain_first`, by how much each token's gradient sees the weights decayed, else None.

    name -> [C], or [1, D, C] with one number per channel.
    """
    if not spec.retain_first:
        return None
    systems = by_leaf(layouts[-1], weights, prepared[-1].systems)
    return {name: jnp.moveaxis(system.A[..., 0, 0], 0, -1) for name, system in systems.items()}


def _scaled(updates: Updates, systems: Mapping[str, System]) -> Factored:
    """What a linear stage that carries nothing over makes of gradients in factors: `u_t = D_t g_t`."""
    assert isinstance(updates, Factored)
    bands = {name: system.D[:, None] * jnp.eye(len(system.D)) for name, system in systems.items()}
    if updates.bands is not None:
        bands = {name: systems[name].D[:, None] * band for name, band in updates.bands.items()}
    return Factored(updates.factors, bands)


def _timewise(
    stage: Stage, states, weights, gates, ready: Prepared, updates: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    nothing = Layout([], [[] for _ in weights])

    def token(update, clocks, gates):
        return stage.step(update, scatter(weights, states, nothing, {}, clocks), weights, gates)[0]

    return jax.vmap(token)(updates, ready.clocks, dict(gates))
