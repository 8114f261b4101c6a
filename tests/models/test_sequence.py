"""Layers and models over a split sequence equal those on one device: outputs, states and gradients."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import nested_jax as nj
from nested_jax.models import AttentionConfig, LanguageModel, MemoryConfig, ModelConfig, sequence
from nested_jax.models.attention import AttentionLayer, AttentionState
from nested_jax.models.families import family
from nested_jax.models.layers import CausalConvolution
from nested_jax.models.memory_layer import MemoryLayer
from nested_jax.models.placement import on_own

LINEAR = nj.networks.Linear()
AXES = ("data", "fsdp", "tensor", "sequence")
COLLECTIVES = r"= (\S+) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("


def mesh(*shape: int):
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 4)


def close(expected, found, tolerance: float):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), expected, found)


def drawn(shapes, dtype, seed: int = 0):
    """A tree of these shapes with entries that are far from special ones."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0.0, 0.5, x.shape), dtype), shapes)


@pytest.mark.parametrize(("count", "length"), [(3, 16), (4, 16), (7, 8), (20, 8)])
def test_what_stands_before_a_piece(count, length):
    piece, first = jnp.arange(1.0, 1.0 + 2 * length).reshape(2, length), -jnp.arange(1.0, 1.0 + 2 * count)
    first = first.reshape(2, count)
    with jax.set_mesh(mesh(1, 1, 1, 4)):
        run = on_own(sequence.before, (P(None, "sequence"), P()), P(None, "sequence"))
        found = jax.jit(run)(piece, first)
    size, whole = length // 4, jnp.concatenate([first, piece], axis=1)
    expected = [whole[:, member * size : member * size + count] for member in range(4)]
    np.testing.assert_array_equal(found, jnp.concatenate(expected, axis=1))


def layer_alike(layer, state, inputs, segments, shape, tolerance: float = 1e-5):
    """The layer's outputs, next state and gradients on a mesh and on one device."""
    params = jax.eval_shape(layer.init, jax.random.key(0), inputs, state, segments)
    params = drawn(params, inputs.dtype)

    def loss(params, inputs, state):
        outputs, after = layer.apply(params, inputs, state, segments)
        floats = [x for x in jax.tree.leaves((outputs, after)) if jnp.issubdtype(x.dtype, jnp.floating)]
        return sum(jnp.sum(jnp.sin(x)) for x in floats), (outputs, after)

    run = jax.value_and_grad(loss, (0, 1, 2), has_aux=True, allow_int=True)
    expected = jax.jit(run)(params, inputs, state)
    with jax.set_mesh(mesh(*shape)):
        compiled = jax.jit(run).lower(params, inputs, state).compile()
        found = compiled(params, inputs, state)
    floats = lambda tree: [x for x in jax.tree.leaves(tree) if x.dtype != jax.dtypes.float0]
    close(floats(expected), floats(found), tolerance)
    return compiled.as_text()


def documents(batch: int, length: int):
    """Documents of each token, other beginnings in every row."""
    begins = np.random.default_rng(0).uniform(size=(batch, length)) < 0.15
    return jnp.asarray(np.cumsum(begins, axis=1), jnp.int32)


@pytest.mark.parametrize(
    ("length", "width", "shape"),
    [(16, 4, (2, 1, 2, 2)), pytest.param(8, 4, (1, 1, 1, 8), marks=pytest.mark.slow)],
)
def test_a_split_convolution_equals_a_whole_one(length, width, shape):
    inputs, buffer = drawn((jnp.zeros((2, length, 6)), jnp.zeros((2, width - 1, 6))), jnp.float32)
    text = layer_alike(CausalConvolution(width), buffer, inputs, documents(2, length), shape)
    assert "collective-permute" in text


@pytest.mark.parametrize(
    ("window", "shape"), [(3, (2, 1, 2, 2)), pytest.param(11, (1, 1, 1, 4), marks=pytest.mark.slow)]
)
def test_a_split_window_equals_a_whole_one(window, shape):
    layer = AttentionLayer(AttentionConfig(heads=2, window=window, persistent=1), 8)
    cache = drawn((jnp.zeros((2, window, 2, 4)),) * 2, jnp.float32)
    state = AttentionState(*cache, jnp.array([2, 0], jnp.int32))
    inputs = drawn(jnp.zeros((2, 16, 8)), jnp.float32)
    text = layer_alike(layer, state, inputs, documents(2, 16), shape)
    assert "collective-permute" in text


def test_a_layer_sends_one_map_and_the_ends_of_its_convolutions():
    """Forward, on 8 members: an all-gather of d · (d_k + d_v) numbers per head, one hop per convolution."""
    memory = nj.Memory(LINEAR, rule=nj.rules.gradient_descent(), chunk_size=1)
    layer = MemoryLayer(MemoryConfig(memory=memory, heads=2, head_dim=3, key_dim=4, conv=4), 8)
    inputs = jax.ShapeDtypeStruct((3, 64, 8), jnp.float32)
    params = jax.eval_shape(layer.init, jax.random.key(0), inputs)
    members = mesh(1, 1, 1, 8)
    with jax.set_mesh(members):
        place = NamedSharding(members, P(None, "sequence"))
        run = jax.jit(lambda params, x: layer.apply(params, x)[0], in_shardings=(None, place), out_shardings=place)
        text = run.lower(params, inputs).compile().as_text()
    found = [(kind, shape) for shape, kind in re.findall(COLLECTIVES, text)]
    assert sorted(kind for kind, _ in found) == ["all-gather"] + ["collective-permute"] * 3
    (gathered,) = [shape for kind, shape in found if kind == "all-gather"]
    sizes = [int(n) for n in re.match(r"f32\[([\d,]+)\]", gathered)[1].split(",")]
    assert np.prod(sizes) == 8 * 3 * 2 * 4 * (4 + 3)


CONFIGS = {
    "memory and window": lambda: ModelConfig(
        dim=8,
        layers=2,
        blocks=("memory", "attention"),
        memory=MemoryConfig(memory=nj.Memory(LINEAR, rule=nj.rules.gated_gradient_descent(), chunk_size=4), heads=2),
        attention=AttentionConfig(heads=2, window=4),
    ),
    "titans, linear": lambda: ModelConfig(
        dim=8,
        layers=1,
        memory=MemoryConfig(memory=nj.Memory(LINEAR, rule=nj.rules.titans(), chunk_size=4), heads=2),
    ),
    "titans, online": lambda: ModelConfig(
        dim=8,
        layers=1,
        memory=MemoryConfig(memory=nj.Memory(LINEAR, rule=nj.rules.titans(), chunk_size=1), heads=2),
    ),
    "window over pieces": lambda: ModelConfig(
        dim=8, layers=1, blocks=("attention",), attention=AttentionConfig(heads=2, window=20)
    ),
    **{
        name: functools.partial(family, name, "tiny", layers=1, dim=16)
        for name in ("linear-attention", "retnet", "swla", "deltanet", "gated-deltanet", "transformer++")
    },
    "stacked": lambda: family("gated-deltanet", "tiny", layers=2, dim=16, stacked=True, remat=True),
}


def model_alike(config: ModelConfig, shape, dtype: str, tolerance: float, length: int = 32):
    config.dtype = dtype
    model, rng = LanguageModel(config), np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, config.vocab_size, (2, length)))
    params = jax.eval_shape(model.init, jax.random.key(0), tokens[:, :1])
    params = drawn(params, jnp.float64 if dtype == "float64" else jnp.float32)
    reset = jnp.asarray(rng.uniform(size=(2, -(-length // config.chunk_size))) < 0.2)

    def loss(params):
        logits, state = model.apply(params, tokens, None, reset)
        floats = [x for x in jax.tree.leaves((logits, state)) if jnp.issubdtype(x.dtype, jnp.floating)]
        return sum(jnp.mean(jnp.sin(x)) for x in floats), (logits, state)

    run = jax.value_and_grad(loss, has_aux=True)
    expected = jax.jit(run)(params)
    with jax.set_mesh(mesh(*shape)):
        found = jax.jit(run)(params)
    close(expected, found, tolerance)


def test_a_model_on_a_mesh_equals_it_on_one_device(x64):
    model_alike(CONFIGS["memory and window"](), (2, 1, 2, 2), "float64", 1e-10, length=16)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 1, 2, 2), (1, 1, 1, 8), (1, 2, 1, 4)], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_models_on_meshes_equal_them_on_one_device(name, shape, x64):
    config = CONFIGS[name]()
    model_alike(config, shape, "float64", 1e-10, length=8 * max(config.chunk_size, 4))


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_models_in_single_precision(name):
    model_alike(CONFIGS[name](), (2, 1, 2, 2), "float32", 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("length", [30, 33])
def test_a_length_that_is_not_divided_runs_whole(length, x64):
    model_alike(CONFIGS["memory and window"](), (2, 1, 1, 4), "float64", 1e-10, length)
