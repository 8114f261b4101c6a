"""Meshes, and where parameters and batches lie on them: an ordered table from path to `PartitionSpec`.

One device is the 1 × 1 × 1 × 1 mesh. Batches are split over `data` and `fsdp`, and what is made of them over `sequence`
(time) and `tensor` (heads), see `nested_jax.models.placement`; parameters over `fsdp` and `tensor`.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from nested_jax.models import in_stack
from nested_jax.models.placement import HEADS, ROWS, TIME, fit
from nested_jax.train.layerwise import path_name

AXES = (*ROWS, HEADS, TIME)
BATCH = P(ROWS)

Table = Sequence[tuple[str, P]]

TABLE: Table = (
    (r"embedding$", P(("tensor", "fsdp"))),
    (r"(output|down)/kernel$", P("tensor", "fsdp")),
    (r"levels_\d+/initial/w3$", P(None, "tensor", "fsdp")),
    (r"levels_\d+/initial/w", P(None, "fsdp", "tensor")),
    (r"levels_\d+/initial/level_\d+/w3$", P("tensor", "fsdp")),
    (r"levels_\d+/initial/level_\d+/w", P("fsdp", "tensor")),
    (r"initial/", P("tensor", "fsdp")),
    (r"convol\w+/kernel$", P(None, "tensor")),
    (r"gates/\w+/bias$", P("tensor")),
    (r"slots/", P("fsdp")),
    (r"(kernel|head|recurrent)$", P("fsdp", "tensor")),
    (r"", P()),
)
"""Path regex → placement, first match wins. Optimizer state follows its parameter, whose path it contains.

Memories lie by heads over `tensor`, the levels of a continuum memory, which have one head, as feed-forward layers do.
"""

STATES: Table = (
    (r"(convolution/\w+|(^|/)(key|value))$", P(ROWS, None, HEADS)),
    (r"memory/(levels/|combine$)", P(ROWS)),
    (r"(memory|retrieved)/", P(ROWS, HEADS)),
    (r"", P(ROWS)),
)
"""The same for what a model carries from token to token, by its path in a state of blocks that are not stacked.

It says where layers leave their states; they place them themselves, see `nested_jax.models.placement`.
"""


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How many devices each axis has; the product is the number of devices used.

    Attributes:
      data: copies of the parameters; the batch is split over them.
      fsdp: the batch and the parameters are split over these.
      tensor: parameters are split over these.
      sequence: time is split over these.
    """

    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1

    def validate(self) -> None:
        """Raises a `ValueError` if an axis is below 1."""
        for name in AXES:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is a number of devices, at least 1; got {getattr(self, name)}")


def abstract_mesh(config: MeshConfig) -> AbstractMesh:
    """The mesh of a config without its devices, for shapes and placements."""
    config.validate()
    sizes = tuple(getattr(config, name) for name in AXES)
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def make_mesh(config: MeshConfig) -> Mesh:
    """The mesh of a config, with automatic axes, on the first devices of all processes.

    Raises:
      ValueError: if there are fewer devices than the mesh needs; see `device_grid`.
    """
    config.validate()
    shape = tuple(getattr(config, name) for name in AXES)
    needed, devices = math.prod(shape), jax.devices()
    if needed > len(devices):
        axes = " × ".join(f"{name}={size}" for name, size in zip(AXES, shape, strict=True))
        raise ValueError(f"mesh {axes} needs {needed} devices; there are {len(devices)}")
    return Mesh(device_grid(shape, devices[:needed]), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def device_grid(shape: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """Devices as the axes of a mesh want them: the later an axis, the nearer the devices along it.

    Of a TPU slice an axis may take a part of a physical one. Several slices are laid along the first of `data` and
    `fsdp` that they divide. GPUs stand in the order of their hosts, so that an axis within a host comes last.
    (`jax.make_mesh` refuses GPUs of several hosts, several slices, and parts of a physical axis but on v5e.)

    Args:
      shape: devices per axis, in the order of `AXES`.
      devices: as many.

    Returns:
      An array of devices of that shape.

    Raises:
      ValueError: if neither `data` nor `fsdp` is a multiple of the number of TPU slices.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if devices[0].platform != "tpu" or slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    across = next((axis for axis in range(len(ROWS)) if shape[axis] % slices == 0), None)
    if across is None:
        found = ", ".join(f"{name}={size}" for name, size in zip(ROWS, shape, strict=False))
        raise ValueError(f"mesh: data or fsdp must be a multiple of the {slices} slices; got {found}")
    outer = [slices if axis == across else 1 for axis in range(len(shape))]
    inner = [size // number for size, number in zip(shape, outer, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)


def shardings(tree: Any, mesh: Mesh | AbstractMesh, table: Table = TABLE) -> Any:
    """A placement for every leaf.

    Args:
      tree: pytree of arrays or `jax.ShapeDtypeStruct`.
      mesh: from `make_mesh`.
      table: (regular expression, placement) pairs, searched in order in the leaf's path (`layers_0/mlp/kernel`). A
        dimension that its axes do not divide, and an array of fewer dimensions than the placement, are not split.

    Returns:
      The same structure with a `NamedSharding` at every leaf.

    Raises:
      ValueError: if no expression matches a path.
    """

    def place(path: Any, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, placement(path_name(path), leaf.shape, mesh, table))

    return jax.tree_util.tree_map_with_path(place, tree)


def placements(tree: Any) -> Any:
    """Where the arrays of a tree lie, or will: their shardings, at the same places."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def placement(path: str, shape: Sequence[int], mesh: Mesh | AbstractMesh, table: Table = TABLE) -> P:
    """Where one array lies, see `shardings`; of stacked layers, each as it would alone, the axis of turns unsplit.

    Raises:
      ValueError: if no expression matches the path.
    """
    for expression, spec in table:
        if re.search(expression, path):
            if in_stack(path) and shape:
                return P(None, *fit(spec, tuple(shape[1:]), mesh.shape))
            return fit(spec, tuple(shape), mesh.shape)
    raise ValueError(f"no line of the sharding table matches {path!r}; end it with ('', P())")
