"""The filters against their definitions written with sets, and what is drawn against the softmax of what they leave."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nested_jax.evals.sampling import Sampling, temper, top_k, top_p

LOGITS = np.random.default_rng(0).normal(size=(5, 13)) * 2


def softmax(logits):
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def nucleus(logits, p):
    """The fewest tokens, likeliest first, that have probability p."""
    found, total = set(), 0.0
    for token in np.argsort(-logits, kind="stable"):
        if total >= p:
            break
        found.add(int(token))
        total += softmax(logits)[token]
    return found


def left(logits):
    return set(np.flatnonzero(np.isfinite(np.asarray(logits))).tolist())


@pytest.mark.parametrize("k", [1, 3, 13, 20])
def test_top_k_leaves_the_k_largest(k, x64):
    found = top_k(LOGITS, k)
    for row, logits in zip(found, LOGITS, strict=True):
        assert left(row) == set(np.argsort(-logits)[:k].tolist())
        np.testing.assert_array_equal(row[np.isfinite(row)], logits[np.isfinite(row)])


@pytest.mark.parametrize("p", [1e-9, 0.3, 0.5, 0.9, 0.999, 1.0])
def test_top_p_leaves_the_nucleus(p, x64):
    for row, logits in zip(top_p(LOGITS, p), LOGITS, strict=True):
        assert left(row) == (nucleus(logits, p) if p < 1 else set(range(13)))
        np.testing.assert_array_equal(row[np.isfinite(row)], logits[np.isfinite(row)])


def test_equal_logits_leave_as_many_as_asked_for():
    equal = jnp.zeros(8)
    assert left(top_k(equal, 3)) == {0, 1, 2}
    assert left(top_p(equal, 0.5)) == {0, 1, 2, 3}
    assert left(temper(equal, 0)) == {0}


def test_filters_go_on_from_what_others_have_left(x64):
    logits = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))
    # The two likeliest have 4/7 and 3/7 of what top-k has left, 0.4 and 0.3 before it.
    assert left(top_p(top_k(logits, 2), 0.55)) == {0}
    assert left(Sampling(1.0, top_k=2, top_p=0.55).filter(logits)) == {0}
    assert left(top_k(top_p(logits, 0.55), 2)) == {0, 1}
    # Halving the temperature squares the probabilities: 16, 9, 4 and 1 of 30.
    assert left(Sampling(0.5, top_p=0.52).filter(logits)) == {0}
    assert left(Sampling(1.0, top_p=0.52).filter(logits)) == {0, 1}
    np.testing.assert_allclose(Sampling(0.5).filter(logits), logits * 2, rtol=1e-12)


def test_draws_have_the_probabilities_of_what_is_left():
    logits, sampling = jnp.asarray(LOGITS[0], jnp.float32), Sampling(1.5, top_k=6, top_p=0.9)
    keys = jax.random.split(jax.random.key(0), 20_000)
    counts = np.bincount(jax.vmap(lambda key: sampling(logits, key))(keys), minlength=13) / len(keys)
    expected = softmax(np.asarray(sampling.filter(logits)))
    np.testing.assert_allclose(counts, expected, atol=0.015)  # four standard deviations of a fair count
    assert np.all(counts[expected == 0] == 0)


def test_greedy_needs_no_key_and_ignores_the_rest():
    assert int(Sampling(0, top_k=3, top_p=0.1)(LOGITS[1])) == LOGITS[1].argmax()
    with pytest.raises(ValueError, match="key is needed"):
        Sampling(1.0)(LOGITS[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -0.1}, "temperature must be at least 0 and finite; got -0.1"),
        ({"temperature": float("nan")}, "temperature must be at least 0"),
        ({"temperature": float("inf")}, "temperature must be at least 0"),
        ({"top_k": 0}, "top_k is a number of tokens, at least 1; got 0"),
        ({"top_k": 2.5}, "top_k is a number of tokens, at least 1; got 2.5"),
        ({"top_p": 0.0}, r"top_p is a probability, in \(0, 1\]; got 0.0"),
        ({"top_p": 1.1}, "got 1.1"),
    ],
)
def test_ranges(arguments, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**arguments)


@pytest.mark.parametrize(("function", "value"), [(temper, -1.0), (top_k, 0), (top_p, 2.0)])
def test_the_functions_check_for_themselves(function, value):
    with pytest.raises(ValueError, match="got"):
        function(jnp.zeros(3), value)
