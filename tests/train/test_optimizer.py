import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nested_jax as nj
from nested_jax.train.optimizer import Group, OptimizerConfig, factory, learning_rate_schedule, make_optimizer


def problem():
    params = {
        "embedding": jax.random.normal(jax.random.key(0), (6, 4)),
        "dense": {"kernel": jax.random.normal(jax.random.key(1), (4, 4)), "bias": jnp.zeros(4)},
    }
    tokens = jax.random.randint(jax.random.key(2), (32,), 0, 6)
    targets = jax.random.normal(jax.random.key(3), (32, 4))

    def loss(params):
        hidden = params["embedding"][tokens] @ params["dense"]["kernel"] + params["dense"]["bias"][None]
        return jnp.mean((hidden - targets) ** 2)

    return params, loss


def trained(config, steps=40):
    params, loss = problem()
    optimizer = make_optimizer(config, steps)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    values = []
    for _ in range(steps):
        values.append(float(loss(params)))
        params, state = step(params, state)
    return values, params


def with_chain(learning_rate):
    return nj.chain(nj.rules.momentum(0.9), nj.rules.newton_schulz(), nj.rules.scale_by_learning_rate(learning_rate))


RULES = {
    "optax by name": OptimizerConfig(learning_rate=0.02),
    "adamw": OptimizerConfig(rule="optax.adamw", arguments={"weight_decay": 0.1}, learning_rate=0.02),
    "optax function": OptimizerConfig(rule=optax.sgd, arguments={"momentum": 0.9}, learning_rate=0.1),
    "optax muon": OptimizerConfig(rule="optax.contrib.muon", arguments={}, learning_rate=0.05),
    "titans": OptimizerConfig(
        rule="nested_jax.rules.titans", arguments={"momentum": 0.9, "decay": 1e-4}, learning_rate=0.1
    ),
    "muon with adam": OptimizerConfig(
        rule=nj.rules.muon,
        arguments={"momentum": 0.9, "nesterov": True},
        learning_rate=0.05,
        groups=(Group(parameters="embedding|bias", rule=optax.adam, learning_rate=0.02),),
    ),
    "a chain": OptimizerConfig(
        rule=with_chain,
        arguments={},
        learning_rate=0.05,
        groups=(Group(parameters="bias", rule="optax.sgd", learning_rate=0.1),),
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_every_kind_of_rule_trains(name):
    values, _ = trained(RULES[name])
    assert values[-1] < 0.8 * values[0]


def test_adam_is_optax_adam_with_the_same_schedule():
    config = OptimizerConfig(learning_rate=0.1, warmup=5, clip_norm=None)
    _, found = trained(config, steps=20)
    params, loss = problem()
    optimizer = optax.adam(learning_rate_schedule(config, 20), b1=0.9, b2=0.95)
    state = optimizer.init(params)
    for _ in range(20):
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        params = optax.apply_updates(params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, params)


def test_schedule():
    config = OptimizerConfig(learning_rate=2.0, warmup=9, final=0.25)
    schedule = learning_rate_schedule(config, 100)
    np.testing.assert_allclose([schedule(0), schedule(4), schedule(9)], [0.2, 1.0, 2.0], rtol=1e-6)
    np.testing.assert_allclose([schedule(54), schedule(99)], [1.25, 0.5], rtol=1e-5)
    flat = learning_rate_schedule(OptimizerConfig(learning_rate=2.0, warmup=0, schedule="constant"), 10)
    np.testing.assert_allclose([flat(0), flat(9)], [2.0, 2.0])
    line = learning_rate_schedule(OptimizerConfig(learning_rate=1.0, warmup=0, schedule="linear", final=0.0), 5)
    np.testing.assert_allclose([line(step) for step in range(5)], [1, 0.75, 0.5, 0.25, 0], atol=1e-6)


def test_weight_decay_takes_from_matrices_only():
    config = OptimizerConfig(rule="optax.sgd", arguments={}, learning_rate=0.5, warmup=0, weight_decay=0.1)
    params = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(2, 3.0)}
    optimizer = make_optimizer(config, 10)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.5 * 0.1 * 3.0, rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], 0.0)


def test_clipping():
    config = OptimizerConfig(rule="optax.sgd", arguments={}, learning_rate=1.0, warmup=0, clip_norm=2.0)
    optimizer = make_optimizer(config, 10)
    params = {"w": jnp.zeros(4)}
    updates, _ = optimizer.update({"w": jnp.full(4, 10.0)}, optimizer.init(params), params)
    np.testing.assert_allclose(np.linalg.norm(updates["w"]), 2.0, rtol=1e-5)


def test_a_group_with_a_period_is_a_slow_level():
    """Its parameters move once in three steps, by the sum of the gradients at that step's learning rate."""
    config = OptimizerConfig(
        rule="optax.sgd",
        arguments={},
        learning_rate=0.5,
        warmup=0,
        schedule="constant",
        clip_norm=None,
        groups=(Group(parameters="slow", rule="optax.sgd", learning_rate=0.25, period=3),),
    )
    optimizer = make_optimizer(config, 6)
    weights = {"quick": jnp.zeros(1), "slow": jnp.zeros(1)}
    state, seen = optimizer.init(weights), []
    for _ in range(6):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, weights), state, weights)
        seen.append(float(updates["slow"][0]))
        assert float(updates["quick"][0]) == -0.5
    assert seen == [0, 0, -0.75, 0, 0, -0.75]


def test_groups_take_what_they_lack_from_the_config():
    """The config's rule at half the rate and every second step; another pace alone; never."""
    config = OptimizerConfig(
        rule=optax.sgd,
        arguments={"momentum": 0.5},
        learning_rate=1.0,
        warmup=0,
        schedule="constant",
        clip_norm=None,
        groups=(
            Group(parameters="half", learning_rate=0.5, period=2),
            Group(parameters="slow", period=2),
            Group(parameters="never", period=None),
        ),
    )
    optimizer = make_optimizer(config, 4)
    weights = {name: jnp.zeros(1) for name in ("half", "never", "other", "slow")}
    state, seen = optimizer.init(weights), []
    for _ in range(4):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, weights), state, weights)
        seen.append([float(update[0]) for update in updates.values()])
    assert seen == [[0, 0, -1, 0], [-1, 0, -1.5, -2], [0, 0, -1.75, 0], [-1.5, 0, -1.875, -3]]


def test_groups_are_trained_by_their_rule_alone():
    config = OptimizerConfig(
        rule="optax.sgd",
        arguments={},
        learning_rate=1.0,
        warmup=0,
        clip_norm=None,
        groups=(Group(parameters="^embedding$", rule="optax.sgd", learning_rate=0.25),),
    )
    optimizer = make_optimizer(config, 10)
    params, _ = problem()
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = optimizer.update(ones, optimizer.init(params), params)
    np.testing.assert_allclose(updates["embedding"], -0.25)
    np.testing.assert_allclose(updates["dense"]["kernel"], -1.0)


def without_learning_rate(scale):
    return optax.scale(scale)


def test_the_arguments_of_the_default_are_for_rules_that_take_them():
    OptimizerConfig(rule=optax.sgd, learning_rate=0.1).validate()
    (trained,) = OptimizerConfig(rule=optax.adamw).trained
    assert factory(trained.rule, trained.arguments).keywords == {"b1": 0.9, "b2": 0.95}
    with pytest.raises(ValueError, match="sgd has no parameter 'b1'"):
        factory(optax.sgd, {"b1": 0.9})


@pytest.mark.parametrize(
    ("rule", "arguments", "message"),
    [
        ("adam", {}, r"dotted name in optax or nested_jax.rules; got 'adam'; did you mean 'optax.adam'"),
        ("nj.rules.titans", {}, r"got 'nj.rules.titans'; did you mean 'nested_jax.rules.titans'"),
        ("nothing", {}, r"got 'nothing'$"),
        ("optax.adamm", {}, r"no 'adamm'; did you mean 'adam"),
        ("nested_jax.rules.titan", {}, r"no 'titan'; did you mean 'titans'"),
        (optax.adam, {"nestrov": True}, r"adam has no parameter 'nestrov'; did you mean 'nesterov'"),
        (optax.adam, {"learning_rate": 0.9}, r"must not hold learning_rate"),
        (without_learning_rate, {}, r"takes learning_rate; without_learning_rate takes scale"),
        (3, {}, r"must be a function that takes learning_rate"),
    ],
)
def test_rules_that_cannot_be_built(rule, arguments, message):
    with pytest.raises(ValueError, match=message):
        factory(rule, arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be above 0; got 0"),
        ({"warmup": -1}, "warmup .* at least 0; got -1"),
        ({"final": 1.5}, r"final .* \[0, 1\]; got 1.5"),
        ({"clip_norm": 0.0}, "clip_norm .* above 0, or None; got 0"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0; got -0.1"),
        ({"groups": (Group(parameters="(", rule="optax.sgd", learning_rate=1.0),)}, "regular expression; got '\\('"),
        ({"groups": (Group(parameters="a", period=0),)}, "period .* at least 1, or None; got 0"),
        ({"groups": (Group(parameters="a", arguments={"b1": 0.8}),)}, "arguments must be empty .* got {'b1': 0.8}"),
    ],
)
def test_configs_out_of_range(change, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**change).validate()


def test_a_missing_gate_is_named():
    optimizer = make_optimizer(OptimizerConfig(rule=nj.rules.titans, arguments={"momentum": 0.9}), 10)
    params, _ = problem()
    with pytest.raises(ValueError, match="decay"):
        optimizer.update(params, optimizer.init(params), params)
