"""Memories over a sequence that is split over a mesh axis: which form a memory has, and why.

Every member of the axis holds a contiguous piece of the sequence, in whole chunks. *affine*: a piece acts on the state
as an affine map, which members exchange (see `nested_jax.scan.pieces`). *ring*: the state travels from member to
member. *shards*: memories that begin anew inside a piece need no exchange.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nested_jax import rules
from nested_jax.memory.memory import Memory
from nested_jax.memory.tnt import TNT
from nested_jax.scan import pieces


class Form(NamedTuple):
    """How a memory runs over a split sequence.

    Attributes:
      kind: "affine", "ring" or "shards"; None where the sequence has to be whole.
      reason: in words.
    """

    kind: str | None
    reason: str


def form(memory: Any, dim: int | tuple[int, int] = 64, channels: Collection[str] = ()) -> Form:
    """How a memory runs over a sequence that is split over a mesh axis, and why.

    Args:
      memory: an `nj.Memory`, or one made of several.
      dim: features of keys and values; or (dim_k, dim_v).
      channels: the gates that are given per channel.

    Returns:
      The form.

    Example:
      >>> import nested_jax as nj
      >>> rule = nj.rules.gradient_descent()
      >>> form(nj.Memory(nj.networks.Linear(), rule=rule, chunk_size=1)).kind
      'affine'
    """
    found = _classify(memory, dim, channels)
    return found if found.kind in RUNS else Form(None, found.reason)


def _classify(memory: Any, dim: int | tuple[int, int], channels: Collection[str]) -> Form:
    if isinstance(memory, TNT):
        return Form("shards", "local memories begin anew inside a piece")
    if not isinstance(memory, Memory):
        return Form(None, f"{type(memory).__name__} has no form for a split sequence")
    state = jax.eval_shape(lambda key: memory.start(memory.init(key, dim)), jax.random.key(0))
    wide = (dim if isinstance(dim, int) else dim[1],)
    gates = {
        name: jax.ShapeDtypeStruct(wide if name in channels else (), jnp.float32)
        for name, constant in rules.gates(memory.rule, state.weights).items()
        if constant is None or name in channels
    }
    reason = pieces.obstacle(memory, state.weights, state.rule_state, gates)
    if not reason:
        return Form("affine", "a piece acts on the state as an affine map")
    return Form("ring", f"a piece does not act on the state as an affine map, as {reason}")


def fits(memory: Any, tokens: int, members: int) -> bool:
    """Whether a sequence of `tokens` falls into one piece of whole chunks for each of `members`.

    A piece must also be as long as what a window reaches back to.
    """
    piece, rest = divmod(tokens, members)
    windows = max(part.window for part in memory.parts.values())
    return not rest and piece > 0 and piece % memory.chunk_size == 0 and piece >= windows - 1


def scan_across(
    memory: Any,
    axis: str,
    states: Any,
    keys: jax.Array,
    values: jax.Array,
    queries: jax.Array,
    gates: Mapping[str, jax.Array],
    reset: jax.Array | None = None,
) -> tuple[jax.Array, Any]:
    """Writes and reads N sequences that are split over a mesh axis; to be called inside `jax.shard_map`.

    The naive code is `jax.vmap(memory.scan)` on the whole sequences.

    Args:
      memory: a memory that has a form, see `form`.
      axis: the name of the mesh axis.
      states: the memory's states before the sequences, leading axis [N], the same on all members.
      keys: [N, T, D_k], this member's piece, where `fits` holds.
      values: [N, T, D_v].
      queries: [N, T, D_k].
      gates: name -> [N, T, ...], as for the memory's `scan`.
      reset: bool [N, T / chunk_size], or None.

    Returns:
      y [N, T, D_v] of this member's piece, and the states after the whole sequences, the same on all members.

    Raises:
      ValueError: if the memory has no form for a split sequence.
    """
    dim = keys.shape[-1], values.shape[-1]
    found = form(memory, dim, [name for name, gate in gates.items() if name != "window" and gate.ndim > 2])
    if found.kind is None:
        raise ValueError(f"memory: expected one with a form for a split sequence, but {found.reason}")
    return RUNS[found.kind](memory, axis, states, keys, values, queries, dict(gates), reset)


def _affine(memory: Memory, axis: str, states, keys, values, queries, gates, reset):
    def one(*arguments):
        return pieces.scan(memory, axis, *arguments)

    return jax.vmap(one)(states, keys, values, queries, gates, reset)


# (memory, axis, states, keys, values, queries, gates, reset) -> (y, states): what runs each kind of form.
RUNS: dict[str, Callable[..., tuple[jax.Array, Any]]] = {"affine": _affine}
