"""Questions in words that a trained model is asked: which, how many, and what its written answers to them are worth."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from nested_jax.data.babilong import Babilong
from nested_jax.data.dependencies import VariableTracking
from nested_jax.data.hash_hop import HashHop
from nested_jax.data.niah import Needles
from nested_jax.data.question_task import Source, draw
from nested_jax.data.questions import Question
from nested_jax.data.recall_sets import ANSWER_TOKENS, RecallSet
from nested_jax.data.tokenizers import Bytes, Tokenizer
from nested_jax.evals.answers import (
    babilong_match,
    by_group,
    contains_any,
    exact_match,
    hash_hop_match,
    string_match_all,
)
from nested_jax.evals.generation import Generator
from nested_jax.evals.likelihood import context_limit
from nested_jax.evals.question_answering import Scorer, answer
from nested_jax.evals.zero_shot import table_columns

COUNT = 500  # RULER's
SEED = 42  # RULER's
MORE = 32  # tokens that may be written beyond the longest answer
CHUNK = 128  # tokens of a prompt in parallel: what is left of it is read one by one

Asked = Source | RecallSet


@dataclass(frozen=True, kw_only=True)
class QuestionsConfig:
    """What a model of text is asked when it is trained.

    Attributes:
      asked: name → benchmark, as pairs; the name is that of the metric, an accuracy in percent.
      count: questions of each, drawn from `SEED`; None for the benchmark's own number: all rows of a `RecallSet`, of
        any other 500.
      path: what lies on disk, where a benchmark wants that and says nothing itself: the text or folder of texts in
        which needles are hidden, the folder of the recall sets.
    """

    asked: tuple[tuple[str, Asked], ...] = ()
    count: int | None = None
    path: str | None = None

    def validate(self) -> None:
        """Raises a `ValueError` that names the first field out of range."""
        names = [name for name, _ in self.asked]
        taken = {"bits_per_byte", "questions/average", *table_columns()}
        if len(set(names)) < len(names) or taken & set(names):
            raise ValueError(f"asked: expected different names, none of {', '.join(sorted(taken))}; got {names}")
        if self.count is not None and self.count < 1:
            raise ValueError(f"count is a number of questions, at least 1; got {self.count}")

    @property
    def sources(self) -> dict[str, Asked]:
        """Name → benchmark, which knows where its files are."""
        return {name: _placed(source, self.path) for name, source in self.asked}


def _placed(source: Asked, path: str | None) -> Asked:
    if isinstance(source, RecallSet) and source.path is None:
        return replace(source, path=path)
    if isinstance(source, Needles) and source.haystack == "essay" and source.background is None:
        return replace(source, background=path)
    return source


class Score(NamedTuple):
    """The mean score of a benchmark, or of a group of its questions.

    Attributes:
      name: of the benchmark.
      group: the values that its questions have in common; "" for all.
      percent: the mean, from 0 to 100.
      count: questions.
    """

    name: str
    group: str
    percent: float
    count: int


def check(config: QuestionsConfig, tokenizer: Tokenizer, model: Any) -> None:
    """Looks for what is missing, so that it is said before a model is trained, not after.

    Args:
      config: what will be asked.
      tokenizer: of the model.
      model: its `ModelConfig`.

    Raises:
      ValueError: if a file is missing or has a bad row, there cannot be so many questions, or questions and answers are
        longer than the model's context.
    """
    limit = context_limit(model)
    for name, source in config.sources.items():
        try:
            needed = _needed(source, tokenizer, config.count)
            if limit is not None and needed > limit:
                raise ValueError(f"expected at most {limit} tokens, the model's attention.max_length, got {needed}")
        except ValueError as error:
            hint = "questions.path says where files are; questions.asked=() asks nothing"
            raise ValueError(f"questions.asked, {name}: {error}. ({hint})") from error


def _needed(source: Asked, tokenizer: Tokenizer, count: int | None) -> int:
    """The most tokens of a question and its answer."""
    if isinstance(source, Needles) and source.answer_budget:
        _draw(source, tokenizer, 1)  # none is longer than `length`, and to draw them all takes long
        return source.length
    questions = _draw(source, tokenizer, count)
    between = separator(tokenizer)
    room = _room(source, tokenizer, questions, between)
    if isinstance(source, RecallSet):
        return room + 1  # prompts are cut
    return max(len(tokenizer.encode(question.prompt + between)) for question in questions) + room


def separator(tokenizer: Tokenizer) -> str:
    """What stands between prompt and answer: a space where tokens are bytes; subword tokens hold their own."""
    return " " if isinstance(tokenizer, Bytes) else ""


def score(
    generator: Generator,
    tokenizer: Tokenizer,
    asked: Sequence[tuple[str, Asked]],
    count: int | None,
    by: Sequence[str] = (),
    between: str | None = None,
) -> list[Score]:
    """Lets a model answer questions greedily and scores what it writes.

    A model may write as many tokens as the benchmark leaves for the answer, a space before it included; where it does
    not say, those of the longest answer and `MORE` (our choice). Prompts of a `RecallSet` that do not fit into the
    context lose their beginning, as in lm-evaluation-harness; their answers end with the line.

    Args:
      generator: with a temperature of 0.
      tokenizer: of its model.
      asked: names and benchmarks.
      count: questions of each, at least 1, drawn from `SEED`, or the first rows of a `RecallSet`; None for all rows of
        a `RecallSet`, of any other benchmark for `COUNT`.
      by: names in the questions' `about` whose values make groups with means of their own.
      between: stands between prompt and answer, see `question_answering.answer`; None for that of `separator`.

    Returns:
      For each benchmark the score of all its questions, then those of its groups.

    Raises:
      ValueError: if there cannot be so many questions, they have no such values, or they do not fit into the context.
    """
    between = separator(tokenizer) if between is None else between
    found = []
    for name, source in asked:
        questions = _draw(source, tokenizer, count)
        groups = by_group([0.0] * len(questions), questions, *by)
        file = isinstance(source, RecallSet)
        answers = answer(
            generator,
            tokenizer,
            questions,
            scorer(source),
            _room(source, tokenizer, questions, between),
            stop=("\n",) if file else (),
            separator=between,
            cut=file,
        )
        found.append(_mean(name, "", [each.score for each in answers]))
        for group in sorted(groups, key=_order) if by else ():
            said = ", ".join(f"{field} {value}" for field, value in zip(by, group, strict=True))
            own = [one.score for one in answers if tuple(one.question.about[field] for field in by) == group]
            found.append(_mean(name, said, own))
    return found


def scorer(source: Asked) -> Scorer:
    """How the answers to a benchmark are scored.

    Example:
      >>> scorer(Needles()).__name__
      'string_match_all'
    """
    if isinstance(source, Needles | VariableTracking):
        return string_match_all
    if isinstance(source, HashHop):
        return hash_hop_match
    if isinstance(source, Babilong):
        return babilong_match
    return contains_any if isinstance(source, RecallSet) else exact_match


def _draw(source: Asked, tokenizer: Tokenizer, count: int | None) -> list[Question]:
    if isinstance(source, RecallSet):
        return source.questions(count)
    return draw(source, tokenizer, COUNT if count is None else count, SEED)


def _room(source: Asked, tokenizer: Tokenizer, questions: Sequence[Question], between: str) -> int:
    """The most tokens of an answer."""
    if isinstance(source, RecallSet):
        return ANSWER_TOKENS
    if isinstance(source, Needles | VariableTracking) and source.answer_budget:
        return max(source.answer_budget - len(tokenizer.encode(between)), 1)
    return max(len(tokenizer.encode(" ".join(question.answers))) for question in questions) + MORE


def _mean(name: str, group: str, scores: Sequence[float]) -> Score:
    return Score(name, group, 100 * math.fsum(scores) / len(scores), len(scores))


def _order(group: tuple[Any, ...]) -> list[tuple[bool, Any]]:
    """By values, None first."""
    return [(value is not None, value) for value in group]
