"""Layers that look along time, where the mesh in context splits the sequence over its axis `sequence`.

Every device then runs such a layer on its own rows, heads and piece of time (`nested_jax.models.placement.on_own`) and
asks the members with other pieces for what it needs of them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from nested_jax.memory import across
from nested_jax.models.placement import TIME, mesh_in_context


def members() -> int:
    """Returns over how many devices the mesh in context splits the sequence; 1 where there is no mesh.

    Example:
      >>> members()
      1
    """
    mesh = mesh_in_context()
    return 1 if mesh is None else mesh.shape.get(TIME, 1)


def splits(memory: Any, length: int) -> bool:
    """Returns whether a memory runs over a sequence of this length piece by piece: the mesh splits it, and they fit."""
    count = members()
    return count > 1 and across.fits(memory, length, count)


def before(piece: jax.Array, first: jax.Array) -> jax.Array:
    """The tokens just before this member's piece; to be called inside the `jax.shard_map` of `on_own`.

    Args:
      piece: [B, T, ...].
      first: [B, N, ...], the tokens before the sequence, the same on all members.

    Returns:
      [B, N, ...], from the neighbour, or from as many of them as N tokens reach back to.
    """
    count, length, size = first.shape[1], piece.shape[1], jax.lax.axis_size(TIME)
    if not count:
        return first
    received = []
    for hop in range(-(-count // length), 0, -1):
        sent = piece[:, length - min(length, count - (hop - 1) * length) :]
        pairs = [(member, member + hop) for member in range(size - hop)]
        received.append(jax.lax.ppermute(sent, TIME, pairs) if pairs else jnp.zeros_like(sent))
    places = jnp.arange(count) + jax.lax.axis_index(TIME) * length
    own = jnp.expand_dims(places < count, (0, *range(2, piece.ndim)))
    return jnp.where(own, jnp.take(first, jnp.minimum(places, count - 1), axis=1), jnp.concatenate(received, axis=1))
