"""`describe --sharding`: where parameters and states lie on a config's mesh, and their bytes on each device."""

import itertools
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from nested_jax.data import TextConfig
from nested_jax.memory import across
from nested_jax.models import ModelConfig, state_bytes, unstack_states
from nested_jax.run.text_table import text_table
from nested_jax.train.experiment import Experiment
from nested_jax.train.layerwise import path_name
from nested_jax.train.optimizer import make_optimizer
from nested_jax.train.problems import open_model
from nested_jax.train.sharding import AXES, STATES, TABLE, Table, abstract_mesh, placement
from nested_jax.train.step import initial_state


class Placed(NamedTuple):
    """Arrays of one kind, one or several blocks'.

    Attributes:
      path: with `3-5` in place of a block's number.
      shape: of each.
      axes: the axes of several devices that split each dimension.
      count: how many.
      bytes: on each device, of all together.
    """

    path: str
    shape: tuple[int, ...]
    axes: tuple[tuple[str, ...], ...]
    count: int
    bytes: int


def describe_placement(experiment: Experiment) -> str:
    """Every parameter and every state of a model with its placement; no devices are needed, and nothing is computed.

    Args:
      experiment: the config.

    Returns:
      The text.
    """
    mesh, rows = abstract_mesh(experiment.mesh), experiment.data.batch_size // experiment.microbatches
    model = open_model(experiment)
    optimizer = make_optimizer(experiment.optimizer, experiment.steps)
    whole = jax.eval_shape(lambda: initial_state(model, optimizer, experiment.seed))
    params, outer = placed(whole.params, mesh), placed(whole.optimizer, mesh)
    axes = " × ".join(f"{name} {mesh.shape[name]}" for name in AXES)
    lines = [f"mesh {axes}: {mesh.size} device{'s' if mesh.size > 1 else ''}", "", _table("parameter", params), ""]
    if hasattr(model, "start"):
        states = jax.eval_shape(lambda params: model.apply({"params": params}, rows, method="start"), whole.params)
        if experiment.model.stacked:
            states = jax.eval_shape(lambda states: unstack_states(states, experiment.model), states)
        blocks = {f"blocks_{number}": state for number, state in enumerate(states)}
        carried = placed(blocks, mesh, STATES)
        lines += [_table(f"state of {rows} sequences", carried), ""]
        lines += [_sum(f"states of {rows} sequences", carried, states)]
    lines += [
        _sum("parameters", params, whole.params),
        f"{_sum('optimizer', outer, whole.optimizer)}; each array lies as its parameter",
        f"a batch of {experiment.data.batch_size} sequences lies by rows over data and fsdp, by time over sequence",
    ]
    model, data, members = experiment.model, experiment.data, mesh.shape["sequence"]
    if members > 1 and isinstance(model, ModelConfig) and isinstance(data, TextConfig) and "memory" in model.kinds:
        lines.append(_pieces(model.memory.memory, data.sequence_length, members))
    return "\n".join(lines)


def _pieces(memory: Any, tokens: int, members: int) -> str:
    """Whether the devices of `sequence` share a memory's work."""
    piece = f"{tokens / members:g} tokens"
    if across.fits(memory, tokens, members):
        return f"memories run over pieces of {piece} ({across.form(memory).kind}: see nj.explain)"
    return f"memories run over all {tokens} tokens on every device of sequence: {piece} are no whole number of chunks"


def placed(tree: Any, mesh: AbstractMesh, table: Table = TABLE) -> list[Placed]:
    """Where arrays lie, those that differ in their block alone together.

    Args:
      tree: pytree of arrays or shapes.
      mesh: of any number of devices.
      table: as in `shardings`.

    Example:
      >>> from nested_jax.train.sharding import MeshConfig
      >>> block = {"kernel": jax.ShapeDtypeStruct((6, 4), "float32")}
      >>> found = placed({"blocks_0": block, "blocks_1": block}, abstract_mesh(MeshConfig(fsdp=2)))
      >>> found[0].path, found[0].axes, found[0].count, found[0].bytes
      ('blocks_0-1/kernel', (('fsdp',), ()), 2, 96)
    """
    groups: dict[Any, list[tuple[int | None, int]]] = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        name = path_name(path)
        spec = _axes(placement(name, leaf.shape, mesh, table), leaf.ndim, mesh)
        block = re.search(r"(?<=blocks_)\d+", name)
        number = None if block is None else int(block[0])
        general = name if block is None else f"{name[: block.start()]}*{name[block.end() :]}"
        size = state_bytes(leaf) // math.prod(mesh.shape[axis] for entry in spec for axis in entry)
        groups.setdefault((general, leaf.shape, spec), []).append((number, size))
    return [
        Placed(
            general.replace("*", _ranges([number for number, _ in found if number is not None])),
            shape,
            spec,
            len(found),
            sum(size for _, size in found),
        )
        for (general, shape, spec), found in groups.items()
    ]


def _axes(spec: P, dimensions: int, mesh: AbstractMesh) -> tuple[tuple[str, ...], ...]:
    entries = [*spec, *[None] * (dimensions - len(spec))]
    names = [(entry,) if isinstance(entry, str) else entry or () for entry in entries]
    return tuple(tuple(name for name in entry if mesh.shape[name] > 1) for entry in names)


def _ranges(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] as 0-2,5."""
    found = []
    for _, run in itertools.groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0]):
        first, *rest = [number for _, number in run]
        found.append(f"{first}-{rest[-1]}" if rest else f"{first}")
    return ",".join(found)


def _table(what: str, found: Sequence[Placed]) -> str:
    def split(one: Placed) -> str:
        return " × ".join("+".join(entry) or "–" for entry in one.axes) if any(one.axes) else "whole"

    rows = [
        [one.path, " × ".join(map(str, one.shape)) or "number", split(one), f"{one.count}", f"{one.bytes:,}"]
        for one in found
    ]
    return text_table([what, "shape", "split over", "arrays", "bytes per device"], rows)


def _sum(what: str, found: Sequence[Placed], whole: Any) -> str:
    return f"{what}: {sum(one.bytes for one in found):,} bytes per device, of {state_bytes(whole):,}"
