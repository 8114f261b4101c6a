"""Feed-forward layers as levels: what they are in a model, and how a trained one gets them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nested_jax as nj
from nested_jax import rules
from nested_jax.data import TextConfig
from nested_jax.memory.continuum import Continuum
from nested_jax.models import (
    SIZES,
    AttentionConfig,
    LanguageModel,
    LevelConfig,
    LevelLayer,
    MemoryConfig,
    ModelConfig,
    count,
    family,
    parameter_count,
    stack_levels,
)
from nested_jax.run.describe import describe_model, description
from nested_jax.train.experiment import Experiment

KEY = jax.random.key(2)
TOKENS = np.random.default_rng(0).integers(0, 16, (2, 18))


def transformer(**fields):
    fields = {"vocab_size": 16, "dim": 16, "layers": 2, "blocks": ("attention",)} | fields
    return ModelConfig(attention=AttentionConfig(heads=2), **fields)


def drawn(config):
    shapes = jax.eval_shape(LanguageModel(config).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    draw = np.random.default_rng(1)
    return jax.tree.map(lambda x: np.float32(0.3 * draw.standard_normal(x.shape)), shapes)


def run(config, params, tokens=TOKENS):
    return jax.jit(LanguageModel(config).apply)({"params": params}, tokens)[0]


@pytest.mark.slow
def test_stacked_levels_at_rest_are_the_trained_layers():
    """A learning rate of 0 gives the very logits."""
    config = transformer(layers=1)
    params = drawn(config)
    same, stacked = stack_levels(params, config, (LevelConfig(period=4, rule=rules.gradient_descent(0.0)),), KEY)
    np.testing.assert_array_equal(run(stacked, same), run(config, params))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_stacked_levels_of_two_periods(dtype, x64):
    """The same in both precisions and for steps; another learning rate shows from the fast level's next period on."""
    config = transformer(dtype=dtype)
    params = drawn(config)
    resting, moving = (
        tuple(LevelConfig(period=n, rule=rules.gradient_descent(rate)) for n in (8, 4)) for rate in (0.0, 1e-3)
    )
    expected = run(config, params)
    same, stacked = stack_levels(params, config, resting, KEY)
    np.testing.assert_array_equal(run(stacked, same), expected)
    new, learning = stack_levels(params, config, moving, KEY)
    moved = jnp.any(run(learning, new) != expected, axis=(0, 2))
    np.testing.assert_array_equal(moved, np.arange(18) >= 4)
    step = jax.jit(functools.partial(LanguageModel(stacked).apply, {"params": same}, method="step"))
    state = LanguageModel(stacked).apply({"params": same}, 2, method="start")
    for place in range(5):
        logits, state = step(TOKENS[:, place], state)
    np.testing.assert_allclose(logits, expected[:, 4], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_plain_level_is_the_trained_layer():
    config = transformer()
    params = drawn(config)
    same, stacked = stack_levels(params, config, (LevelConfig(),), KEY)
    assert jax.tree.structure(same["blocks_0"]["levels_0"]) == jax.tree.structure(params["blocks_0"]["mlp"])
    np.testing.assert_array_equal(run(stacked, same), run(config, params))


@pytest.mark.slow
def test_a_chain_of_layers_is_a_continuum_of_residual_networks(x64):
    """The layers of a block, without norms, are `Continuum`'s sequential levels with the layers' gates and targets."""

    @dataclasses.dataclass(frozen=True)
    class Residual:
        inner: nj.networks.GatedMLP

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def __call__(self, operations, x):
            return x + self.inner(operations, x)

    draw = np.random.default_rng(2)
    inputs = draw.normal(size=(1, 18, 6))
    x, values, gates, levels, params = inputs, [], [], [], {}
    for number, period in enumerate((8, 2)):
        level = LevelConfig(period=period).memory(hidden=8)
        layer = LevelLayer(level, 6, jnp.float64)
        variables = jax.tree.map(lambda w: 0.3 * draw.normal(size=w.shape), layer.init(jax.random.key(0), inputs))
        bound = layer.bind(variables)
        values.append(x[0] + bound.value(x)[0])  # the target of x + M(x) where M's is x V
        gates.append({"learning_rate": bound.gates(x)["learning_rate"][0, :, 0]})
        levels.append(dataclasses.replace(level.memory, network=Residual(level.memory.network)))
        params[f"level_{number}"] = jax.tree.map(lambda w: w[0], variables["params"]["initial"])
        x = x + layer.apply(variables, x)[0]
    system = Continuum(tuple(levels))
    found, _ = jax.jit(system.scan)(system.start(params), inputs[0], values, gates)
    np.testing.assert_allclose(found, x[0], rtol=1e-10, atol=1e-10)


def test_the_maximum_of_the_learning_rate_is_for_keys_of_length_root_dim():
    for given, expected in ((None, 1 / (8 * 4 * 16)), (0.5, 0.5)):
        level = LevelConfig(period=4, rule=rules.titans(), max_learning_rate=given)
        table = LevelLayer(level.memory(hidden=8), 16).gate_table()
        assert table["learning_rate"].maximum == expected
        assert table["learning_rate"].initial == expected / 2
        assert table["momentum"].maximum == 1


def test_the_size_of_a_family_is_kept_and_counted():
    levels = tuple(LevelConfig(period=n) for n in (None, 512, 32))
    for fields in ({}, {"levels_per_block": 1}):
        config = family("transformer++", "170m", levels=levels, **fields)
        config.validate()
        assert abs(count(config) / SIZES["170m"].parameters - 1) < 0.01
        assert config.chunk_size == 512
    config = family("titans-lmm", layers=3, levels=levels[:2], levels_per_block=1)
    shapes = jax.eval_shape(LanguageModel(config).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    assert count(config) == parameter_count(shapes["params"])


@pytest.mark.parametrize("topology", ["nested", "independent"])
def test_levels_that_are_one_layer_are_described_and_counted(topology):
    levels = (LevelConfig(), LevelConfig(period=8), LevelConfig(period=4, rule=rules.titans()))
    model = family("transformer++", levels=levels, topology=topology)
    found = description(Experiment(model=model, data=TextConfig(), steps=1))
    assert [one.tokens for one in found.components[2:]] == [TextConfig().sequence_length, 8, 4]
    weights = 3 * model.dim * model.level_hidden
    projected = [0, model.dim * (model.dim + 1) + 1, model.dim * (model.dim + 3) + 3]  # values, gates and their biases
    assert [one.parameters for one in found.components[2:]] == [2 * (weights + own) for own in projected]
    assert f"of which {2 * 2 * weights:,} are initial weights" in "\n".join(found.notes)
    shapes = jax.eval_shape(LanguageModel(model).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    assert count(model) == parameter_count(shapes["params"])


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["sequential", "nested", "independent"])
def test_levels_are_only_read_where_nothing_is_learned(topology):
    """Behind a whole period a token gets the same logits with and without learning; only learning moves the levels."""
    config = transformer(layers=1, levels=(LevelConfig(), LevelConfig(period=4), LevelConfig(period=2)))
    config = dataclasses.replace(config, topology=topology)
    model, variables = LanguageModel(config), {"params": drawn(config)}
    _, state = jax.jit(model.apply)(variables, TOKENS[:, :4])
    step = jax.jit(functools.partial(model.apply, variables, method="step"), static_argnames="learn")
    (read, same), (written, moved) = (step(TOKENS[:, 4], state, learn=learn) for learn in (False, True))
    np.testing.assert_allclose(read, written, rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, same[0].levels, state[0].levels)
    before, after = (jax.tree.leaves(each[0].levels) for each in (state, moved))
    assert any(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_nested_levels_go_from_slow_to_fast():
    levels = (LevelConfig(period=4), LevelConfig(period=8))
    transformer(levels=levels).validate()
    transformer(levels=levels, topology="nested", levels_per_block=1).validate()
    for nested in (levels, levels[:1] * 2):
        with pytest.raises(ValueError, match=r"levels: expected nested levels from slow to fast, got the periods \(4,"):
            transformer(levels=nested, topology="nested").validate()
    with pytest.raises(ValueError, match=r"topology must be one of .* got 'ring'"):
        transformer(levels=levels, topology="ring").validate()


def test_describe_shows_levels_with_their_periods():
    levels = (LevelConfig(), LevelConfig(period=32), LevelConfig(period=1))
    model = family("titans-lmm", levels=levels)
    lines = describe_model(Experiment(model=model, data=TextConfig(), steps=1)).splitlines()
    rows = [line.split() for line in lines if line.startswith("  level")]
    assert [row[:4] for row in rows] == [
        ["level", "0", "1", "update"],
        ["level", "1", "32", "tokens"],
        ["level", "2", "1", "token"],
    ]
    initial = 2 * 2 * 3 * 32 * model.level_hidden + 2 * 2 * 2 * 16 * 64  # two levels and two heads in each block
    assert f"of which {initial:,} are initial weights" in "\n".join(lines)
    split = family("titans-lmm", levels=levels, levels_per_block=1)
    text = describe_model(Experiment(model=split, data=TextConfig(), steps=1))
    assert "level 0 of 0" in text
    assert "level 0 of 1" in text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"levels": (LevelConfig(period=0),)}, "period must be an integer of at least 1, got 0"),
        ({"levels": (LevelConfig(period=4, max_learning_rate=0.0),)}, "max_learning_rate must be positive"),
        ({"levels": (LevelConfig(period=6), LevelConfig(period=4))}, "levels, memory, slots: .* got 6 and 4"),
        ({"levels": (LevelConfig(period=6),), "blocks": ("memory",)}, "levels, memory, slots: .* got 64 and 6"),
        ({"levels_per_block": 1}, "levels_per_block must be None where there are no levels"),
        ({"levels": (LevelConfig(),), "levels_per_block": 0}, "levels_per_block must be an integer"),
    ],
)
def test_levels_out_of_range_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        transformer(**fields).validate()


def test_stacking_says_what_does_not_fit():
    config = transformer()
    with pytest.raises(ValueError, match="levels: expected some"):
        stack_levels(drawn(config), config, (), jax.random.key(0))
    with pytest.raises(ValueError, match="params: expected those of a model of this config"):
        stack_levels(drawn(transformer(dim=32)), config, (LevelConfig(),), jax.random.key(0))


@pytest.mark.slow
def test_a_state_without_the_levels_is_refused():
    config = transformer(levels=(LevelConfig(period=4),))
    params = drawn(config)
    state = LanguageModel(config).apply({"params": params}, 2, method="start")
    with pytest.raises(ValueError, match="one per block of this model"):
        LanguageModel(config).apply({"params": params}, TOKENS, tuple(entry.mixer for entry in state))


@pytest.mark.slow
def test_prompts_go_on_from_any_place_in_a_period():
    """A context that ends inside a period is led to the next place where all periods begin."""
    from nested_jax.evals.generation import Generator
    from nested_jax.evals.sampling import Sampling

    memory = MemoryConfig(memory=nj.Memory(chunk_size=2), heads=2)
    config = ModelConfig(
        vocab_size=16, dim=16, layers=1, memory=memory, levels=(LevelConfig(period=8), LevelConfig(period=4))
    )
    generator = Generator(LanguageModel(config), drawn(config), Sampling(temperature=0), chunk=8)
    row = TOKENS.reshape(-1).tolist()
    whole = generator.read([row])
    pieces = generator.read([row[5:]], generator.read([row[:5]]))
    np.testing.assert_allclose(pieces.logits, whole.logits, rtol=1e-4, atol=1e-5)
