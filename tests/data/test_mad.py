"""MAD: every task against a literal reader of its sequences, the benchmark's settings, golden hashes."""

import dataclasses
import itertools

import numpy as np
import pytest

from nested_jax.data.mad import BASELINE, MAD, VARIED, baseline, settings

SMALL = {"train_examples": 60, "validation_examples": 20, "test_examples": 30}
RECALL = [task for task in BASELINE if "recall" in task]


def small(task, **changes):
    return dataclasses.replace(baseline(task), **{**SMALL, **changes})


def sets(task):
    return [task.train(0), *task.tests().values()]


def whole(inputs, targets):
    """The sequence of which inputs and next symbols are two views."""
    assert inputs[1:].tolist() == targets[:-1].tolist()
    return [*inputs.tolist(), int(targets[-1])]


@pytest.mark.parametrize("task", BASELINE)
def test_shapes_and_counts(task):
    some = small(task)
    tests = some.tests()
    assert list(tests) == ["validation", "test"]
    length = some.length - 1 if task in ("in-context-recall", "noisy-in-context-recall") else some.length
    assert [found.inputs.shape for found in sets(some)] == [(60, length), (20, length), (30, length)]
    for found in sets(some):
        assert min(found.inputs.min(), found.targets.min()) >= 0
        assert max(found.inputs.max(), found.targets.max()) == some.vocab_size - 1
        if task in RECALL:
            assert found.trained.all()
        else:
            np.testing.assert_array_equal(found.trained, found.scored)


@pytest.mark.parametrize(
    "task",
    [
        small("in-context-recall"),
        small("in-context-recall", vocab_size=33, length=32),
        small("noisy-in-context-recall"),
        small("noisy-in-context-recall", noise=0.8, length=16),
    ],
)
def test_recall(task):
    symbols = task.vocab_size - task.noise_vocab_size
    for found in sets(task):
        for inputs, targets, _, scored in zip(*found, strict=True):
            sequence = whole(inputs, targets)
            assert len(sequence) == task.length
            value_of, expected = {}, []
            for number, (key, value) in enumerate(zip(sequence[::2], sequence[1::2], strict=True)):
                if key >= symbols:
                    assert value >= symbols
                    continue
                assert key < symbols // 2 <= value < symbols
                if key in value_of:
                    expected.append(2 * number)
                assert value_of.setdefault(key, value) == value
            assert np.flatnonzero(scored).tolist() == expected
            assert expected[-1] == task.length - 2
            assert targets[expected].tolist() == [value_of[key] for key in inputs[expected].tolist()]


def test_recall_by_hand():
    """One key and one value: both are in every pair, and every pair but the first is asked."""
    found = MAD(task="in-context-recall", vocab_size=2, length=8, **SMALL).train(0)
    assert found.inputs.tolist() == [[0, 1, 0, 1, 0, 1, 0]] * 60
    assert found.targets.tolist() == [[1, 0, 1, 0, 1, 0, 1]] * 60
    assert found.scored.tolist() == [[False, False, True, False, True, False, True]] * 60


def test_recall_is_drawn_uniformly():
    task = small("noisy-in-context-recall", train_examples=4_000, noise=0.4)
    found = task.train(0)
    first = found.inputs[:, 0:-1:2]
    assert np.mean(first >= 16) == pytest.approx(0.4 * 62 / 63, abs=0.01)
    keys, values = first[first < 16], found.inputs[:, 1::2][first < 16]
    np.testing.assert_allclose(np.bincount(keys) / keys.size, 1 / 8, atol=0.01)
    np.testing.assert_allclose(np.bincount(values)[8:] / values.size, 1 / 8, atol=0.01)
    noise = found.inputs[:, 1::2][first >= 16]
    np.testing.assert_allclose(np.bincount(noise)[16:] / noise.size, 1 / 16, atol=0.01)
    np.testing.assert_allclose(np.bincount(found.inputs[:, -1]) / 4_000, 1 / 8, atol=0.03)


def test_the_last_key_is_drawn_from_the_different_keys_shown():
    """Of sequences with the keys a a b, half ask for b, not a third."""
    found = MAD(task="in-context-recall", vocab_size=4, length=8, **{**SMALL, "train_examples": 8_000}).train(0)
    keys = found.inputs[:, ::2]
    mixed = keys[np.sum(keys[:, :3], axis=1) == 1]
    assert np.mean(mixed[:, 3]) == pytest.approx(0.5, abs=0.03)


def words(sequence, task):
    """Pairs of a key and a value of fuzzy recall, and where each value begins, by the kind of their symbols."""
    symbols = task.vocab_size - 1
    kinds = ["pad" if symbol == symbols else "key" if symbol < symbols // 2 else "value" for symbol in sequence]
    runs = [list(run) for _, run in itertools.groupby(range(len(sequence)), lambda place: kinds[place])]
    assert [kinds[run[0]] for run in runs] == ["pad"] + ["key", "value"] * (len(runs) // 2)
    read = [tuple(sequence[place] for place in run) for run in runs]
    return [(read[i], read[i + 1], runs[i + 1]) for i in range(1, len(runs), 2)]


@pytest.mark.parametrize(
    "task",
    [
        small("fuzzy-in-context-recall"),
        small("fuzzy-in-context-recall", length=40, vocab_size=32),
        small("fuzzy-in-context-recall", length=15, key_motif=2, value_motif=3, vocab_size=8),
        small("fuzzy-in-context-recall", train_examples=1_100, length=24),
    ],
)
def test_fuzzy_recall(task):
    for number, found in enumerate(sets(task)):
        key_sizes = set()
        for inputs, targets, _, scored in zip(*found, strict=True):
            sequence = whole(inputs, targets)
            assert len(sequence) == task.length + 1
            pairs = words(sequence, task)
            value_of, expected = {}, []
            for key, value, places in pairs:
                assert len(set(key)) == len(key) <= task.key_motif
                assert len(set(value)) == len(value) <= task.value_motif
                key_sizes.add(len(key))
                if key in value_of:
                    expected += [place - 1 for place in places]
                assert value_of.setdefault(key, value) == value
            assert np.flatnonzero(scored).tolist() == expected
            assert pairs[-1][0] in [key for key, _, _ in pairs[:-1]]
            longest = task.key_motif + task.value_motif
            body = sum(len(key) + len(value) for key, value, _ in pairs[:-1])
            stop = task.length - len(pairs[-1][0]) - len(pairs[-1][1]) - longest
            assert body - len(pairs[-2][0]) - len(pairs[-2][1]) < stop <= body
        assert key_sizes == (set(range(1, task.key_motif + 1)) if number == 0 else {task.key_motif})


def test_fuzzy_recall_is_drawn_uniformly():
    task = small("fuzzy-in-context-recall", train_examples=2_000)
    found = task.train(0)
    first, last, places = [], [], []
    for inputs, targets in zip(found.inputs, found.targets, strict=True):
        pairs = words(whole(inputs, targets), task)
        first.append([len(pairs[0][0]), len(pairs[0][1]), pairs[0][0][0], pairs[0][1][0]])
        last.append([len(pairs[-1][0]), len(pairs[-1][1])])
        keys = [key for key, _, _ in pairs]
        if len(pairs[-1][0]) == 3:
            places.append(keys.index(keys[-1]) / len(pairs))
    first, last = np.array(first), np.array(last)
    for sizes in (first[:, 0], first[:, 1], last[:, 0], last[:, 1]):
        np.testing.assert_allclose(np.bincount(sizes)[1:] / 2_000, 1 / 3, atol=0.04)
    np.testing.assert_allclose(np.bincount(first[:, 2]) / 2_000, 1 / 7, atol=0.03)
    np.testing.assert_allclose(np.bincount(first[:, 3])[7:] / 2_000, 1 / 8, atol=0.03)
    assert np.mean(places) == pytest.approx(0.4, abs=0.08)
    assert np.mean(np.array(places) < 0.25) == pytest.approx(0.3, abs=0.1)


def test_fuzzy_recall_puts_the_last_pair_in_only_where_it_did_not_come():
    """Four pairs of two keys before the last one, which begin at 0, 2, 4, 6; it is put in from 0, ..., 6 on.

    If t pairs begin before that place, none of them is the last one with 2^-t, and then it is put in: the last pair
    comes 1 + (3 - t) / 2 times before; else as often as in four fair draws that begin like this.
    """
    task = small("fuzzy-in-context-recall", train_examples=8_000, length=12, vocab_size=5, key_motif=1, value_motif=1)
    found = task.train(0)
    keys = found.inputs[:, 3::2]
    assert set(keys.reshape(-1).tolist()) == {0, 1}
    times = np.sum(keys[:, :4] == keys[:, 4:], axis=1)
    expected = [2**-t * (1 + (3 - t) / 2) + 2 - 2**-t * (4 - t) / 2 for t in (0, 1, 1, 2, 2, 3, 3)]
    assert times.min() == 1
    assert times.mean() == pytest.approx(np.mean(expected), abs=0.03)


def test_selective_copying():
    task = small("selective-copying", length=40, copies=8)
    blank, start = 14, 15
    for found in sets(task):
        for inputs, targets, _, scored in zip(*found, strict=True):
            body = inputs[:31].tolist()
            shown = [symbol for symbol in body if symbol != blank]
            assert inputs[31:].tolist() == [start] + [blank] * 8
            assert len(shown) == 8
            assert max(shown) < blank
            assert body[-1] != blank  # blanks come before a symbol
            assert np.flatnonzero(scored).tolist() == list(range(32, 40))
            assert targets[32:].tolist() == shown
    many = dataclasses.replace(task, train_examples=4_000).train(0).inputs
    place = np.argmax(many != blank, axis=1)
    assert place.mean() == pytest.approx(23 / 8, abs=0.15)
    np.testing.assert_allclose(np.mean(place == 0), (7 / 8) ** 23, atol=0.02)
    np.testing.assert_allclose(np.bincount(many[many < blank]) / 32_000, 1 / 14, atol=0.005)


def test_selective_copying_by_hand():
    """One symbol to copy: all blanks come before it."""
    found = MAD(task="selective-copying", vocab_size=4, length=6, copies=1, **SMALL).train(0)
    for inputs, targets in zip(found.inputs.tolist(), found.targets.tolist(), strict=True):
        assert inputs == [2, 2, 2, targets[-1], 3, 2]
        assert targets[-1] in (0, 1)


def test_compression():
    task = small("compression")
    for found in sets(task):
        np.testing.assert_array_equal(found.inputs, found.targets)
        assert found.scored.all()
        assert np.all(found.inputs[:, -1] == 15)
        assert set(found.inputs[:, :-1].reshape(-1).tolist()) == set(range(15))


def test_memorization_has_one_value_per_key_in_all_sets():
    task = small("memorization", vocab_size=33)
    value_of = {}
    for found in [*sets(task), task.train(5)]:
        assert np.all(found.inputs[:, 1::2] == 32)
        np.testing.assert_array_equal(found.scored, np.broadcast_to(np.arange(32) % 2 == 1, found.scored.shape))
        pairs = zip(found.inputs[:, ::2].reshape(-1).tolist(), found.targets[:, 1::2].reshape(-1).tolist(), strict=True)
        for key, value in pairs:
            assert value_of.setdefault(key, value) == value
    assert sorted(value_of) == list(range(16))
    assert sorted(value_of.values()) == list(range(16, 32))
    assert [value_of[key] for key in range(16)] != list(range(16, 32))


def test_the_66_settings():
    assert {task: len(settings(task)) for task in BASELINE} == {
        "in-context-recall": 11,
        "fuzzy-in-context-recall": 11,
        "noisy-in-context-recall": 14,
        "selective-copying": 13,
        "compression": 11,
        "memorization": 6,
    }
    assert sum(len(set(settings(task))) for task in BASELINE) == 66
    for task in BASELINE:
        first, *others = settings(task)
        assert first == baseline(task)
        assert first.test_examples == 1_280
        for other in others:
            changed = [
                field.name
                for field in dataclasses.fields(MAD)
                if getattr(first, field.name) != getattr(other, field.name)
            ]
            assert len(changed) == 1
            assert getattr(other, changed[0]) in VARIED[task][changed[0]]
    assert [task.vocab_size for task in settings("memorization")] == [256, 512, 1_024, 2_048, 4_096, 8_192]
    noisy = baseline("noisy-in-context-recall")
    assert (noisy.vocab_size, noisy.noise_vocab_size, noisy.noise, noisy.length) == (32, 16, 0.2, 128)
    fuzzy = baseline("fuzzy-in-context-recall")
    assert (fuzzy.vocab_size, fuzzy.key_motif, fuzzy.value_motif, fuzzy.train_examples) == (16, 3, 3, 12_800)
    assert {task.copies for task in settings("selective-copying")} == {16, 32, 64, 96}


@pytest.mark.parametrize("task", BASELINE)
def test_seeds(task):
    some = small(task)
    assert some.train(0).digest() == small(task).train(0).digest()
    found = [some.train(0), some.train(1), *some.tests().values()]
    assert len({part.take(slice(0, 20)).digest() for part in found}) == 4


GOLDEN = {
    "in-context-recall": ["4b928da58b4a7e95", "7f12f6830a487f31", "3f237fd04458fdbb"],
    "fuzzy-in-context-recall": ["2356e03fdaa3e15e", "344d8dd464d8045f", "d97e332b23a847a1"],
    "noisy-in-context-recall": ["40294cd5d53e1ce3", "01a94eb7f468e81d", "396ac1cfb8be1b5f"],
    "selective-copying": ["ee3884d813a08f5e", "9c56e55d6b103e86", "66dae3fdd5fac3a9"],
    "compression": ["354df9071b915ab4", "6f3e4372636422c0", "d46056f2bbd3fa50"],
    "memorization": ["9c8e43aebc23ed3b", "a0d154f6304e55e9", "f8879b10f9b98b46"],
}


@pytest.mark.parametrize("task", BASELINE)
def test_golden(task):
    some = small(task)
    assert [some.train(7).digest(), *(part.digest() for part in some.tests().values())] == GOLDEN[task]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "copying"}, r"task: expected one of in-context-recall, .*, got 'copying'"),
        ({"train_examples": 0}, "train_examples: expected at least 1, got 0"),
        ({"copies": 3}, "copies: expected 0 for in-context-recall, got 3"),
        ({"key_motif": 2}, "key_motif: expected 1 for in-context-recall, got 2"),
        ({"noise": 0.2}, r"noise: expected 0\.0 for in-context-recall, got 0\.2"),
        (
            {"task": "noisy-in-context-recall", "noise": 0.2},
            "noise: expected a probability .*, got 0.2 and noise_vocab",
        ),
        ({"task": "noisy-in-context-recall", "noise": 1.0, "noise_vocab_size": 4}, "noise: expected a probability"),
        ({"task": "noisy-in-context-recall", "noise_vocab_size": -4}, "noise: expected a probability"),
        ({"task": "selective-copying"}, r"copies: expected 1 or more, 2 \* copies \+ 1 < length = 128, got 0"),
        ({"task": "selective-copying", "length": 33, "copies": 16}, "copies: expected .* length = 33, got 16"),
        ({"length": 127}, "length: expected an even number of at least 4, got 127"),
        ({"length": 2}, "length: expected an even number of at least 4, got 2"),
        (
            {"task": "fuzzy-in-context-recall", "length": 17, "key_motif": 3, "value_motif": 3},
            "length: expected at least 18, got 17",
        ),
        ({"vocab_size": 1}, "vocab_size: expected at least 2 for in-context-recall, got 1"),
        (
            {"task": "fuzzy-in-context-recall", "vocab_size": 6, "key_motif": 3, "value_motif": 3},
            "vocab_size: expected at least 7 for fuzzy-in-context-recall, got 6",
        ),
        (
            {"task": "noisy-in-context-recall", "vocab_size": 5, "noise": 0.2, "noise_vocab_size": 4},
            "vocab_size: expected at least 6 for noisy-in-context-recall, got 5",
        ),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        MAD(**settings)


def test_unknown_tasks():
    for function in (baseline, settings):
        with pytest.raises(ValueError, match=r"task: expected one of in-context-recall, .*, got 'recall'"):
            function("recall")
