"""Linear rules over a sequence whose pieces lie on the members of a mesh axis: one affine map per piece, one exchange.

A linear memory's state after a piece is an affine map of its state before it (DeltaNet, arXiv 2406.06484 §3, for one
chunk; here for every rule and objective that keep it so). Every member finds the map of its own piece, an `all_gather`
hands out the maps, everybody folds those of the pieces before its own, and runs its piece from the right state.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from nested_jax.scan import affine, engine, structure
from nested_jax.scan import plan as planning
from nested_jax.scan.state import MemoryState, Specification, Window


class Map(NamedTuple):
    """What a piece does to the n matrices [D_k, D_v] of a state, z -> `linear @ z + constant`.

    Attributes:
      linear: [n · D_k, n · D_k] on the states' rows, the same for every column; [n, n] on whole matrices where the
        gradients do not depend on the weights.
      constant: [n, D_k, D_v].
    """

    linear: jax.Array
    constant: jax.Array

    def __call__(self, z: jax.Array) -> jax.Array:
        rows = z.reshape(self.linear.shape[-1], -1)
        return jnp.matmul(self.linear, rows, precision=jax.lax.Precision.HIGHEST).reshape(z.shape) + self.constant


def obstacle(spec: Specification, weights, rule_state, gates: Mapping[str, Any]) -> str:
    """Why a memory's state is not known to go through a piece by an affine map, or ''.

    The analysis is sound: where there is no obstacle, the state after whole chunks is affine in the state before them,
    with one linear part for all columns.

    Args:
      spec: the memory.
      weights: its weights, arrays or shapes.
      rule_state: the rule's state for them.
      gates: one token's gates, arrays or shapes, without "window".

    Returns:
      The obstacle in words.
    """
    found, reason = affine.read(spec, weights)
    if found is None:
        return reason
    if getattr(spec.rule, "mirrored", None) is not None:
        return "its weights are a map of an accumulator"
    known = {**planning.inputs(spec, weights), **gates}
    whole = structure.classify(structure.rule_step(spec.rule), weights, rule_state, known)
    if whole.kind != "linear":
        return f"its rule is not linear: {whole.reason}"
    if whole.clock:
        return "its rule has a clock"
    if whole.channels or any(gate.ndim > 0 for gate in gates.values()):
        return "its rule has a value per channel"
    if spec.step_per == "token":
        plan = _plan(spec, weights, rule_state, gates)
        if plan.implementation == "scan":
            return f"it runs {plan.reason}"
    return ""


def _plan(spec: Specification, weights, rule_state, gates: Mapping[str, Any]) -> planning.Plan:
    """The plan of a memory that may choose its implementation."""
    free: Any = dataclasses.replace(cast(Any, spec), implementation="auto")
    return planning.make(free, weights, rule_state, gates)


def scan(
    spec: Specification,
    axis: str,
    state: MemoryState,
    keys: jax.Array,
    values: jax.Array,
    queries: jax.Array,
    gates: Mapping[str, jax.Array],
    reset: jax.Array | None,
) -> tuple[jax.Array, MemoryState]:
    """Runs a memory without `obstacle` over a sequence, one piece of whole chunks per member of a mesh axis.

    The naive code is `engine.scan` on the whole sequence.

    Args:
      spec: the memory.
      axis: the name of the mesh axis, on whose members the following arrays but `state` hold one piece each.
      state: before the whole sequence, the same on all members.
      keys: [T, D_k], T a multiple of the chunk and at least `window - 1`.
      values: [T, D_v].
      queries: [T, D_k].
      gates: name -> [T].
      reset: bool [T / chunk_size], or None.

    Returns:
      y [T, D_v] of the member's piece, and the state after the whole sequence, the same on all members.
    """
    end = None
    if state.window is not None:
        before, end = _windows(spec, axis, state.window, keys, values, reset)
        state = dataclasses.replace(state, window=before)
    leaves, treedef = jax.tree.flatten((state.weights, state.rule_state))

    def run(z: jax.Array) -> tuple[jax.Array, MemoryState]:
        weights, rule_state = treedef.unflatten(list(z))
        start = dataclasses.replace(state, weights=weights, rule_state=rule_state)
        return engine.scan(spec, start, keys, values, queries, gates, reset)

    def through(z: jax.Array) -> jax.Array:
        _, after = run(z)
        return jnp.stack(jax.tree.leaves((after.weights, after.rule_state)))

    z = jnp.stack(leaves)
    own, last = fold(axis, piece_map(through, z, _wide(spec, state, gates)), z)
    y, after = run(own)
    weights, rule_state = treedef.unflatten(list(last))
    return y, dataclasses.replace(after, weights=weights, rule_state=rule_state, window=end)


def piece_map(through: Callable[[jax.Array], jax.Array], like: jax.Array, wide: bool) -> Map:
    """The map of a piece, from the function itself.

    The constant is what becomes of zero. The linear part is the derivative there, along as many states as hold all unit
    vectors as columns: columns do not mix.

    Args:
      through: the state after the piece from that before it, [n, D_k, D_v] -> [n, D_k, D_v], affine.
      like: an array of its shape.
      wide: whether rows mix; if not, one row shows what becomes of all.

    Returns:
      The `Map`.
    """
    states, dim_k, dim_v = like.shape
    rows = dim_k if wide else 1
    size = states * rows
    groups = -(-size // dim_v)
    units = jnp.eye(size, dtype=like.dtype).reshape(states, rows, size)
    units = jnp.pad(units, [(0, 0), (0, dim_k - rows), (0, groups * dim_v - size)])
    units = jnp.moveaxis(units.reshape(states, dim_k, groups, dim_v), 2, 0)
    along = jax.vmap(lambda unit: jax.jvp(through, (jnp.zeros_like(like),), (unit,)), out_axes=(None, 2))
    constant, images = along(units)
    return Map(images[:, :rows].reshape(size, -1)[:, :size], constant)


def fold(axis: str, own: Map, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The states before this member's piece and after the last one's, from one `all_gather` of everybody's map.

    Args:
      axis: the name of the mesh axis.
      own: the map of this member's piece.
      start: [n, D_k, D_v], before the first piece.

    Returns:
      The two states.
    """
    sent = jnp.concatenate([own.linear.reshape(-1), own.constant.reshape(-1)])
    maps = jax.lax.all_gather(sent, axis)
    place = jax.lax.axis_index(axis)

    def step(carry, xs):
        z, mine = carry
        number, flat = xs
        linear, constant = flat[: own.linear.size], flat[own.linear.size :]
        after = Map(linear.reshape(own.linear.shape), constant.reshape(start.shape))(z)
        return (after, jnp.where(number == place, z, mine)), None

    (last, mine), _ = jax.lax.scan(step, (start, start), (jnp.arange(len(maps)), maps))
    return mine, last


def _wide(spec: Specification, state: MemoryState, gates: Mapping[str, jax.Array]) -> bool:
    """Whether gradients depend on the weights, so that rows of the state mix."""
    found, _ = affine.read(spec, state.weights)
    assert found is not None
    one_token = {name: jax.ShapeDtypeStruct(gate.shape[1:], gate.dtype) for name, gate in gates.items()}
    one_token.pop("window", None)
    erases = spec.step_per == "token" and bool(_plan(spec, state.weights, state.rule_state, one_token).erases)
    return erases or not affine.is_zero(found.slope)


def _windows(
    spec: Specification, axis: str, window: Window, keys: jax.Array, values: jax.Array, reset: jax.Array | None
) -> tuple[Window, Window]:
    """The windows before this member's piece and after the last one's; a piece is as long as a window at least."""
    tokens, size = keys.shape[0], window.keys.shape[0]
    seen = jnp.full((), tokens, jnp.int32)
    if reset is not None:
        starts = jnp.where(reset, jnp.arange(len(reset)) * spec.chunk_size, 0)
        seen = tokens - jnp.max(starts).astype(jnp.int32)
    dtype = window.keys.dtype
    own = Window(keys[tokens - size :].astype(dtype), values[tokens - size :].astype(dtype), jnp.minimum(seen, size))
    ends = jax.lax.all_gather(own, axis)
    place = jax.lax.axis_index(axis)
    before = jax.tree.map(lambda ends, start: jnp.where(place == 0, start, ends[place - 1]), ends, window)
    return before, jax.tree.map(lambda ends: ends[-1], ends)
