import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from nested_jax.models import LanguageModel
from nested_jax.models.families import family
from nested_jax.train.layerwise import path_name
from nested_jax.train.multiprocess import batch_share
from nested_jax.train.optimizer import OptimizerConfig, make_optimizer
from nested_jax.train.sharding import MeshConfig, abstract_mesh, device_grid, make_mesh, shardings
from nested_jax.train.step import place


def test_table_order_and_fit():
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    tree = {"a": {"kernel": jnp.zeros((4, 6))}, "b": {"kernel": jnp.zeros((4, 5))}, "scale": jnp.zeros(8)}
    table = [("^b/", P("fsdp", "tensor")), ("kernel", P(None, ("fsdp", "tensor"))), ("", P())]
    placed = shardings(tree, mesh, table)
    assert placed["a"]["kernel"].spec == P(None, None)
    assert placed["b"]["kernel"].spec == P("fsdp", None)
    assert placed["scale"].spec == P()
    with pytest.raises(ValueError, match="no line of the sharding table matches 'scale'"):
        shardings(tree, mesh, table[:2])


@pytest.mark.parametrize("name", ["titans-mac", "moneta", "lact", "slots", "lstm", "hope"])
def test_nearly_all_parameters_are_split(name):
    model = LanguageModel(family(name, "170m", layers=1, expansion=4))
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    placed = jax.tree.leaves(shardings(params, abstract_mesh(MeshConfig(data=2, fsdp=2, tensor=2))))
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    split = [size for size, sharding in zip(sizes, placed, strict=True) if any(sharding.spec)]
    assert sum(split) > 0.99 * sum(sizes)


def test_optimizer_state_lies_as_its_parameters():
    model = LanguageModel(family("gated-deltanet"))
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    state = place(model, make_optimizer(OptimizerConfig(), 10), 0, mesh)
    expected = {path_name(path): leaf.sharding for path, leaf in jax.tree.leaves_with_path(state.params)}
    moments = [(path_name(path), leaf) for path, leaf in jax.tree.leaves_with_path(state.optimizer) if leaf.ndim]
    assert len(moments) == 2 * len(expected)
    for path, leaf in moments:
        assert leaf.sharding == next(sharding for name, sharding in expected.items() if path.endswith(f"/{name}"))


@dataclasses.dataclass(frozen=True)
class Chip:
    """A stand-in for a device of a machine that is not here: what a mesh is laid out by."""

    id: int
    platform: str
    device_kind: str
    process_index: int
    slice_index: int
    coords: tuple[int, int, int] = (0, 0, 0)
    core_on_chip: int = 0


def tpu_slice(kind, shape, number=0):
    """A slice whose hosts have 2 x 2 chips."""
    x, y, z = shape
    places = [(i, j, k) for k in range(z) for j in range(y) for i in range(x)]
    hosts = [i // 2 + x // 2 * (j // 2 + y // 2 * k) for i, j, k in places]
    first, count = number * len(places), number * (max(hosts) + 1)
    return [
        Chip(first + at, "tpu", kind, count + host, number, place)
        for at, (place, host) in enumerate(zip(places, hosts, strict=True))
    ]


@pytest.mark.parametrize(
    ("kind", "shape"), [("TPU v6 lite", (4, 4, 1)), ("TPU v6 lite", (8, 8, 1)), ("TPU v5p", (4, 4, 4))]
)
def test_any_mesh_fits_a_slice(kind, shape):
    """Where it must, an axis takes a part of a physical one; every process still has a share of the batch."""
    chips = tpu_slice(kind, shape)
    count = len(chips)
    for sizes in ((count, 1, 1, 1), (1, count // 2, 2, 1), (2, count // 4, 1, 2), (1, count // 8, 8, 1)):
        grid = device_grid(sizes, chips)
        assert grid.shape == sizes
        assert sorted(chip.id for chip in grid.flat) == list(range(count))
        owners = np.vectorize(lambda chip: chip.process_index, otypes=[int])(grid)
        assert all(batch_share(owners, process)["process_count"] >= 1 for process in range(owners.max() + 1))


def test_slices_are_laid_along_the_rows_of_a_batch():
    chips = [chip for number in range(2) for chip in tpu_slice("TPU v6 lite", (4, 4, 1), number)]
    for sizes, axis in (((2, 8, 2, 1), 0), ((1, 16, 2, 1), 1), ((4, 4, 1, 2), 0)):
        slices = np.vectorize(lambda chip: chip.slice_index, otypes=[int])(device_grid(sizes, chips))
        along = np.moveaxis(slices, axis, 0).reshape(sizes[axis], -1)
        assert (along == along[:, :1]).all()
        assert sorted(set(along[:, 0])) == [0, 1]
    with pytest.raises(ValueError, match="data or fsdp must be a multiple of the 2 slices; got data=1, fsdp=1"):
        device_grid((1, 1, 32, 1), chips)


def test_gpus_of_several_hosts_stand_by_host():
    """JAX calls every host of GPUs a slice; tensor parallelism stays within one where it can."""
    gpus = [Chip(number, "gpu", "NVIDIA H100", number // 8, number // 8) for number in range(16)]
    grid = device_grid((2, 1, 8, 1), [*gpus[8:], *gpus[:8]])
    assert [[chip.id for chip in row] for row in grid[:, 0, :, 0]] == [list(range(8)), list(range(8, 16))]
