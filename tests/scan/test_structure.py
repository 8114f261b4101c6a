"""What the engine reads off a rule: never linear when it is not."""

import jax
import jax.numpy as jnp
import optax
import pytest

import nested_jax as nj
from nested_jax.rules._gates import read_gate, read_inputs
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


def known(function):
    """A stateless link that reads the layers' inputs: `function(gradient, weight, input, importance)` leaf by leaf."""

    def update(updates, state, params=None, inputs=None, importance=None, **gates):
        read_inputs(inputs)
        if inputs is None:
            return updates, state
        return {name: function(g, params[name], inputs[name], importance) for name, g in updates.items()}, state

    return nj.rules.Rule(lambda params: optax.EmptyState(), update, "known")


def gated(function):
    """A stateless link that reads the gates `rows` and `columns`: `function(gradient, rows, columns)` leaf by leaf."""

    def update(updates, state, params=None, **gates):
        rows, columns = (jnp.atleast_1d(read_gate(gates, name, None)) for name in ("rows", "columns"))
        return jax.tree.map(lambda g: function(g, rows, columns), updates), state

    return nj.rules.Rule(lambda params: optax.EmptyState(), update, "gated")


def plan(rule, network=None, channels=(), **options):
    network = network or nj.networks.MLP(expansion=1)
    return nj.Memory(**({"network": network, "rule": rule, "chunk_size": 4} | options)).plan(4, channels)


def by_name(rule, *names):
    return optax.masked(rule, lambda tree: {name: name in names for name in tree})


LR, DELTA = nj.rules.scale_by_learning_rate(), nj.rules.delta_gradient_descent()
ARRAY = jnp.array([0.1, 0.2, 0.3, 0.4])

CHANNELS = {
    "rows": lambda g, rows, columns: g * rows[:, None],
    "columns": lambda g, rows, columns: g / (1 + columns[None, :]),
    "two gates, one axis": lambda g, rows, columns: rows[:, None] * (g - columns[:, None] * g),
    "choice": lambda g, rows, columns: jnp.where((rows > 0.5)[:, None], g, 0.5 * g),
    "broadcast": lambda g, rows, columns: g * jnp.broadcast_to(rows[:, None], g.shape),
    "transposed": lambda g, rows, columns: g * jnp.broadcast_to(rows[:, None], g.shape).T,
    "reshaped": lambda g, rows, columns: g * rows.reshape(4, 1).T,
    "a mean": lambda g, rows, columns: g * jnp.mean(rows) * jnp.max(columns),
}
NOT_CHANNELS = {
    "outer product": lambda g, rows, columns: g * (rows[:, None] * columns[None, :]),
    "one axis after the other": lambda g, rows, columns: g * rows[:, None] * columns[None, :],
    "sum over both axes": lambda g, rows, columns: g * rows[:, None] + g * columns[None, :],
    "tiled": lambda g, rows, columns: (g.reshape(2, 2, 4) * rows.reshape(2, 2, 1)).reshape(4, 4),
    "diagonal": lambda g, rows, columns: g * jnp.diag(rows),
    "product": lambda g, rows, columns: jnp.broadcast_to(rows, (4, 4)) @ g,
    "gate added": lambda g, rows, columns: g + rows[:, None],
    "transposed gradient": lambda g, rows, columns: g.T * rows[:, None],
}


@pytest.mark.parametrize("name", [*CHANNELS, *NOT_CHANNELS])
def test_gates_with_a_value_per_channel(name):
    rule = gated((CHANNELS | NOT_CHANNELS)[name])
    gates = {name: jnp.full(4, 0.5) for name in ("rows", "columns")}
    weights = {"w": jnp.zeros((4, 4))}
    found = structure.classify(structure.rule_step(rule), weights, rule.init(weights), gates)
    assert found.kind == ("linear" if name in CHANNELS else "timewise")
    assert found.channels == (name in CHANNELS and name != "a mean")


def test_links_with_channels_along_different_axes_are_no_stage():
    rule = nj.chain(gated(CHANNELS["rows"]), gated(CHANNELS["columns"]), LR)
    found = plan(rule, nj.networks.Linear(), ("rows", "columns"))
    assert [link.kind for _, link in found.links] == ["linear"] * 3
    assert (found.implementation, found.stages) == ("scan", ())
    assert "not so together" in found.reason


@pytest.mark.parametrize(
    "rule",
    [
        nj.chain(LR, nj.rules.retention(ARRAY)),
        nj.chain(LR, optax.inject_hyperparams(nj.rules.retention)(decay=ARRAY)),
    ],
)
def test_constants_with_a_value_per_channel_are_seen_like_gates(rule):
    linear = nj.networks.Linear()
    assert plan(rule, linear).implementation == "dual"
    assert plan(rule, linear, chunk_size=1).implementation == "scan"
    assert plan(nj.chain(DELTA, rule), linear).implementation == "scan"
    assert not plan(nj.chain(nj.rules.newton_schulz(), rule), linear).low_rank
    scaled = optax.stateless(lambda updates, _: jax.tree.map(lambda g: g * ARRAY[None], updates))
    assert not plan(nj.chain(scaled, nj.rules.newton_schulz(), LR), linear).low_rank
    one_leaf = by_name(nj.rules.retention(ARRAY), "w1")
    assert not plan(nj.chain(nj.rules.newton_schulz(), LR, one_leaf)).low_rank


def answer(weight, x):
    return x.T @ (x @ weight)


ERASING = {
    "delta_gradient_descent": (DELTA, {"w1", "w2"}),
    "hope": (nj.rules.hope(), {"w1", "w2"}),
    "delta momentum behind": (nj.chain(DELTA, nj.rules.momentum(0.9), nj.rules.retention(0.1)), {"w1", "w2"}),
    "one layer": (nj.chain(by_name(DELTA, "w1"), optax.scale(0.5)), {"w1"}),
    "by hand": (nj.chain(known(lambda g, w, x, share: g + answer(w, x)), LR), {"w1", "w2"}),
    "by its importance": (nj.chain(known(lambda g, w, x, share: g + share[:, None] * answer(w, x)), LR), {"w1", "w2"}),
    "scaled first": (
        optax.chain(optax.scale(-0.5), known(lambda g, w, x, share: g - 0.5 * answer(w, x))),
        {"w1", "w2"},
    ),
    "scaled first, by links": (
        nj.chain(optax.scale(-0.5), known(lambda g, w, x, share: g - 0.5 * answer(w, x))),
        {"w1", "w2"},
    ),
}
NOT_ERASING = {
    "another coefficient": known(lambda g, w, x, share: g + 2.0 * answer(w, x)),
    "twice": known(lambda g, w, x, share: g + answer(answer(w, x), x)),
    "of the gradient": known(lambda g, w, x, share: g + answer(g, x)),
    "outputs scaled": known(lambda g, w, x, share: g + x.T @ (ARRAY[None] * (x @ w))),
    "outputs scaled, and the gradient": known(lambda g, w, x, share: ARRAY[None] * g + x.T @ (ARRAY[None] * (x @ w))),
    "another input": known(lambda g, w, x, share: g + answer(w, x + 1.0)),
    "another order": known(lambda g, w, x, share: g + (x @ w).T @ x),
    "clipped": known(lambda g, w, x, share: g + x.T @ jnp.clip(x @ w, -1, 1)),
    "rounded": known(lambda g, w, x, share: g + x.T @ jnp.matmul(x, w, preferred_element_type=jnp.bfloat16)),
    "one leaf's input for the other": optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(),
        lambda g, state, params=None, inputs=None, **gates: (
            g
            if read_inputs(inputs) is None
            else {
                "w1": g["w1"] + answer(params["w1"], inputs["w2"]),
                "w2": g["w2"] + answer(params["w2"], inputs["w1"]),
            },
            state,
        ),
    ),
    "normalised by the input": known(lambda g, w, x, share: g / (1 + jnp.sum(x * x))),
    "a nonlinear map that reads inputs": known(lambda g, w, x, share: jnp.tanh(g) * jnp.sum(x)),
    "not with the gradient": nj.rules.add(DELTA, nj.rules.gradient_descent(0.1)),
    "with sums of gradients": nj.rules.every(3, DELTA),
    "behind a momentum": nj.chain(nj.rules.momentum(0.9), DELTA),
    "twice in a chain": nj.chain(DELTA, DELTA),
    "before Newton-Schulz": nj.chain(DELTA, nj.rules.newton_schulz()),
}


@pytest.mark.parametrize("name", ERASING)
def test_what_a_layer_answers_may_be_taken_out(name):
    rule, erased = ERASING[name]
    found = plan(rule)
    assert (found.implementation, found.erases) == ("delta", erased)


@pytest.mark.parametrize("name", NOT_ERASING)
def test_other_uses_of_layers_inputs_are_run_token_by_token(name):
    found = plan(NOT_ERASING[name])
    assert (found.implementation, found.stages) == ("scan", ())
    assert found.reason.startswith("token by token: ")


def test_an_input_that_enters_vectors_alone_is_run_token_by_token():
    network = nj.networks.MLP(expansion=1, bias=True, norm=True)
    assert plan(nj.chain(by_name(DELTA, "b1", "gain"), optax.scale(0.1)), network).implementation == "scan"
    assert plan(nj.chain(by_name(DELTA, "w1", "b1"), optax.scale(0.1)), network).erases == {"w1"}


@pytest.mark.parametrize("reads", [False, True])
def test_a_clock_may_not_be_driven_by_inputs(reads):
    def update(updates, state, params=None, inputs=None, **gates):
        if read_inputs(inputs) is None:
            return updates, state
        state = 0.9 * state + (sum(jnp.sum(x * x) for x in inputs.values()) if reads else 1.0)
        return {name: (g + answer(params[name], inputs[name])) / state for name, g in updates.items()}, state

    rule = nj.rules.Rule(lambda params: jnp.zeros(()), update, "counted")
    assert plan(nj.chain(rule, LR)).implementation == ("scan" if reads else "delta")


SCHEDULE = optax.scale_by_schedule(optax.linear_schedule(1.0, 0.5, 8))
NS = nj.rules.newton_schulz()
LOW_RANK = {
    "alone": nj.chain(NS, LR),
    "scaled before": nj.chain(optax.scale(0.5), SCHEDULE, LR, NS),
    "momentum behind": nj.chain(NS, nj.rules.momentum(0.9), nj.rules.retention(0.1), LR),
    "in chains": nj.chain(nj.chain(optax.scale(0.5), nj.chain(NS)), LR),
}
NOT_LOW_RANK = {
    "momentum before": nj.chain(nj.rules.momentum(0.9), NS, LR),
    "sum before": nj.chain(nj.rules.every(2, optax.identity()), NS, LR),
    "decay before": nj.chain(optax.add_decayed_weights(0.1), NS, LR),
    "clipped before": nj.chain(optax.clip(0.1), NS, LR),
    "clipped behind": nj.chain(NS, optax.clip(0.1), LR),
    "twice": nj.chain(NS, NS, LR),
    "on one leaf": nj.chain(by_name(NS, "w1"), LR),
    "none": nj.chain(optax.clip(0.1), LR),
}


@pytest.mark.parametrize("name", [*LOW_RANK, *NOT_LOW_RANK])
def test_newton_schulz_of_short_windows_is_factored_where_nothing_is_remembered(name):
    found = plan((LOW_RANK | NOT_LOW_RANK)[name], window=2)
    assert found.low_rank == (name in LOW_RANK)
    assert not plan((LOW_RANK | NOT_LOW_RANK)[name], window=3).low_rank


FORGETFUL = {"scale": optax.scale(0.5), "schedule": SCHEDULE, "zero": optax.set_to_zero(), "identity": optax.identity()}
FORGETFUL |= {"a trace nobody reads": nj.rules.add(optax.identity(), nj.chain(optax.trace(0.9), optax.set_to_zero()))}
FORGETFUL |= {"a trace that keeps nothing": optax.trace(0.0)}
REMEMBERING = {"trace": optax.trace(0.5), "decay": optax.add_decayed_weights(0.1), "ema": optax.ema(0.9)}
REMEMBERING |= {"delta": DELTA, "gated decay": nj.rules.retention(), "every": nj.rules.every(2, optax.identity())}


@pytest.mark.parametrize("name", [*FORGETFUL, *REMEMBERING])
def test_what_forgets(name):
    assert find((FORGETFUL | REMEMBERING)[name], MATRICES).forgets == (name in FORGETFUL)
