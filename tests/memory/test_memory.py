"""`Memory`: what it refuses and how it says so, what `explain` says, networks, features and objectives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nested_jax as nj

T, D = 6, 4
LINEAR = nj.networks.Linear()
MEMORY = nj.Memory(network=LINEAR, rule=nj.rules.titans(), chunk_size=3)
GATES = {"learning_rate": jnp.full(T, 0.1), "momentum": jnp.full(T, 0.5), "decay": jnp.zeros(T)}
X = jnp.ones((T, D))


def start(memory: nj.Memory = MEMORY) -> nj.MemoryState:
    return memory.start(memory.init(jax.random.key(0), D))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("chunk_size", 0, "chunk_size: expected an integer >= 1, got 0"),
        ("chunk_size", 2.0, "chunk_size: expected an integer"),
        ("window", -1, "window: expected an integer >= 1, got -1"),
        ("read", "later", "read: expected one of"),
        ("step_per", "sequence", "step_per: expected one of"),
        ("implementation", "fast", "implementation: expected one of"),
        ("step_per", "chunk", "read: expected 'start' with step_per='chunk'"),
        ("rule", 0.1, "rule: expected an optax.GradientTransformation, got float"),
    ],
)
def test_fields_out_of_range(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(MEMORY, **{field: value})


def test_retain_first_needs_a_step_per_token():
    with pytest.raises(ValueError, match="retain_first"):
        nj.Memory(step_per="chunk", read="start", retain_first=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"keys": jnp.ones((2, T, D))},
            r"keys: expected one sequence of one head, shape \[T, D\], got shape \(2, 6, 4\)",
        ),
        ({"values": jnp.ones((T + 1, D))}, "values, queries: expected 6 tokens as in keys, got 7 and 6"),
        ({"queries": jnp.ones((T, D + 1))}, "queries: expected 4 features as in keys, got 5"),
        ({"values": jnp.ones((T, D + 1))}, r"keys, values: expected \(4, 4\) features as in the state's weights"),
        ({"gates": {**GATES, "decay": jnp.ones(T + 1)}}, r"gates\['decay'\]: expected shape \(6,\), got \(7,\)"),
        ({"gates": {**GATES, "momentun": jnp.ones(T)}}, "got 'momentun'; did you mean 'momentum'?"),
        (
            {"gates": {"momentum": GATES["momentum"]}},
            r"expected a value for \['learning_rate', 'decay'\] at every token",
        ),
        ({"gates": {**GATES, "window": jnp.ones((T, 1))}}, "got 'window'"),
        ({"reset": jnp.zeros(3, bool)}, r"reset: expected shape \(2,\), one flag per chunk, got \(3,\)"),
    ],
)
def test_bad_inputs(change, message):
    call = {"keys": X, "values": X, "queries": X, "gates": GATES} | change
    with pytest.raises(ValueError, match=message):
        MEMORY.scan(start(), **call)


def test_a_step_takes_one_token():
    with pytest.raises(ValueError, match=r"keys: expected one sequence of one head, shape \[D\]"):
        MEMORY.step(start(), X, X, X, {name: gate[0] for name, gate in GATES.items()})


def test_an_implementation_that_cannot_run_the_rule_says_why():
    memory = nj.Memory(network=LINEAR, rule=optax.adam(0.1), chunk_size=3, implementation="dual")
    with pytest.raises(ValueError, match="implementation='dual': expected a rule that can be run over a chunk at once"):
        memory.scan(start(memory), X, X, X)


def test_channels_of_an_mlp_are_rows_of_w1_and_columns_of_w2(x64):
    """Titans by hand, gradients at the start of chunks of 3, with gates [T, D]."""
    memory = nj.Memory(nj.networks.MLP(expansion=2, residual=False), rule=nj.rules.titans(), chunk_size=3)
    draw = np.random.default_rng(0)
    keys, values, queries = (jnp.asarray(draw.normal(size=(8, 4))) for _ in range(3))
    gates = {name: jnp.asarray(draw.uniform(size=(8, 4))) for name in ("learning_rate", "momentum", "decay")}
    weights = jax.tree.map(lambda w: jnp.asarray(draw.normal(size=w.shape)), memory.init(jax.random.key(0), 4))
    y, after = jax.jit(memory.scan)(memory.start(weights), keys, values, queries, gates)

    def answer(w, x):
        return jax.nn.gelu(x @ w["w1"]) @ w["w2"]

    def loss(w, t):
        return 0.5 * jnp.sum(jnp.square(answer(w, keys[t]) - values[t]))

    w = start = weights
    sums = jax.tree.map(jnp.zeros_like, weights)
    for t in range(8):
        start = w if t % 3 == 0 else start
        gradient = jax.grad(loss)(start, t)
        for name, form in (("w1", (4, 1)), ("w2", (1, 4))):
            theta, eta, alpha = (gates[gate][t].reshape(form) for gate in ("learning_rate", "momentum", "decay"))
            sums = sums | {name: eta * sums[name] - theta * gradient[name]}
            w = w | {name: (1 - alpha) * w[name] + sums[name]}
        np.testing.assert_allclose(y[t], answer(w, queries[t]), rtol=1e-10, atol=1e-10)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), after.weights, w)


def test_a_plan_for_gates_per_channel():
    memory = nj.Memory(nj.networks.Linear(), rule=nj.rules.gated_gradient_descent(), chunk_size=1)
    assert memory.plan((3, 4)).implementation == "delta"
    assert memory.plan((3, 4), ["decay"]).implementation == "scan"


@pytest.mark.parametrize("implementation", ["scan", "dual", "materialize"])
def test_equal_gates_of_all_channels_are_a_scalar_gate(implementation):
    wide = {name: jnp.broadcast_to(gate[:, None], (T, D)) for name, gate in GATES.items()}
    expected, _ = MEMORY.scan(start(), X, X, X, GATES)
    found, _ = dataclasses.replace(MEMORY, implementation=implementation).scan(start(), X, X, X, wide)
    assert np.allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_a_network_must_use_every_weight_once():
    @dataclasses.dataclass(frozen=True)
    class Twice(nj.networks.Linear):
        def __call__(self, operations, x):
            return operations.dense("w", operations.dense("w", x))

    memory = dataclasses.replace(MEMORY, network=Twice())
    with pytest.raises(ValueError, match="'w' used twice"):
        memory.scan(start(memory), X, X, X, GATES)

    @dataclasses.dataclass(frozen=True)
    class Unused(nj.networks.Linear):
        def __call__(self, operations, x):
            return x

    memory = dataclasses.replace(MEMORY, network=Unused())
    with pytest.raises(ValueError, match=r"\['w'\] unused"):
        memory.scan(start(memory), X, X, X, GATES)


def test_constants_in_the_rule_stand_in_for_gates():
    memory = dataclasses.replace(MEMORY, rule=nj.rules.titans(0.1, 0.5, 0.0))
    assert np.allclose(memory.scan(start(memory), X, X, X)[0], MEMORY.scan(start(), X, X, X, GATES)[0], rtol=1e-6)


def test_a_branched_state_leaves_its_parent_alone():
    state = start()
    _, left = MEMORY.scan(state, X, X, X, GATES)
    _, right = MEMORY.scan(state, -X, X, X, GATES)
    _, again = MEMORY.scan(state, X, X, X, GATES)
    assert np.array_equal(left.weights["w"], again.weights["w"])
    assert not np.array_equal(left.weights["w"], right.weights["w"])


@pytest.mark.parametrize(
    ("memory", "words"),
    [
        (
            nj.Memory(),
            ["retention(): elementwise-linear, reads the weights", "implementation: dual", "masked attention"],
        ),
        (nj.Memory(rule=nj.rules.atlas()), ["newton_schulz", "timewise", "response → timewise map → response"]),
        (nj.Memory(rule=optax.adam(0.1)), ["sequential, with a clock (", "implementation: scan. Token by token"]),
        (nj.Memory(chunk_size=1), ["implementation: scan", "chunk_size=1"]),
        (nj.Memory(rule=optax.adam(0.1), step_per="chunk", read="start"), ["implementation: dual", "once per chunk"]),
        (nj.Memory(implementation="materialize"), ["implementation: materialize", "associative scan"]),
    ],
)
def test_explain_says_what_was_found_and_chosen(memory, words, capsys):
    nj.explain(memory, dim=8)
    text = capsys.readouterr().out
    assert all(word in text for word in words), text


def test_explain_goes_through_systems_of_memories(capsys):
    coarse = nj.Memory(nj.networks.Linear(), rule=nj.rules.gradient_descent(), chunk_size=8, read="start")
    nj.explain(nj.memory.TNT(coarse, (nj.Memory(rule=nj.rules.atlas(), chunk_size=4),), 8), dim=8)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["global_memory:", "  scale_by_learning_rate(): elementwise-linear", lines[2]]
    assert lines[2].startswith("  implementation: dual")
    assert lines[3:5] == ["local_memories[0]:", "  momentum(): elementwise-linear"]
    with pytest.raises(ValueError, match=r"expected an nj.Memory or a system of them, got Linear"):
        nj.explain(nj.networks.Linear())


@pytest.mark.parametrize("bias", [False, True])
def test_an_mlp_of_depth_one_without_residual_is_linear(bias):
    network = nj.networks.MLP(depth=1, residual=False, bias=bias)
    weights = network.init(jax.random.key(0), 3, 5)
    assert {name: w.shape for name, w in weights.items()} == {"w1": (3, 5)} | ({"b1": (5,)} if bias else {})
    assert network.dims(weights) == (3, 5)


@pytest.mark.parametrize("network", [nj.networks.MLP(), nj.networks.GatedMLP()])
def test_a_residual_needs_keys_as_wide_as_values(network):
    memory = dataclasses.replace(MEMORY, network=network)
    state = memory.start(memory.init(jax.random.key(0), (3, 5)))
    with pytest.raises(ValueError, match="expected keys and values of one width, got 3 and 5; set residual=False"):
        memory.scan(state, jnp.ones((T, 3)), jnp.ones((T, 5)), jnp.ones((T, 3)), GATES)


@pytest.mark.parametrize("make", [lambda: nj.networks.MLP(depth=0), lambda: nj.networks.GatedMLP(expansion=0)])
def test_networks_refuse_empty_sizes(make):
    with pytest.raises(ValueError, match="expected an integer >= 1, got 0"):
        make()


@pytest.mark.parametrize("layout", ["symmetric", "tensor"])
@pytest.mark.parametrize("degree", [1, 2, 3])
def test_polynomial_features_are_exact_kernels(layout, degree, x64):
    phi = nj.features.Polynomial(degree=degree, layout=layout)
    q, k = np.random.default_rng(degree).normal(size=(2, 4))
    a = np.random.default_rng(0).uniform(size=degree + 1)
    found = phi(jnp.asarray(q), jnp.asarray(a)) @ phi(jnp.asarray(k), jnp.asarray(a))
    assert np.isclose(found, sum(a[i] * (q @ k) ** i for i in range(degree + 1)), rtol=1e-12)
    assert phi(jnp.asarray(q)).shape == (phi.dim(4),)


def test_taylor_weights_are_learnable_down_to_zero():
    phi = nj.features.Polynomial(degree=2)
    x = jnp.array([0.3, -0.2])
    gradient = jax.grad(lambda a: jnp.sum(jnp.sin(phi(x, a))))(jnp.array([1.0, 0.5, 0.0]))
    assert np.isfinite(gradient).all()
    assert gradient[1] != 0
    only_x = phi(x, jnp.array([0.0, 1.0, 0.0]))
    assert np.allclose(only_x[1:3], x)
    assert np.count_nonzero(only_x) == 2


@pytest.mark.parametrize("arguments", [{"degree": 0}, {"layout": "dense"}])
def test_polynomial_refuses(arguments):
    with pytest.raises(ValueError, match="Polynomial"):
        nj.features.Polynomial(**arguments)
    with pytest.raises(ValueError, match=r"coefficients: expected shape \(3,\), got \(2,\)"):
        nj.features.Polynomial(2)(jnp.ones(3), jnp.ones(2))


def test_a_memory_over_polynomial_features_holds_more_pairs_than_dimensions():
    """Six random pairs in two dimensions: a linear memory cannot, degree-3 features can (Atlas, proposition 2)."""
    keys, values = np.random.default_rng(0).normal(size=(2, 6, 2))
    errors = []
    for phi in (lambda x: x, nj.features.Polynomial(degree=3)):
        k = phi(jnp.asarray(keys, jnp.float32))
        k = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
        memory = nj.Memory(network=LINEAR, rule=nj.rules.gradient_descent(1.0), chunk_size=1)
        state = memory.start(memory.init(jax.random.key(0), (k.shape[-1], 2)))
        scan = jax.jit(memory.scan)
        for _ in range(30):
            _, state = scan(state, k, jnp.asarray(values, jnp.float32), k)
        errors.append(float(jnp.mean(jnp.square(k @ state.weights["w"] - values))))
    assert errors[1] < 0.05 * errors[0]
