"""Recall sets: prompts as the published cloze forms have them, and what is said of files that are missing or bad."""

import json

import pytest

from nested_jax.data.recall_sets import SETS, RecallSet


def write(folder, name, *rows):
    (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return RecallSet(name=name, path=folder)


@pytest.mark.parametrize("name", ["swde", "fda", "squad"])
def test_a_row_holds_the_prompt_and_its_value(name, tmp_path):
    found = write(tmp_path, name, {"text": " Genre: jazz. Year:\n", "value": " 1959 ", "key": "year"})
    (question,) = found.questions()
    assert question == ("Genre: jazz. Year:", ("1959",), {"set": name})


@pytest.mark.parametrize(
    ("context", "prompt"),
    [
        ("It rained. ", "It rained. The weather was"),
        ("It rained... the weather was The weather was", "It rained. The weather was"),
        ("It rained", "It rained. The weather was"),
    ],
)
def test_a_question_follows_its_document_once(context, prompt, tmp_path):
    row = {"context": context, "question": " The weather was", "answers": ["wet", " rainy"]}
    (question,) = write(tmp_path, "drop", row).questions()
    assert question[:2] == (prompt, ("wet", "rainy"))


def test_marks_of_the_layout_are_left_out_where_they_are_marks(tmp_path):
    row = {"context": "[DOC] [TLE] A [PAR] B", "question": "C is", "answers": ["B"]}
    assert write(tmp_path, "tqa", row).questions()[0].prompt == "A  B. C is"
    assert write(tmp_path, "nq", row).questions()[0].prompt == "[DOC] [TLE] A [PAR] B. C is"


def test_rows_are_the_first_ones_and_blank_lines_are_none(tmp_path):
    found = write(tmp_path, "fda", *({"text": f"{n}:", "value": "x"} for n in range(5)))
    with (tmp_path / "fda.jsonl").open("a") as file:
        file.write("\n")
    assert [question.prompt for question in found.questions(2)] == ["0:", "1:"]
    assert len(found.questions(9)) == len(found.questions()) == 5
    with pytest.raises(ValueError, match="count: expected None or at least 1, got 0"):
        found.questions(0)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "a"}', "KeyError('value')"),
        ('{"text": "a", "value": " "}', "expected texts and answers that are not empty"),
        ('{"text": " ", "value": "a"}', "expected texts and answers that are not empty"),
        ('{"text": "a", "value": 3}', "AttributeError"),
        ("[]", "TypeError"),
        ("{", "JSONDecodeError"),
    ],
)
def test_a_bad_row_is_named_with_its_line(line, said, tmp_path):
    (tmp_path / "swde.jsonl").write_text(f'{{"text": "a", "value": "b"}}\n{line}\n')
    with pytest.raises(
        ValueError, match=r'swde\.jsonl, line 2: .*expected a folder with swde\.jsonl, of lines \{"text"'
    ) as error:
        RecallSet(name="swde", path=tmp_path).questions()
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"answers": "Paris"}, "answers: expected a list of texts, got 'Paris'"),
        ({"answers": []}, "expected texts and answers that are not empty"),
        ({"answers": [""]}, "expected texts and answers that are not empty"),
        ({"question": " "}, "expected texts and answers that are not empty"),
        ({"context": ""}, "expected texts and answers that are not empty"),
    ],
)
def test_a_bad_question_is_named(fields, said, tmp_path):
    row = {"context": "It rained.", "question": "It was", "answers": ["wet"], **fields}
    with pytest.raises(ValueError, match=r"nq\.jsonl, line 1: ") as error:
        write(tmp_path, "nq", row).questions()
    assert said in str(error.value)


@pytest.mark.parametrize("name", SETS)
def test_a_missing_set_says_what_it_holds_and_where_it_comes_from(name, tmp_path):
    said = rf'path: expected a folder with {name}\.jsonl, .*load_dataset\("hazyresearch/based'
    with pytest.raises(ValueError, match=f"{said}.*got None"):
        RecallSet(name=name).questions()
    with pytest.raises(ValueError, match=f"{said}.*no {tmp_path}"):
        RecallSet(name=name, path=tmp_path).questions()
    (tmp_path / f"{name}.jsonl").touch()
    with pytest.raises(ValueError, match=f"{said}.*no rows in {tmp_path}"):
        RecallSet(name=name, path=tmp_path).questions()


def test_an_unknown_set_is_named():
    with pytest.raises(ValueError, match="name: expected one of swde, fda, squad, nq, drop, tqa, got 'triviaqa'"):
        RecallSet(name="triviaqa").validate()
