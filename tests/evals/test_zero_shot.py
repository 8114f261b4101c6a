"""Templates are spelled out, scores are worked by hand, missing or odd files are errors that say what is expected."""

import json
import math

import pytest

from nested_jax.evals.zero_shot import TEMPLATES, Document, clean_hellaswag, columns, detokenize_wikitext, zero_shot

ROWS = {
    "wikitext": {"page": " = Rome = \n \n It had 1 @,@ 000 streets , all ' narrow ' .\n"},
    "lambada": {"text": "he took the long road home"},
    "piqa": {"goal": "open a jar", "sol1": "turn it", "sol2": "hit it hard", "label": 1},
    "hellaswag": {
        "activity_label": "Baking",
        "ctx_a": "[header] How to bake [title] Mix it.",
        "ctx_b": "the COOK",
        "endings": [" stirs.", "sleeps [step]  long.", "a", "b"],
        "label": "1",
    },
    "winogrande": {
        "sentence": "The cup fell off the shelf because the _ was loose.",
        "option1": "cup",
        "option2": "shelf",
        "answer": "2",
    },
    "arc_easy": {"question": "What is ice?", "choices": {"text": ["water", "a rock"], "label": ["1", "2"]},
                 "answerKey": "1"},
    "arc_challenge": {"question": "Why?", "choices": {"text": ["so", "because", "no"], "label": ["A", "B", "C"]},
                      "answerKey": "C"},
    "siqa": {"context": "Ann ran.", "question": "Why?", "answerA": "late", "answerB": "early", "answerC": "fun",
             "label": "2"},
    "boolq": {"passage": "Snow is cold.", "question": "is snow cold", "label": True},
}  # fmt: skip

PAIRS = {
    "lambada": [("he took the long road", " home")],
    "piqa": [("Question: open a jar\nAnswer:", " turn it"), ("Question: open a jar\nAnswer:", " hit it hard")],
    "hellaswag": [
        ("Baking: How to bake. Mix it. The cook", ending) for ending in (" stirs.", " sleeps  long.", " a", " b")
    ],
    "winogrande": [
        ("The cup fell off the shelf because the cup", " was loose."),
        ("The cup fell off the shelf because the shelf", " was loose."),
    ],
    "arc_easy": [("Question: What is ice?\nAnswer:", " water"), ("Question: What is ice?\nAnswer:", " a rock")],
    "arc_challenge": [("Question: Why?\nAnswer:", f" {answer}") for answer in ("so", "because", "no")],
    "siqa": [("Q: Ann ran. Why?\nA:", f" {answer}") for answer in ("late", "early", "fun")],
    "boolq": [("Snow is cold.\nQuestion: is snow cold?\nAnswer:", f" {answer}") for answer in ("no", "yes")],
}
GOLD = {"piqa": 1, "hellaswag": 1, "winogrande": 1, "arc_easy": 0, "arc_challenge": 2, "siqa": 1, "boolq": 1}


class Given:
    """In the place of a `Likelihood`: what is asked is kept, what is answered was given."""

    def __init__(self, numbers=(), greedy=()):
        self.numbers, self.greedy, self.asked = list(numbers), list(greedy), []

    def loglikelihood(self, pairs):
        self.asked += pairs
        greedy = self.greedy or [False] * len(pairs)
        return list(zip(self.numbers[: len(pairs)] or [-1.0] * len(pairs), greedy, strict=True))

    def rolling(self, texts):
        self.asked += texts
        return self.numbers[: len(texts)] or [-1.0] * len(texts)


def save(folder, task, *rows):
    (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def directory(tmp_path):
    for task, row in ROWS.items():
        save(tmp_path, task, row)
    return tmp_path


@pytest.mark.parametrize("task", PAIRS)
def test_what_is_asked(task, directory):
    given = Given()
    zero_shot(given, directory, [task])
    assert given.asked == PAIRS[task]


@pytest.mark.parametrize("task", GOLD)
def test_the_right_answer_is_right(task, directory):
    for likeliest in range(len(PAIRS[task])):
        numbers = [-1.0 if place == likeliest else -5000.0 for place in range(len(PAIRS[task]))]
        right = float(likeliest == GOLD[task])
        expected = {"acc": right, "acc_norm": right, "count": 1}
        if task == "winogrande":
            expected.pop("acc_norm")
        assert zero_shot(Given(numbers), directory, [task]) == {task: expected}


def test_accuracy_per_character(directory):
    """Answers of 5 and 6 characters, of 2, 7 and 2, the space before them not counted."""
    found = zero_shot(Given([-5.0, -6.5]), directory, ["arc_easy"])["arc_easy"]
    assert (found["acc"], found["acc_norm"]) == (1, 1)
    found = zero_shot(Given([-5.0, -5.9]), directory, ["arc_easy"])["arc_easy"]
    assert (found["acc"], found["acc_norm"]) == (1, 0)
    found = zero_shot(Given([-2.1, -7.0, -2.0]), directory, ["arc_challenge"])["arc_challenge"]
    assert (found["acc"], found["acc_norm"]) == (1, 0)


def test_of_equal_scores_the_first_counts(directory):
    assert zero_shot(Given([-1.0, -1.0]), directory, ["boolq"])["boolq"]["acc"] == 0
    assert zero_shot(Given([-1.0, -1.0]), directory, ["arc_easy"])["arc_easy"]["acc"] == 1


def test_answers_are_told_apart_by_row(tmp_path):
    row = ROWS["boolq"]
    save(tmp_path, "boolq", row, {**row, "label": 0}, {**row, "label": 0})
    found = zero_shot(Given([-2.0, -1.0, -3.0, -1.0, -1.0, -2.0]), tmp_path, ["boolq"])
    assert found["boolq"] == {"acc": 2 / 3, "acc_norm": 2 / 3, "count": 3}
    given = Given([-2.0, -1.0, -3.0, -1.0])
    assert zero_shot(given, tmp_path, ["boolq"], limit=2)["boolq"] == {"acc": 0.5, "acc_norm": 0.5, "count": 2}
    assert len(given.asked) == 4


def test_an_answer_without_characters_is_never_likeliest_by_them(tmp_path):
    save(tmp_path, "piqa", {**ROWS["piqa"], "sol1": "", "label": 0})
    assert zero_shot(Given([-0.5, -9.0]), tmp_path, ["piqa"])["piqa"] == {"acc": 1, "acc_norm": 0, "count": 1}


def test_last_words(tmp_path):
    save(tmp_path, "lambada", ROWS["lambada"], {"text": "word"}, {"text": "two  spaces"})
    given = Given([-math.log(2), -math.log(4), -math.log(8)], [True, False, True])
    found = zero_shot(given, tmp_path, ["lambada"])["lambada"]
    assert found == {"acc": 2 / 3, "perplexity": pytest.approx(4), "count": 3}
    assert given.asked[1:] == [("", " word"), ("two ", " spaces")]


def test_documents(tmp_path):
    """Words and bytes are those of the page as it was tokenized: 3 with the empty ends, and 2; 10 and 4 bytes."""
    save(tmp_path, "wikitext", {"page": " é @-@ b\n"}, {"page": "c ,d"})
    given = Given([-10.0, -4.0])
    found = zero_shot(given, tmp_path, ["wikitext"])["wikitext"]
    assert given.asked == [" é-b\n", "c ,d"]
    assert found == {
        "word_perplexity": pytest.approx(math.exp(14 / 7)),
        "byte_perplexity": pytest.approx(math.exp(14 / 14)),
        "bits_per_byte": pytest.approx(1 / math.log(2)),
        "count": 2,
    }


def test_a_page_as_people_write():
    item = TEMPLATES["wikitext"].read(ROWS["wikitext"])
    page = ROWS["wikitext"]["page"]
    assert item == Document(" = Rome =\n\nIt had 1,000 streets, all 'narrow' .\n", page)
    assert detokenize_wikitext("( a ) [ b ] { c } \" d \" ' e '") == "(a) [b] {c} \"d\" 'e'"
    assert detokenize_wikitext("= = = A = = = \n 5 ° N x 's cars ' .") == "=== A ===\n5°N x's cars' ."
    assert detokenize_wikitext("a : b ; c . d ! e ? N f") == "a: b; c. d! e? 1 f"


def test_text_of_hellaswag():
    assert clean_hellaswag("  a [x [y] b [title] c  d ") == "a b. c d"


def test_columns_of_a_table(directory):
    found = columns(zero_shot(Given(), directory))
    assert list(found)[:4] == ["Wiki ppl", "LMB ppl", "LMB acc", "PIQA acc"]
    assert list(found)[4:8] == ["HellaSwag acc_n", "WinoGrande acc", "ARC-e acc", "ARC-c acc_n"]
    assert list(found)[8:] == ["SIQA acc", "BoolQ acc", "Avg"]
    scores = {
        task: {"acc": (n + 1) / 100, "acc_norm": (n + 1) / 10, "perplexity": 7.0}
        for n, task in enumerate(task for task in TEMPLATES if task != "wikitext")
    }
    found = columns(scores)
    assert found["HellaSwag acc_n"] == pytest.approx(30)
    assert found["ARC-e acc"] == pytest.approx(5)
    assert found["Avg"] == pytest.approx((1 + 2 + 30 + 4 + 5 + 60 + 7 + 8) / 8)
    assert found["LMB ppl"] == 7
    del scores["boolq"]
    assert "Avg" not in columns(scores)


def test_missing_files_are_all_named_with_their_layout(tmp_path):
    save(tmp_path, "piqa", ROWS["piqa"])
    with pytest.raises(ValueError, match=r"no lambada\.jsonl, boolq\.jsonl in ") as found:
        zero_shot(Given(), tmp_path, ["lambada", "piqa", "boolq"])
    text = str(found.value)
    assert "boolq.jsonl: passage (text), question (text without the question mark), label (0 (no) or 1 (yes))" in text
    assert "from aps/super_glue, boolq, split validation" in text
    assert "piqa.jsonl:" not in text


@pytest.mark.parametrize(
    ("task", "line", "message"),
    [
        ("piqa", "{", r"piqa\.jsonl, line 2: Expecting property name"),
        ("piqa", '{"goal": ""}', r"line 2: expected fields \['goal', .*\], got none of \['sol1', 'sol2', 'label'\]"),
        ("piqa", "[]", "line 2: expected fields"),
        ("piqa", json.dumps({**ROWS["piqa"], "label": -1}), "line 2: expected the right answer, got an unlabelled row"),
        ("hellaswag", json.dumps({**ROWS["hellaswag"], "label": ""}), "line 2: invalid literal for int"),
        ("arc_easy", json.dumps({**ROWS["arc_easy"], "answerKey": "9"}), "line 2: '9' is not in list"),
        ("arc_easy", json.dumps({**ROWS["arc_easy"], "choices": ["a"]}), "line 2: list indices must be"),
        ("winogrande", json.dumps({**ROWS["winogrande"], "sentence": "no"}), "line 2: sentence: expected a blank, _"),
    ],
)
def test_rows_that_do_not_fit(task, line, message, tmp_path):
    (tmp_path / f"{task}.jsonl").write_text(json.dumps(ROWS[task]) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=message):
        zero_shot(Given(), tmp_path, [task])


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match=r"tasks: expected names among \['wikitext', .*\], got 'squad'"):
        zero_shot(Given(), tmp_path, ["squad"])
    with pytest.raises(ValueError, match="limit: expected None or at least 1, got 0"):
        zero_shot(Given(), tmp_path, ["piqa"], limit=0)
    (tmp_path / "piqa.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"piqa\.jsonl: expected at least one row, got none"):
        zero_shot(Given(), tmp_path, ["piqa"])
