"""Questions as a task: sequences hold prompt and answers, sets are apart, and the score is exact match."""

import dataclasses
import functools
import hashlib
import json
import re

import numpy as np
import pytest

from nested_jax.data.babilong import Babilong
from nested_jax.data.code_dependencies import CodeDependencies
from nested_jax.data.dependencies import Programs, VariableTracking
from nested_jax.data.hash_hop import HashHop
from nested_jax.data.haystacks import NOISE
from nested_jax.data.niah import multi_key_2, multi_query, single_1
from nested_jax.data.question_task import QuestionTask, draw
from nested_jax.data.tokenizers import Bytes
from nested_jax.evals.scores import scores

CODE = "def area(text):\n    words = text.split()\n    width = int(words)\n    return width * width\n\n\n"
SOURCES = {
    "single_1": single_1(length=520, answer_budget=9),
    "multi_key_2": multi_key_2(length=600, answer_budget=9),
    "multi_query": multi_query(length=1200, answer_budget=40, background="Some say so.\nOthers do not. " * 9),
    "hash_hop": HashHop(characters=80, hash_length=4, queries=2),
    "programs": Programs(depth=2),
    "variable_tracking": VariableTracking(length=800, hops=1, example=False),
    "babilong": Babilong(length=512, reserve=100, background=f"{NOISE}\n", prompt=("", "", "")),
}
GOLDEN = {
    "single_1": "4a6fff9c32b5658c",
    "multi_key_2": "b4b10e71d8f524eb",
    "multi_query": "1e88f5cfd2584dbe",
    "hash_hop": "2b55bb56eff1f62c",
    "programs": "56a41e8be0034690",
    "variable_tracking": "4729bff3ee7002c7",
    "babilong": "736a55e6a5b5a18c",
}
SMALL = {"train_examples": 6, "validation_examples": 4, "test_examples": 3}


def task(*trained, **fields):
    return QuestionTask(trained=trained, tested=(("test", trained[0]),), **{**SMALL, **fields})


@functools.cache
def sets(name):
    """Two training sets and the tests of a task of one source."""
    made = task(SOURCES[name])
    return {"train": made.train(0), "other": made.train(1), **made.tests()}


def texts(examples):
    """Each sequence as text, cut behind its last scored place, and what is scored of it."""
    for row in range(len(examples.inputs)):
        last = int(np.flatnonzero(examples.scored[row])[-1])
        assert not examples.inputs[row, last + 1 :][1:].any()
        whole = np.append(examples.inputs[row, : last + 1], examples.targets[row, last])
        answer = examples.targets[row][examples.scored[row]]
        yield Bytes().decode(whole), Bytes().decode(answer)


@pytest.mark.parametrize("name", SOURCES)
def test_a_sequence_is_a_prompt_and_its_answers_and_a_line_break(name):
    for found in sets(name).values():
        assert found.inputs.shape[1] % 32 == 0
        np.testing.assert_array_equal(found.trained, found.scored)
        np.testing.assert_array_equal(
            found.inputs[:, 1:][found.scored[:, :-1]], found.targets[:, :-1][found.scored[:, :-1]]
        )
        for whole, answer in texts(found):
            assert whole.endswith(f" {answer}")
            assert answer.count("\n") == 1
            assert answer.endswith("\n")


def test_an_answer_is_that_of_its_prompt():
    for whole, answer in texts(sets("single_1")["test"]):
        assert re.search(r"is: (\d{7})\.", whole)[1] == answer.strip()
    for whole, answer in texts(sets("multi_query")["test"]):
        asked = re.search(r"numbers for (\S+), (\S+), (\S+), and (\S+) mentioned in the provided text are ", whole)
        values = dict(re.findall(r"numbers for (\S+) is: (\d+)\.", whole))
        assert sorted(answer.split()) == sorted(values[key] for key in asked.groups())
    for whole, answer in texts(sets("programs")["test"]):
        program, asked = re.search(r"(.*)\n# What is the value of (\w+)\? ", whole, re.DOTALL).groups()
        known = {}
        exec(program, known)
        assert known[asked] == int(answer)


@pytest.mark.parametrize("name", SOURCES)
def test_golden(name):
    found = json.dumps([part.digest() for part in sets(name).values()])
    assert hashlib.sha256(found.encode()).hexdigest()[:16] == GOLDEN[name]


@pytest.mark.parametrize("name", SOURCES)
def test_sets_are_apart(name):
    found = [text for examples in sets(name).values() for text, _ in texts(examples)]
    assert len(found) == 6 + 6 + 4 + 3
    assert len(set(found)) == len(found)


def test_tests_are_the_same_whatever_is_trained_on():
    one, other = (task(SOURCES["programs"], train_examples=count) for count in (5, 9))
    assert {name: part.digest() for name, part in one.tests().items()} == {
        name: part.digest() for name, part in other.tests().items()
    }


def test_sources_give_equal_shares_and_every_test_its_own():
    mixed = QuestionTask(
        trained=tuple(HashHop(characters=60, hops=hops, queries=1, hash_length=4) for hops in (1, 2, 3)),
        tested=tuple((f"{hops} hops", HashHop(characters=60, hops=hops, queries=1, hash_length=4)) for hops in (2, 4)),
        train_examples=8,
        validation_examples=3,
        test_examples=2,
    )

    def hops(examples):
        return [int(re.search(r"Hops=(\d)", text)[1]) for text, _ in texts(examples)]

    assert hops(mixed.train(0)) == [1, 1, 1, 2, 2, 2, 3, 3]
    tests = mixed.tests()
    assert {name: hops(part) for name, part in tests.items()} == {
        "validation": [1, 2, 3],
        "2 hops": [2, 2],
        "4 hops": [4, 4],
    }
    assert list(tests) == ["validation", "2 hops", "4 hops"]


def test_held_out_code_is_of_other_files(tmp_path):
    for name in ("train", "validation", "test"):
        lines = [CODE.replace("area", f"{name}_{number}") for number in range(8)]
        (tmp_path / f"{name}.py").write_text("".join(lines))

    def of(name):
        return CodeDependencies(paths=(str(tmp_path / f"{name}.py"),), depths=(0,), answer="variable")

    made = QuestionTask(trained=(of("train"),), validated=(of("validation"),), tested=(("test", of("test")),), **SMALL)
    found = {"train": made.train(0), **made.tests()}
    for name, part in found.items():
        assert all(re.search(r"def (\w+)_\d", text)[1] == name for text, _ in texts(part))


def test_the_score_is_exact_match():
    found = sets("single_1")["test"]
    said = found.targets.copy()
    assert scores(said, found)["sequence"] == 1.0
    last = np.flatnonzero(found.scored[0])[-1]
    said[0, last] = ord("4")  # another digit where the answer ends
    assert scores(said, found)["sequence"] == 2 / 3
    said[1, np.flatnonzero(found.scored[1])[0]] = ord(" ")
    assert scores(said, found)["sequence"] == 1 / 3
    said[2, 0] = 7  # within the prompt, where nothing is asked
    assert scores(said, found)["sequence"] == 1 / 3


def test_draw_counts_questions_not_texts():
    source = HashHop(characters=80, hash_length=4, queries=2)
    assert [len(draw(source, Bytes(), count, 3)) for count in (1, 2, 3)] == [1, 2, 3]
    assert draw(source, Bytes(), 3, 3) == source.questions(2, 3)[:3]
    assert draw(SOURCES["single_1"], Bytes(), 2, 3) == SOURCES["single_1"].questions(Bytes(), 2, 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"trained": ()}, "trained: expected at least one source"),
        ({"tested": ()}, "tested: expected at least one source"),
        ({"tested": (("validation", Programs()),)}, "tested: expected different names other than 'validation'"),
        ({"tested": (("a", Programs()), ("a", Programs(depth=0)))}, "tested: expected different names"),
        (
            {"trained": (Programs(), Programs(depth=1)), "train_examples": 1},
            "train_examples: expected at least 2, got 1",
        ),
        ({"validated": (Programs(),) * 5}, "validation_examples: expected at least 5, got 4"),
        ({"test_examples": 0}, "test_examples: expected at least 1, got 0"),
        ({"tokenizer": "nowhere"}, "no such file: nowhere"),
        ({"trained": (Programs(depth=-1),)}, "depth: expected at least 0, got -1"),
        ({"trained": (single_1(length=300),)}, "length: expected at least"),
    ],
)
def test_bad_input_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(task(Programs()), **fields).train(0)


def test_any_tokenizer(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="needs nested_jax[tokenizers]; CI installs it")
    alphabet = sorted({*" \n=%()+#?0123456789v", *"Whatisthevalueof"})
    made = tokenizers.Tokenizer(tokenizers.models.BPE({one: number for number, one in enumerate(alphabet)}, []))
    made.save(str(tmp_path / "tokenizer.json"))
    found = task(Programs(depth=1), tokenizer=str(tmp_path))
    assert found.vocab_size == len(alphabet)
    spelled = "".join(alphabet[token] for token in found.train(0).inputs[0])
    plain = Bytes().decode(task(Programs(depth=1)).train(0).inputs[0])
    assert spelled[: len(plain.rstrip("\0"))] == plain.rstrip("\0")
    assert hash(found) == hash(dataclasses.replace(found))
