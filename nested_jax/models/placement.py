"""Where a layer's arrays lie on the mesh in context; without one, or on one device, nothing here does anything.

Rows lie over the axes `data` and `fsdp`, heads over `tensor`, time over `sequence`. XLA's partitioner carries that
through products, not through the loops of a memory: a layer that loops over time is run by every device on its own
part, see :func:`on_own`. Axes are automatic; a caller whose axes are explicit wraps the model's `apply` in
`jax.sharding.auto_axes`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

ROWS = ("data", "fsdp")
HEADS = "tensor"
TIME = "sequence"
PLACES = P(ROWS, TIME)  # of tokens, [B, T]


def fit(spec: P, shape: tuple[int, ...], sizes: Mapping[str, int]) -> P:
    """What of a placement an array can have.

    Args:
      spec: an entry per dimension, or for the first few.
      shape: of the array.
      sizes: devices of each axis of the mesh.

    Returns:
      The placement without the entries whose axes the mesh does not have, or do not divide their dimension; `P()` if it
      has more entries than the array dimensions.

    Example:
      >>> tuple(fit(P(("data", "fsdp"), "tensor"), (8, 3), {"data": 2, "fsdp": 2, "tensor": 2}))
      (('data', 'fsdp'), None)
    """
    if len(spec) > len(shape):
        return P()
    fitted = []
    for size, entry in zip(shape, spec, strict=False):
        names = entry if isinstance(entry, tuple) else () if entry is None else (entry,)
        known = all(name in sizes for name in names)
        fitted.append(entry if known and size % math.prod(sizes[name] for name in names) == 0 else None)
    return P(*fitted)


def mesh_in_context() -> Any:
    """The mesh in context if it has several devices and automatic axes alone, as outside of a `shard_map`."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if mesh.size > 1 and set(mesh.axis_types) == {AxisType.Auto} else None


def constrain(tree: Any, spec: P) -> Any:
    """Places arrays on the mesh in context.

    Args:
      tree: pytree of arrays, e.g. [B, ...] each.
      spec: for each of them, see :func:`fit`.

    Returns:
      The tree; itself on one device, where there is no mesh, and where its axes are not automatic.

    Example:
      >>> import jax.numpy as jnp
      >>> constrain({"x": jnp.zeros((2, 3))}, P(ROWS))["x"].shape
      (2, 3)
    """
    mesh = mesh_in_context()
    if mesh is None:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, fit(spec, leaf.shape, mesh.shape)), tree)


def on_own(run: Callable[..., Any], before: tuple[P, ...], after: Any) -> Callable[..., Any]:
    """Runs a function on every device with that device's rows and heads, and its piece of time or all of it.

    The naive code is `run` itself, which XLA partitions; in loops it then copies whole rows and heads to every device.

    Args:
      run: treats rows and heads each by itself; arrays of any number of them. Where time is split it asks for what it
        needs of other pieces, by `jax.lax` collectives over `TIME`.
      before: a placement of its arguments each, over `ROWS`, `HEADS` and `TIME`. Rows or heads that do not divide a
        dimension of one array are left out for all arrays, and hold copies.
      after: placements of what it returns: one, or a pytree prefix of several.

    Returns:
      The function; `run` itself where `constrain` does nothing.

    Raises:
      ValueError: at a call, if the devices of `TIME` do not divide a dimension that is split over them.

    Example:
      >>> import jax.numpy as jnp
      >>> on_own(jnp.cumsum, (P(ROWS),), P(ROWS))(jnp.ones(3)).tolist()
      [1.0, 2.0, 3.0]
    """
    mesh = mesh_in_context()
    if mesh is None:
        return run

    def runs(*arguments: Any) -> Any:
        dropped = set()
        for spec, tree in zip(before, arguments, strict=True):
            for leaf in jax.tree.leaves(tree):
                found = fit(spec, leaf.shape, mesh.shape)
                dropped |= {entry for entry, fitted in zip(spec, found, strict=True) if entry != fitted}
                if TIME in dropped:
                    raise ValueError(f"before: expected time in {mesh.shape[TIME]} pieces, got {spec} of {leaf.shape}")
        kept = tuple(_without(spec, dropped) for spec in before)
        results = jax.tree.map(lambda spec: _without(spec, dropped), after, is_leaf=lambda x: isinstance(x, P))
        # Arrays without rows are the same everywhere, which the check of replication does not follow through loops.
        return jax.shard_map(run, mesh=mesh, in_specs=kept, out_specs=results, check_vma=False)(*arguments)

    return runs


def _without(spec: P, dropped: set[Any]) -> P:
    return P(*(None if entry in dropped else entry for entry in spec))
