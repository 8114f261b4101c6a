"""What is asked at the end of a run: where files are found, what a run may ask, and prompts that are too long."""

import json
import re

import jax.numpy as jnp
import pytest
from flax import linen as nn

from nested_jax.data.babilong import Babilong
from nested_jax.data.dependencies import Programs, VariableTracking
from nested_jax.data.hash_hop import HashHop
from nested_jax.data.niah import Needles, single_1, single_2
from nested_jax.data.recall_sets import RecallSet
from nested_jax.data.tokenizers import Bytes
from nested_jax.evals.generation import Generator
from nested_jax.evals.questions import QuestionsConfig, check, score, scorer
from nested_jax.evals.sampling import Sampling
from nested_jax.models import AttentionConfig, ModelConfig

SHORT = ModelConfig(blocks=("attention",), attention=AttentionConfig(max_length=100))


class Counts(nn.Module):
    """Writes the number of tokens it has read, as one letter: "A" for none."""

    config: ModelConfig

    def start(self, rows):
        return jnp.zeros(rows, jnp.int32)

    def __call__(self, tokens, state=None):
        state = state[:, None] + 1 + jnp.arange(tokens.shape[1])[None]
        return self._logits(state), state[:, -1]

    def step(self, tokens, state, learn=True):
        return self._logits(state + 1), state + 1

    def _logits(self, read):
        return nn.one_hot(ord("A") + read, 256)


def test_a_path_is_given_to_those_that_want_one():
    placed = RecallSet(name="fda", path="elsewhere")
    asked = {"a": RecallSet(name="fda"), "b": placed, "c": single_1(), "d": single_2(), "e": single_2(background="f")}
    found = QuestionsConfig(asked=tuple(asked.items()), path="here").sources
    paths = {name: source.background if isinstance(source, Needles) else source.path for name, source in found.items()}
    assert paths == {"a": "here", "b": "elsewhere", "c": None, "d": "here", "e": "f"}


def test_every_benchmark_has_its_scorer():
    sources = (Needles(), VariableTracking(), HashHop(), Babilong(), Programs(), RecallSet(name="nq"))
    names = ["string_match_all"] * 2 + ["hash_hop_match", "babilong_match", "exact_match", "contains_any"]
    assert [scorer(source).__name__ for source in sources] == names


def test_a_prompt_of_a_recall_set_loses_its_beginning_where_it_does_not_fit(tmp_path):
    """Of a context of 100 tokens 48 are left for the answer, so that a model reads at most 52."""
    rows = [{"text": "x" * length, "value": letter} for length, letter in ((30, "`"), (80, "u"), (80, "`"))]
    (tmp_path / "fda.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    generator = Generator(Counts(SHORT), {}, Sampling(0), chunk=4)
    asked = [("fda", RecallSet(name="fda", path=tmp_path))]
    assert score(generator, Bytes(), asked, 1) == [("fda", "", 100.0, 1)]
    assert score(generator, Bytes(), asked, None) == [("fda", "", pytest.approx(200 / 3), 3)]
    assert score(generator, Bytes(), asked, 2, by=("set",)) == [("fda", "", 100.0, 2), ("fda", "set fda", 100.0, 2)]


def test_what_is_missing_or_too_long_is_said_at_once(tmp_path):
    def said(source, **fields):
        with pytest.raises(ValueError, match=r"questions\.asked, name: ") as error:
            check(QuestionsConfig(asked=(("name", source),), **fields), Bytes(), SHORT)
        return str(error.value)

    assert "expected at most 100 tokens, the model's attention.max_length, got " in said(single_1(length=600))
    assert "background: expected the path of an essay haystack" in said(single_2(length=600))
    assert "no such file or folder: nowhere" in said(single_2(length=600), path="nowhere")
    assert "no nowhere/fda.jsonl" in said(RecallSet(name="fda"), path="nowhere")
    (tmp_path / "fda.jsonl").write_text(f"{json.dumps({'text': 'x' * 999, 'value': 'y'})}\n{{}}\n")
    assert "fda.jsonl, line 2: " in said(RecallSet(name="fda"), path=str(tmp_path))
    check(QuestionsConfig(asked=(("fda", RecallSet(name="fda")),), count=1, path=str(tmp_path)), Bytes(), SHORT)
    tight = ModelConfig(blocks=("attention",), attention=AttentionConfig(max_length=48))
    with pytest.raises(ValueError, match=r"expected at most 48 tokens, .*, got 49"):
        check(QuestionsConfig(asked=(("fda", RecallSet(name="fda")),), count=1, path=str(tmp_path)), Bytes(), tight)


@pytest.mark.parametrize("source", [single_1(length=600, answer_budget=60), Programs(depth=1, distractors=3)], ids=str)
def test_what_passes_the_check_can_be_asked(source):
    """The longest question and its answer, the space between them included, fill the context to the last token."""

    def sized(length):
        return ModelConfig(blocks=("attention",), attention=AttentionConfig(max_length=length))

    config, count = QuestionsConfig(asked=(("name", source),), count=30), 30
    with pytest.raises(ValueError, match=r"got \d+") as error:
        check(config, Bytes(), sized(1))
    needed = int(re.search(r"got (\d+)", str(error.value))[1])
    check(config, Bytes(), sized(needed))
    generator = Generator(Counts(sized(needed)), {}, Sampling(0), chunk=128)
    assert score(generator, Bytes(), config.asked, count) == [("name", "", 0.0, count)]


def test_names_and_numbers_are_checked():
    with pytest.raises(ValueError, match=r"asked: expected different names, none of .*; got \['a', 'a'\]"):
        QuestionsConfig(asked=(("a", single_1()), ("a", single_1()))).validate()
    with pytest.raises(ValueError, match=r"asked: expected different names, none of .*; got \['bits_per_byte'\]"):
        QuestionsConfig(asked=(("bits_per_byte", single_1()),)).validate()
    with pytest.raises(ValueError, match="count is a number of questions, at least 1; got 0"):
        QuestionsConfig(count=0).validate()
