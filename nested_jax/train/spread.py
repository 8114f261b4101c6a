"""Newton-Schulz over a mesh: shards change places until every device holds whole matrices, and back.

    [N, m/f, n/t] on each device   → its share of N where matrices are copied, all-to-all over f, all-to-all over t →
    [N/(c f t), m, n]              → Newton-Schulz, nothing else computed anywhere →
    [N, m/f, n/t]                  the same way back, and an all-gather over the c copies

Layer sharding (Essential AI, `Practical Efficiency of Muon <https://arxiv.org/abs/2505.02222>`_, 2025): no device
gathers a matrix that another one orthogonalises, and each is orthogonalised once.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P

from nested_jax.train.layerwise import path_name
from nested_jax.train.sharding import TABLE, Table, placement

Orthogonalize = Callable[[jax.Array], jax.Array]


class _Move(NamedTuple):
    """Matrices for parts of matrices: an all-to-all over `axis`, the dimension `whole` (1 or 2) becoming whole."""

    axis: str
    whole: int


class _Kind(NamedTuple):
    """What matrices have in common that travel together: sizes, axes that split their batch, axes that split them."""

    shape: tuple[int, ...]
    dtype: Any
    batch: frozenset[str]
    moves: tuple[_Move, ...]


def spread_over(mesh: Mesh | AbstractMesh, table: Table = TABLE) -> Callable[[Orthogonalize, Any], Any]:
    """How `nested_jax.rules.newton_schulz` runs over the devices of a mesh, for the keyword `spread` of its `update`.

    The naive code is `jax.tree.map(orthogonalize, updates)`, which the partitioner runs on split matrices, with
    collectives in every product, and on copied ones everywhere. Here matrices of one size and placement, of all layers
    and parameters, stacked or not, are put into one batch, filled up with zeros to a multiple of the devices, and each
    device orthogonalises its share. Two all-to-all per axis that splits matrices; an all-gather of the results' shards
    over axes that do not (`data`, `sequence`), where every device needs what one has computed.

    Args:
      mesh: the mesh in whose context the rule is traced; all its axes take part.
      table: where a parameter lies, as for `shardings`; updates arrive and leave so.

    Returns:
      The function `(orthogonalize, updates) -> updates`; updates keep their parameters' paths, arrays [..., m, n].

    Example:
      >>> import optax
      >>> from nested_jax import rules
      >>> from nested_jax.train.sharding import MeshConfig, make_mesh
      >>> rule, mesh = rules.newton_schulz("cubic", steps=9), make_mesh(MeshConfig())
      >>> updates, spread = {"kernel": jnp.array([[0.0, 2.0], [-1.0, 0.0]])}, spread_over(mesh)
      >>> step, _ = jax.jit(lambda x: rule.update(x, optax.EmptyState(), spread=spread))(updates)
      >>> print(jnp.round(step["kernel"], 3) + 0.0)
      [[ 0.  1.]
       [-1.  0.]]
    """

    def spread(orthogonalize: Orthogonalize, updates: Any) -> Any:
        found, tree = jax.tree.flatten_with_path(updates)
        if not found:
            return updates
        names = [path_name(path) for path, _ in found]

        @custom_vmap
        def run(*leaves: jax.Array) -> tuple[jax.Array, ...]:
            return _run(mesh, table, orthogonalize, names, leaves)

        @run.def_vmap
        def _(size: int, mapped: Sequence[bool], *leaves: jax.Array) -> tuple[tuple[jax.Array, ...], tuple[bool, ...]]:
            del size  # the axis of stacked layers is in front of a leaf, one more axis of its batch
            return _run(mesh, table, orthogonalize, names, leaves), tuple(mapped)

        return tree.unflatten(run(*(leaf for _, leaf in found)))

    return spread


def _run(
    mesh: Mesh | AbstractMesh, table: Table, orthogonalize: Orthogonalize, names: Sequence[str], leaves: Sequence[Any]
) -> tuple[jax.Array, ...]:
    specs = tuple(placement(name, leaf.shape, mesh, table) for name, leaf in zip(names, leaves, strict=True))
    kinds: dict[_Kind, list[int]] = {}
    for place, (leaf, spec) in enumerate(zip(leaves, specs, strict=True)):
        kinds.setdefault(_kind(leaf, spec, mesh), []).append(place)

    def local(*shards: jax.Array) -> tuple[jax.Array, ...]:
        """What one device does, with its shard of every leaf."""
        results: dict[int, jax.Array] = {}
        for kind, places in kinds.items():
            flat = [shards[place].reshape(-1, *shards[place].shape[-2:]) for place in places]
            done = _exchange(mesh, kind, orthogonalize, jnp.concatenate(flat))
            begins = [0]
            for place, part in zip(places, flat, strict=True):
                begins.append(begins[-1] + len(part))
                results[place] = done[begins[-2] : begins[-1]].reshape(shards[place].shape)
        return tuple(results[place] for place in range(len(shards)))

    # The results of an all-gather are the same on all devices, which the check of varying axes cannot know.
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=specs, check_vma=False)(*leaves)


def _exchange(mesh: Mesh | AbstractMesh, kind: _Kind, orthogonalize: Orthogonalize, shards: jax.Array) -> jax.Array:
    """Orthogonalises matrices of which this device holds a shard each, [N, m/f, n/t]; the result likewise."""
    moved = {move.axis for move in kind.moves}
    copies = tuple(axis for axis in mesh.axis_names if axis not in moved | kind.batch and mesh.shape[axis] > 1)
    share = math.prod(mesh.shape[axis] for axis in copies)
    count, devices = len(shards), share * math.prod(mesh.shape[axis] for axis in moved)
    filled = -(-count // devices) * devices
    matrices = jnp.pad(shards, [(0, filled - count), (0, 0), (0, 0)])
    if copies:
        own = filled // share
        matrices = jax.lax.dynamic_slice_in_dim(matrices, jax.lax.axis_index(copies) * own, own)
    for axis, whole in kind.moves:
        matrices = jax.lax.all_to_all(matrices, axis, split_axis=0, concat_axis=whole, tiled=True)
    matrices = orthogonalize(matrices)
    for axis, whole in reversed(kind.moves):
        matrices = jax.lax.all_to_all(matrices, axis, split_axis=whole, concat_axis=0, tiled=True)
    if copies:
        matrices = jax.lax.all_gather(matrices, copies, tiled=True)
    return matrices[:count]


def _kind(leaf: Any, spec: P, mesh: Mesh | AbstractMesh) -> _Kind:
    def axes(entry: Any) -> list[str]:
        names = () if entry is None else (entry,) if isinstance(entry, str) else entry
        return [name for name in names if mesh.shape[name] > 1]

    *batch, rows, columns = map(axes, [*spec, *[None] * (leaf.ndim - len(spec))])
    # Of several axes on one dimension the last is the finest, and the first to be undone.
    moves = [_Move(axis, whole) for whole, split in ((1, rows), (2, columns)) for axis in reversed(split)]
    split = frozenset(axis for entry in batch for axis in entry)
    return _Kind(tuple(leaf.shape[-2:]), leaf.dtype, split, tuple(moves))
