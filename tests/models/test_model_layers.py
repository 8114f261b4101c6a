"""Norms and the causal convolution against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nested_jax.memory.features import l2_normalise
from nested_jax.models import layers


def test_l2_normalise_gives_length_one_and_a_finite_gradient_at_zero(x64):
    vectors = jax.random.normal(jax.random.key(0), (5, 8))
    np.testing.assert_allclose(jnp.linalg.norm(l2_normalise(vectors), axis=-1), 1.0, rtol=1e-6)
    gradient = jax.grad(lambda x: l2_normalise(x).sum())(jnp.zeros(8))
    assert jnp.all(jnp.isfinite(gradient))


def test_rms_normalise_divides_by_the_root_mean_square(x64):
    vectors, scale = jax.random.normal(jax.random.key(0), (3, 8)), jnp.arange(8.0)
    expected = vectors / np.sqrt(np.mean(np.square(vectors), -1, keepdims=True) + 1e-6) * np.arange(8.0)[None]
    np.testing.assert_allclose(layers.rms_normalise(vectors, scale), expected, rtol=1e-12)


def test_rms_normalise_keeps_bfloat16_and_sums_in_float32():
    vectors = jnp.full((1, 4096), 3.0, jnp.bfloat16)
    normed = layers.rms_normalise(vectors, jnp.ones(4096))
    assert normed.dtype == jnp.bfloat16
    np.testing.assert_array_equal(normed.astype(jnp.float32), 1.0)


def convolve_by_hand(inputs, kernel, buffer, segments):
    padded = np.concatenate([buffer, inputs], axis=1)
    around = np.concatenate([np.zeros(buffer.shape[:2]), segments], axis=1)
    width, outputs = len(kernel), np.zeros_like(inputs)
    for b, t in np.ndindex(*inputs.shape[:2]):
        for j in range(width):
            at = t + width - 1 - j
            if around[b, at] == segments[b, t]:
                outputs[b, t] += kernel[j] * padded[b, at]
    return outputs


@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize("packed", [False, True])
def test_convolution_is_its_definition(x64, length, packed):
    keys = jax.random.split(jax.random.key(0), 3)
    inputs, buffer = jax.random.normal(keys[0], (2, length, 5)), jax.random.normal(keys[1], (2, 3, 5))
    kernel = jax.random.normal(keys[2], (4, 5))
    segments = np.array([[0, 0, 1, 1, 2, 2, 2, 2, 3], [1, 1, 1, 1, 1, 1, 1, 1, 1]])[:, :length] * packed
    outputs, _ = layers.causal_convolution(inputs, kernel, buffer, jnp.asarray(segments) if packed else None)
    np.testing.assert_allclose(outputs, convolve_by_hand(inputs, kernel, buffer, segments), rtol=1e-12)


def test_convolution_goes_on_from_its_buffer(x64):
    inputs, kernel = jax.random.normal(jax.random.key(0), (2, 9, 5)), jax.random.normal(jax.random.key(1), (4, 5))
    buffer = jnp.zeros((2, 3, 5))
    whole, last = layers.causal_convolution(inputs, kernel, buffer)
    pieces = []
    for start, stop in ((0, 1), (1, 3), (3, 9)):
        piece, buffer = layers.causal_convolution(inputs[:, start:stop], kernel, buffer)
        pieces.append(piece)
    np.testing.assert_allclose(jnp.concatenate(pieces, axis=1), whole, rtol=1e-12)
    np.testing.assert_array_equal(buffer, last)


def test_convolution_hands_over_nothing_of_an_earlier_document(x64):
    inputs, kernel = jnp.ones((1, 5, 2)), jnp.ones((4, 2))
    _, buffer = layers.causal_convolution(inputs, kernel, jnp.ones((1, 3, 2)), jnp.array([[0, 0, 0, 1, 1]]))
    np.testing.assert_array_equal(buffer[0, :, 0], [0, 1, 1])
