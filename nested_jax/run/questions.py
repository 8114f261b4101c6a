"""Questions in words by name, as `eval --questions` takes them, and what a model's answers to them are worth."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from nested_jax import config as configs
from nested_jax.data import niah
from nested_jax.data.babi import LABELS
from nested_jax.data.babilong import Babilong
from nested_jax.data.code_dependencies import CodeDependencies
from nested_jax.data.dependencies import Programs, VariableTracking
from nested_jax.data.hash_hop import HashHop
from nested_jax.data.niah import Needles
from nested_jax.data.question_task import Source, draw
from nested_jax.data.tokenizers import Bytes, Tokenizer
from nested_jax.evals.answers import babilong_match, by_group, exact_match, hash_hop_match, string_match_all
from nested_jax.evals.generation import Generator
from nested_jax.evals.question_answering import Scorer, answer

SEED = 42  # RULER's
MORE = 32  # tokens that may be written beyond the longest answer

_NEEDLES = ("single_1", "single_2", "single_3", "multi_key_1", "multi_key_2", "multi_key_3", "multi_value")
_KINDS: Mapping[str, tuple[Callable[[], Source], Scorer]] = {
    **{f"niah:{name}": (getattr(niah, name), string_match_all) for name in (*_NEEDLES, "multi_query")},
    "variable_tracking": (VariableTracking, string_match_all),
    "hash_hop": (HashHop, hash_hop_match),
    "programs": (Programs, exact_match),
    "code": (CodeDependencies, exact_match),
    **{f"babilong:{task}": (functools.partial(Babilong, task=task), babilong_match) for task in LABELS},
}


class Asked(NamedTuple):
    """What is asked, and how answers to it are scored.

    Attributes:
      name: for people.
      source: of the questions.
      scorer: of an output and its question.
    """

    name: str
    source: Source
    scorer: Scorer


def parse(text: str) -> Asked:
    """Reads `NAME[,FIELD=VALUE...]`: a benchmark, and settings of it that differ from its own.

    Raises:
      ValueError: for an unknown benchmark or field, or a value that does not fit.

    Example:
      >>> parse("niah:single_1,length=512,depth=50").source.length
      512
      >>> parse("code,depths=(0,1)").source.depths
      (0, 1)
    """
    name, *settings = re.split(r",(?=\s*\w+\s*=)", text)
    if name not in _KINDS:
        raise ValueError(f"--questions takes one of {', '.join(_KINDS)}, then its settings; got {text!r}")
    make, scorer = _KINDS[name]
    fields = {field.strip(): value for field, _, value in (setting.partition("=") for setting in settings)}
    try:
        source = configs.override(make(), fields)
        configs.validate(source)
    except ValueError as error:
        raise ValueError(f"--questions={text}: {error}") from error
    return Asked(text, source, scorer)


def score(
    generator: Generator,
    tokenizer: Tokenizer,
    asked: Sequence[Asked],
    count: int,
    by: Sequence[str] = (),
    separator: str | None = None,
) -> list[tuple[str, str, float, int]]:
    """Lets a model answer questions greedily and scores what it writes.

    A model may write as many tokens as the benchmark leaves for the answer; where it does not say, those of the longest
    answer and `MORE` (our choice).

    Args:
      generator: with a temperature of 0.
      tokenizer: of its model.
      asked: benchmarks.
      count: questions of each, at least 1, drawn from `SEED`.
      by: names in the questions' `about` whose values make groups with means of their own.
      separator: between prompt and answer, see `question_answering.answer`; None for a space where tokens are bytes,
        else for none.

    Returns:
      Rows of a name, the values of a group ("" for all), the mean score in percent and the number of questions.

    Raises:
      ValueError: if there cannot be so many questions, they have no such values, or they do not fit into the context.
    """
    if count < 1:
        raise ValueError(f"--count is a number of questions, at least 1; got {count}")
    if separator is None:
        separator = " " if isinstance(tokenizer, Bytes) else ""
    rows = []
    for name, source, scorer in asked:
        questions = draw(source, tokenizer, count, SEED)
        groups = by_group([0.0] * count, questions, *by)
        longest = max(len(tokenizer.encode(" ".join(question.answers))) for question in questions)
        left = isinstance(source, Needles | VariableTracking) and source.answer_budget
        answers = answer(generator, tokenizer, questions, scorer, left or longest + MORE, separator=separator)
        scores = [each.score for each in answers]
        rows.append((name, "", 100 * sum(scores) / count, count))
        for group in sorted(groups, key=_order) if by else ():
            said = ", ".join(f"{field} {value}" for field, value in zip(by, group, strict=True))
            own = [
                one
                for one, question in zip(scores, questions, strict=True)
                if tuple(question.about[field] for field in by) == group
            ]
            rows.append((name, said, 100 * sum(own) / len(own), len(own)))
    return rows


def _order(group: tuple[Any, ...]) -> list[tuple[bool, Any]]:
    """By values, None first."""
    return [(value is not None, value) for value in group]
