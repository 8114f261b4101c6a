"""Needles: a reader finds the answers in the prompts, budgets are met and filled, depths are where they are asked."""

import hashlib
import json
import re

import numpy as np
import pytest

from nested_jax.data.haystacks import NOISE, largest, read_background, sentences
from nested_jax.data.niah import (
    Needles,
    multi_key_1,
    multi_key_2,
    multi_key_3,
    multi_query,
    multi_value,
    single_1,
    single_2,
    single_3,
)
from nested_jax.data.questions import as_examples
from nested_jax.data.tokenizers import Bytes
from nested_jax.data.word_lists import ADJECTIVES, NOUNS, load_words

ESSAY = "\n".join(f"Sentence number {n} says little. Does it say {n * n}?" for n in range(300))
TASKS = {
    "single_1": single_1(length=1500),
    "single_2": single_2(length=1500, background=ESSAY),
    "single_3": single_3(length=1500, background=ESSAY),
    "words": single_2(length=1500, background=ESSAY, value="words", anywhere=True),
    "multi_key_1": multi_key_1(length=1500, background=ESSAY),
    "multi_key_2": multi_key_2(length=1500),
    "multi_key_3": multi_key_3(length=1500),
    "multi_value": multi_value(length=1500, background=ESSAY),
    "multi_query": multi_query(length=1500, background=ESSAY),
}
PATTERNS = {
    "numbers": r"[1-9]\d{6}",
    "words": r"[a-z]+-[a-z]+",
    "uuids": r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
}
GOLDEN = {
    "single_1": "ee0af82d1e50cbf3",
    "single_2": "21ae710804108ca1",
    "single_3": "eebfa060d8f3c372",
    "words": "9ae8e9342e8f822b",
    "multi_key_1": "c9800311c31109e7",
    "multi_key_2": "8f7ce13191fe408c",
    "multi_key_3": "76a1ec8ca1ca19f0",
    "multi_value": "a98bf835e6611e29",
    "multi_query": "89537ed8d104d229",
}


class Pieces:
    """A token is a word with the white space before it."""

    name, vocab_size, end = "pieces", 2**31, None

    def encode(self, text):
        return np.arange(len(re.findall(r"\s*\S+|\s+$", text)))


def digest(questions):
    text = "\0".join("\0".join((question.prompt, *question.answers)) for question in questions)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read(prompt):
    """Keys → values in the order of the text, and the keys that are asked for: a reader of its own."""
    found = {}
    for key, value in re.findall(r"One of the special magic \w+ for (\S+) is: (\S+)\.", prompt):
        found.setdefault(key, []).append(value)
    asked = re.search(r"\nWhat (?:is|are all) the special magic \w+ for (.*) mentioned in the provided text\? ", prompt)
    return found, re.split(r", and |, ", asked[1])


@pytest.mark.parametrize("name", TASKS)
def test_golden(name):
    questions = TASKS[name].questions(Bytes(), 3)
    assert digest(questions) == GOLDEN[name]
    assert questions == TASKS[name].questions(Bytes(), 5)[:3]
    assert digest(TASKS[name].questions(Bytes(), 3, seed=43)) != GOLDEN[name]


@pytest.mark.parametrize("name", TASKS)
def test_the_answers_are_in_the_text_and_nothing_else_is(name):
    task = TASKS[name]
    for question in task.questions(Bytes(), 20):
        found, asked = read(question.prompt)
        assert len(asked) == task.queries
        assert sorted(question.answers) == sorted(value for key in asked for value in found[key])
        assert len(question.answers) == task.queries * task.values
        if task.haystack != "needle":
            assert sum(map(len, found.values())) == question.about["needles"] == task.keys * task.values
        assert all(re.fullmatch(PATTERNS[task.key], key) for key in found)
        assert all(re.fullmatch(PATTERNS[task.value], value) for values in found.values() for value in values)


@pytest.mark.parametrize("tokenizer", [Bytes(), Pieces()], ids=["bytes", "pieces"])
@pytest.mark.parametrize("name", TASKS)
def test_the_budget_is_met_and_filled(name, tokenizer):
    task = TASKS[name]
    longest = 120 if task.haystack == "needle" else len(NOISE) + 1 if task.haystack == "noise" else 20
    for question in task.questions(tokenizer, 6):
        tokens = len(tokenizer.encode(question.prompt)) + 128
        assert 1500 - longest < tokens <= 1500, tokens
    assert task.questions(tokenizer, 1)[0].about["length"] == 1500


def test_prompts_word_by_word():
    question = single_1(length=560, words=(("red",), ("cup",))).questions(Bytes(), 1)[0]
    lines = question.prompt.split("\n")
    assert lines[0] == (
        "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about "
        "the number afterwards."
    )
    assert f"One of the special magic numbers for red-cup is: {question.answers[0]}." in lines
    assert lines.count("The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.") == 1
    assert lines[-1] == (
        "What is the special magic number for red-cup mentioned in the provided text? The special magic number for "
        "red-cup mentioned in the provided text is"
    )
    assert len(lines) == 4
    question = multi_query(length=1500, background=ESSAY, keys=2, queries=2).questions(Bytes(), 1)[0]
    assert question.prompt.startswith("Some special magic numbers are hidden within the following text. ")
    assert re.search(r"\nWhat are all the special magic numbers for \S+, and \S+ mentioned in .* are$", question.prompt)


@pytest.mark.parametrize("depth", [0, 25, 50, 100])
@pytest.mark.parametrize("name", ["single_1", "single_2", "multi_key_1", "multi_key_2"])
def test_needles_are_where_they_are_asked_for(name, depth):
    settings = {"length": 4000, "depth": depth, "background": ESSAY}
    task = {"single_1": single_1, "single_2": single_2, "multi_key_1": multi_key_1, "multi_key_2": multi_key_2}[name]
    for question in task(**settings).questions(Bytes(), 5):
        needle = question.prompt.index(f"is: {question.answers[0]}.")
        context = question.prompt.index("\n"), question.prompt.rindex("\nWhat")
        assert abs((needle - context[0]) / (context[1] - context[0]) - depth / 100) < 0.06
        assert question.about["depth"] == depth


def test_depths_are_spread_as_in_the_definition():
    questions = single_1(length=3000).questions(Bytes(), 400)
    for question in questions[:50]:
        lines = question.prompt.split("\n")[1:-1]
        place = next(i for i, line in enumerate(lines) if line != NOISE)
        assert question.about["depth"] == round(100 * place / (len(lines) - 1), 1)
    depths = [question.about["depth"] for question in questions]
    assert min(depths) == 0
    assert max(depths) == 100
    counts = np.histogram(depths, bins=4, range=(0, 100))[0]
    assert np.all(abs(counts - 100) < 4 * np.sqrt(75)), counts
    grid = {question.about["depth"] for question in single_2(length=900, background=ESSAY).questions(Bytes(), 400)}
    assert grid == set(np.round(np.linspace(0, 100, 40)))
    several = multi_value(length=1500, background=ESSAY).questions(Bytes(), 1)[0].about
    assert several["depth"] is None
    assert len(several["depths"]) == 4


@pytest.mark.parametrize("task", [multi_value, multi_query])
def test_depths_of_several_needles(task):
    """A depth is the percentage of the sentences before a needle, other needles not counted."""
    for question in task(length=3000, background=ESSAY).questions(Bytes(), 10):
        found = sentences(question.prompt.split("\n")[1])
        plain = [sentence for sentence in found if not sentence.startswith("One of the special")]
        depths = []
        for place, sentence in enumerate(found):
            if sentence not in plain:
                before = place - len(depths)
                depths.append(next(d for d in np.round(np.linspace(0, 100, 40)) if int(len(plain) * d / 100) == before))
        assert np.all(np.abs(np.sort(question.about["depths"]) - depths) < 100 / len(plain) + 1e-9)


def test_other_needles_never_have_the_key():
    task = multi_key_2(length=3000, words=(("red", "blue"), ("cup", "mug")))
    for question in task.questions(Bytes(), 10):
        found, asked = read(question.prompt)
        assert len(found) == 4
        assert found[asked[0]] == list(question.answers)


def test_the_essay_begins_at_its_beginning_or_anywhere():
    def begins(**settings):
        questions = single_2(length=1500, background=ESSAY, depth=100, **settings).questions(Bytes(), 8)
        return {question.prompt.split("\n")[1][:30] for question in questions}

    assert begins() == {ESSAY[:30]}
    assert len(begins(anywhere=True)) == 8
    short = single_2(length=3000, background="Only this.\nAnd that.").questions(Bytes(), 1)[0]
    assert short.prompt.count("Only this. And that. Only this.") > 10


def test_a_trained_variant():
    questions = single_1(length=600, answer_budget=8).questions(Bytes(), 4, seed=0)
    found = as_examples(questions, Bytes(), 600)
    for row, question in enumerate(questions):
        assert bytes(found.targets[row][found.scored[row]].astype("uint8")).decode() == question.answers[0]


def test_backgrounds(tmp_path):
    (tmp_path / "b.txt").write_text("Second. text")
    (tmp_path / "a.md").write_text("First one.")
    (tmp_path / ".hidden").write_text("no")
    (tmp_path / "binary").write_bytes(b"\0no")
    assert read_background(tmp_path, "") == "First one.\nSecond. text"
    assert read_background(str(tmp_path / "b.txt"), "") == "Second. text"
    (tmp_path / "essays.json").write_text(json.dumps({"text": "An essay."}))
    assert read_background(tmp_path / "essays.json", "") == "An essay."
    (tmp_path / "essays.json").write_text("[]")
    with pytest.raises(ValueError, match="background: expected an object"):
        read_background(tmp_path, "")
    (tmp_path / "empty").mkdir()
    for background in (tmp_path / "empty", tmp_path / "missing", "missing.txt", None):
        with pytest.raises(ValueError, match=r"background: expected the path of an essay.*download_paulgraham"):
            single_2(background=background).questions(Bytes(), 1)


def test_sentences():
    assert sentences("A b.  C d?\nE! f") == ["A b.", "C d?", "E!", "f"]
    assert sentences("He said “Go.” Then\nnothing\n\nNew") == ["He said “Go.”", "Then nothing", "New"]
    assert sentences("3.14 is less. ") == ["3.14 is less."]


@pytest.mark.parametrize("limit", [-1, 0, 1, 2, 7, 100, 12345])
def test_largest(limit):
    for start in (0, 1, 5, 100, 20000):
        calls = []
        assert largest(lambda size, calls=calls: calls.append(size) or size <= limit, start) == limit
        assert min(calls) >= 0
        assert len(calls) < 40


def test_words(tmp_path):
    assert len(set(ADJECTIVES)) == len(ADJECTIVES) > 200
    assert len(set(NOUNS)) == len(NOUNS) > 300
    assert all(re.fullmatch("[a-z]+", word) for word in ADJECTIVES + NOUNS)
    (tmp_path / "a").write_text("big\nsmall\n")
    (tmp_path / "n").write_text("dog\n")
    words = load_words(tmp_path / "a", tmp_path / "n")
    assert words == (("big", "small"), ("dog",))
    found = read(single_1(length=600, words=words).questions(Bytes(), 1)[0].prompt)[0]
    assert set(found) <= {"big-dog", "small-dog"}
    for task in (multi_key_1(background=ESSAY, keys=3, words=words), multi_key_2(keys=2, words=words)):
        with pytest.raises(ValueError, match="words: expected at least 3 pairs of an adjective and a noun, got 2"):
            task.questions(Bytes(), 1)
    with pytest.raises(ValueError, match="nouns: expected a file"):
        load_words(tmp_path / "a", tmp_path / "missing")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keys": 0}, "keys: expected at least 1, got 0"),
        ({"haystack": "hay"}, "haystack: expected one of noise, essay, needle, got 'hay'"),
        ({"value": "letters"}, "value: expected one of words, numbers, uuids"),
        ({"queries": 2}, "queries: expected at most keys = 1, got 2"),
        ({"depth": 101}, "depth: expected None, or a number in"),
        ({"depth": 50, "values": 2}, "queries = 1 and values = 2"),
        ({"haystack": "essay", "keys": 41}, "expected keys \\* values <= 40"),
        ({"answer_budget": -1}, "answer_budget"),
        ({"length": 300}, r"length: expected at least \d+ tokens for niah, got 300"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Needles(**settings).questions(Bytes(), 1)
