"""Which gates a memory layer computes, and the values they start from."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nested_jax import rules
from nested_jax.memory import Memory
from nested_jax.memory.features import Polynomial
from nested_jax.models import MemoryConfig, gate_table
from nested_jax.models.gates import Gates


def start(config, heads=3):
    """The gates at the start, for tokens of any size."""
    module = Gates(gate_table(config), heads)
    inputs = 100 * jax.random.normal(jax.random.key(0), (2, 5, 8))
    return module.apply(module.init(jax.random.key(1), inputs), inputs)


def test_gates_start_at_the_documented_values():
    gates = start(MemoryConfig(memory=Memory(rule=rules.titans(), chunk_size=8), momentum=0.75, decay=0.01))
    assert set(gates) == {"learning_rate", "momentum", "decay"}
    assert all(gate.shape == (2, 5, 3) for gate in gates.values())
    np.testing.assert_allclose(gates["learning_rate"], 0.25 * 0.5 / 8, rtol=1e-5)
    np.testing.assert_allclose(gates["momentum"], 0.75, rtol=1e-5)
    np.testing.assert_allclose(gates["decay"], 0.01, rtol=1e-5)


def test_a_gate_with_a_constant_is_not_computed_but_counts():
    table = gate_table(MemoryConfig(memory=Memory(rule=rules.titans(momentum=0.9), chunk_size=4)))
    assert set(table) == {"learning_rate", "decay"}
    np.testing.assert_allclose(table["learning_rate"].maximum, 0.1 / 4)


def test_a_window_has_a_gate_per_place():
    gates = start(MemoryConfig(memory=Memory(rule=rules.omega(), chunk_size=4, window=3)))
    assert gates["window"].shape == (2, 5, 3, 3)
    np.testing.assert_allclose(gates["window"], 0.5, rtol=1e-6)
    np.testing.assert_allclose(gates["learning_rate"], 0.5 * 0.5 / 12, rtol=1e-5)


def test_features_lengthen_keys_and_shorten_steps():
    plain, wide = (
        gate_table(MemoryConfig(memory=Memory(chunk_size=4), features=features))["learning_rate"].maximum
        for features in (None, Polynomial(2))
    )
    np.testing.assert_allclose(plain / wide, 2.5)


def test_a_learning_rate_can_be_given_its_maximum():
    gates = start(MemoryConfig(memory=Memory(rule=rules.gradient_descent(), chunk_size=1), max_learning_rate=2.0))
    np.testing.assert_allclose(gates["learning_rate"], 1.0, rtol=1e-6)


def test_renamed_gates_are_of_their_kind_and_unknown_ones_a_plain_sigmoid():
    def stretch(updates, state, params=None, **extra):
        return rules.scale(rules.read_gate(extra, "stretch", None), updates), state

    rule = optax.chain(
        rules.scale_by_learning_rate(),
        rules.momentum(gate="slow_momentum"),
        optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), stretch),
    )
    table = gate_table(MemoryConfig(memory=Memory(rule=rule, chunk_size=4), momentum=0.8))
    assert table["slow_momentum"].initial == 0.8
    assert (table["stretch"].initial, table["stretch"].maximum) == (0.5, 1.0)


def test_a_rule_without_gates_has_none():
    assert gate_table(MemoryConfig(memory=Memory(rule=optax.sgd(0.1)))) == {}


@pytest.mark.parametrize("size", [-1e6, 1e6])
def test_gates_stay_in_range_for_extreme_tokens(size):
    config = MemoryConfig(memory=Memory(rule=rules.titans(), chunk_size=8))
    module = Gates(gate_table(config), 2)
    params = module.init(jax.random.key(0), jnp.ones((1, 8)))
    params = jax.tree.map(jnp.ones_like, params)
    gates = module.apply(params, jnp.full((1, 8), size))
    assert all(bool(jnp.all((gate >= 0) & (gate <= 1))) for gate in gates.values())
    assert jnp.all(gates["learning_rate"] <= (1 - gates["momentum"]) / 8)
