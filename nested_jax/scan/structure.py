"""The structure of a rule, read off the jaxpr of its `update` on the real shapes.

*elementwise-linear*: once the gates are fixed, every entry of the step is a weighted sum of the same entry of the
gradient, of the rule's state and of the weights; the weights may also enter as x^T x W, x being their layer's input, if
they do so together with the gradient (the rule *erases*). *timewise*: a map of the current update alone, whatever it
is. Anything else is *sequential*. State that no gradient enters (step counts, scheduled hyperparameters) is a *clock*:
known for every token in advance.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import optax

from nested_jax.scan import linearity

Kind = Literal["linear", "timewise", "sequential"]
Step = Callable[..., tuple[Any, Any]]  # (updates, state, weights, gates) -> (updates, state)


@dataclasses.dataclass(frozen=True)
class Structure:
    """What kind of map a rule is.

    Attributes:
      kind: "linear" (elementwise-linear), "timewise" or "sequential".
      reads_weights: whether the outgoing updates or the state depend on the weights.
      clock: whether the rule carries state that no gradient enters.
      forgets: whether a linear rule's outgoing updates depend on the gradient alone, `u_t = D_t g_t`.
      channels: whether a linear rule has coefficients with a value per channel, from gates or constants.
      erases: the leaves of the weights where a linear rule sees, in place of every gradient g, `g + x^T x W`: delta
        gradient descent.
      reason: in words, why it is not linear; empty for a linear rule.
    """

    kind: Kind
    reads_weights: bool
    clock: bool
    forgets: bool = False
    channels: bool = False
    erases: frozenset[int] = frozenset()
    reason: str = ""


class System(NamedTuple):
    """`z_t = A_t z_{t-1} + B_t g_t` and the output `u_t = C_t z_{t-1} + D_t g_t` of one entry of one group of leaves.

    Shapes per token: A [n, n], B [n], C [n], D []. Where gates have a value per channel, leading axes as many as the
    leaf's, 1 long but for the one that the channels are along: [1, D, n, n]. Further leading axes for tokens.
    """

    A: jax.Array
    B: jax.Array
    C: jax.Array
    D: jax.Array


def rule_step(rule: optax.GradientTransformation) -> Step:
    """`rule` as a function of (updates, state, weights, gates)."""
    update = optax.with_extra_args_support(rule).update
    return lambda updates, state, weights, gates: update(updates, state, weights, **gates)


def weight_step(step: Step) -> Step:
    """`step` with the weights as its output and as the first part of its state: `(weights, state)`."""

    def stepped(updates, state, weights, gates):
        del weights
        updates, inner = step(updates, state[1], state[0], gates)
        weights = optax.apply_updates(state[0], updates)
        return weights, (weights, inner)

    return stepped


def owners(weights, state) -> list[int | None]:
    """For every leaf of a rule's `state`, the leaf of `weights` it mirrors (path, shape, float), or None: a clock."""
    weight_paths = [(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(weights)]
    found: list[int | None] = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
        matches = [
            i
            for i, (weight_path, weight) in enumerate(weight_paths)
            if is_float and path[len(path) - len(weight_path) :] == weight_path and leaf.shape == weight.shape
        ]
        found.append(matches[0] if matches else None)
    return found


def carries_weights(rule: optax.GradientTransformation, weights) -> bool:
    """Whether a rule's state begins as something made of the weights: a copy of them, an accumulator, a norm.

    Sound: what is said to begin without them does.
    """
    jaxpr = jax.make_jaxpr(rule.init)(weights).jaxpr
    made = set(jaxpr.invars)

    def any_made(variables) -> bool:
        return any(not isinstance(variable, jex.Literal) and variable in made for variable in variables)

    for equation in jaxpr.eqns:
        if any_made(equation.invars):
            made.update(equation.outvars)
    return any_made(jaxpr.outvars)


class Reading(NamedTuple):
    """A step as the interpreter sees it: outputs and new state as `linearity.Value`s, with the layout of both."""

    outputs: list[linearity.Value]
    state: list[linearity.Value]
    owners: list[int | None]
    members: list[list[int]]  # per leaf of the weights: the state leaves that mirror it, in order
    updates: int  # number of update leaves; data input i < updates is an update, then come state leaves, then weights
    reads_weights: bool


def read(
    step: Step, weights, state, gates: Mapping[str, jax.Array], clocks: list[Any], hide_inputs: bool = False
) -> Reading:
    """Interprets one step.

    Args:
      step: the update, with or without the weights in its state.
      weights: tree of arrays or shapes.
      state: the step's state, arrays or shapes.
      gates: one token's gates; "inputs", if there, maps the name of a weight to its layer's inputs, [N, D_in], and
        "importance" are the weights of these inputs, [N], 1 for a single one.
      clocks: the values of the state's clock leaves at this token, in order.
      hide_inputs: whether all that layers' inputs enter is to be opaque.

    Returns:
      The reading.
    """
    gates = jax.tree.map(jnp.asarray, dict(gates))
    weight_leaves, state_leaves = jax.tree.leaves(weights), jax.tree.leaves(state)
    state_owners = owners(weights, state)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (weights, state, weights, gates))
    closed = jax.make_jaxpr(step)(*shapes)

    count = len(weight_leaves)
    inputs: list[linearity.Value] = [_unit(i, i, leaf) for i, leaf in enumerate(weight_leaves)]
    remaining = iter(clocks)
    for i, (leaf, owner) in enumerate(zip(state_leaves, state_owners, strict=True)):
        inputs.append(linearity.known(next(remaining)) if owner is None else _unit(count + i, owner, leaf))
    first_weight = count + len(state_leaves)
    inputs += [_unit(first_weight + i, i, leaf) for i, leaf in enumerate(weight_leaves)]
    inputs += _gate_values(weights, gates, hide_inputs)

    values = linearity.interpret(closed.jaxpr, closed.consts, inputs)
    reads_weights = any(
        source >= first_weight
        for value in values
        if isinstance(value, (linearity.Linear, linearity.Opaque))
        for source in linearity.sources(value)
    )
    members = [[i for i, owner in enumerate(state_owners) if owner == leaf] for leaf in range(count)]
    return Reading(values[:count], values[count:], state_owners, members, count, reads_weights)


def _gate_values(weights, gates: Mapping[str, Any], hide_inputs: bool) -> list[linearity.Value]:
    """The gates as values; one layer's single input becomes that layer's `Inputs`, its importance the number 1."""
    leaves = {path: i for i, (path, _) in enumerate(jax.tree_util.tree_leaves_with_path(weights))}
    found: list[linearity.Value] = []
    for (first, *rest), gate in jax.tree_util.tree_leaves_with_path(gates):
        if first.key == "importance" and "inputs" in gates and gate.shape == (1,):
            found.append(linearity.Uniform(np.ones((), gate.dtype), gate.shape))
            continue
        if first.key == "inputs" and hide_inputs:
            found.append(linearity.Opaque(frozenset(), "a layer's input"))
            continue
        leaf = leaves.get(tuple(rest)) if first.key == "inputs" else None
        matrix = leaf is not None and jax.tree.leaves(weights)[leaf].ndim == 2 and len(gate) == 1
        found.append(linearity.Inputs(gate, leaf) if matrix else linearity.known(gate))
    return found


def _unit(index: int, leaf: int, array) -> linearity.Linear:
    return linearity.Linear({index: np.ones((), array.dtype)}, leaf)


def classify(step: Step, weights, state, gates: Mapping[str, Any]) -> Structure:
    """The structure of a rule's step on these shapes.

    Args:
      step: a rule's step, see `rule_step`.
      weights: tree of arrays or shapes.
      state: the rule's state for them.
      gates: one token's gates, arrays or shapes, see `read`.

    Returns:
      Its `Structure`. The analysis is sound: a rule that is called linear is linear.
    """
    found, hidden = [], []

    def trace(gates, clocks):
        found.append(read(step, weights, state, gates, clocks))
        if "inputs" in gates and clocks:
            hidden.append(read(step, weights, state, gates, clocks, hide_inputs=True))
        return 0

    clocks = [leaf for leaf, owner in zip(jax.tree.leaves(state), owners(weights, state), strict=True) if owner is None]
    jax.eval_shape(trace, dict(gates), clocks)
    (reading,) = found
    clock, reads_weights = bool(clocks), reading.reads_weights
    stateless = all(owner is None for owner in reading.owners)

    reason = ""
    erases, forgets, channels = set(), True, False
    first_weight = reading.updates + len(reading.state)
    for leaf, (output, members) in enumerate(zip(reading.outputs, reading.members, strict=True)):
        rows = [output, *(reading.state[i] for i in members)]
        for value in rows:
            reason = reason or _not_linear(value, leaf)
        reason, leaf_erases = (reason, False) if reason else _together(rows, leaf, first_weight + leaf)
        if leaf_erases:
            erases.add(leaf)
        channels = channels or any(
            np.ndim(c) for row in rows if isinstance(row, linearity.Linear) for c in row.terms.values()
        )
        forgets = forgets and _only(output, leaf)
    clock_reason = ""
    for value, owner in zip(reading.state, reading.owners, strict=True):
        if owner is None and isinstance(value, (linearity.Linear, linearity.Opaque)):
            clock_reason = "state of another shape than the weights depends on the gradients"
    for reading in hidden:
        for value, owner in zip(reading.state, reading.owners, strict=True):
            if owner is None and isinstance(value, linearity.Opaque):
                clock_reason = clock_reason or "state of another shape than the weights depends on layers' inputs"
    if not reason and not clock_reason:
        return Structure("linear", reads_weights, clock, forgets, channels, frozenset(erases))
    if stateless and not clock_reason and not reads_weights:
        return Structure("timewise", False, clock, reason=reason)
    return Structure("sequential", reads_weights, clock, reason=clock_reason or reason)


def _together(rows: list[Any], update: int, weight: int) -> tuple[str, bool]:
    """Why the rows of one leaf make no system or '', and whether weights are erased with every gradient."""
    rows = [row for row in rows if isinstance(row, linearity.Linear)]
    if linearity.common_shape([c for row in rows for c in row.terms.values()]) is None:
        return "it has values per channel along different axes", False
    projected = {key.source for row in rows for key in row.terms if isinstance(key, linearity.Projection)}
    if projected - {weight}:
        return "it takes the answers of others than the weights", False
    for row in rows:
        pair = [row.terms.get(key, 0.0) for key in (update, linearity.Projection(weight))]
        if projected and len({linearity.identity(c) for c in pair}) > 1:
            return "it takes the weights' answer apart from the gradient", False
    return "", bool(projected)


def _only(value: linearity.Value, source: int) -> bool:
    """Whether no other input than `source` enters, whatever the gates are."""
    return linearity.is_zero(value) or (
        isinstance(value, linearity.Linear)
        and all(key == source or linearity.is_zero(linearity.known(c)) for key, c in value.terms.items())
    )


def _not_linear(value: linearity.Value, leaf: int) -> str:
    if linearity.is_zero(value) or (isinstance(value, linearity.Linear) and value.leaf == leaf):
        return ""
    if isinstance(value, linearity.Opaque):
        return f"`{value.reason}` is not an elementwise-linear operation on the gradients"
    return "it adds a constant" if not isinstance(value, linearity.Linear) else "it mixes leaves"


def clock_leaves(weights, state) -> list[Any]:
    """The leaves of a rule's state that no gradient enters."""
    return [leaf for leaf, owner in zip(jax.tree.leaves(state), owners(weights, state), strict=True) if owner is None]


def advance_clocks(
    step: Step, weights, state, gates: Mapping[str, jax.Array], resets: jax.Array, fresh, length: int
) -> tuple[list[jax.Array], list[jax.Array]]:
    """The clock leaves of a rule before each token, and after each chunk.

    Args:
      step: the rule's step.
      weights: tree of arrays or shapes.
      state: the state before the first token.
      gates: name -> [N, C, ...].
      resets: bool [N]; where set, the clocks of that chunk start from those of `fresh`.
      fresh: the state of a memory that has seen nothing.
      length: C, the tokens of a chunk.

    Returns:
      One [N, C, ...] array per clock leaf, and one [N, ...].
    """
    clocks, initial = clock_leaves(weights, state), clock_leaves(weights, fresh)
    if not clocks:
        return [], []

    def token(clocks, gates):
        reading = read(step, weights, state, gates, clocks)
        free = [v for v, owner in zip(reading.state, reading.owners, strict=True) if owner is None]
        after = [linearity.materialize(v) for v in free if isinstance(v, (linearity.Uniform, linearity.Known))]
        return [a.astype(c.dtype) for a, c in zip(after, clocks, strict=True)], clocks

    def chunk(clocks, inputs):
        gates, reset = inputs
        clocks = [jnp.where(reset, new, old) for new, old in zip(initial, clocks, strict=True)]
        after, before = jax.lax.scan(token, clocks, gates, length=length)
        return after, (before, after)

    return jax.lax.scan(chunk, clocks, (dict(gates), resets))[1]


def systems(
    step: Step, weights, state, gates: Mapping[str, Any], clocks: list[jax.Array], tokens: int
) -> tuple[list[System], list[int], list[list[int]]]:
    """The linear systems of an elementwise-linear step, one per group of leaves that share theirs.

    Args:
      step: an elementwise-linear step.
      weights: tree of arrays or shapes.
      state: the step's state.
      gates: name -> [tokens, ...], "inputs" with axes [tokens, 1, D_in] for every name.
      clocks: the clock leaves before each token, [tokens, ...] each.
      tokens: their number.

    Returns:
      The systems, with A [tokens, n, n] or [tokens, 1, D, n, n] (see `System`); for every leaf of the weights the index
      of its system; and for every leaf the
      state leaves that make up its z.
    """
    layout: list[Any] = []

    def token(_, gates, clocks):
        reading = read(step, weights, state, gates, clocks)
        found: list[System] = []
        keys: list[Any] = []
        groups: list[int] = []
        for leaf, members in enumerate(reading.members):
            rows = [*(reading.state[i] for i in members), reading.outputs[leaf]]
            sources = [*(reading.updates + i for i in members), leaf]
            dtype = jnp.promote_types(jax.tree.leaves(weights)[leaf].dtype, jnp.float32)
            entries = [[_entry(row, source) for source in sources] for row in rows]
            key = tuple(linearity.identity(e) for row in entries for e in row)
            if key not in keys:
                keys.append(key)
                found.append(_system(entries, dtype))
            groups.append(keys.index(key))
        layout[:] = [groups, reading.members]
        return found

    return jax.vmap(token)(jnp.arange(tokens), dict(gates), clocks), *layout


def _system(entries: list[list[Any]], dtype) -> System:
    shape = linearity.common_shape([e for row in entries for e in row]) or ()
    rows = [jnp.stack(linearity.spread([jnp.asarray(e, dtype) for e in row], shape), -1) for row in entries]
    table = jnp.stack(rows, -2)
    return System(table[..., :-1, :-1], table[..., :-1, -1], table[..., -1, :-1], table[..., -1, -1])


def _entry(value: linearity.Value, source: int):
    return (
        value.terms.get(source, np.zeros((), np.float32))
        if isinstance(value, linearity.Linear)
        else np.zeros((), np.float32)
    )
