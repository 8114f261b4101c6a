"""Training through the inner updates: every parameter learns, the loss falls, with remat and in bfloat16 too."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nested_jax import rules
from nested_jax.memory import Memory
from nested_jax.memory.features import Polynomial
from nested_jax.memory.networks import MLP
from nested_jax.models import AttentionConfig, LanguageModel, MemoryConfig, ModelConfig


def model(**options):
    memory = Memory(network=MLP(depth=2, expansion=2), rule=rules.titans(), chunk_size=4)
    defaults = dict(
        vocab_size=16,
        dim=16,
        layers=1,
        memory=MemoryConfig(memory=memory, heads=2),
        attention=AttentionConfig(heads=2, window=6),
    )
    return LanguageModel(ModelConfig(**defaults | options))


def init(module):
    return module.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


def loss(module, params, tokens):
    logits, _ = module.apply({"params": params}, tokens[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


def pattern(rows=4, length=21):
    """Five random tokens over and over, other ones in each row."""
    once = jax.random.randint(jax.random.key(0), (rows, 5), 0, 16)
    return jnp.tile(once, (1, length // 5 + 1))[:, :length]


@pytest.mark.parametrize("kind", ["memory", "attention", "window and features"])
def test_the_gradient_reaches_every_parameter(kind):
    options = {}
    if kind == "window and features":
        network = MLP(depth=2, expansion=2, residual=False)
        memory = Memory(network=network, rule=rules.omega(), chunk_size=4, window=2)
        options["memory"] = MemoryConfig(memory=memory, heads=2, head_dim=4, features=Polynomial(2))
        kind = "memory"
    module = model(blocks=(kind,), tie_embeddings=False, **options)
    gradients = jax.jit(jax.grad(lambda p: loss(module, p, pattern())))(init(module))
    for path, gradient in jax.tree.leaves_with_path(gradients):
        assert jnp.all(jnp.isfinite(gradient)), path
        assert jnp.any(gradient != 0), path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_loss_falls(dtype):
    module, tokens, optimizer = model(dtype=dtype), pattern(), optax.adamw(1e-2)

    @jax.jit
    def update(params, state):
        value, gradients = jax.value_and_grad(lambda p: loss(module, p, tokens))(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    params = init(module)
    state, losses = optimizer.init(params), []
    for _ in range(25):
        params, state, value = update(params, state)
        losses.append(float(value))
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.5 * losses[0]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_remat_gives_the_same_numbers():
    plain, saving = (
        model(blocks=("memory", "attention"), layers=2),
        model(blocks=("memory", "attention"), layers=2, remat=True),
    )
    params = init(plain)
    assert jax.tree.structure(params) == jax.tree.structure(init(saving))
    results = [
        jax.jit(jax.value_and_grad(lambda p, m=module: loss(m, p, pattern())))(params) for module in (plain, saving)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *results)


def test_remat_keeps_the_diagnostics():
    module = model(remat=True)
    params = init(module)
    _, recorded = module.apply({"params": params}, pattern(), mutable=["diagnostics"])
    assert recorded["diagnostics"]["blocks_0"]["mixer"]["inner_loss"] > 0


def test_logits_are_float32_whatever_is_computed_in():
    module = model(dtype="bfloat16", blocks=("memory", "attention"), layers=2)
    variables = {"params": init(module)}
    logits, state = module.apply(variables, pattern())
    assert logits.dtype == jnp.float32
    step, after = module.apply(variables, pattern()[:, 0], state, method="step")
    assert step.dtype == jnp.float32
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (state, after)]
    assert shapes[0] == shapes[1]
    assert jnp.all(jnp.isfinite(logits))
    assert jnp.all(jnp.isfinite(step))
