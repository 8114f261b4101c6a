"""Memories and kernels lower for accelerators from a machine without one (lowered only; nothing runs on them here)."""

import jax
import jax.numpy as jnp
import memory_table as table
import pytest

import nested_jax as nj
from nested_jax.kernels import orthogonalize

PROGRAMS = {
    "titans": nj.Memory(network=nj.networks.MLP(), chunk_size=8),
    "atlas": nj.Memory(network=nj.networks.MLP(), rule=nj.rules.atlas(), chunk_size=8, window=4),
    "delta": nj.Memory(
        network=nj.networks.Linear(), rule=nj.rules.gradient_descent(), chunk_size=1, implementation="delta"
    ),
    "delta gradient descent": nj.Memory(network=nj.networks.MLP(), rule=nj.rules.hope(), chunk_size=8),
    "Newton-Schulz of windows": nj.Memory(
        network=nj.networks.MLP(), rule=nj.rules.atlas(momentum=0.0), chunk_size=8, window=2
    ),
    "token by token": nj.Memory(
        network=nj.networks.Linear(), rule=nj.rules.gradient_descent(), chunk_size=1, implementation="scan"
    ),
}


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_forward_and_backward_of_a_memory(name, platform):
    memory = PROGRAMS[name]

    def loss(weights, data):
        return jnp.sum(memory.scan(memory.start(weights), *data)[0])

    traced = jax.jit(jax.grad(loss)).trace(table.weights(memory), table.data(memory, 24))
    assert traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_newton_schulz(platform):
    traced = jax.jit(orthogonalize).trace(jax.ShapeDtypeStruct((8, 64, 32), jnp.bfloat16))
    assert "dot_general" in traced.lower(lowering_platforms=(platform,)).as_text()
