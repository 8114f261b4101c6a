"""Training through thousands of inner updates, on text with runs of equal bytes, the hardest case for frozen chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nested_jax.memory import Memory
from nested_jax.memory.networks import MLP
from nested_jax.models import LanguageModel, MemoryConfig, ModelConfig


def runs(draw, length):
    """Short words between runs of up to 200 equal bytes."""
    pieces, total = [], 0
    while total < length:
        word = draw.integers(0, 16, draw.integers(1, 9))
        pieces += [word, np.full(draw.integers(1, 200), draw.integers(0, 16))]
        total += len(pieces[-1]) + len(word)
    return np.concatenate(pieces)[None, :length]


@pytest.mark.slow
def test_long_contexts_train_without_clipping():
    memory = Memory(network=MLP(2, expansion=2), chunk_size=64)
    model = LanguageModel(
        ModelConfig(vocab_size=16, dim=32, layers=4, memory=MemoryConfig(memory=memory, heads=1), remat=True)
    )
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    optimizer, draw = optax.adam(3e-3), np.random.default_rng(0)
    state = optimizer.init(params)

    @jax.jit
    def update(params, state, tokens):
        def loss(params):
            logits, _ = model.apply(params, tokens[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    losses = []
    for _ in range(200):
        params, state, value = update(params, state, runs(draw, 4097))
        losses.append(float(value))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-20:]) < 0.5 * losses[0]
