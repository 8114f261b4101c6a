import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from nested_jax.models import LanguageModel
from nested_jax.models.families import family
from nested_jax.train.layerwise import path_name
from nested_jax.train.optimizer import OptimizerConfig, make_optimizer
from nested_jax.train.sharding import MeshConfig, abstract_mesh, make_mesh, shardings
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
