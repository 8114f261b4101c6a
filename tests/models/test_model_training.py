"""Training through the inner updates: every parameter learns, the loss falls, with remat and in bfloat16 too."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nested_jax import rules
from nested_jax.memory import Memory
from nested_jax.memory.features import Polynomial
from nested_jax.memory.networks import MLP, Linear
from nested_jax.models import AttentionConfig, LanguageModel, MemoryConfig, ModelConfig, state_bytes


def model(memory=None, **options):
    memory = memory or MemoryConfig(memory=Memory(network=MLP(2, expansion=2), chunk_size=4), heads=2)
    attention = AttentionConfig(heads=2, window=6)
    return LanguageModel(ModelConfig(vocab_size=16, dim=16, layers=1, memory=memory, attention=attention, **options))


MODELS = {
    "memory": lambda: model(tie_embeddings=False),
    "memory in bfloat16 with remat": lambda: model(
        MemoryConfig(memory=Memory(network=Linear(), chunk_size=4), heads=2), dtype="bfloat16", remat=True
    ),
    "omega over features": lambda: model(
        MemoryConfig(
            memory=Memory(MLP(2, expansion=2, residual=False), rule=rules.omega(), chunk_size=4, window=2),
            heads=2,
            head_dim=3,
            features=Polynomial(2),
        )
    ),
    "context": lambda: model(
        MemoryConfig(memory=Memory(network=MLP(2, expansion=2), chunk_size=6), heads=2), blocks=("mac",)
    ),
    "attention": lambda: model(blocks=("attention",)),
    "attention with remat": lambda: model(blocks=("attention",), remat=True),
}


def pattern(rows=4, length=21):
    """Five random tokens over and over, other ones in each row."""
    once = np.random.default_rng(0).integers(0, 16, (rows, 5))
    return np.tile(once, (1, length // 5 + 1))[:, :length]


@functools.cache
def built(name):
    """Initial parameters, and the compiled loss and gradient on the pattern."""
    module = MODELS[name]()
    params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]

    def loss(params):
        tokens = pattern()
        logits, _ = module.apply({"params": params}, tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    return params, jax.jit(jax.value_and_grad(loss))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["memory", "omega over features", "attention"])
def test_the_gradient_reaches_every_parameter(name):
    params, value_and_grad = built(name)
    for path, gradient in jax.tree.leaves_with_path(value_and_grad(params)[1]):
        assert jnp.all(jnp.isfinite(gradient)), path
        assert jnp.any(gradient != 0), path


@pytest.mark.parametrize("name", [pytest.param("memory", marks=pytest.mark.slow), "memory in bfloat16 with remat"])
def test_the_loss_falls(name):
    params, value_and_grad = built(name)
    optimizer, losses = optax.adamw(1e-2), []
    state = optimizer.init(params)

    @jax.jit
    def update(gradients, state, params):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(25):
        value, gradients = value_and_grad(params)
        params, state = update(gradients, state, params)
        losses.append(float(value))
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.5 * losses[0]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


@pytest.mark.slow
def test_remat_gives_the_same_numbers():
    (params, plain), (same, saving) = built("attention"), built("attention with remat")
    jax.tree.map(np.testing.assert_array_equal, params, same)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), plain(params), saving(params))


def test_the_backward_pass_of_mac_keeps_less_of_a_segment_than_its_state():
    module, segment = MODELS["context"](), 6
    variables = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    state = jax.eval_shape(lambda v: module.apply(v, 1, method="start"), variables)

    def kept(segments):
        tokens = jnp.zeros((1, segments * segment), jnp.int32)
        return state_bytes(jax.eval_shape(lambda v: jax.vjp(lambda v: module.apply(v, tokens)[0], v)[1], variables))

    assert kept(8) - kept(4) < 4 * state_bytes(state)


def test_diagnostics_pass_through_remat():
    module = MODELS["memory in bfloat16 with remat"]()
    params = built("memory in bfloat16 with remat")[0]
    run = functools.partial(module.apply, mutable=["diagnostics"])
    _, recorded = jax.eval_shape(run, {"params": params}, pattern())
    assert recorded["diagnostics"]["blocks_0"]["mixer"]["inner_loss"].shape == ()


@pytest.mark.slow
def test_bfloat16_keeps_logits_and_memories_in_float32():
    module = MODELS["memory in bfloat16 with remat"]()
    variables = {"params": built("memory in bfloat16 with remat")[0]}
    logits, state = jax.eval_shape(module.apply, variables, pattern())
    step, after = jax.eval_shape(functools.partial(module.apply, method="step"), variables, pattern()[:, 0], state)
    assert logits.dtype == step.dtype == jnp.float32
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(lambda x: (x.shape, x.dtype), after)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state[0].memory.weights))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(state[0].convolution))
