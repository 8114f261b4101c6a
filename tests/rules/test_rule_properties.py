"""What holds for every rule of the table: dtypes, None leaves, jit, descent, optax's wrappers, gates."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rule_table import RULES

from nested_jax import rules

COSTLY = ("deep_momentum", "adam outer product", "m3 additive", "local elastic net", "every hold", "keep_norms")
COSTLY += ("yaad", "elastic net", "accumulate", "m3", "hope")


def over(wanted):
    """A test of every rule that is wanted; those that take long, or are much like another, are slow."""
    cases = [
        pytest.param(case, marks=[pytest.mark.slow] * (case.name in COSTLY), id=case.name)
        for case in RULES
        if wanted(case)
    ]
    return pytest.mark.parametrize("case", cases)


every_rule, gated_rule = over(lambda case: True), over(lambda case: case.gates)


def make_weights(case, dtype=jnp.float32, seed=0):
    one, two = jax.random.split(jax.random.key(seed))
    weights = {"w": jax.random.normal(one, [3, 4], dtype)}
    weights = weights if case.matrices else weights | {"b": jax.random.normal(two, [4], dtype)}
    return jax.tree.map(lambda w: jax.nn.softmax(w, axis=None), weights) if case.simplex else weights


def run(rule, weights, gradients, **gates):
    state = rule.init(weights)
    for gradient in gradients:
        updates, state = rule.update(gradient, state, weights, **gates)
        weights = optax.apply_updates(weights, updates)
    return weights, state


def gradients_for(case, count=5, dtype=jnp.float32):
    return [make_weights(case, dtype, seed) for seed in range(1, count + 1)]


def dtypes(tree):
    return jax.tree.map(lambda leaf: leaf.dtype, tree)


def assert_same(one, two, rtol=0.0, atol=0.0):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), one, two)


def static_arguments(case):
    """The arguments of a constructor that are not numbers to schedule."""
    return inspect.signature(case.build).parameters.keys() - case.gates.keys()


@every_rule
def test_is_an_optax_transformation(case):
    rule = case.constant()
    init, update = rule
    assert isinstance(rule, rules.Rule)
    assert isinstance(rule, optax.GradientTransformationExtraArgs)
    assert (init, update) == (rule.init, rule.update)
    assert rule.links
    assert repr(rule) == rule.description == rules.describe_rule(rule) != ""
    assert "0x" not in repr(rule)
    assert repr(case.gated()) == repr(case.gated())


@every_rule
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=str)
def test_keeps_dtypes(case, dtype):
    rule, weights = case.constant(), make_weights(case, dtype)
    state = rule.init(weights)
    updates, after = rule.update(weights, state, weights)
    assert dtypes(updates) == dtypes(weights)
    assert dtypes(after) == dtypes(state)
    gates = {name: jnp.float32(value) for name, value in case.gates.items()}
    gated = case.gated()
    given, after = gated.update(weights, gated.init(weights), weights, **gates)
    assert dtypes(given) == dtypes(weights)
    assert dtypes(after) == dtypes(state)
    assert_same(given, updates)


@every_rule
def test_float64(case, x64):
    rule, weights = case.constant(), make_weights(case, jnp.float64)
    state = rule.init(weights)
    updates, after = rule.update(weights, state, weights)
    assert dtypes(updates) == dtypes(weights)
    assert dtypes(after) == dtypes(state)


@over(lambda case: case.partial)
def test_passes_none_leaves(case):
    rule = case.constant()
    weights = make_weights(case) | {"frozen": None, "unused": jnp.ones([3, 4])}
    gradient = make_weights(case, seed=1) | {"frozen": None, "unused": None}
    state = rule.init(weights)
    updates, after = rule.update(gradient, state, weights)
    assert updates["frozen"] is None
    assert updates["unused"] is None
    assert jax.tree.structure(after) == jax.tree.structure(state)
    without = {name: leaf for name, leaf in weights.items() if name not in ("frozen", "unused")}
    alone, _ = rule.update(make_weights(case, seed=1), rule.init(without), without)
    assert_same({name: updates[name] for name in alone}, alone)


@every_rule
def test_jit_is_no_jit(case):
    rule, weights = case.gated(), make_weights(case)
    gates = {name: jnp.float32(value) for name, value in case.gates.items()}
    plain = run(rule, weights, gradients_for(case), **gates)
    jitted = run(rule._replace(update=jax.jit(rule.update)), weights, gradients_for(case), **gates)
    assert_same(plain, jitted, rtol=1e-5, atol=1e-6)


@every_rule
def test_scans(case):
    """State and updates keep structure, dtype and weak type, so that a rule is the body of a loop."""
    rule, weights = case.constant(), make_weights(case)

    def step(carry, gradient):
        weights, state = carry
        updates, state = rule.update(gradient, state, weights)
        return (optax.apply_updates(weights, updates), state), None

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients_for(case))
    scanned, _ = jax.lax.scan(step, (weights, rule.init(weights)), stacked)
    assert_same(scanned, run(rule, weights, gradients_for(case)), rtol=1e-5, atol=1e-6)


@over(lambda case: case.descends)
def test_descends_on_least_squares(case):
    rule = case.constant()
    inputs = jax.random.normal(jax.random.key(0), [32, 3])
    goal = make_weights(case, seed=1)

    def predict(weights):
        outputs = inputs @ weights["w"]
        return outputs + weights["b"][None] if "b" in weights else outputs

    def loss(weights):
        return jnp.mean((predict(weights) - predict(goal)) ** 2)

    @jax.jit
    def step(weights, state):
        updates, state = rule.update(jax.grad(loss)(weights), state, weights)
        return optax.apply_updates(weights, updates), state

    weights = make_weights(case, seed=2)
    state, before = rule.init(weights), loss(weights)
    for _ in range(600):
        weights, state = step(weights, state)
    assert loss(weights) < 1e-2 * before


@every_rule
def test_gate_at_the_step_wins_over_the_constant(case):
    weights = make_weights(case)
    other = {name: jnp.float32(0.5 * value) for name, value in case.gates.items()}
    constant = run(case.constant(), weights, gradients_for(case))
    assert_same(constant, run(case.gated(), weights, gradients_for(case), **case.gates))
    overridden = run(case.constant(), weights, gradients_for(case), **other)
    assert_same(overridden, run(case.gated(), weights, gradients_for(case), **other))
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), constant[0], overridden[0])
    assert all(jax.tree.leaves(changed)) == bool(case.gates)


@gated_rule
def test_a_missing_gate_is_named(case):
    rule, weights = case.gated(), make_weights(case)
    for missing in case.gates:
        given = {name: value for name, value in case.gates.items() if name != missing}
        with pytest.raises(ValueError, match=f"gate '{missing}' has no value"):
            rule.update(weights, rule.init(weights), weights, **given)


@every_rule
def test_lists_its_gates(case):
    assert rules.gates(case.gated()) == dict.fromkeys(case.gates)
    assert rules.gates(case.constant()) == case.gates


@every_rule
def test_lists_gates_through_compositions(case):
    rule, nothing = case.gated(), dict.fromkeys(case.gates)
    labels = {"w": "ours", "b": "theirs"}
    mask = {"w": True, "b": False}
    scheduled = optax.scale_by_schedule(optax.constant_schedule(0.5))
    for composed in (
        optax.chain(optax.clip_by_global_norm(1.0), rule, scheduled),
        optax.named_chain(("clip", optax.clip(1.0)), ("rule", rule)),
        optax.masked(rule, mask),
        optax.masked(optax.chain(rules.chain(rule), optax.scale(2.0)), mask),
        optax.partition({"ours": rule, "theirs": optax.adam(1e-3)}, labels),
        optax.apply_if_finite(rule, 3),
        optax.flatten(rule) if not case.matrices else rule,
        optax.MultiSteps(rule, 2).gradient_transformation(),
        rule._replace(update=jax.jit(rule.update)),
        rules.every(2, rules.add(rule, optax.sgd(0.1))),
    ):
        assert rules.gates(composed) == nothing


@every_rule
def test_under_masked(case):
    weights = make_weights(case) | {"other": jnp.ones([3, 4])}
    gradient = make_weights(case, seed=1) | {"other": jnp.ones([3, 4])}
    masked = optax.masked(case.gated(), {name: name != "other" for name in weights})
    updates, _ = masked.update(gradient, masked.init(weights), weights, **case.gates)
    alone, _ = case.constant().update(
        make_weights(case, seed=1), case.constant().init(make_weights(case)), make_weights(case)
    )
    assert_same(updates, alone | {"other": gradient["other"]}, rtol=1e-6)


@every_rule
def test_under_partition(case):
    weights, gradient = (make_weights(case, seed=seed) | {"other": jnp.ones([3, 4])} for seed in (0, 1))
    labels = {name: "theirs" if name == "other" else "ours" for name in weights}
    both = optax.partition({"ours": case.gated(), "theirs": optax.sgd(0.5)}, labels)
    updates, _ = jax.jit(both.update)(gradient, both.init(weights), weights, **case.gates)
    rule, part = case.constant(), make_weights(case)
    alone, _ = rule.update(make_weights(case, seed=1), rule.init(part), part)
    assert_same(updates, alone | {"other": jnp.full([3, 4], -0.5)}, rtol=1e-5, atol=1e-6)


@every_rule
def test_under_inject_hyperparams(case):
    static = static_arguments(case)
    injected = optax.inject_hyperparams(case.build, static_args=static)(**case.gates)
    weights = make_weights(case)
    final, state = run(injected, weights, gradients_for(case))
    assert_same(final, run(case.constant(), weights, gradients_for(case))[0], rtol=1e-5, atol=1e-6)
    assert set(state.hyperparams) == set(case.gates)
    listed = rules.gates(injected, weights)
    assert listed.keys() == case.gates.keys()
    assert all(isinstance(value, jax.ShapeDtypeStruct) for value in listed.values())


@gated_rule
def test_schedules_through_inject_hyperparams(case):
    static = static_arguments(case)
    name = next(iter(case.gates))
    schedule = optax.linear_schedule(case.gates[name], 0.0, 5)
    injected = optax.inject_hyperparams(case.build, static_args=static)(**case.gates | {name: schedule})
    rule, weights = case.constant(), make_weights(case)
    injected_state, state = injected.init(weights), rule.init(weights)
    for step, gradient in enumerate(gradients_for(case)):
        one, injected_state = injected.update(gradient, injected_state, weights)
        two, state = rule.update(gradient, state, weights, **{name: schedule(step)})
        assert_same(one, two, rtol=1e-5, atol=1e-6)
