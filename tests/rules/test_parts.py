"""The parts one by one: against optax's relatives, against their equations, and on bad input."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nested_jax import rules

WEIGHTS = {"w": jnp.arange(6.0).reshape(2, 3) / 3, "b": jnp.array([1.0, -2.0, 0.5])}


def gradients(count=6, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), (count, 2))
    return [{"w": jax.random.normal(w, [2, 3], dtype), "b": jax.random.normal(b, [3], dtype)} for w, b in keys]


def run(rule, weights=WEIGHTS, count=6, **gates):
    """The updates of `count` steps, the last gate being given step by step where it is a sequence."""
    state, outputs = rule.init(weights), []
    for step, gradient in enumerate(gradients(count)):
        now = {name: value[step] if isinstance(value, list) else value for name, value in gates.items()}
        updates, state = rule.update(gradient, state, weights, **now)
        weights = optax.apply_updates(weights, updates)
        outputs.append(updates)
    return outputs, weights


def assert_close(one, two, rtol=1e-6, atol=1e-6):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), one, two)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.9, 1.0])
def test_momentum_is_optax_trace(nesterov, eta):
    assert_close(run(rules.momentum(eta, nesterov=nesterov)), run(optax.trace(eta, nesterov=nesterov)))


def test_momentum_with_a_gate_per_step():
    etas = [0.9, 0.1, 0.0, 1.0, 0.5, 0.3]
    outputs, _ = run(rules.momentum(), momentum=etas)
    trace = 0.0
    for eta, gradient, output in zip(etas, gradients(), outputs, strict=True):
        trace = eta * trace + gradient["w"]
        np.testing.assert_allclose(output["w"], trace, rtol=1e-6, atol=1e-6)


def test_learning_rate_is_that_of_optax():
    assert_close(run(rules.scale_by_learning_rate(0.3)), run(optax.scale_by_learning_rate(0.3)))
    assert_close(run(rules.gradient_descent(0.3)), run(optax.sgd(0.3)))


def test_muonless_omega_is_optax_sgd_with_momentum():
    assert_close(run(rules.omega(0.3, 0.9, 0.0)), run(optax.sgd(0.3, momentum=0.9)))


def test_retention_is_decoupled_weight_decay():
    """optax decays before the learning rate: there the fraction forgotten is the product of the two."""
    theirs = optax.chain(optax.add_decayed_weights(0.2), optax.scale_by_learning_rate(0.5))
    assert_close(run(rules.gated_gradient_descent(0.5, 0.1)), run(theirs))
    assert_close(run(rules.retention(0.1)), run(optax.add_decayed_weights(-0.1)))


@pytest.mark.parametrize(("decay", "left"), [(0.0, 1.0), (1.0, 0.0), (0.25, 0.75)])
def test_retention_forgets_a_fraction(decay, left):
    rule, nothing = rules.retention(), jax.tree.map(jnp.zeros_like, WEIGHTS)
    updates, _ = rule.update(nothing, rule.init(WEIGHTS), WEIGHTS, decay=decay)
    assert_close(optax.apply_updates(WEIGHTS, updates), jax.tree.map(lambda leaf: left * leaf, WEIGHTS), atol=0)


def test_titans_equations():
    """Titans 13-14, literally, with gates that change."""
    gates = {
        "learning_rate": [0.1, 0.3, 0.0, 0.2, 0.5, 0.1],
        "momentum": [0.9, 0.5, 0.7, 0.0, 1.0, 0.2],
        "decay": [0.0, 0.1, 0.5, 1.0, 0.01, 0.2],
    }
    _, weights = run(rules.titans(), **gates)
    memory, surprise = WEIGHTS["w"], jnp.zeros([2, 3])
    for theta, eta, alpha, gradient in zip(*gates.values(), gradients(), strict=True):
        surprise = eta * surprise - theta * gradient["w"]
        memory = (1 - alpha) * memory + surprise
    np.testing.assert_allclose(weights["w"], memory, rtol=1e-6, atol=1e-6)


def test_atlas_equations():
    """Atlas 32-33, literally, with gates that change."""
    gates = {"learning_rate": [0.1, 0.3, 0.0], "momentum": [0.9, 0.5, 0.7], "decay": [0.0, 0.1, 1.0]}
    weights = {"w": WEIGHTS["w"]}
    rule = rules.atlas(coefficients="cubic", steps=2)
    state = rule.init(weights)
    memory, surprise = np.asarray(WEIGHTS["w"]), np.zeros([2, 3])
    for theta, eta, alpha, gradient in zip(*gates.values(), gradients(3), strict=True):
        now = {"learning_rate": theta, "momentum": eta, "decay": alpha}
        updates, state = rule.update({"w": gradient["w"]}, state, weights, **now)
        weights = optax.apply_updates(weights, updates)
        surprise = eta * surprise + np.asarray(gradient["w"])
        x = surprise / np.linalg.norm(surprise)
        for _ in range(2):
            x = 1.5 * x - 0.5 * x @ x.T @ x
        memory = (1 - alpha) * memory - theta * x
    np.testing.assert_allclose(weights["w"], memory, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("rule", "links"),
    [
        (rules.gradient_descent(), "scale_by_learning_rate"),
        (rules.gated_gradient_descent(), "scale_by_learning_rate retention"),
        (rules.titans(), "scale_by_learning_rate momentum retention"),
        (rules.muon(), "momentum newton_schulz scale_by_learning_rate"),
        (rules.atlas(), "momentum newton_schulz scale_by_learning_rate retention"),
        (rules.omega(), "momentum scale_by_learning_rate retention"),
        (rules.chain(rules.momentum(), rules.newton_schulz()), "momentum newton_schulz"),
    ],
    ids=str,
)
def test_composition_table(rule, links):
    """The table of named rules, line by line."""
    assert [link.description for link in rule.links] == [f"{name}()" for name in links.split()]


def test_m3_numerator():
    """The last line of the table that exists so far: a quick and a slow Muon, side by side."""
    weights = {"w": WEIGHTS["w"]}
    quick, slow = rules.muon(0.1, 0.9), rules.muon(0.05, 0.5)
    rule = rules.add(quick, rules.every(2, slow))
    state, quick_state, slow_state = rule.init(weights), quick.init(weights), slow.init(weights)
    given = [{"w": gradient["w"]} for gradient in gradients(4)]
    for step, gradient in enumerate(given):
        updates, state = rule.update(gradient, state, weights)
        want, quick_state = quick.update(gradient, quick_state)
        if step % 2:
            summed = jax.tree.map(jnp.add, given[step - 1], gradient)
            extra, slow_state = slow.update(summed, slow_state)
            want = jax.tree.map(jnp.add, want, extra)
        assert_close(updates, want)


def test_chain_is_optax_chain():
    parts = rules.momentum(0.9), optax.clip(0.5), rules.scale_by_learning_rate(0.1), rules.retention(0.01)
    ours, theirs = rules.chain(*parts), optax.chain(*parts)
    assert ours.links == parts
    assert_close(ours.init(WEIGHTS), theirs.init(WEIGHTS))
    assert_close(run(ours), run(theirs), rtol=0, atol=0)


def test_chain_keeps_given_links():
    inner = rules.titans()
    outer = rules.chain(optax.clip(1.0), inner)
    assert outer.links[1] is inner
    assert inner.links[0].links == (inner.links[0],)
    assert len(outer.init(WEIGHTS)) == 2


def test_a_link_may_rename_its_gate():
    rule = rules.chain(rules.momentum(), rules.momentum(0.5, gate="slow"), rules.scale_by_learning_rate(gate="rate"))
    assert rules.gates(rule) == {"momentum": None, "slow": 0.5, "rate": None}
    assert repr(rule) == "chain(momentum(), momentum(momentum=0.5, gate='slow'), scale_by_learning_rate(gate='rate'))"
    got = run(rule, momentum=0.9, slow=0.2, rate=0.1)
    assert_close(got, run(optax.chain(optax.trace(0.9), optax.trace(0.2), optax.scale(-0.1))))
    with pytest.raises(ValueError, match="gate 'rate' has no value"):
        run(rule, momentum=0.9, learning_rate=0.1)


def test_gates_report_the_first_of_two():
    assert rules.gates(rules.chain(rules.momentum(0.9), rules.momentum(0.5))) == {"momentum": 0.9}
    assert rules.gates(rules.chain(rules.momentum(), rules.momentum(0.5))) == {"momentum": None}


def test_gates_of_stock_rules():
    for rule in (optax.adam(1e-3), optax.sgd(0.1, momentum=0.9), optax.lion(1e-3), optax.contrib.muon(0.1)):
        assert rules.gates(rule) == {}
    assert rules.gates(optax.GradientTransformation(lambda p: (), lambda u, s, p=None: (u, s))) == {}


def test_gates_take_the_callers_weights():
    rule = optax.partition({0: rules.titans(), 1: optax.sgd(0.1)}, {"embed": 1, "block": {"kernel": 0}})
    shapes = {"embed": jax.ShapeDtypeStruct((9, 4), jnp.bfloat16), "block": {"kernel": jnp.ones([4, 4])}}
    assert rules.gates(rule, shapes) == dict.fromkeys(("learning_rate", "momentum", "decay"))
    with pytest.raises(ValueError, match="rule must be an optax transformation, got 'titans'"):
        rules.gates("titans")


def test_listing_gates_leaves_no_trace_behind():
    """A jitted rule whose gates were listed, with stand-ins for the missing ones, still misses them."""
    rule = rules.scale_by_learning_rate()
    jitted = optax.GradientTransformationExtraArgs(rule.init, jax.jit(rule.update))
    with pytest.raises(ValueError, match="gate 'learning_rate' has no value"):
        jitted.update(WEIGHTS, rule.init(WEIGHTS), WEIGHTS)
    for _ in range(2):
        assert rules.gates(jitted) == {"learning_rate": None}
    stand_in = {"w": jnp.zeros([2, 3]), "b": jnp.zeros([3])}
    with pytest.raises(ValueError, match="gate 'learning_rate' has no value"):
        jitted.update(stand_in, rule.init(stand_in), stand_in)


def test_none_at_the_step_means_not_given():
    assert_close(run(rules.gradient_descent(0.1), learning_rate=None), run(rules.gradient_descent(0.1)))


@pytest.mark.parametrize("gate", ["learning_rate", "momentum", "decay"])
def test_a_gate_per_channel(gate):
    others = {"learning_rate": 0.1, "momentum": 0.9, "decay": 0.2}
    rule, vector = rules.titans(**others), jnp.array([0.0, 0.5, 1.0])
    outputs, _ = run(rule, **{gate: vector})
    for channel in range(3):
        single, _ = run(rule, **{gate: vector[channel]})
        for got, want in zip(outputs, single, strict=True):
            assert_close(got["w"][:, channel], want["w"][:, channel])
            assert_close(got["b"][channel], want["b"][channel])


def test_scale():
    tree = {"w": jnp.ones([2, 3], jnp.bfloat16), "b": jnp.ones([3]), "frozen": None, "masked": optax.MaskedNode()}
    got = rules.scale(jnp.array([1.0, 2.0, 3.0]), tree)
    assert (got["w"].dtype, got["b"].dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(got["w"].astype(jnp.float32), [[1, 2, 3], [1, 2, 3]])
    assert got["frozen"] is None
    assert got["masked"] == optax.MaskedNode()
    assert rules.scale(2, {"scalar": jnp.float32(3.0)})["scalar"] == 6.0
    for tree in (jnp.ones([3, 2, 2]), jnp.ones([2]), jnp.ones([])):
        with pytest.raises(ValueError, match=r"last axis, or the one before it, has .* \(3,\) for an array of shape"):
            rules.scale(jnp.ones(3), tree)


@pytest.mark.parametrize("batch", [(), (5,), (3, 5), (3,)])
def test_a_vector_gate_takes_the_last_axis_of_its_size_or_the_one_before_it(batch):
    gate, draw = jnp.array([1.0, -2.0, 0.5]), jax.random.key(0)
    for shape, subscripts in (((3, 2), "d,...dh->...dh"), ((2, 3), "d,...hd->...hd"), ((3, 3), "d,...hd->...hd")):
        leaf = jax.random.normal(draw, (*batch, *shape))
        np.testing.assert_array_equal(rules.scale(gate, leaf), jnp.einsum(subscripts, gate, leaf))


@pytest.mark.parametrize("gate", ["learning_rate", "momentum", "decay"])
def test_a_gate_per_channel_of_a_layer_with_as_many_inputs(gate):
    others = {"learning_rate": 0.1, "momentum": 0.9, "decay": 0.2}
    rule, vector, weights = rules.titans(**others), jnp.array([0.25, 1.0]), {"w": WEIGHTS["w"]}

    def steps(**gates):
        state, w, found = rule.init(weights), weights, []
        for gradient in gradients():
            updates, state = rule.update({"w": gradient["w"]}, state, w, **gates)
            w = optax.apply_updates(w, updates)
            found.append(updates["w"])
        return jnp.stack(found)

    wide = steps(**{gate: vector})
    for channel in range(2):
        assert_close(wide[:, channel], steps(**{gate: vector[channel]})[:, channel])


@pytest.mark.parametrize(
    "rule",
    [
        rules.delta_gradient_descent(),
        rules.delta_momentum(momentum=0.5),
        rules.average(debias=True, gate="learning_rate"),
    ],
    ids=str,
)
def test_rules_that_take_a_scalar_say_so(rule):
    with pytest.raises(ValueError, match=r"gate 'learning_rate' must be a scalar in this rule, got shape \(3,\)"):
        rule.update(WEIGHTS, rule.init(WEIGHTS), WEIGHTS, learning_rate=jnp.ones(3))


def test_narrow_arrays_are_multiplied_in_float32():
    gate, leaf = jnp.float32(0.7), jnp.bfloat16(1.4)
    want = (np.float32(leaf) * np.float32(gate)).astype(jnp.bfloat16)
    assert rules.scale(gate, leaf) == want
    assert rules.scale(0.7, leaf) == want


def test_a_gate_with_two_axes_is_refused():
    with pytest.raises(ValueError, match=r"gate 'momentum' must be a scalar or a vector \[D\], got shape \(2, 3\)"):
        run(rules.momentum(), momentum=jnp.ones([2, 3]))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: rules.titans(learning_rate=-0.1), "learning_rate must be at least 0, got -0.1"),
        (lambda: rules.titans(momentum=1.5), r"momentum must be in \[0, 1\], got 1.5"),
        (lambda: rules.titans(decay=-1), r"decay must be in \[0, 1\], got -1"),
        (lambda: rules.retention(float("nan")), r"decay must be in \[0, 1\], got nan"),
        (lambda: rules.momentum(np.float32(2)), r"momentum must be in \[0, 1\]"),
        (lambda: rules.muon(optax.constant_schedule(0.1)), "learning_rate must be a number.*inject_hyperparams"),
        (lambda: rules.muon("0.1"), "learning_rate must be a number.*got '0.1'"),
        (lambda: rules.every(0, rules.muon()), "period must be an integer of at least 1, got 0"),
        (lambda: rules.every(2.0, rules.muon()), "period must be an integer of at least 1, got 2.0"),
        (lambda: rules.every(2, "muon"), "every takes optax transformations, got 'muon' at position 0"),
        (lambda: rules.chain(), "chain takes at least one rule"),
        (lambda: rules.chain(rules.muon(), 0.1), "chain takes optax transformations, got 0.1 at position 1"),
        (lambda: rules.add(), "add takes at least one rule"),
    ],
)
def test_bad_constructors(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_arrays_as_constants():
    got = run(rules.titans(jnp.float32(0.1), np.float32(0.9), jnp.array([0.1, 0.1, 0.1])))
    assert_close(got, run(rules.titans(0.1, 0.9, 0.1)))


def test_retention_without_weights():
    rule = rules.titans(0.1, 0.9, 0.1)
    with pytest.raises(ValueError, match=r"retention needs params.*got params=None"):
        rule.update(WEIGHTS, rule.init(WEIGHTS))


@pytest.mark.parametrize("period", [1, 2, 3])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=str)
def test_every_is_a_hand_loop(period, dtype):
    weights = jax.tree.map(lambda leaf: leaf.astype(dtype), WEIGHTS)
    inner = rules.titans(momentum=0.9, decay=0.1)
    rule = rules.every(period, inner)
    state, slow_state = rule.init(weights), inner.init(weights)
    total = jax.tree.map(jnp.zeros_like, WEIGHTS)
    update = jax.jit(rule.update)
    for step, gradient in enumerate(gradients(7, dtype)):
        rate = 0.1 * (step + 1)
        updates, after = update(gradient, state, weights, learning_rate=rate)
        total = jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, gradient)
        if (step + 1) % period:
            assert_close(updates, jax.tree.map(jnp.zeros_like, weights), rtol=0, atol=0)
            assert_close(after.inner, state.inner, rtol=0, atol=0)
        else:
            fed = jax.tree.map(lambda leaf: leaf.astype(dtype), total)
            want, slow_state = inner.update(fed, slow_state, weights, learning_rate=rate)
            widened = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (updates, after.inner))
            wanted = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (want, slow_state))
            assert_close(widened, wanted)
            total = jax.tree.map(jnp.zeros_like, total)
        assert_close(after.total, total)
        assert after.count == (step + 1) % period
        assert after.count.dtype == jnp.int32
        state, weights = after, optax.apply_updates(weights, updates)


def test_every_takes_stock_rules_with_counts():
    rule, inner = rules.every(2, optax.adam(0.1)), optax.adam(0.1)
    state, slow_state = rule.init(WEIGHTS), inner.init(WEIGHTS)
    given = gradients(4)
    for step, gradient in enumerate(given):
        updates, state = rule.update(gradient, state)
        if step % 2:
            want, slow_state = inner.update(jax.tree.map(jnp.add, given[step - 1], gradient), slow_state)
            assert_close(updates, want)
    assert state.inner[0].count == 2


def test_every_of_every():
    rule, flat = (
        rules.every(2, rules.every(3, rules.gradient_descent(0.1))),
        rules.every(6, rules.gradient_descent(0.1)),
    )
    assert_close(run(rule, count=12), run(flat, count=12))


def test_add_is_a_sum():
    rule = rules.add(rules.gradient_descent(0.1), rules.momentum(0.9), optax.clip(0.1))
    outputs, _ = run(rule)
    parts = [run(part)[0] for part in (rules.gradient_descent(0.1), rules.momentum(0.9), optax.clip(0.1))]
    for got, *terms in zip(outputs, *parts, strict=True):
        assert_close(got, jax.tree.map(lambda *leaves: sum(leaves), *terms))


def test_rules_are_differentiable_in_their_gates():
    def final(gates):
        return jnp.sum(run(rules.titans(), **gates)[1]["w"] ** 2)

    gates = {"learning_rate": 0.1, "momentum": 0.5, "decay": 0.2}
    slopes = jax.grad(final)(gates)
    for name in gates:
        up, down = (final(gates | {name: gates[name] + step}) for step in (1e-2, -1e-2))
        np.testing.assert_allclose(slopes[name], (up - down) / 2e-2, rtol=2e-2)


def test_describe_rule():
    assert rules.describe_rule(optax.trace(0.9)) == "optax.trace(accumulator_dtype=None, decay=0.9, nesterov=False)"
    assert rules.describe_rule(optax.sgd(0.1)) == "optax.chain(optax.identity(), optax.scale(step_size=-0.1))"
    assert rules.describe_rule(rules.every(2, rules.titans(jnp.float32(0.5)))) == (
        "every(2, chain(scale_by_learning_rate(learning_rate=float32(0.5)), momentum(), retention()))"
    )
    assert (
        repr(rules.add(rules.momentum(0.5), optax.clip(1.0)))
        == "add(momentum(momentum=0.5), optax.clip(max_delta=1.0))"
    )


STOCK = {
    "adamw": lambda rate: optax.adamw(rate),
    "scheduled": lambda rate: optax.adam(optax.linear_schedule(rate, 0.0, 9)),
    "muon": lambda rate: optax.contrib.muon(rate),
    "partition": lambda rate: optax.partition({"a": optax.sgd(rate), "b": rules.titans()}, {"w": "a", "b": "b"}),
    "masked": lambda rate: optax.masked(rules.titans(rate), {"w": True, "b": False}),
    "injected": lambda rate: optax.inject_hyperparams(rules.titans)(rate),
    "jitted": lambda rate: rules.titans(rate)._replace(update=jax.jit(rules.titans(rate).update)),
    "steps": lambda rate: optax.MultiSteps(optax.sgd(rate), 3).gradient_transformation(),
    "default": lambda rate: optax.stateless(lambda updates, params, rate=rate: rate * updates),
    "array": lambda rate: rules.titans(rate * jnp.ones([40])),
    "named": lambda rate: optax.named_chain(("a", optax.sgd(rate))),
}


@pytest.mark.parametrize("name", STOCK)
def test_descriptions_are_stable_and_tell_constants_apart(name):
    one, again, other = (rules.describe_rule(STOCK[name](rate)) for rate in (0.25, 0.25, 0.5))
    assert one == again
    assert one != other
    assert "0x" not in one
    assert "\n" not in one


def test_rule_of_a_plain_pair():
    bare = rules.Rule(lambda params: (), lambda updates, state, params=None, **extra: (updates, state))
    assert bare.links == (bare,)
    assert "test_rule_of_a_plain_pair" in repr(bare)
    replaced = rules.titans()._replace(init=lambda params: ())
    assert isinstance(replaced, rules.Rule)
    assert replaced.links == (replaced,)


def test_imports_without_flax():
    code = "import sys, nested_jax.rules; assert not {'flax', 'orbax', 'grain', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
