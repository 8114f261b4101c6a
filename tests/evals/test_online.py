"""Learning from what is read: scored before it is learned, frozen inside a period, and of use."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nested_jax import Memory, networks
from nested_jax.evals.bits_per_byte import nats, stream
from nested_jax.evals.online import OnlineLevel, learn_online
from nested_jax.models import AttentionConfig, LanguageModel, MemoryConfig, ModelConfig

TEXT = np.frombuffer(b"the quick brown fox jumps over the lazy dog. " * 6, np.uint8)
FAST, SLOW = (
    OnlineLevel(parameters=name, period=period, rule=optax.sgd(rate))
    for name, period, rate in (("mlp/", 16, 0.5), ("embedding", 32, 1.0))
)


@pytest.fixture(scope="module")
def trained():
    attention = AttentionConfig(heads=1, window=8)
    model = LanguageModel(ModelConfig(dim=8, layers=1, blocks=("attention",), attention=attention))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    draw = np.random.default_rng(0)
    return model, jax.tree.map(
        lambda x: jnp.float32(0.3 * draw.standard_normal(x.shape) if x.ndim > 1 else np.ones(x.shape)), shapes
    )


def bits(found):
    return [chunk.bits_per_byte for chunk in found]


def still(level):
    return OnlineLevel(parameters=level.parameters, period=level.period, rule=optax.sgd(0.0))


def test_levels_learn_at_their_clocks_and_it_helps(trained):
    """Levels move at their own clocks only, and a repeated text costs less and less."""
    model, params = trained
    whole = list(learn_online(model, params, TEXT, [FAST, SLOW], chunk=16))
    assert [chunk.end for chunk in whole] == list(range(16, 270, 16))
    assert np.mean(bits(whole)[-4:]) < np.mean(bits(whole)[:2]) - 1
    levels = {"fast": lambda p: p["blocks_0"]["mlp"]["up"]["kernel"], "slow": lambda p: p["embedding"]}
    for name, every in (("fast", 1), ("slow", 2)):
        seen = [levels[name](p) for p in (params, *(chunk.params for chunk in whole))]
        changed = [bool(jnp.any(a != b)) for a, b in itertools.pairwise(seen)]
        assert changed == [(number + 1) % every == 0 for number in range(len(whole))]
    np.testing.assert_array_equal(whole[-1].params["norm"]["scale"], params["norm"]["scale"])


@pytest.mark.slow
def test_a_rate_of_0_is_a_stream(trained):
    model, params = trained
    frozen = list(learn_online(model, params, TEXT, [still(FAST), still(SLOW)], chunk=16))
    expected = bits(stream(model, params, TEXT, chunk=16, span=16))
    assert bits(frozen) == expected
    learning = bits(learn_online(model, params, TEXT, [FAST, SLOW], chunk=16))
    assert learning[0] == expected[0]  # scored before it is learned from
    assert np.mean(learning[-4:]) < np.mean(expected[-4:]) - 1
    jax.tree.map(np.testing.assert_array_equal, frozen[-1].params, params)


@pytest.mark.slow
def test_a_later_byte_changes_nothing_before(trained):
    model, params = trained
    other = TEXT.copy()
    other[40] += 1  # predicted in the third chunk
    before, after = (bits(learn_online(model, params, text, [FAST, SLOW], chunk=16)) for text in (TEXT, other))
    np.testing.assert_array_equal(np.array(before) != after, np.arange(len(before)) >= 2)


@pytest.mark.slow
def test_a_period_is_one_step_on_its_mean_gradient(x64):
    """Two chunks against one gradient over both, for parameters that no state depends on."""
    memory = Memory(network=networks.Linear(), chunk_size=4)
    config = ModelConfig(dim=8, layers=1, dtype="float64", memory=MemoryConfig(memory=memory, heads=2))
    model = LanguageModel(config)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    params = jax.tree.map(jnp.float64, params)
    level = OnlineLevel(parameters="mlp/|^norm", period=16, rule=optax.sgd(0.3))
    after = list(learn_online(model, params, TEXT[:17], [level], chunk=8))[-1].params

    def loss(chosen):
        logits, _ = model.apply(
            {"params": params | chosen["top"] | {"blocks_0": params["blocks_0"] | chosen["in"]}},
            jnp.asarray(TEXT[None, :16].astype(np.int32)),
        )
        return jnp.mean(nats(logits[0], jnp.asarray(TEXT[1:17].astype(np.int32))))

    chosen = {"top": {"norm": params["norm"]}, "in": {"mlp": params["blocks_0"]["mlp"]}}
    expected = jax.tree.map(lambda w, g: w - 0.3 * g, chosen, jax.jit(jax.grad(loss))(chosen))
    for found, wanted in (
        (after["norm"], expected["top"]["norm"]),
        (after["blocks_0"]["mlp"], expected["in"]["mlp"]),
    ):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), found, wanted)
    np.testing.assert_array_equal(after["embedding"], params["embedding"])


@pytest.mark.parametrize(
    ("levels", "options", "message"),
    [
        ([FAST], {"chunk": 0}, "chunk is a number of bytes"),
        ([FAST], {"chunk": 400}, "a chunk of 400 bytes and one more"),
        ([FAST], {"chunk": 12}, r"levels\[0\].period must be a multiple of the chunk, 12; got 16"),
        ([OnlineLevel(parameters="(", period=16, rule=optax.sgd(1.0))], {"chunk": 16}, "is no expression"),
        ([FAST, OnlineLevel(parameters="mlp/up", period=16, rule=optax.sgd(1.0))], {"chunk": 16}, "matches none of"),
    ],
)
def test_levels_that_do_not_fit(trained, levels, options, message):
    model, params = trained
    with pytest.raises(ValueError, match=message):
        learn_online(model, params, TEXT, levels, **options)
