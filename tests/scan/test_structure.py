"""What the engine reads off a rule: never linear when it is not."""

import jax
import jax.numpy as jnp
import optax
import pytest

import nested_jax as nj
from nested_jax.scan import structure
from nested_jax.scan.plan import _flatten

WEIGHTS = {"w1": jnp.zeros((3, 5)), "w2": jnp.zeros((5, 3)), "gain": jnp.zeros(3)}
MATRICES = {"w1": jnp.zeros((3, 5)), "w2": jnp.zeros((5, 3))}

LINEAR = {
    "gradient_descent": nj.rules.gradient_descent(),
    "gated_gradient_descent": nj.rules.gated_gradient_descent(),
    "titans": nj.rules.titans(),
    "omega": nj.rules.omega(),
    "cascaded momentum": nj.chain(nj.rules.momentum(0.9), nj.rules.momentum(0.5, gate="slow"), optax.scale(-0.1)),
    "nesterov": nj.chain(nj.rules.scale_by_learning_rate(), nj.rules.momentum(nesterov=True)),
    "sgd": optax.sgd(0.1),
    "sgd nesterov": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "weight decay": optax.chain(optax.add_decayed_weights(0.1), optax.trace(0.9), optax.scale(-0.1)),
    "add": nj.chain(nj.rules.add(optax.scale(0.5), nj.rules.momentum(0.9)), optax.scale(-0.1)),
    "masked": optax.masked(nj.rules.titans(), {"w1": True, "w2": False, "gain": True}),
    "partition": optax.partition(
        {"a": optax.sgd(0.1, momentum=0.9), "b": optax.sgd(0.2)}, {"w1": "a", "w2": "b", "gain": "b"}
    ),
    "identity": optax.identity(),
    "set_to_zero": optax.set_to_zero(),
}
CLOCKED = {
    "ema": optax.ema(0.9),
    "schedule": optax.sgd(optax.linear_schedule(0.1, 0.0, 10)),
    "every": nj.rules.every(3, nj.rules.titans()),
    "inject_hyperparams": optax.inject_hyperparams(optax.sgd)(learning_rate=optax.linear_schedule(0.1, 0.0, 10)),
}
TIMEWISE = {
    "clip": optax.clip(1.0),
    "clip_by_global_norm": optax.clip_by_global_norm(1.0),
    "centralize": optax.centralize(),
    "sign": optax.scale_by_sign(),
    "noise": optax.add_noise(0.1, 0.5, key=0),
    "normalize": optax.normalize_by_update_norm(),
}
SEQUENTIAL = {
    "adam": optax.adam(0.1),
    "adamw": optax.adamw(0.1),
    "lion": optax.lion(0.1),
    "rmsprop": optax.rmsprop(0.1),
    "adagrad": optax.adagrad(0.1),
    "clip then momentum, as a whole": optax.chain(optax.clip(1.0), optax.trace(0.9)),
    "apply_if_finite": optax.apply_if_finite(optax.sgd(0.1), 3),
    "layer norm ratio": optax.scale_by_trust_ratio(),
    "muon": optax.contrib.muon(0.1),
}


def find(rule, weights=WEIGHTS) -> structure.Structure:
    gates = {name: jnp.float32(0.5) for name in nj.gates(rule, weights)}
    return structure.classify(structure.rule_step(rule), weights, rule.init(weights), gates)


@pytest.mark.parametrize("name", LINEAR)
def test_linear_rules_are_found(name):
    found = find(LINEAR[name])
    assert (found.kind, found.clock, found.reason) == ("linear", False, "")


@pytest.mark.parametrize("name", CLOCKED)
def test_step_counts_and_schedules_are_clocks(name):
    found = find(CLOCKED[name])
    assert (found.kind, found.clock) == ("linear", True)


@pytest.mark.parametrize("name", TIMEWISE)
def test_maps_of_one_update_are_timewise(name):
    found = find(TIMEWISE[name])
    assert (found.kind, found.reads_weights) == ("timewise", False)
    assert found.reason


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_what_is_not_linear_is_never_called_linear(name):
    found = find(SEQUENTIAL[name])
    assert found.kind == "sequential"
    assert found.reason


def test_newton_schulz_and_muon_go_link_by_link():
    kinds = [find(link, MATRICES).kind for _, link in _flatten(nj.rules.atlas())]
    assert kinds == ["linear", "timewise", "linear", "linear"]
    assert find(nj.rules.newton_schulz(), MATRICES).kind == "timewise"
    assert find(nj.rules.muon(), MATRICES).kind == "sequential"


def test_weights_read_by_retention_are_seen():
    assert find(nj.rules.retention()).reads_weights
    assert not find(nj.rules.momentum()).reads_weights


@pytest.mark.parametrize("bound", [1e-3, 1e6])
def test_a_clip_is_not_linear_whatever_its_threshold(bound):
    assert find(optax.clip(bound)).kind == "timewise"


def test_mixing_leaves_is_not_linear():
    def update(updates, state, params=None):
        return {name: u + jnp.sum(updates["gain"]) for name, u in updates.items()}, state

    swap = optax.GradientTransformation(lambda _: optax.EmptyState(), update)
    assert find(swap).kind == "timewise"

    def exchange(updates, state, params=None):
        return {"a": updates["b"], "b": updates["a"]}, state

    same = {"a": jnp.zeros(3), "b": jnp.zeros(3)}
    found = find(optax.GradientTransformation(lambda _: optax.EmptyState(), exchange), same)
    assert (found.kind, found.reason) == ("timewise", "it mixes leaves")


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x + 1e-8,
        lambda x: x * x,
        lambda x: jnp.flip(x),
        lambda x: jnp.roll(x, 1),
        lambda x: x * jnp.arange(x.size, dtype=x.dtype).reshape(x.shape),
        lambda x: jnp.where(x > 0, x, 0.0),
        lambda x: x - jnp.mean(x),
        lambda x: jnp.cumsum(x, axis=0),
        lambda x: x.astype(jnp.bfloat16).astype(x.dtype),
        lambda x: jnp.maximum(x, 0.1 * x),
        lambda x: x.T if x.ndim == 2 and x.shape[0] == x.shape[1] else jnp.abs(x),
    ],
)
def test_operations_that_are_not_linear_entry_by_entry(operation):
    rule = optax.stateless(lambda updates, params: jax.tree.map(operation, updates))
    assert find(rule, {"w": jnp.zeros((4, 4))}).kind == "timewise"


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: -(2.0 * x + x / 3.0) - jnp.zeros_like(x),
        lambda x: jnp.where(jnp.bool_(True), x, jnp.zeros_like(x)),
        lambda x: x.astype(jnp.float32).reshape(x.shape),
        jax.jit(lambda x: jax.checkpoint(lambda y: 0.5 * y)(x)),
        lambda x: x * jnp.full(x.shape, 0.3),
        lambda x: x**1,
    ],
)
def test_operations_that_are_linear_entry_by_entry(operation):
    rule = optax.stateless(lambda updates, params: jax.tree.map(operation, updates))
    assert find(rule, {"w": jnp.zeros((4, 4))}).kind == "linear"


@jax.custom_jvp
def twice(x):
    """Linear in value, with a derivative of its own that the dual form would not see."""
    return 2.0 * x


twice.defjvp(lambda primals, tangents: (twice(*primals), 5.0 * tangents[0]))


@pytest.mark.parametrize("operation", [twice, jax.lax.stop_gradient])
def test_maps_with_derivatives_of_their_own_are_not_linear(operation):
    rule = optax.stateless(lambda updates, params: jax.tree.map(operation, updates))
    assert find(rule).kind == "timewise"


def system(rule, weights, gates):
    """The linear systems of the rule with the weights in z, for one token."""
    step = structure.weight_step(structure.rule_step(rule))
    state = (weights, rule.init(weights))
    gates = {name: jnp.full(1, gate) for name, gate in gates.items()}
    clocks = [jnp.asarray(c)[None] for c in structure.clock_leaves(weights, state)]
    return structure.systems(step, weights, state, gates, clocks, 1)


def test_the_system_of_titans_is_the_papers():
    (found,), groups, members = system(
        nj.rules.titans(), MATRICES, {"learning_rate": 0.1, "momentum": 0.9, "decay": 0.2}
    )
    assert groups == [0, 0]
    assert [len(m) for m in members] == [2, 2]
    assert jnp.allclose(found.A[0], jnp.array([[0.8, 0.9], [0.0, 0.9]]))
    assert jnp.allclose(found.B[0], jnp.array([-0.1, -0.1]))
    assert jnp.allclose(found.C[0], found.A[0, 0])


def test_leaves_with_rules_of_their_own_get_systems_of_their_own():
    rule = optax.partition({"a": optax.sgd(0.1), "b": optax.sgd(0.2)}, {"w1": "a", "w2": "b", "gain": "a"})
    found, groups, _ = system(rule, WEIGHTS, {})
    assert groups == [0, 0, 1]
    assert [round(float(s.B[0, 0]), 6) for s in found] == [-0.1, -0.2]


def test_a_linear_step_is_its_system():
    """The system, applied to random numbers, is the rule itself."""
    rule = optax.chain(
        optax.add_decayed_weights(0.1), optax.trace(0.9, nesterov=True), optax.ema(0.7), optax.scale(-0.3)
    )
    (found,), _, members = system(rule, {"w": jnp.zeros((2, 2))}, {})
    weights, gradient = ({"w": jax.random.normal(jax.random.key(i), (2, 2))} for i in range(2))
    state = (weights, rule.init(weights))
    for _ in range(3):
        leaves = jax.tree.leaves(state)
        clocks = structure.clock_leaves(weights, state)
        (found,), _, members = structure.systems(
            structure.weight_step(structure.rule_step(rule)),
            weights,
            state,
            {},
            [jnp.asarray(c)[None] for c in clocks],
            1,
        )
        z = jnp.stack([leaves[i] for i in members[0]])
        expected = jnp.tensordot(found.A[0], z, axes=1) + jnp.tensordot(found.B[0], gradient["w"], axes=0)
        updates, inner = rule.update(gradient, state[1], state[0])
        state = (optax.apply_updates(state[0], updates), inner)
        leaves = jax.tree.leaves(state)
        assert jnp.allclose(expected, jnp.stack([leaves[i] for i in members[0]]), rtol=1e-5, atol=1e-6)
