"""Which gates a memory layer computes, and the values they start from."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nested_jax import rules
from nested_jax.memory import Memory
from nested_jax.memory.features import Polynomial
from nested_jax.memory.networks import MLP, Linear
from nested_jax.memory.objectives import huber, l2
from nested_jax.models import LanguageModel, MemoryConfig, ModelConfig, gate_table
from nested_jax.models.gates import Gates
from nested_jax.models.memory_layer import MemoryLayer


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


def test_fixed_gates_have_no_parameters():
    """RetNet's: one number per head, whatever the token."""
    memory = Memory(Linear(), rule=rules.titans(), chunk_size=8)
    config = MemoryConfig(memory=memory, heads=3, decay=(0.5, 0.25, 0.125), momentum=0.75, fixed=("decay", "momentum"))
    module, inputs = Gates(gate_table(config), 3), jax.random.normal(jax.random.key(0), (2, 5, 8))
    variables = module.init(jax.random.key(1), inputs)
    moved = jax.tree.map(lambda leaf: leaf + 1, variables)
    gates = module.apply(moved, inputs)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 3 * (8 + 1)
    np.testing.assert_allclose(gates["decay"], np.broadcast_to([0.5, 0.25, 0.125], (2, 5, 3)))
    np.testing.assert_allclose(gates["momentum"], np.full((2, 5, 3), 0.75))
    assert jnp.all(gates["learning_rate"] < 0.25 / 8)
    with pytest.raises(ValueError, match=r"fixed: expected gates without a constant, .* got 'eta'"):
        gate_table(MemoryConfig(memory=memory, fixed=("eta",)))
    with pytest.raises(ValueError, match="decay must be a number or one for each of 4 heads, got 3"):
        MemoryConfig(memory=memory, heads=4, decay=(0.5, 0.25, 0.125)).validate()


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


@pytest.mark.parametrize(
    ("network", "width"), [(MLP(2, expansion=2, norm=True), 12), (MLP(1, norm=True), 6), (MLP(), 1)]
)
def test_a_norm_behind_the_network_divides_the_learning_rate_by_the_width_before_it(network, width):
    config = MemoryConfig(memory=Memory(network, rule=rules.gradient_descent(), chunk_size=4))
    assert gate_table(config, 6)["learning_rate"].maximum == 1 / (4 * width)
    if width > 1:
        with pytest.raises(ValueError, match="head_dim: expected the features of a head, as the memory's network has"):
            gate_table(config)


def yaad(rank, window=1, **options):
    """Channel-wise learning rate, decay and bound of the error, as in MIRAS."""
    memory = Memory(MLP(2, expansion=2), huber(), rules.yaad(), chunk_size=4, window=window, **options)
    return MemoryConfig(memory=memory, heads=2, gate_rank=rank)


CHANNEL_WISE = {
    "yaad": lambda rank: yaad(rank),
    "titans with a window": lambda rank: MemoryConfig(
        memory=Memory(MLP(2, expansion=2), rule=rules.titans(), chunk_size=4, window=3, read="before"),
        heads=2,
        gate_rank=rank,
    ),
    "online": lambda rank: MemoryConfig(
        memory=Memory(Linear(), rule=rules.gated_gradient_descent(), chunk_size=1), heads=2, gate_rank=rank, conv=0
    ),
    "a step per chunk": lambda rank: yaad(rank, step_per="chunk", read="start"),
}


def drawn(layer, inputs):
    """Parameters of any size, so that channels differ."""
    shapes = jax.eval_shape(layer.init, jax.random.key(0), inputs)
    draw = np.random.default_rng(0)
    return jax.tree.map(lambda x: np.float32(0.5 * draw.standard_normal(x.shape)), shapes)


def test_channel_wise_gates_have_an_axis_of_channels_and_a_low_rank():
    table = gate_table(yaad(4, window=3), 6)
    assert {name: gate.size for name, gate in table.items()} == {
        "learning_rate": 6, "decay": 6, "delta": 6, "window": 3
    }  # fmt: skip
    module, inputs = Gates(table, 2, 4), jax.random.normal(jax.random.key(0), (5, 16))
    params = module.init(jax.random.key(1), inputs)["params"]
    assert jax.tree.map(jnp.shape, params) == {
        "reduce": {"kernel": (16, 4)},
        "dense": {"kernel": (4, 2, 21), "bias": (2, 21)},
    }
    found = module.apply({"params": jax.tree.map(jnp.ones_like, params)}, inputs)
    assert {name: gate.shape for name, gate in found.items()} == {
        "learning_rate": (5, 2, 6), "decay": (5, 2, 6), "delta": (5, 2, 6), "window": (5, 2, 3)
    }  # fmt: skip


def test_with_a_step_per_chunk_only_the_objective_has_channels():
    sizes = {name: gate.size for name, gate in gate_table(CHANNEL_WISE["a step per chunk"](4), 6).items()}
    assert sizes == {"learning_rate": None, "decay": None, "delta": 6}


@pytest.mark.parametrize(
    "name", ["yaad", *(pytest.param(name, marks=pytest.mark.slow) for name in CHANNEL_WISE if name != "yaad")]
)
@pytest.mark.slow
def test_a_layer_with_channel_wise_gates_starts_as_one_without(name):
    inputs = jax.random.normal(jax.random.key(0), (2, 9, 16))
    plain, wide = (MemoryLayer(CHANNEL_WISE[name](rank), 16) for rank in (None, 4))
    one, other = (jax.jit(layer.init)(jax.random.key(1), inputs)["params"] for layer in (plain, wide))
    assert jax.tree.map(jnp.shape, one["gates"]) != jax.tree.map(jnp.shape, other["gates"])
    jax.tree.map(np.testing.assert_array_equal, *({**tree, "gates": None} for tree in (one, other)))
    expected, found = (jax.jit(layer.apply)({"params": p}, inputs)[0] for layer, p in ((plain, one), (wide, other)))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    ["a step per chunk", *(pytest.param(n, marks=pytest.mark.slow) for n in CHANNEL_WISE if "step per" not in n)],
)
@pytest.mark.slow
def test_channel_wise_in_parallel_in_pieces_and_step_by_step(name, x64):
    inputs = jax.random.normal(jax.random.key(0), (2, 10, 16))
    layer = MemoryLayer(CHANNEL_WISE[name](4), 16, jnp.float64)
    variables = drawn(layer, inputs)
    run, step = jax.jit(layer.apply), jax.jit(lambda v, x, state: layer.apply(v, x, state, method="step"))
    whole, last = run(variables, inputs)

    first, state = run(variables, inputs[:, :4])
    rest, end = run(variables, inputs[:, 4:], state)
    pieces = jnp.concatenate([first, rest], axis=1)
    state, singles = layer.apply(variables, 2, method="start"), []
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    for t in range(10):
        one, state = step(variables, inputs[:, t], state)
        singles.append(one)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == shapes
    for found in (pieces, jnp.stack(singles, axis=1)):
        np.testing.assert_allclose(found, whole, rtol=1e-10, atol=1e-10)
    for after in (end, state):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10),
            after.memory.weights,
            last.memory.weights,
        )

    recorded = layer.apply(variables, inputs, mutable=["diagnostics"])[1]["diagnostics"]
    assert all(value.shape == () and jnp.isfinite(value) for value in recorded.values())


def test_channel_wise_gates_are_causal_and_used(x64):
    inputs = jax.random.normal(jax.random.key(0), (1, 10, 16))
    layer = MemoryLayer(yaad(4), 16, jnp.float64)
    variables, run = drawn(layer, inputs), jax.jit(layer.apply)
    before, _ = run(variables, inputs)
    for place in (0, 3, 4, 9):
        after, _ = run(variables, inputs.at[:, place].add(1.0))
        np.testing.assert_array_equal(after[:, :place], before[:, :place])
        assert jnp.any(after[:, place] != before[:, place])

    def channels(bias):
        params = variables["params"]
        dense = params["gates"]["dense"] | {"bias": bias}
        return run({"params": params | {"gates": params["gates"] | {"dense": dense}}}, inputs)[0]

    bias = variables["params"]["gates"]["dense"]["bias"]
    for entry in range(bias.shape[1]):
        assert jnp.max(jnp.abs(channels(bias + 3.0 * np.eye(bias.shape[1])[entry]) - before)) > 1e-9, entry


@pytest.mark.slow
def test_a_model_with_channel_wise_gates_learns():
    model = LanguageModel(ModelConfig(vocab_size=16, dim=16, layers=1, memory=yaad(4)))
    tokens = np.tile(np.random.default_rng(0).integers(0, 16, (4, 5)), (1, 4))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    optimizer = optax.adamw(1e-2)

    @jax.jit
    def update(params, state):
        def loss(params):
            logits, _ = model.apply({"params": params}, tokens[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    start, state, losses = params, optimizer.init(params), []
    for _ in range(25):
        params, state, value = update(params, state)
        losses.append(float(value))
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.5 * losses[0]
    before, after = (tree["blocks_0"]["mixer"]["gates"] for tree in (start, params))
    assert all(jnp.any(a != b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))
    spread = jnp.std(after["dense"]["kernel"].reshape(4, 2, 3, 8), axis=-1)
    assert jnp.all(spread > 1e-4)  # every gate tells its channels apart


@pytest.mark.parametrize(
    ("memory", "features", "message"),
    [
        (Memory(MLP(), chunk_size=4), Polynomial(2), r"8 channels to the memory's weights, got 4.* shape \(45, 32\)"),
        (Memory(MLP(3), chunk_size=4), None, r"got a gate of shape \(8,\) for an array of shape \(32, 32\)"),
        (Memory(MLP(), rule=rules.hope(), chunk_size=4), None, "'learning_rate' must be a scalar in this rule"),
        (Memory(MLP(), l2, step_per="chunk", read="start"), None, r"step_per='chunk', gates .*\['learning_rate', 'mom"),
        (Memory(MLP(), rule=rules.titans(0.1, 0.5, 0.0)), None, r"no gate of this memory .* constant: \[\]"),
    ],
    ids=["features", "hidden layers", "scalars", "a step per chunk", "constants"],
)
def test_a_memory_without_room_for_channels_says_so(memory, features, message):
    layer = MemoryLayer(MemoryConfig(memory=memory, heads=2, features=features, gate_rank=4), 16)
    with pytest.raises(ValueError, match=f"gate_rank: expected None, as .*{message}"):
        layer.init(jax.random.key(0), jnp.ones((1, 4, 16)))


def test_features_of_a_linear_memory_leave_room_for_channels():
    config = MemoryConfig(memory=Memory(Linear(), chunk_size=4), features=Polynomial(2), gate_rank=2)
    assert {gate.size for gate in gate_table(config, 3).values()} == {3}
    with pytest.raises(ValueError, match="head_dim: expected the features of a head"):
        gate_table(config)
