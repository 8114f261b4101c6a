"""Attention against a loop over queries and keys, its window in blocks, and its cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nested_jax.models import AttentionConfig, AttentionLayer
from nested_jax.models.attention import attend, attend_in_blocks, rotate


def attend_by_hand(query, key, value, query_segments, key_segments, window):
    outputs = np.zeros_like(query)
    earlier = key.shape[1] - query.shape[1]
    for b, t, h in np.ndindex(*query.shape[:3]):
        seen = [
            j
            for j in range(t + earlier + 1)
            if key_segments[b, j] == query_segments[b, t] and (window is None or t + earlier - j < window)
        ]

        def at(x, place):
            half = len(x) // 2
            return (x[:half] + 1j * x[half:]) * np.exp(1j * place * 100.0 ** (-np.arange(half) / half))

        place = at(query[b, t, h], t).conj()
        scores = [(place @ at(key[b, j, h], j - earlier)).real / np.sqrt(query.shape[-1]) for j in seen]
        weights = np.exp(scores) / np.sum(np.exp(scores))
        outputs[b, t, h] = sum(w * value[b, j, h] for w, j in zip(weights, seen, strict=True))
    return outputs


def arguments(length, places):
    draw = np.random.default_rng(0)
    query = draw.standard_normal((2, length, 2, 4))
    key, value = draw.standard_normal((2, 2, places + length, 2, 4))
    segments = np.repeat([[0, 0, 1], [0, 1, 2]], 4, axis=1)[:, :length]
    filled = np.tile(np.where(np.arange(places) < places // 2, -1, 0), (2, 1))
    return query, key, value, segments, np.concatenate([filled, segments], axis=1)


@pytest.mark.parametrize("window", [None, 3])
def test_attention_is_its_definition(x64, window):
    inputs = arguments(length=7, places=4)
    read = jax.jit(attend, static_argnums=(5, 6))(*inputs, window, 100.0)
    np.testing.assert_allclose(read, attend_by_hand(*inputs, window), atol=1e-10)


@pytest.mark.parametrize("window", [1, 4])
def test_blocks_are_the_same_attention(x64, window):
    inputs = arguments(length=11, places=window)
    blocks, plain = (jax.jit(f, static_argnums=(5, 6)) for f in (attend_in_blocks, attend))
    np.testing.assert_allclose(blocks(*inputs, window, 100.0), plain(*inputs, window, 100.0), atol=1e-10)


def test_rotation_depends_on_distance_alone(x64):
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))

    def score(at_query, at_key):
        return jnp.sum(rotate(query, jnp.array([at_query]), 100.0) * rotate(key, jnp.array([at_key]), 100.0))

    np.testing.assert_allclose(score(9, 4), score(5, 0), atol=1e-10)
    assert abs(score(9, 4) - score(9, 5)) > 1e-3


def layer(**options):
    module = AttentionLayer(AttentionConfig(heads=2, **options), dim=8)
    inputs = jax.random.normal(jax.random.key(0), (2, 9, 8))
    return module, jax.jit(module.init)(jax.random.key(1), inputs[:, :1]), inputs


@pytest.mark.parametrize("places", [{"window": 4}, {"max_length": 9}])
def test_the_cache_carries_what_is_needed(places):
    module, variables, inputs = layer(**places)
    run = jax.jit(module.apply)
    whole, last = run(variables, inputs)
    pieces, state = [], module.apply(variables, 2, method="start")
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        piece, state = run(variables, inputs[:, start:stop], state)
        pieces.append(piece)
    np.testing.assert_allclose(jnp.concatenate(pieces, axis=1), whole, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state, last)


def test_a_context_beyond_the_cache_is_refused():
    module, variables, inputs = layer(max_length=8)
    with pytest.raises(ValueError, match="max_length=8 tokens, got 9"):
        module.apply(variables, inputs)
    _, state = module.apply(variables, inputs[:, :8])
    with pytest.raises(ValueError, match="max_length=8 tokens, got 9"):
        module.apply(variables, inputs[:, 0], state, method="step")


def test_without_positions_the_order_of_what_was_seen_does_not_matter():
    for base, same in ((None, True), (100.0, False)):
        module, params, inputs = layer(rope_base=base)
        read, _ = module.apply(params, inputs)
        swapped, _ = module.apply(params, inputs[:, jnp.array([1, 0, *range(2, 9)])])
        assert np.allclose(read[:, 2:], swapped[:, 2:], atol=1e-6) == same
