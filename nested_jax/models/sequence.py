"""Layers that look along time, where the mesh in context splits the sequence over its axis `sequence`.

Such a layer runs in a `jax.shard_map` over all axes of the mesh, with rows over `data` and `fsdp`, heads over `tensor`
and time over `sequence`; what it needs of other pieces it asks their members for. With `sequence` alone manual, the
others automatic, XLA keeps whole rows and heads on every device, as it does not follow them through loops.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from nested_jax.memory import across

AXIS = "sequence"
_ROWS, _HEADS = ("data", "fsdp"), ("tensor",)


def members() -> int:
    """Returns over how many devices the mesh in context splits the sequence; 1 where there is no mesh.

    Example:
      >>> members()
      1
    """
    mesh = jax.sharding.get_abstract_mesh()
    if AXIS not in mesh.axis_names or any(kind != AxisType.Auto for kind in mesh.axis_types):
        return 1
    return mesh.shape[AXIS]


def splits(memory: Any, length: int) -> bool:
    """Returns whether a sequence of this length runs in pieces: it is split, and the memory can run over the pieces."""
    count = members()
    return count > 1 and across.fits(memory, length, count) and across.form(memory).kind is not None


class Places:
    """Where a layer's arrays lie on the mesh in context, as `PartitionSpec`s.

    Axes of the mesh that do not divide rows or heads hold copies.

    Attributes:
      heads: of arrays [B, H, ...].
      rows: of arrays [B, ...].
      time: of arrays [B, T, ...].
      time_heads: of arrays [B, T, H, ...].
      any_heads: of arrays [B, P, H, ...] with places that are not split.
      shared: of arrays [P, H, ...] without rows.
    """

    def __init__(self, batch: int, heads: int):
        row, head = _dividing(_ROWS, batch), _dividing(_HEADS, heads)
        self.heads, self.any_heads, self.shared = P(row, head), P(row, None, head), P(None, head)
        self.rows = P(row)
        self.time, self.time_heads = P(row, AXIS), P(row, AXIS, head)


def _dividing(axes: tuple[str, ...], size: int) -> tuple[str, ...]:
    """The axes if their devices divide `size`, else none."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(name for name in axes if name in mesh.axis_names)
    return axes if size % math.prod(mesh.shape[name] for name in axes) == 0 else ()


def split(run: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """Returns `run` on every device's part of its arguments, on the mesh in context."""
    mesh = jax.sharding.get_abstract_mesh()
    # What is the same on all members comes from an exchange, which the check of replication does not follow.
    return jax.shard_map(run, in_specs=in_specs, out_specs=out_specs, axis_names=set(mesh.axis_names), check_vma=False)


def before(piece: jax.Array, first: jax.Array) -> jax.Array:
    """The tokens just before this member's piece; to be called inside :func:`split`.

    Args:
      piece: [B, T, ...].
      first: [B, N, ...], the tokens before the sequence, the same on all members.

    Returns:
      [B, N, ...], from the neighbour, or from as many of them as N tokens reach back to.
    """
    count, length, size = first.shape[1], piece.shape[1], jax.lax.axis_size(AXIS)
    if not count:
        return first
    received = []
    for hop in range(-(-count // length), 0, -1):
        sent = piece[:, length - min(length, count - (hop - 1) * length) :]
        pairs = [(member, member + hop) for member in range(size - hop)]
        received.append(jax.lax.ppermute(sent, AXIS, pairs) if pairs else jnp.zeros_like(sent))
    places = jnp.arange(count) + jax.lax.axis_index(AXIS) * length
    own = jnp.expand_dims(places < count, (0, *range(2, piece.ndim)))
    return jnp.where(own, jnp.take(first, jnp.minimum(places, count - 1), axis=1), jnp.concatenate(received, axis=1))
