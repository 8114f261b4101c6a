"""Corners of the laws: legal compositions that are easy to get wrong, each with the number it has to give."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nested_jax as nj

KEYS = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
ALL = ("scan", "dual", "materialize")


def memory(implementation="auto", **options):
    return nj.Memory(**{"network": nj.networks.Linear(), "chunk_size": 3, "implementation": implementation, **options})


def answers(found, weights, values=None):
    return found.scan(found.start({"w": weights}), KEYS, 2 * KEYS if values is None else values, KEYS)[0]


def same(options, weights, values=None, implementations=ALL):
    first, *others = (answers(memory(name, **options), weights, values) for name in implementations)
    assert np.isfinite(first).all()
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "rule",
    [
        nj.rules.mirror(nj.rules.gated_gradient_descent(0.5, 0.25), nj.rules.softmax_map()),
        optax.contrib.schedule_free_sgd(0.1),
    ],
)
def test_a_state_that_begins_as_the_weights_has_no_known_decay(rule):
    """What `retain_first` would set to zero with the rest of the state is the weights themselves."""
    with pytest.raises(ValueError, match="retain_first: expected a rule whose state begins without the weights, got "):
        memory(rule=rule, retain_first=True).start({"w": jnp.eye(2)})


def test_what_a_rule_gives_out_without_weights_is_no_decay():
    cosine = optax.stateless(lambda updates, params: jax.tree.map(jnp.cos, updates))
    rule = nj.chain(cosine, nj.rules.scale_by_learning_rate(0.1), nj.rules.retention(0.5))
    same({"rule": rule, "retain_first": True}, jnp.eye(2), 0 * KEYS)


def test_a_map_that_settles_is_run_token_by_token_unless_it_only_shifts():
    def unit(a):
        return a / jnp.linalg.norm(a)

    sphere = nj.rules.Map(unit, lambda w: w, "sphere", unit)
    rule = nj.rules.mirror(nj.rules.gradient_descent(1.0), sphere)
    assert memory(rule=rule).plan(2).implementation == "scan"
    with pytest.raises(ValueError, match="sphere settles its accumulator after every token"):
        memory("dual", rule=rule).plan(2)
    plain = nj.rules.mirror(nj.rules.gated_gradient_descent(0.5, 0.25), nj.rules.softmax_map())
    assert memory(rule=plain).plan(2).implementation == "dual"
    same({"rule": plain}, jnp.full((2, 2), 0.25), implementations=("scan", "dual"))


def test_a_momentum_that_remembers_the_accumulator_is_run_token_by_token():
    inner = nj.chain(optax.add_decayed_weights(0.1), optax.trace(0.9), optax.scale(-1.0))
    rule = nj.rules.mirror(inner, nj.rules.softmax_map())
    with pytest.raises(ValueError, match=r"reads the accumulator, which softmax_map.* and optax.trace.* remembers it"):
        memory("dual", rule=rule).plan(2)
    assert memory(rule=rule).plan(2).implementation == "scan"
    after = nj.chain(nj.rules.titans(0.5, 0.5, 0.25))
    assert memory(rule=nj.rules.mirror(after, nj.rules.softmax_map())).plan(2).implementation == "dual"


@pytest.mark.parametrize("window", [1, 2, 3])
def test_an_objective_without_a_derivative_at_zero(window):
    """Places of a window that hold no token yet are no zeros."""

    def distance(prediction, target):
        return jnp.linalg.norm(prediction - target, axis=-1)

    options = {"objective": distance, "rule": nj.rules.gradient_descent(0.1), "window": window}
    same(options, jnp.full((2, 2), 0.5))
    found, state = memory(**options), memory(**options).start({"w": jnp.full((2, 2), 0.5)})
    steps = []
    for key in KEYS:
        y, state = found.step(state, key, 2 * key, key)
        steps.append(y)
    np.testing.assert_allclose(jnp.stack(steps), answers(found, jnp.full((2, 2), 0.5)), rtol=1e-5)


@pytest.mark.parametrize("name", ["window", "inputs", "importance"])
def test_names_that_are_taken_are_no_gates(name):
    with pytest.raises(ValueError, match=f"gate: expected another name than .* which are taken, got '{name}'"):
        nj.gates(nj.rules.momentum(0.5, gate=name))


def test_whole_numbers_are_written_and_read_as_real_ones():
    rule = nj.rules.gradient_descent(0.1)
    whole = memory(rule=rule)
    expected = answers(whole, jnp.zeros((2, 2)), 5 * KEYS)
    found = answers(whole, jnp.zeros((2, 2)), (5 * KEYS).astype(int))
    np.testing.assert_array_equal(found, expected)
    state = whole.start({"w": jnp.eye(2) / 2})
    np.testing.assert_array_equal(whole.recall(state, jnp.eye(2, dtype=int)), jnp.eye(2) / 2)
    y, _ = whole.step(state, jnp.array([1, 0]), jnp.array([1, 0]), jnp.array([1, 0]))
    assert y[0] == 0.55


def test_a_network_of_one_matrix_and_another_width():
    class Gated:
        def init(self, key, dim_k, dim_v):
            return {"w": jnp.full((dim_k, 2 * dim_v), 0.1)}

        def dims(self, weights):
            return weights["w"].shape[0], weights["w"].shape[1] // 2

        def __call__(self, operations, x):
            a, b = jnp.split(operations.dense("w", x), 2, -1)
            return a * jax.nn.sigmoid(b)

    for size in (1, 3):
        rule = nj.rules.gradient_descent(0.1)
        found = [memory(name, network=Gated(), chunk_size=size, rule=rule) for name in ("scan", "auto")]
        ys = [one.scan(one.start(one.init(jax.random.key(0), 2)), KEYS, KEYS, KEYS)[0] for one in found]
        np.testing.assert_allclose(*ys, rtol=1e-5)


def test_keys_in_a_rule_and_numbers_in_its_state():
    noisy = optax.chain(optax.add_noise(0.1, 0.5, key=jax.random.key(0)), optax.scale(-0.1))
    assert np.isfinite(answers(memory(rule=noisy), jnp.eye(2))).all()

    def update(updates, state, params=None):
        return jax.tree.map(lambda g: -0.1 * g / (1 + state["n"]), updates), {"n": state["n"] + 1}

    counted = optax.GradientTransformation(lambda params: {"n": 0}, update)
    same({"rule": counted}, jnp.eye(2))


def test_gates_and_resets_may_be_lists():
    found = memory(rule=nj.rules.gradient_descent())
    state = found.start({"w": jnp.zeros((2, 2))})
    listed = found.scan(state, KEYS, KEYS, KEYS, {"learning_rate": [0.1, 0.2, 0.3]}, [True])
    given = found.scan(state, KEYS, KEYS, KEYS, {"learning_rate": jnp.array([0.1, 0.2, 0.3])}, jnp.array([True]))
    jax.tree.map(np.testing.assert_array_equal, listed, given)
    with pytest.raises(ValueError, match=r"gates\['learning_rate'\]: expected shape \(3,\), got \(\)"):
        found.scan(state, KEYS, KEYS, KEYS, {"learning_rate": 0.1})


def test_an_objective_has_a_loss_for_every_token():
    """Run token by token a sum over everything would do, over a chunk at once it would mix tokens."""

    def total(prediction, target):
        return jnp.sum((prediction - target) ** 2)

    for objective, got in ((total, r"got shape \(\) with T = 2: sum"), (nj.objectives.lp, "it raised .*Error")):
        with pytest.raises(ValueError, match=rf"objective: expected one loss per token, .*{got}"):
            memory(objective=objective).start({"w": jnp.eye(2)})


def test_fields_that_are_something_else_are_named():
    for field, value, message in (
        ("objective", "l2", "objective: expected a function .* got str"),
        ("network", nj.networks.MLP, r"network: expected a network such as MLP\(\), got MLP; did you forget the \(\)"),
        ("network", nj.rules.titans(), "network: expected a network such as"),
        (
            "rule",
            nj.rules.titans,
            r"rule: expected an optax.GradientTransformation, got titans; did you forget the \(\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            memory(**{field: value})
    with pytest.raises(ValueError, match=r"state: expected what start\(params\) or a scan returned, got dict"):
        memory().scan({"w": jnp.eye(2)}, KEYS, KEYS, KEYS)
