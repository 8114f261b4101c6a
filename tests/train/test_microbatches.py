"""A batch in parts: the same value and gradient, counted per answer, in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from nested_jax.data import TextConfig
from nested_jax.models import ModelConfig
from nested_jax.train.experiment import FREE, Experiment
from nested_jax.train.optimizer import OptimizerConfig, make_optimizer
from nested_jax.train.sharding import MeshConfig
from nested_jax.train.step import accumulated, initial_state, make_step


class Tiny(nn.Module):
    """The next token by the last alone."""

    @nn.compact
    def __call__(self, tokens, state=None, reset=None):
        return nn.Dense(16)(nn.gelu(nn.Dense(64)(nn.Embed(16, 8)(tokens)))), state


DRAW = np.random.default_rng(0)


def batch(rows=8, length=12):
    """Rows of which ever fewer answers count, one of none."""
    tokens = DRAW.integers(0, 16, (rows, length))
    trained = np.arange(length)[None] < np.arange(rows)[:, None]
    return {"inputs": tokens, "targets": np.roll(tokens, -1, 1), "trained": trained}


def mean(params, batch):
    """Of the nats of a table of pairs, in double precision."""
    each = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(params)[batch["inputs"]], batch["targets"])
    counted = batch.get("trained", np.ones(each.shape, bool))
    return jnp.sum(each * counted) / jnp.maximum(jnp.sum(counted), 1)


@pytest.mark.parametrize("masked", [False, True])
def test_parts_have_the_gradient_of_the_whole(masked, x64):
    given, params = batch(), DRAW.standard_normal((16, 16))
    if not masked:
        del given["trained"]
    expected = jax.value_and_grad(mean)(params, given)
    for parts in (1, 2, 8):
        found = jax.jit(accumulated(mean, parts))(params, given)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14), found, expected)


def test_a_batch_without_answers_changes_nothing():
    given = batch() | {"trained": np.zeros((8, 12), bool)}
    value, gradient = jax.jit(accumulated(mean, 2))(np.ones((16, 16), np.float32), given)
    assert value == 0
    assert not jnp.any(gradient)


def test_gradients_are_added_in_float32():
    def product(params, batch):
        return jnp.mean(params * batch["x"].astype(params.dtype))

    given = {"x": jnp.array([[1.0], *[[0.004]] * 7])}
    _, gradient = accumulated(product, 8)(jnp.bfloat16(1.0), given)
    assert gradient.dtype == jnp.float32
    np.testing.assert_allclose(gradient, (1 + 7 * 0.004) / 8, rtol=1e-3)  # bfloat16 would leave 1 / 8


def test_steps_are_those_of_the_whole_batch_and_take_less_memory():
    config = OptimizerConfig(rule="optax.sgd", arguments={}, learning_rate=0.1, warmup=0)
    optimizer, given = make_optimizer(config, 4), batch(8, 48)

    def two(parts):
        state = initial_state(Tiny(), optimizer, 0)
        step = jax.jit(make_step(Tiny(), optimizer, config, 4, microbatches=parts)).lower(state, given).compile()
        state, _ = step(state, given)
        state, metrics = step(state, given)
        return state.params, metrics, step.memory_analysis().temp_size_in_bytes

    (params, metrics, most), (others, same, least) = two(1), two(4)
    assert set(same) == set(metrics)
    np.testing.assert_allclose(same["loss"], metrics["loss"], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), others, params)
    assert least < most / 2


def test_numbers_that_do_not_divide_are_named():
    with pytest.raises(ValueError, match="microbatches must divide the 8 rows of the batch; got 3"):
        accumulated(mean, 3)(np.ones((16, 16)), batch())
    with pytest.raises(ValueError, match="microbatches must be at least 1; got 0"):
        accumulated(mean, 0)

    def experiment(**fields):
        return Experiment(model=ModelConfig(), data=TextConfig(batch_size=8), steps=1, **fields)

    experiment(microbatches=4, mesh=MeshConfig(data=2)).validate()
    with pytest.raises(ValueError, match=r"multiple of mesh.data · mesh.fsdp · microbatches = 16; got 8"):
        experiment(microbatches=8, mesh=MeshConfig(data=2)).validate()
    with pytest.raises(ValueError, match="microbatches must be at least 1; got 0"):
        experiment(microbatches=0).validate()
    assert "microbatches" in FREE
