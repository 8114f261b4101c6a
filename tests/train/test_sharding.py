import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from nested_jax import Memory, networks
from nested_jax.models import LanguageModel, MemoryConfig, ModelConfig
from nested_jax.train.optimizer import OptimizerConfig, make_optimizer
from nested_jax.train.sharding import BATCH, MeshConfig, make_mesh, shardings
from nested_jax.train.step import initial_state, make_step, place


@pytest.fixture(autouse=True, scope="module")
def compile_quickly():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


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


def test_sharded_steps_of_the_language_model_are_those_of_one_device():
    memory = Memory(network=networks.Linear(), chunk_size=4)
    model = LanguageModel(ModelConfig(dim=8, layers=1, memory=MemoryConfig(memory=memory, heads=2)))
    config = OptimizerConfig(learning_rate=1e-2, warmup=0)
    optimizer = make_optimizer(config, 10)
    tokens = jax.random.randint(jax.random.key(5), (4, 9), 0, 256)

    def two_steps(mesh_config):
        mesh = make_mesh(mesh_config)
        placed = jax.tree.map(lambda leaf: leaf.sharding, place(model, optimizer, 0, mesh))
        state = jax.jit(lambda: initial_state(model, optimizer, 0), out_shardings=placed)()
        batch = {"tokens": jax.device_put(tokens, jax.sharding.NamedSharding(mesh, BATCH))}
        step = jax.jit(make_step(model, optimizer, config, 10), donate_argnums=0)
        losses = []
        for _ in range(2):
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
        return losses, state

    one, _ = two_steps(MeshConfig())
    many, state = two_steps(MeshConfig(data=2, fsdp=2, tensor=2))
    np.testing.assert_allclose(many, one, rtol=1e-5)
    spread = [leaf for leaf in jax.tree.leaves(state.params) if not leaf.sharding.is_fully_replicated]
    assert sum(leaf.size for leaf in spread) > 0.9 * sum(leaf.size for leaf in jax.tree.leaves(state.params))
