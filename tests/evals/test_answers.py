"""Scorers of answers, on cases worked out by hand."""

import pytest

from nested_jax.data.babilong import Babilong
from nested_jax.data.dependencies import Programs
from nested_jax.data.hash_hop import HashHop
from nested_jax.data.niah import multi_query, single_1
from nested_jax.data.questions import Question
from nested_jax.data.tokenizers import Bytes
from nested_jax.evals.answers import babilong_match, by_group, chrf, exact_match, hash_hop_match, string_match_all


def question(*answers, prompt="", **about):
    return Question(prompt, answers, about)


@pytest.mark.parametrize(
    ("output", "answers", "score"),
    [
        (" 1234567.", ("1234567",), 1.0),
        ("123456", ("1234567",), 0.0),
        ("it is 91234567 or so", ("1234567",), 1.0),
        ("one: 1, two: 2", ("1", "2", "3", "4"), 0.5),
        ("Quiet-Harbour", ("quiet-harbour",), 1.0),
        ("quiet-harbour", ("QUIET-harbour",), 1.0),
        ("", ("a",), 0.0),
    ],
)
def test_string_match_all(output, answers, score):
    assert string_match_all(output, question(*answers)) == score


@pytest.mark.parametrize(
    ("output", "answers", "score"),
    [
        ("7", ("7",), 1.0),
        ("\n  7  \nv1", ("7",), 1.0),
        ("17", ("7",), 0.0),
        ("7.", ("7",), 0.0),
        ("A b", ("A", "b"), 1.0),
        ("a b", ("A", "b"), 0.0),
        ("", ("7",), 0.0),
    ],
)
def test_exact_match(output, answers, score):
    assert exact_match(output, question(*answers)) == score


@pytest.mark.parametrize(
    ("output", "answer", "score"),
    [
        (" 'abC'\nxy = 'z'", "'abC'", 1.0),
        ("abC", "'abC'", 1.0),
        ("'abc'", "'abC'", 0.0),
        ("'abC' = 'd'", "'abC'", 0.0),
        (" 'ab = cd'", "'ab = cd'", 1.0),
        (" 'cd'", "'ab = cd'", 0.0),
        ("", "'ab'", 0.0),
    ],
)
def test_hash_hop_match(output, answer, score):
    assert hash_hop_match(output, question(answer)) == score


WHERE = "The garden is wide. John is in the office.\n</context>\n\nQuestion: Where is Mary?"


@pytest.mark.parametrize(
    ("output", "score"),
    [
        ("kitchen", 1.0),
        ("Mary is in the Kitchen.", 1.0),
        ("Mary is in the kitchen. The garden is green.", 1.0),
        ("the kitchen or the garden", 0.0),
        ("the garden", 0.0),
        ("She is here. Kitchen", 0.0),
        ("kitchen <context> garden", 1.0),
        ("kitchen <example>garden</example>", 1.0),
        ("kitchen\nQuestion: who is in the office?", 1.0),
        ("the kitchenette", 1.0),
        ("", 0.0),
    ],
)
def test_babilong_match(output, score):
    assert babilong_match(output, question("kitchen", prompt=WHERE, task="qa1")) == score


def test_babilong_match_leaves_out_what_the_question_names():
    before = question("garden", prompt="Question: Where was the milk before the office?", task="qa3")
    assert babilong_match("Before the office the milk was in the garden.", before) == 1
    assert babilong_match("Before the office the milk was in the kitchen.", before) == 0
    assert babilong_match("Before the kitchen the milk was in the garden.", before) == 0
    gave = question("Fred", prompt="Question: Who did Mary give the apple to?", task="qa5")
    assert babilong_match("Mary gave the apple to fred", gave) == 1
    assert babilong_match("Mary gave the milk to Fred", gave) == 0
    assert babilong_match("Mary gave the milk to Fred", gave._replace(about={"task": "qa1"})) == 0
    assert babilong_match("to the bathroom", gave._replace(about={"task": "qa1"}, answers=("bathroom",))) == 1


def test_babilong_match_as_the_public_code_runs():
    asked = question("kitchen", prompt=WHERE, task="qa1")
    output = "kitchen\nQuestion: who is in the office?"
    assert babilong_match(output, asked, cut_at_question=False) == 0
    assert babilong_match("kitchen. Question: office", asked, cut_at_question=False) == 1
    with pytest.raises(ValueError, match=r"question: expected a task in its about, one of qa1, .*, got None"):
        babilong_match("kitchen", question("kitchen"))


def test_answers_score_one():
    questions = {
        string_match_all: single_1(length=800).questions(Bytes(), 2)
        + multi_query(length=2000, background="A tale.\nOf two.").questions(Bytes(), 2),
        babilong_match: [
            each for task in range(1, 6) for each in Babilong(task=f"qa{task}", length=0).questions(Bytes(), 20)
        ],
        hash_hop_match: HashHop(characters=500, chain_of_thought=True).questions(2),
        exact_match: Programs().questions(5),
    }
    for scorer, asked in questions.items():
        for each in asked:
            assert scorer(f" {', '.join(each.answers)}\n", each) == 1
            assert scorer(" no\n", each) == 0


@pytest.mark.parametrize(
    ("outputs", "references", "score"),
    [
        # 1: 2 of 3, 2: 1 of 2, 3: 0 of 1 on both sides, so F = their mean
        (["abc"], ["abd"], 100 * (2 / 3 + 1 / 2 + 0) / 3),
        # 1: 2 of 2 and 2 of 3, 2: 1 of 1 and 1 of 2, 3: nothing to count: P = 1, R = 7/12, F = 5·7/12 / (4 + 7/12)
        (["aa"], ["a a b"], 100 * 35 / 55),
        # the other way round: P = 7/12, R = 1, F = 5·7/12 / (4·7/12 + 1)
        (["aab"], ["aa"], 100 * 35 / 40),
        # counts are added up before they are divided: 1: 2 of 3, 2: 1 of 1
        (["ab", "c"], ["ab", "d"], 100 * (2 / 3 + 1) / 2),
        # an output without a reference does not count
        (["xyz", "a"], ["", "a"], 100.0),
        # a repeated letter matches as often as both sides have it
        (["aaa"], ["a"], 100 * 5 * (1 / 3) * 1 / (4 / 3 + 1)),
        (["kitten sitting"], ["kittensitting"], 100.0),
        (["Ab"], ["ab"], 100 * (1 / 2 + 0) / 2),
        (["x"], ["y"], 0.0),
        ([""], ["abc"], 0.0),
    ],
)
def test_chrf(outputs, references, score):
    assert chrf(outputs, references) == pytest.approx(score, abs=1e-12)


def test_chrf_by_order_and_beta():
    assert chrf(["aa"], ["aab"], order=1) == pytest.approx(100 * 5 * 2 / 3 / (4 + 2 / 3))
    assert chrf(["aa"], ["aab"], order=1, beta=1) == pytest.approx(100 * 2 * 2 / 3 / (1 + 2 / 3))
    assert chrf(["the cat sat"], ["the cat is sat"]) == pytest.approx(50.62134456514556)  # sacreBLEU 2.6.0
    for outputs, references in (([], []), (["a"], [])):
        with pytest.raises(ValueError, match="outputs: expected as many as references, at least 1"):
            chrf(outputs, references)


def test_by_group():
    asked = [question("a", depth=depth, length=length) for depth, length in [(2, 8), (1, 8), (2, 16), (2, 8)]]
    scores = [1.0, 0.5, 0.0, 0.0]
    assert by_group(scores, asked, "depth") == {(2,): 1 / 3, (1,): 0.5}
    assert list(by_group(scores, asked, "length", "depth").items()) == [((8, 2), 0.5), ((8, 1), 0.5), ((16, 2), 0.0)]
    assert by_group(scores, asked) == {(): 0.375}
    assert by_group([], []) == {}
    with pytest.raises(ValueError, match="scores: expected one for each of 4 questions, got 1"):
        by_group([1.0], asked)
    with pytest.raises(ValueError, match="fields: expected some of depth, length, got hops"):
        by_group(scores, asked, "depth", "hops")
