"""A pipelined ring: a recurrence over time that is split over a mesh axis, for states that no affine map carries along.

A frozen-gradient MLP memory's piece of a sequence is no affine map of its state, so the pieces are run one after the
other. N items (batch × heads) keep the members busy meanwhile: they are dealt into G groups, and at tick s member r
runs its piece of group s − r from the state that member r − 1 handed on. After G + R − 1 ticks all is done: each of R
members is busy in G of them. The schedule is that of pipeline parallelism (GPipe, arXiv 1811.06965 §2.3), its stages
being pieces of time.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp

_TICKS_PER_MEMBER = 4


def default_groups(items: int, members: int) -> int:
    """The largest divisor of `items` up to 4 · `members`, with which 4/5 of the ticks are busy (our choice).

    Args:
      items: N.
      members: R.

    Returns:
      G.

    Example:
      >>> default_groups(48, 4), default_groups(6, 4), default_groups(17, 4)
      (16, 6, 1)
    """
    return max(count for count in range(1, min(items, _TICKS_PER_MEMBER * members) + 1) if items % count == 0)


def from_last(axis: str, tree: Any) -> Any:
    """What the last member of a mesh axis has, on every member: one broadcast.

    Args:
      axis: the name of the mesh axis.
      tree: of arrays.

    Returns:
      The last member's tree.
    """
    is_last = jax.lax.axis_index(axis) == jax.lax.axis_size(axis) - 1

    def one(x: jax.Array) -> jax.Array:
        sent = x.astype(jnp.int32) if x.dtype == bool else x
        return jax.lax.psum(jnp.where(is_last, sent, jnp.zeros_like(sent)), axis).astype(x.dtype)

    return jax.tree.map(one, tree)


def scan(
    run: Callable[[Any, Any], tuple[Any, Any]], axis: str, states: Any, xs: Any, groups: int | None = None
) -> tuple[Any, Any]:
    """Runs N recurrences over time that is split over a mesh axis; to be called inside `jax.shard_map`.

    The naive code, on whole sequences, is `jax.vmap(run)(states, xs)`. Item n is in group n mod G, so that items which
    are split over another axis stay where they are. Members that have no group yet, or no more, run a piece of their
    own from an item's first state, and nobody reads the result: all members run the same computation at the same time,
    and no number is made up. What `run` hands on as it is does not travel. Gradients go the way back: the backward pass
    is a ring of its own, and keeps of every piece what it started from.

    `jax.shard_map` takes `check_vma=False`: with True a gradient that `run` takes of something that is the same on all
    members is summed over them.

    Args:
      run: (state, xs) -> (y, state), one item's piece; the state has the same shapes and types before and after.
      axis: the name of the mesh axis, of R members.
      states: before the whole sequences, leading axis [N], the same on all members.
      xs: this member's piece, leading axis [N].
      groups: G, a divisor of N; None for `default_groups`.

    Returns:
      y, leading axis [N], of this member's piece, and the states after the whole sequences, the same on all members.

    Raises:
      ValueError: if `groups` does not divide N, or `run` returns a state of another structure.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jax.sharding import PartitionSpec as P
      >>> add = lambda state, x: (state + jnp.cumsum(x), state + jnp.sum(x))
      >>> mesh = jax.make_mesh((1,), ("time",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> across = lambda states, xs: scan(add, "time", states, xs)
      >>> specs = {"in_specs": (P(), P(None, "time")), "out_specs": (P(None, "time"), P())}
      >>> y, last = jax.shard_map(across, mesh=mesh, check_vma=False, **specs)(jnp.zeros(2), jnp.ones((2, 3)))
      >>> y.tolist(), last.tolist()
      ([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], [3.0, 3.0])
    """
    items = len(jax.tree.leaves(states)[0])
    members, place = jax.lax.axis_size(axis), jax.lax.axis_index(axis)
    count = default_groups(items, members) if groups is None else groups
    if not 0 < count <= items or items % count:
        raise ValueError(f"groups: expected a divisor of the {items} items, got {groups}")
    group = jnp.arange(count + members - 1) - place
    busy = (group >= 0) & (group < count)

    def dealt(x: jax.Array) -> jax.Array:  # [N, ...] -> [ticks, N / G, ...]
        grouped = jnp.moveaxis(x.reshape(items // count, count, *x.shape[1:]), 1, 0)
        return jnp.take(grouped, jnp.clip(group, 0, count - 1), axis=0)

    def collected(x: jax.Array) -> jax.Array:  # [ticks, N / G, ...] -> [N, ...]
        found = jax.lax.dynamic_slice_in_dim(x, place, count)
        return jnp.moveaxis(found, 0, 1).reshape(items, *x.shape[2:])

    firsts, pieces = jax.tree.map(dealt, (states, xs))
    body, shapes = jax.make_jaxpr(jax.vmap(run), return_shape=True)(*jax.tree.map(lambda x: x[0], (firsts, pieces)))
    first, treedef = jax.tree.flatten(firsts)
    if jax.tree.structure(shapes[1]) != treedef:
        raise ValueError(f"run: expected to return a state like the one it gets, {treedef}, got {shapes[1]}")
    before, after = body.jaxpr.invars[: len(first)], body.jaxpr.outvars[-len(first) :]
    travels = [new is not old for old, new in zip(before, after, strict=True)]

    def travelling(leaves: list[Any]) -> list[Any]:
        return [leaf for leaf, moved in zip(leaves, travels, strict=True) if moved]

    def with_the_rest(moved: list[Any], leaves: list[Any]) -> list[Any]:
        remaining = iter(moved)
        return [next(remaining) if there else leaf for leaf, there in zip(leaves, travels, strict=True)]

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def at_once(start: list[Any], piece: Any) -> tuple[list[Any], list[Any]]:
        found = jex.jaxpr_as_fun(body)(*start, *jax.tree.leaves(piece))
        return found[: -len(start)], travelling(found[-len(start) :])

    def tick(received: list[Any], now: Any) -> tuple[list[Any], Any]:
        first, piece, handed = now
        arrived = [jnp.where(handed, a, b) for a, b in zip(received, travelling(first), strict=True)]
        y, after = at_once(with_the_rest(arrived, first), piece)
        onward = [(member, member + 1) for member in range(members - 1)]
        return [jax.lax.ppermute(x, axis, onward) for x in after], (y, after)

    received = [x[0] for x in travelling(first)]
    _, ran = jax.lax.scan(tick, received, (first, pieces, busy & (place > 0)))
    y, after = jax.tree.map(collected, ran)
    last = with_the_rest(from_last(axis, after), jax.tree.leaves(states))
    return jax.tree.unflatten(jax.tree.structure(shapes[0]), y), treedef.unflatten(last)
