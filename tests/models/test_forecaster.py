"""Forecasters: literal references, channels and windows that do not see each other, scales that go in and come out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nested_jax.memory import Memory
from nested_jax.models import AttentionConfig, Block, Forecaster, ForecasterConfig, MemoryConfig

SMALL = ForecasterConfig(dim=8, layers=1, blocks=("lstm",), patch=3)
LINEAR = ForecasterConfig(linear=True, average=5)
INPUTS = np.random.default_rng(0).normal(size=(2, 12, 3)).astype(np.float32)


def made(config, horizons=(2, 5)):
    """A model, jitted, and parameters, none of which are zero."""
    model, rng = Forecaster(config, INPUTS.shape[1], horizons), np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), model.example_inputs)["params"]
    params = jax.tree.map(lambda leaf: 0.5 * rng.normal(size=leaf.shape).astype(np.float32), shapes)
    return jax.jit(lambda params, inputs: model.apply({"params": params}, inputs)), params


def run(model, params, inputs):
    forecasts, state = model(params, inputs)
    assert state is None
    return [np.asarray(forecast) for forecast in forecasts]


def test_dlinear_against_loops():
    model, params = made(LINEAR)
    found = run(model, params, INPUTS)
    for place, horizon in enumerate((2, 5)):
        maps = params[f"each_{place}"]
        for window, forecast in zip(INPUTS, found[place], strict=True):
            assert forecast.shape == (horizon, 3)
            for channel in range(3):
                x = window[:, channel]
                trend = [np.mean([x[min(max(t + s, 0), 11)] for s in range(-2, 3)]) for t in range(12)]
                expected = trend @ maps["trend"]["kernel"] + maps["trend"]["bias"]
                expected = expected + (x - trend) @ maps["remainder"]["kernel"] + maps["remainder"]["bias"]
                np.testing.assert_allclose(forecast[:, channel], expected, rtol=2e-5, atol=2e-5)


def test_blocks_against_their_parts():
    """Patches in order, a block of the language model, all tokens to the head, in the units of the window."""
    model, params = made(SMALL, (5,))
    (found,) = run(model, params, INPUTS)
    own = params["each_0"]
    block = jax.jit(lambda params, hidden: Block("lstm", SMALL).apply({"params": params}, hidden, None, None)[0])
    for number, channel in ((0, 0), (1, 2)):
        x = INPUTS[number, :, channel]
        mean, deviation = x.mean(), np.sqrt(x.var() + 1e-5)
        patches = np.stack([(x[start : start + 3] - mean) / deviation for start in (0, 3, 6, 9)])
        hidden = (patches @ own["embed"]["kernel"] + own["embed"]["bias"])[None]
        hidden = block(own["blocks_0"], hidden)
        features = np.asarray(hidden) * own["norm"]["scale"] / np.sqrt(np.square(hidden).mean(-1, keepdims=True) + 1e-6)
        features = features.reshape(-1)
        expected = (features @ own["head"]["kernel"] + own["head"]["bias"]) * deviation + mean
        np.testing.assert_allclose(found[number, :, channel], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [SMALL, LINEAR], ids=["blocks", "linear"])
def test_channels_and_windows_are_forecast_alone(config):
    model, params = made(config, (2,))
    before, moved = run(model, params, INPUTS), INPUTS.copy()
    moved[0, :, 1] += np.linspace(0, 1, 12)
    for old, new in zip(before, run(model, params, moved), strict=True):
        np.testing.assert_array_equal(old[1], new[1])
        np.testing.assert_array_equal(old[0][:, [0, 2]], new[0][:, [0, 2]])
        assert np.abs(old[0][:, 1] - new[0][:, 1]).min() > 0
    swapped = run(model, params, INPUTS[..., [1, 0, 2]])
    np.testing.assert_allclose(swapped[0], before[0][..., [1, 0, 2]], rtol=1e-5, atol=1e-6)


def test_a_forecast_by_blocks_has_the_units_of_its_window():
    model, params = made(SMALL, (2,))
    before, after = run(model, params, INPUTS), run(model, params, 50 * INPUTS + 1000)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_allclose((new - 1000) / 50, old, atol=2e-3)


def test_each_horizon_has_weights_of_its_own():
    model, params = made(LINEAR)
    before = run(model, params, INPUTS)
    changed = params | {"each_0": jax.tree.map(lambda leaf: leaf + 1, params["each_0"])}
    after = run(model, changed, INPUTS)
    np.testing.assert_array_equal(before[1], after[1])
    assert np.abs(before[0] - after[0]).min() > 0


@pytest.mark.parametrize(
    "blocks", [("memory",), ("attention",), ("mag",), ("slots",), ("memory", "attention")], ids=str
)
def test_any_kind_of_block(blocks):
    memory = MemoryConfig(memory=Memory(chunk_size=2), heads=2)
    attention = AttentionConfig(heads=2, window=2 if blocks == ("mag",) else None)
    config = dataclasses.replace(SMALL, blocks=blocks, memory=memory, attention=attention, layers=len(blocks))
    model = Forecaster(config, 12, (2,))
    (forecast,), _ = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), jnp.asarray(INPUTS))[0])
    assert (forecast.shape, forecast.dtype) == ((2, 2, 3), jnp.float32)


def test_a_memory_tells_its_gates():
    config = dataclasses.replace(SMALL, blocks=("memory",), layers=1, memory=MemoryConfig(heads=2))
    model = Forecaster(config, 12, (2,))
    params = jax.eval_shape(model.init, jax.random.key(0), model.example_inputs)["params"]
    found = jax.eval_shape(
        lambda params: model.apply({"params": params}, jnp.asarray(INPUTS), mutable=["diagnostics"])[1], params
    )
    assert "learning_rate" in found["diagnostics"]["each_0"]["blocks_0"]["mixer"]


def test_bad_input_is_named():
    model, params = made(LINEAR)
    for bad in (INPUTS[:, :11], INPUTS[0]):
        with pytest.raises(ValueError, match=r"inputs must be of shape \[B, 12, C\], got"):
            model(params, bad)
    with pytest.raises(ValueError, match="lookback must be a multiple of patch=5, got 12"):
        made(dataclasses.replace(SMALL, patch=5))
    for field, value in (("patch", 0), ("average", 4), ("average", -1), ("dim", 0)):
        with pytest.raises(ValueError, match=f"^{field} must be"):
            dataclasses.replace(SMALL, **{field: value}).validate()
