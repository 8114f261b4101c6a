"""MQAR: sequences against a literal reader, the distribution of places, both recipes, golden hashes."""

import dataclasses

import numpy as np
import pytest

from nested_jax.data.mqar import MQAR, MQARMixture, distinct, original, zoology_figure2

SMALL = {"train_examples": 200, "validation_examples": 30, "test_examples": 40}


def check(found, length, pairs, vocab_size, *, passes=1, random=False, padded=0):
    """Every sequence is pairs, then each key once at an even place, where its value is asked."""
    assert found.inputs.shape[1] == length + padded
    context, rest = 2 * pairs * passes, []
    for inputs, targets, trained, scored in zip(*found, strict=True):
        keys, values = inputs[: 2 * pairs : 2].tolist(), inputs[1 : 2 * pairs : 2].tolist()
        assert inputs[:context].tolist() == inputs[: 2 * pairs].tolist() * passes
        assert len(set(keys)) == len(set(values)) == pairs
        assert all(1 <= key < vocab_size // 2 for key in keys)
        assert all(vocab_size // 2 <= value < vocab_size for value in values)
        asked = np.flatnonzero(scored).tolist()
        assert trained.tolist() == scored.tolist()
        assert all(context <= place < length and place % 2 == 0 for place in asked)
        assert sorted(inputs[asked].tolist()) == sorted(keys)
        value_of = dict(zip(keys, values, strict=True))
        assert targets[asked].tolist() == [value_of[key] for key in inputs[asked].tolist()]
        rest.append(np.delete(inputs, [*range(context), *asked]))
        assert not inputs[length:].any()
        assert inputs.min() >= 0
        assert inputs.max() < vocab_size
    assert np.any(rest) == random


@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize(
    ("length", "pairs", "passes", "vocab_size"), [(64, 4, 1, 200), (16, 4, 1, 17), (32, 4, 2, 100), (12, 1, 1, 13)]
)
def test_sequences(length, pairs, passes, vocab_size, random):
    task = MQAR(length=length, pairs=pairs, passes=passes, vocab_size=vocab_size, random_non_queries=random, **SMALL)
    tests = task.tests()
    assert list(tests) == ["validation", "test"]
    sets = [task.train(0), *tests.values()]
    assert [len(found.inputs) for found in sets] == [200, 30, 40]
    for found in sets:
        check(found, length, pairs, vocab_size, passes=passes, random=random)


def test_by_hand():
    """The only sequence of two pairs whose keys fill both places: they are asked in some order, each with its value."""
    found = MQAR(vocab_size=9, length=8, pairs=2, **SMALL).train(0)
    assert {tuple(row[:4:2]) for row in found.inputs.tolist()} == {
        (a, b) for a in (1, 2, 3) for b in (1, 2, 3) if a != b
    }
    assert {tuple(row) for row in found.scored.tolist()} == {(False,) * 4 + (True, False) * 2}
    for inputs, targets in zip(found.inputs.tolist(), found.targets.tolist(), strict=True):
        first, one, second, two, *_ = inputs
        in_order = inputs[4::2] == [first, second]
        assert inputs[4:] == ([first, 0, second, 0] if in_order else [second, 0, first, 0])
        assert targets[4::2] == ([one, two] if in_order else [two, one])


def test_places_follow_the_power_law_one_key_after_another():
    """The first key's slot has probability i^(a-1) / sum, the second one's that without the first one's slot."""
    task = MQAR(length=20, pairs=2, vocab_size=100, power=0.01, **{**SMALL, "train_examples": 40_000})
    found = task.train(0)
    later = found.inputs[:, 4::2]
    weights = np.arange(1, 9) ** -0.99
    first = weights / weights.sum()
    second = sum(first[i] * np.where(np.arange(8) == i, 0, weights) / (weights.sum() - weights[i]) for i in range(8))
    for key, expected in ((0, first), (2, second)):
        slots = np.argmax(later == found.inputs[:, key : key + 1], axis=1)
        np.testing.assert_allclose(np.bincount(slots, minlength=8) / 40_000, expected, atol=0.01)
    uniform = dataclasses.replace(task, power=1.0).train(0)
    slots = np.argmax(uniform.inputs[:, 4::2] == uniform.inputs[:, :1], axis=1)
    np.testing.assert_allclose(np.bincount(slots, minlength=8) / 40_000, 1 / 8, atol=0.01)


def test_random_symbols_come_from_the_whole_vocabulary():
    found = MQAR(
        length=16, pairs=1, vocab_size=20, random_non_queries=True, **{**SMALL, "train_examples": 4_000}
    ).train(0)
    odd = found.inputs[:, 3::2]
    np.testing.assert_allclose(np.bincount(odd.reshape(-1), minlength=20) / odd.size, 1 / 20, atol=0.006)


def test_distinct_draws_are_uniform_over_ordered_choices():
    found = distinct(np.random.default_rng(0), 3, 7, (24_000, 3))
    codes, counts = np.unique(found @ [49, 7, 1], return_counts=True)
    assert len(codes) == 4 * 3 * 2
    np.testing.assert_allclose(counts / 24_000, 1 / 24, atol=0.005)
    everything = distinct(np.random.default_rng(1), 0, 50, (20, 5, 50))
    np.testing.assert_array_equal(np.sort(everything, axis=-1), np.broadcast_to(np.arange(50), (20, 5, 50)))


@pytest.mark.parametrize(("length", "pairs"), [(64, 4), (128, 8), (256, 16), (512, 64)])
def test_figure_2(length, pairs):
    task = zoology_figure2(length)
    assert task == MQAR(
        vocab_size=8_192,
        length=length,
        pairs=pairs,
        train_examples=100_000,
        test_examples=3_000,
        power=0.01,
        passes=1,
        random_non_queries=False,
    )
    small = dataclasses.replace(task, **{**SMALL, "train_examples": 20})
    check(small.train(0), length, pairs, 8_192)
    with pytest.raises(ValueError, match=r"length: expected one of \[64, 128, 256, 512\], got 65"):
        zoology_figure2(65)


MIXTURE = MQARMixture(
    trained=((16, 2, 30), (32, 4, 20), (32, 8, 10)),
    tested=((16, 4), (32, 8), (64, 8)),
    vocab_size=100,
    validation_examples=5,
    test_examples=7,
)


def test_mixture():
    found, tests = MIXTURE.train(0), MIXTURE.tests()
    assert found.inputs.shape == (60, 32)
    check(found.take(slice(0, 30)), 16, 2, 100, random=True, padded=16)
    check(found.take(slice(30, 50)), 32, 4, 100, random=True)
    check(found.take(slice(50, 60)), 32, 8, 100, random=True)
    assert list(tests) == ["validation", "16x4", "32x8", "64x8"]
    assert [part.inputs.shape for part in tests.values()] == [(15, 32), (7, 16), (7, 32), (7, 64)]
    check(tests["validation"].take(slice(0, 5)), 16, 2, 100, random=True, padded=16)
    check(tests["64x8"], 64, 8, 100, random=True)


def test_parts_of_a_mixture_are_drawn_apart():
    task = dataclasses.replace(MIXTURE, trained=((16, 2, 30), (16, 2, 30)), tested=((16, 2), (16, 3)))
    for found, rows in ((task.train(0), 30), (task.tests()["validation"], 5)):
        assert found.take(slice(0, rows)).digest() != found.take(slice(rows, 2 * rows)).digest()


def test_the_original_recipe():
    task = original()
    assert task.trained == (
        (64, 4, 100_000),
        (128, 8, 20_000),
        (256, 16, 20_000),
        (256, 32, 20_000),
        (256, 64, 20_000),
    )
    assert task.tested == ((64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256))
    assert (task.vocab_size, task.test_examples, task.power, task.random_non_queries) == (8_192, 1_000, 0.01, True)
    tests = dataclasses.replace(task, test_examples=3, validation_examples=2).tests()
    assert [part.inputs.shape for part in tests.values()] == [(10, 256)] + [(3, length) for length, _ in task.tested]
    check(tests["512x128"], 512, 128, 8_192, random=True)


def test_seeds():
    task = MQAR(vocab_size=100, **SMALL)
    assert task.train(0).digest() == dataclasses.replace(task).train(0).digest() != task.train(1).digest()
    for some in (task, MIXTURE):
        sets = [some.train(0), some.train(1), *some.tests().values()]
        assert len({found.take(slice(0, 3)).digest() for found in sets}) == len(sets)


GOLDEN = {
    "plain": ["4efa021c2a6416c0", "de2ff06b9872cf53", "f4242de89de15ce0"],
    "random": ["0a1473c92121d55c", "634784593d13300e", "acdc65d4889ffd7d"],
    "mixture": ["c124849fb7a7d1f6", "8e627e36b4c5fc5b", "df93abba8467effa", "4a83f1022f265f5f", "e7e664d1a0039cd1"],
}


def test_golden():
    plain = MQAR(vocab_size=100, **SMALL)
    random = dataclasses.replace(plain, length=32, passes=2, random_non_queries=True)
    for name, task in {"plain": plain, "random": random, "mixture": MIXTURE}.items():
        assert [task.train(7).digest(), *(part.digest() for part in task.tests().values())] == GOLDEN[name]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pairs": 0}, "pairs: expected at least 1, got 0"),
        ({"passes": 0}, "passes: expected at least 1, got 0"),
        ({"test_examples": 0}, "test_examples: expected at least 1, got 0"),
        ({"power": 0.0}, "power: expected a positive number, got 0.0"),
        ({"length": 14}, "length: expected an even number of at least 16, got 14"),
        ({"length": 65}, "length: expected an even number of at least 16, got 65"),
        ({"length": 22, "passes": 2}, "length: expected an even number of at least 24, got 22"),
        ({"vocab_size": 64}, "vocab_size: expected more than length = 64, got 64"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        MQAR(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trained": ()}, "trained: expected at least one part, got none"),
        ({"tested": ()}, "tested: expected at least one part, got none"),
        ({"tested": ((16, 5),)}, "length: expected an even number of at least 20, got 16"),
        ({"trained": ((16, 2, 0),)}, "train_examples: expected at least 1, got 0"),
    ],
)
def test_bad_mixtures(settings, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(MIXTURE, **settings)
