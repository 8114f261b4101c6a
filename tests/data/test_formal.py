"""Formal languages and long parity: every target against a literal checker, sets, counts, golden hashes."""

import dataclasses
import itertools
import re
from collections import Counter

import numpy as np
import pytest

from nested_jax.data.formal import LANGUAGES, FormalLanguage
from nested_jax.data.parity import ParityTracking

SMALL = {"train_examples": 300, "validation_examples": 40, "test_examples": 60}
DISTINCT = ["parity", "shuffle-2"]


def strings(task, found):
    """The strings of a set, each place of which is trained and scored, with zeros behind."""
    np.testing.assert_array_equal(found.trained, found.scored)
    read = []
    for row, scored in zip(found.inputs, found.scored, strict=True):
        length = int(scored.sum())
        assert scored[:length].all()
        assert not row[length:].any()
        read.append("".join(task.letters[symbol - 1] for symbol in row[:length]))
    return read


def member(language, string):
    """Whether a string is in a language, by its definition."""
    if language == "parity":
        return string.count("1") % 2 == 0
    if language in ("aa", "abab"):
        return re.fullmatch(f"({language})*", string) is not None
    if language in ("anbn", "anbncn"):
        letters = language.replace("n", "")
        return string == "".join(letter * (len(string) // len(letters)) for letter in letters)
    counts = Counter()
    for letter in string:
        counts[letter] += 1
        if counts[")"] > counts["("] or counts["]"] > counts["["]:
            return False
    return counts["("] == counts[")"] and counts["["] == counts["]"]


def answers(language, string):
    """The target after every letter, by its definition."""
    prefixes = [string[: end + 1] for end in range(len(string))]
    if language in ("parity", "aa", "abab"):
        return [int(member(language, prefix)) for prefix in prefixes]
    if language == "shuffle-2":
        round_open = [prefix.count("(") > prefix.count(")") for prefix in prefixes]
        square_open = [prefix.count("[") > prefix.count("]") for prefix in prefixes]
        return [int(first) + 2 * int(second) for first, second in zip(round_open, square_open, strict=True)]
    classes = {"anbn": " ab?T", "anbncn": " abc?T"}[language]
    following = string[1:] + "T"
    return [classes.index("?" if letter == "a" else after) for letter, after in zip(string, following, strict=True)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_targets_are_what_the_language_says(language):
    task = FormalLanguage(language=language, **SMALL)
    highest = 0
    for found in (task.train(0), *task.tests().values()):
        for row, string in enumerate(strings(task, found)):
            assert member(language, string)
            assert found.targets[row, : len(string)].tolist() == answers(language, string)
            highest = max(highest, found.targets[row].max(), found.inputs[row].max())
    assert highest < task.vocab_size <= highest + 2


@pytest.mark.parametrize(
    ("language", "string", "expected"),
    [
        ("parity", "0110100", [1, 0, 1, 1, 0, 0, 0]),
        ("aa", "aaaa", [0, 1, 0, 1]),
        ("abab", "abababab", [0, 0, 0, 1, 0, 0, 0, 1]),
        ("anbn", "aaabbb", [3, 3, 3, 2, 2, 4]),
        ("anbncn", "aabbcc", [4, 4, 2, 3, 3, 5]),
        ("shuffle-2", "([()])[]", [1, 3, 3, 3, 1, 0, 2, 0]),
        ("shuffle-2", "([)]", [1, 3, 2, 0]),
    ],
)
def test_targets_by_hand(language, string, expected):
    table = LANGUAGES[language]
    symbols = np.array([[1 + table.letters.index(letter) for letter in string]])
    assert table.targets(symbols).astype(int).tolist() == [expected]
    assert answers(language, string) == expected


@pytest.mark.parametrize(
    ("language", "train", "tests", "vocab_size"),
    [
        ("parity", 50, [(40, 50), (60, 50), (60, 100)], 3),
        ("aa", 50, [(19, 50), (25, 50), (21, 100)], 2),
        ("abab", 48, [(12, 48), (12, 48), (12, 100)], 3),
        ("anbn", 100, [(28, 100), (38, 100), (37, 200)], 5),
        ("anbncn", 150, [(28, 150), (38, 150), (37, 300)], 6),
        ("shuffle-2", 50, [(40, 50), (60, 50), (60, 100)], 5),
    ],
)
def test_shapes(language, train, tests, vocab_size):
    task = FormalLanguage(language=language, **SMALL)
    assert task.vocab_size == vocab_size
    for seed in (0, 1, 2):
        assert task.train(seed).inputs.shape == (300, train)
    found = task.tests()
    assert list(found) == ["validation", "bin0", "bin1"]
    assert [part.inputs.shape for part in found.values()] == tests


@pytest.mark.parametrize("language", LANGUAGES)
def test_lengths_are_in_their_windows(language):
    task = FormalLanguage(language=language, window=(4, 20), **{**SMALL, "train_examples": 100})
    repeats = {"anbn": 2, "anbncn": 3}.get(language, 1)
    windows = {"train": (4, 20), "validation": (4, 20), "bin0": (4, 20), "bin1": (21, 40)}
    for name, found in {"train": task.train(0), **task.tests()}.items():
        lengths = found.scored.sum(axis=1)
        low, high = windows[name]
        assert lengths.min() >= low * repeats
        assert lengths.max() <= high * repeats
        assert len(set(lengths.tolist())) > 1


@pytest.mark.parametrize("language", DISTINCT)
def test_sets_hold_a_string_once_and_share_none(language):
    task = FormalLanguage(language=language, **SMALL)
    tests = [strings(task, found) for found in task.tests().values()]
    for seed in (0, 1):
        everything = sum(tests, strings(task, task.train(seed)))
        assert len(everything) == len(set(everything)) == 300 + 40 + 60 + 60
    assert set(strings(task, task.train(0))) != set(strings(task, task.train(1)))


@pytest.mark.parametrize("language", sorted(set(LANGUAGES) - set(DISTINCT)))
def test_few_strings_repeat_in_training_and_not_in_tests(language):
    task = FormalLanguage(language=language, train_examples=2_000)
    train = Counter(strings(task, task.train(0)))
    tests = {name: strings(task, found) for name, found in task.tests().items()}
    for read in tests.values():
        assert len(read) == len(set(read))
    assert set(tests["validation"]) == set(tests["bin0"]) == set(train)
    assert not set(tests["bin1"]) & set(train)
    count = {"aa": (25, 25), "abab": (12, 13), "anbn": (49, 50), "anbncn": (49, 50)}[language]
    assert (len(tests["bin0"]), len(tests["bin1"])) == count
    if language == "aa":  # lengths 2 and 3 are cut to 2, ..., 50 alone to 50
        assert train["a" * 50] / train["a" * 48] == pytest.approx(1 / 2, abs=0.25)
        assert min(train[string] for string in train if len(string) < 50) > 50


def test_how_parity_is_drawn():
    """Lengths are geometric and cut at the window's end; odd strings get a 1, or are left out if they are full."""
    task = FormalLanguage(language="parity", train_examples=4_000)
    read = strings(task, task.train(3))
    lengths = np.array([len(string) for string in read])
    stop = 1 / 27
    drawn = (1 - stop) ** np.arange(51) * stop
    drawn[50] /= stop
    final = np.append(drawn[:50] / 2, drawn[50] / 2) + np.append(0, drawn[:50] / 2)
    expected = final[20:] / final[20:].sum()
    counted = np.bincount(lengths[lengths >= 20], minlength=51)[20:]
    assert counted[-1] / counted.sum() == pytest.approx(expected[-1], abs=0.03)
    assert counted[:15].sum() / counted.sum() == pytest.approx(expected[:15].sum(), abs=0.03)
    assert sum(string.count("1") for string in read) / lengths.sum() == pytest.approx(0.5, abs=0.03)


def shuffle_lengths(high):
    """Probability of each length of S → (S) | [S] | SS | nothing, where what is longer than `high` becomes nothing."""

    def cut(lengths):
        kept = lengths[: high + 1].copy()
        kept[0] += lengths[high + 1 :].sum()
        return kept

    nothing = np.eye(1, high + 1)[0]
    inside = nothing
    for _ in range(0, high, 2):
        outside = nothing
        for _ in range(200):
            nested, twice = np.append([0, 0], inside), np.convolve(outside, outside)
            outside = nothing / 4 + cut(nested) / 2 + cut(twice) / 4
        inside = outside
    return inside


def test_how_shuffle_is_drawn():
    """Brackets are nested, both kinds as likely, and lengths are those of the grammar's rules."""
    task = FormalLanguage(language="shuffle-2", **SMALL)
    for string in strings(task, task.train(3)):
        while "()" in string or "[]" in string:
            string = string.replace("()", "").replace("[]", "")
        assert string == ""
    drawn = list(itertools.islice(LANGUAGES["shuffle-2"].strings(np.random.default_rng(0), 0, 12), 20_000))
    counted = np.bincount([len(string) for string in drawn], minlength=13)
    np.testing.assert_allclose(counted / 20_000, shuffle_lengths(12), atol=0.01)
    joined = b"".join(drawn)
    assert joined.count(1) / joined.count(3) == pytest.approx(1, abs=0.03)


def test_tests_do_not_depend_on_the_seed_and_training_does():
    for language in LANGUAGES:
        task = FormalLanguage(language=language, **SMALL)
        before = {name: found.digest() for name, found in task.tests().items()}
        assert task.train(0).digest() != task.train(1).digest()
        assert task.train(1).digest() == dataclasses.replace(task).train(1).digest()
        assert {name: found.digest() for name, found in dataclasses.replace(task).tests().items()} == before


GOLDEN = {
    "parity": ["4c523e73bf4895c5", "bfefa64125b8c6b5", "b3a3e7d09abb4d05", "2a165b665d5766ef"],
    "aa": ["3ebcd9ea64ad3b6d", "0e27f03204263981", "5d84fc07c8a42d0a", "7513e9f8c2983181"],
    "abab": ["059ffee0860c354a", "ad071d5baa38ed35", "ef6b93e4b1ce0b6e", "a477bc4cdfdb01b4"],
    "anbn": ["1198627da1c38ce9", "469f253782ce785a", "9fe2c99e9979938d", "49d29ee752a0461b"],
    "anbncn": ["a6ff2ce11ee54efa", "35bfbebe76a23a6c", "d85a24a9bfc50c87", "ab2c52aa019b7b32"],
    "shuffle-2": ["90db115c924aebd6", "ea3b1d14e14df982", "a945944dbb582f7a", "6496aaed364dd6bd"],
    "tracking": [
        "b65e04fddbd66f79",
        "e97d106e5e65f60d",
        "6ed3b03ac28ebcd9",
        "2d81cca4c05510d0",
        "3a0fcf49b6e3d592",
        "ab46cab066eb150d",
    ],
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_golden(language):
    task = FormalLanguage(language=language, **SMALL)
    assert [found.digest() for found in (task.train(7), *task.tests().values())] == GOLDEN[language]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"language": "dyck"}, "language: expected one of parity, aa, .*, got 'dyck'"),
        ({"train_examples": 0}, "train_examples: expected at least 1, got 0"),
        ({"window": (5, 4)}, r"window: expected a lowest number .*, got \(5, 4\)"),
        ({"window": (0, 4)}, "window: expected"),
        ({"language": "abab", "window": (1, 3)}, "a string of abab between them"),
        ({"language": "aa", "window": (3, 3)}, "a string of aa between them"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        FormalLanguage(**settings)


def test_too_few_strings():
    task = FormalLanguage(language="parity", train_examples=10, validation_examples=5, test_examples=5, window=(2, 4))
    with pytest.raises(ValueError, match=r"window: expected room for 20 strings of parity .*, found 14 in"):
        task.tests()


TRACKING = ParityTracking(train_examples=300, validation_examples=50, test_examples=40)


def test_parity_tracking_says_how_many_ones_came():
    for found in (TRACKING.train(0), *TRACKING.tests().values()):
        for inputs, targets, trained in zip(found.inputs, found.targets, found.trained, strict=True):
            odd = 0
            for symbol, target, inside in zip(inputs, targets, trained, strict=True):
                assert inside == (symbol > 0)
                odd ^= int(symbol == 2)
                assert target == (odd if inside else 0)
    assert TRACKING.vocab_size == 3


def test_parity_tracking_lengths():
    train, tests = TRACKING.train(1), TRACKING.tests()
    assert list(tests) == ["validation", "within", "beyond", "last", "lengths"]
    assert train.inputs.shape == (300, 40)
    assert tests["validation"].inputs.shape == (50, 40)
    assert {tests[name].inputs.shape for name in list(tests)[1:]} == {(40, 256)}
    for found, low, high in ((train, 3, 40), (tests["validation"], 3, 40), (tests["lengths"], 40, 256)):
        lengths = found.trained.sum(axis=1)
        assert low <= lengths.min()
        assert lengths.max() <= high
        assert np.mean(lengths) == pytest.approx((low + high) / 2, abs=(high - low) / 6)
    assert set(train.trained.sum(axis=1).tolist()) == set(range(3, 41))
    bits = tests["within"].inputs
    assert np.mean(bits == 2) == pytest.approx(0.5, abs=0.02)


def test_parity_tracking_scores_the_places_it_names():
    tests = TRACKING.tests()
    long = [tests[name] for name in ("within", "beyond", "last")]
    for found in long:
        np.testing.assert_array_equal(found.inputs, long[0].inputs)
        assert found.trained.all()
    assert [np.flatnonzero(found.scored[5])[[0, -1]].tolist() for found in long] == [[0, 39], [40, 255], [255, 255]]
    np.testing.assert_array_equal(tests["within"].scored, ~tests["beyond"].scored)
    spread = tests["lengths"]
    assert np.all(spread.scored.sum(axis=1) == 1)
    np.testing.assert_array_equal(np.argmax(spread.scored, axis=1), spread.trained.sum(axis=1) - 1)
    np.testing.assert_array_equal(tests["validation"].scored, tests["validation"].trained)


def test_parity_tracking_golden():
    tests = TRACKING.tests()
    found = [TRACKING.train(7).digest(), *(part.digest() for part in tests.values())]
    assert found == GOLDEN["tracking"]
    assert TRACKING.train(8).digest() != TRACKING.train(7).digest()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trained": (0, 4)}, r"trained: expected 1 <= shortest <= longest, got \(0, 4\)"),
        ({"tested": (5, 4)}, r"tested: expected 1 <= shortest <= longest, got \(5, 4\)"),
        ({"trained": (3, 40), "tested": (10, 40)}, "tested: expected strings longer than 40"),
        ({"test_examples": 0}, "test_examples: expected at least 1, got 0"),
    ],
)
def test_parity_tracking_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        ParityTracking(**settings)
