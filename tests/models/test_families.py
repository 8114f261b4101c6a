"""Every family of the tables: its sizes, its laws, and that it learns."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_language_model import CUT, LENGTH, Built, obeys_the_laws, tokens

from nested_jax.data import TextConfig
from nested_jax.models import FAMILIES, SIZES, LanguageModel, count, family, parameter_count
from nested_jax.run.describe import describe_model
from nested_jax.train.experiment import Experiment


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", FAMILIES)
def test_has_the_parameters_its_size_says(name, size):
    config, parameters = family(name, size), SIZES[size].parameters
    config.validate()
    assert 0.2 < config.expansion < 6
    if parameters is not None:
        assert abs(count(config) / parameters - 1) < {"small": 0.03, "20m": 0.01}.get(size, 0.005)


@pytest.mark.parametrize("name", ["titans-mag", "gated-deltanet-h"])
def test_count_is_that_of_the_whole_model(name):
    config = family(name, layers=3)
    variables = jax.eval_shape(LanguageModel(config).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    assert count(config) == parameter_count(variables["params"])


@pytest.mark.parametrize("name", ["titans-mac", "moneta-h", "lstm", "atlas++", "slots"])
def test_can_be_described(name):
    text = describe_model(Experiment(model=family(name), data=TextConfig(), steps=1))
    assert f"block{'s 0-1' if name != 'moneta-h' else ' 0'} {family(name).kinds[0]}" in text
    assert ("attention keeps keys and values (last 8 tokens)" in text) == (name == "titans-mac")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_obeys_the_laws(name, x64):
    obeys_the_laws(Built(family(name, vocab_size=16, dtype="float64", layers=2)))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_do_not_depend_on_how_it_is_run(name, x64):
    """Whole, in two pieces with the state carried, and token by token: the same gradient of all parameters."""
    built, given = Built(family(name, vocab_size=16, dtype="float64", layers=2)), jnp.asarray(tokens())
    apply = built.model.apply

    def whole(variables):
        return apply(variables, given)[0]

    def pieces(variables):
        first, state = apply(variables, given[:, :CUT])
        return jnp.concatenate([first, apply(variables, given[:, CUT:], state)[0]], axis=1)

    def one_by_one(variables):
        def step(state, token):
            logits, state = apply(variables, token, state, method="step")
            return state, logits

        start = apply(variables, 2, method="start")
        first, _ = jax.eval_shape(step, start, given[:, 0])
        start = jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), start, first)
        return jnp.swapaxes(jax.lax.scan(step, start, given.T)[1], 0, 1)

    weights = jnp.asarray(np.random.default_rng(1).standard_normal((2, LENGTH, 16)))
    found = [
        jax.jit(jax.grad(lambda v, run=run: jnp.sum(weights * run(v))))(jax.tree.map(np.float64, built.variables))
        for run in (whole, pieces, one_by_one)
    ]
    assert sum(float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(found[0])) > 1
    for other in found[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10), other, found[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_learns(name):
    """20 steps on the bytes of this file."""
    text = np.frombuffer(pathlib.Path(__file__).read_bytes(), np.uint8).astype(np.int32)
    model, rule = LanguageModel(family(name)), optax.adam(3e-3)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    state = rule.init(params)

    @jax.jit
    def step(params, state, tokens):
        def loss(params):
            logits, _ = model.apply({"params": params}, tokens[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = rule.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    draw, losses = np.random.default_rng(0), []
    for _ in range(20):
        starts = draw.integers(0, len(text) - 66, 8)
        batch = np.stack([text[start : start + 65] for start in starts])
        params, state, loss = step(params, state, batch)
        losses.append(float(loss))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < losses[0] - 0.5


def test_unknown_names_are_named():
    with pytest.raises(ValueError, match=r"family must be one of titans-lmm, .* got 'titan'"):
        family("titan")
    with pytest.raises(ValueError, match=r"size must be one of tiny, small, 20m, 170m, .* got '7b'"):
        family("atlas", "7b")
