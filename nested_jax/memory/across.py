"""Memories over a sequence that is split over a mesh axis: which form a memory has, and why.

Every member of the axis holds a contiguous piece of the sequence, in whole chunks. *affine*: a piece acts on the state
as an affine map, which members exchange (see `nested_jax.scan.pieces`). *ring*: the state travels from member to
member (see `nested_jax.scan.ring`). *shards*: memories that begin anew inside a piece need no exchange (TNT,
arXiv 2511.07343, §3.2), what they have besides runs in a form of its own.
"""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nested_jax import rules
from nested_jax.memory.caching import Cached
from nested_jax.memory.continuum import Continuum
from nested_jax.memory.memory import Memory
from nested_jax.memory.self_modifying import SelfModifying
from nested_jax.memory.tnt import TNT, TNTState
from nested_jax.scan import pieces, ring


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
    if isinstance(memory, TNT):
        kind, reason = form(memory.global_memory, dim)
        return Form("shards", f"local memories begin anew inside a piece; the global memory: {kind}, {reason}")
    if isinstance(memory, Cached | SelfModifying | Continuum):
        return Form("ring", "the state goes from member to member")
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
        return Form("affine", "a piece is an affine map of the state")
    return Form("ring", f"a piece is no affine map of the state: {reason}")


def fits(memory: Any, tokens: int, members: int) -> bool:
    """Whether a sequence of `tokens` falls into one piece of whole chunks for each of `members`.

    A piece must also be as long as what a window reaches back to.
    """
    piece, rest = divmod(tokens, members)
    if isinstance(memory, Continuum):
        return not rest and piece > 0 and piece % memory.grid == 0
    windows = max((part.window for part in memory.parts.values()), default=1)
    return not rest and piece > 0 and piece % memory.chunk_size == 0 and piece >= windows - 1


def scan_across(memory: Any, axis: str, states: Any, *arguments: Any) -> tuple[jax.Array, Any]:
    """Writes and reads N sequences that are split over a mesh axis; to be called inside `jax.shard_map`.

    The naive code is `jax.vmap(memory.scan)` on the whole sequences. `jax.shard_map` takes `check_vma=False`: with True
    the memory's own gradients would be summed over the members.

    Args:
      memory: a memory that has a form, see `form`.
      axis: the name of the mesh axis.
      states: the memory's states before the sequences, leading axis [N], the same on all members.
      *arguments: what the memory's `scan` takes behind the state, of this member's piece, where `fits` holds. For an
        `nj.Memory`, TNT and Cached: keys [N, T, D_k], values [N, T, D_v], queries [N, T, D_k], gates, name ->
        [N, T, ...], and reset, bool [N, T / chunk_size], or None.

    Returns:
      y [N, T, D_v] of this member's piece, and the states after the whole sequences, the same on all members.

    Raises:
      ValueError: if the memory has no form for a split sequence.
    """
    kind: str | None = "shards"
    if isinstance(memory, Memory):
        keys, values, _, gates = arguments[:4]
        channels = [name for name, gate in gates.items() if name != "window" and gate.ndim > 2]
        kind = form(memory, (keys.shape[-1], values.shape[-1]), channels).kind
    elif not isinstance(memory, TNT):  # which is not asked about its global memory: its widths are not known here
        kind = form(memory).kind
    if kind is None:
        raise ValueError(f"memory: expected one with a form for a split sequence, but {form(memory).reason}")
    return RUNS[kind](memory, axis, states, *arguments)


def _affine(memory: Memory, axis: str, states, keys, values, queries, gates, reset=None) -> tuple[jax.Array, Any]:
    def one(*arguments):
        return pieces.scan(memory, axis, *arguments)

    return jax.vmap(one)(states, keys, values, queries, dict(gates), reset)


def _ring(memory: Any, axis: str, states: Any, *arguments: Any) -> tuple[jax.Array, Any]:
    return ring.scan(lambda state, xs: memory.scan(state, *xs), axis, states, arguments)


def _shards(memory: TNT, axis: str, states: TNTState, keys, values, queries, gates, reset=None):
    given = memory._given(jax.tree.map(lambda x: x[0], states), gates)
    flags = None if reset is None else jax.vmap(lambda each: memory._global_reset(each, keys.shape[1]))(reset)
    y, after = scan_across(
        memory.global_memory, axis, states.global_memory, keys, values, queries, given["global"], flags
    )
    y, shards = jax.vmap(memory._with_local)(y, states.local_memories, keys, values, queries, given)
    return y, TNTState(jnp.zeros_like(states.position), after, ring.from_last(axis, shards))


# (memory, axis, states, *arguments) -> (y, states): what runs each kind of form.
RUNS: dict[str, Callable[..., tuple[jax.Array, Any]]] = {"affine": _affine, "ring": _ring, "shards": _shards}
