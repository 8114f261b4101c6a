import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nested_jax import Memory, networks
from nested_jax.evals.bits_per_byte import bits_per_byte, nats, score_windows, stream, window_scorer
from nested_jax.models import LanguageModel, MemoryConfig, ModelConfig

TEXT = np.frombuffer(b"the quick brown fox jumps over the lazy dog. " * 6, np.uint8)


@pytest.fixture(autouse=True, scope="module")
def compile_quickly():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def trained():
    memory = Memory(network=networks.Linear(), chunk_size=4)
    model = LanguageModel(ModelConfig(dim=8, layers=1, memory=MemoryConfig(memory=memory, heads=2)))
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


def by_hand(model, params, tokens, length):
    total, count, run = 0.0, 0, jax.jit(model.apply)
    for start in range(0, (len(tokens) - 1) // length * length, length):
        window = jnp.asarray(tokens[None, start : start + length + 1].astype(np.int32))
        logits, _ = run({"params": params}, window[:, :-1])
        total += float(jnp.sum(nats(logits, window[:, 1:])))
        count += length
    return total / count / math.log(2)


@pytest.mark.slow
def test_windows_of_several_lengths_against_a_loop(trained):
    model, params = trained
    tokens = TEXT[:97]
    found = bits_per_byte(model, params, tokens, [8, 32], tokens_per_batch=40)
    for length in (8, 32):
        assert found[length] == pytest.approx(by_hand(model, params, tokens, length), rel=1e-5)


def test_a_short_last_batch_counts_as_much_as_the_others(trained):
    model, params = trained
    windows = TEXT[np.arange(5)[:, None] * 8 + np.arange(9)].astype(np.int32)
    scorer = window_scorer(model)
    assert score_windows(scorer, params, windows, 2) == pytest.approx(
        score_windows(scorer, params, windows, 5), rel=1e-6
    )


def test_a_stream_is_one_long_context(trained):
    model, params = trained
    tokens = TEXT[:130]
    spans = list(stream(model, params, tokens, chunk=18, span=32))
    assert [(span.tokens, span.end) for span in spans] == [(32, 32), (32, 64), (32, 96), (32, 128)]
    total = sum(span.tokens * span.bits_per_byte for span in spans) / 128
    assert total == pytest.approx(by_hand(model, params, tokens, 128), rel=1e-5)
    assert all(span.seconds_per_token > 0 and span.memory > 0 for span in spans)


def test_the_last_stretch_may_be_short(trained):
    model, params = trained
    assert [span.tokens for span in stream(model, params, TEXT[:60], chunk=8, span=40)] == [40, 16]


@pytest.mark.parametrize(
    ("lengths", "message"),
    [([8, 12], r"divide the longest, 12; got 8"), ([0, 8], r"got 0"), ([512], r"a context of 512 bytes and one more")],
)
def test_lengths_that_do_not_fit(trained, lengths, message):
    model, params = trained
    with pytest.raises(ValueError, match=message):
        bits_per_byte(model, params, TEXT, lengths)


@pytest.mark.parametrize(
    ("options", "message"), [({"chunk": 0}, "at least 1; got 0"), ({"chunk": 400}, "a chunk of 400 bytes and one more")]
)
def test_streams_that_do_not_fit(trained, options, message):
    model, params = trained
    with pytest.raises(ValueError, match=message):
        next(stream(model, params, TEXT, **options))
