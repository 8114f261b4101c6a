"""Hash-Hop: following the lines of a text leads to the answers."""

import hashlib

import numpy as np
import pytest

from nested_jax.data.hash_hop import HashHop
from nested_jax.data.questions import as_examples
from nested_jax.data.tokenizers import Bytes


def digest(questions):
    text = "\0".join("\0".join((question.prompt, *question.answers)) for question in questions)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("settings", "golden"),
    [
        ({}, "7735469536370e36"),
        ({"hops": 1}, "d3968fc18b262ff5"),
        ({"hops": 4, "chain_of_thought": True, "hash_length": 6, "queries": 3}, "1c424542371ea0ef"),
    ],
)
def test_golden(settings, golden):
    config = HashHop(**{"characters": 800, **settings})
    questions = config.questions(3)
    assert digest(questions) == golden
    assert config.questions(5)[: len(questions)] == questions
    assert digest(config.questions(3, seed=1)) != golden


@pytest.mark.parametrize("chain_of_thought", [False, True])
@pytest.mark.parametrize("hops", [1, 2, 5])
def test_following_the_lines(hops, chain_of_thought):
    config = HashHop(characters=900, hops=hops, queries=4, hash_length=8, chain_of_thought=chain_of_thought)
    questions = config.questions(6)
    assert len(questions) == 24
    for question in questions:
        text, end = question.prompt.split("\nCOMPLETION:\n")
        lines = dict(line.split(" = ") for line in text.split("\n"))
        assert end.startswith(f"Hops={hops}\n\nCoT={chain_of_thought}\n\n")
        assert end.endswith(" =")
        name = start = end.split("\n")[-1][:-2]
        path = []
        for _ in range(hops):
            name = lines[name]
            path.append(name.strip("'"))
        assert name == f"'{path[-1]}'"
        assert question.answers == (f"'{' = '.join(path)}'" if chain_of_thought else name,)
        order = text.split("\n")
        assert question.about["distance"] == len(order) - 1 - order.index(f"{start} = {lines[start]}")
        assert len(lines) == question.about["chains"] * hops
        names = {*lines, *(target.strip("'") for target in lines.values())}
        assert len(names) == question.about["chains"] * (hops + 1)
        assert all(len(name) == 8 and name.isascii() and name.isalpha() for name in names)
    for first in range(0, 24, 4):
        assert len({question.prompt for question in questions[first : first + 4]}) == 4
        assert len({question.prompt.split("COMPLETION")[0] for question in questions[first : first + 4]}) == 1


def test_the_number_of_chains_is_that_of_the_public_formula():
    assert HashHop(characters=3_000_000, hops=2, hash_length=16).chains == 42858
    assert HashHop(characters=70, hops=2, hash_length=16).chains == 1
    assert HashHop(characters=71, hops=2, hash_length=16).chains == 2


def test_lines_are_shuffled():
    config = HashHop(characters=12 * 11, hops=1, queries=1, hash_length=4)
    distances = [question.about["distance"] for question in config.questions(600)]
    counts = np.bincount(distances, minlength=12)
    assert len(counts) == config.chains == 12
    assert abs(counts - 50).max() < 4 * np.sqrt(50 * 11 / 12)


def test_a_trained_variant():
    questions = HashHop(characters=100, hash_length=4, queries=1).questions(3)
    found = as_examples(questions, Bytes(), 300)
    for row, question in enumerate(questions):
        assert bytes(found.targets[row][found.scored[row]].astype("uint8")).decode() == question.answers[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hops": 0}, "hops: expected at least 1, got 0"),
        ({"characters": 70, "queries": 2}, "queries: expected at most one for each of 1 chains, got 2"),
        ({"hash_length": 1, "hops": 1, "queries": 1}, "hash_length: expected strings enough for 4800 different"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        HashHop(**settings).questions(1)
