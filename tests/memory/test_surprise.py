"""The surprise of a memory: past and momentary parts of the momentum (Titans eq 10)."""

import jax
import jax.numpy as jnp
import memory_table as table
import numpy as np
import pytest

import nested_jax as nj


def literal(memory, weights, data):
    """‖η S_{t−1}‖ and ‖θ ∇ℓ_t‖ of Titans, gradients at the weights of the chunk's start."""
    momentum, start, found = jax.tree.map(jnp.zeros_like, weights), weights, []
    for t in range(data.keys.shape[0]):
        if t % memory.chunk_size == 0:
            start = weights
        gate = {name: values[t] for name, values in data.gates.items()}

        def loss(w, t=t):
            state = memory.start(w)
            return jnp.sum(memory.objective(memory.recall(state, data.keys[t : t + 1]), data.values[t : t + 1]))

        gradient = jax.grad(loss)(start)
        past = jax.tree.map(lambda s, g=gate: g["momentum"] * s, momentum)
        now = jax.tree.map(lambda x, g=gate: -g["learning_rate"] * x, gradient)
        momentum = jax.tree.map(jnp.add, past, now)
        weights = jax.tree.map(lambda w, s, g=gate: (1 - g["decay"]) * w + s, weights, momentum)
        found.append([np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(part))) for part in (past, now)])
    return np.transpose(found)


def test_surprise_is_equation_10(x64):
    memory = nj.Memory(nj.networks.MLP(expansion=2), rule=nj.rules.titans(), chunk_size=3)
    weights, data = table.weights(memory), table.data(memory, 8)
    found = nj.surprise(memory, memory.start(weights), data.keys, data.values, data.gates)
    expected = literal(memory, weights, data)
    np.testing.assert_allclose(found["past"], expected[0], rtol=1e-10)
    np.testing.assert_allclose(found["momentary"], expected[1], rtol=1e-10)


def test_a_rule_without_momentum_is_named():
    memory = nj.Memory(nj.networks.Linear(), rule=nj.rules.gradient_descent(0.1))
    state = memory.start(memory.init(jax.random.key(0), 4))
    with pytest.raises(ValueError, match=r"with a momentum, got chain\(scale_by_learning_rate"):
        nj.surprise(memory, state, jnp.ones((2, 4)), jnp.ones((2, 4)))
