"""Scorers of answers in words, from 0 to 1, and their means by group.

A scorer takes what a model wrote and the question it wrote it to; `chrf`, for translations, takes whole texts.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from nested_jax.data.babi import LABELS
from nested_jax.data.questions import Question


def string_match_all(output: str, question: Question) -> float:
    """Fraction of the answers that occur in the output, upper and lower case being the same (RULER).

    Args:
      output: what a model wrote.
      question: with at least one answer.

    Example:
      >>> string_match_all("They are 12 and Ab.", Question("", ("12", "aB", "77", "3"), {}))
      0.5
    """
    text = output.lower()
    return sum(answer.lower() in text for answer in question.answers) / len(question.answers)


def contains_any(output: str, question: Question) -> float:
    """1 if one of the answers occurs in the output, upper and lower case being the same (Arora et al. 2024).

    Args:
      output: what a model wrote.
      question: with at least one answer.

    Example:
      >>> contains_any(" about 543,940 KM2", Question("", ("543,940 km2", "210,016 sq mi"), {}))
      1.0
    """
    text = output.lower()
    return float(any(answer.lower() in text for answer in question.answers))


def exact_match(output: str, question: Question) -> float:
    """1 if the first line of the output that is not empty is the answers, with a space between them.

    Args:
      output: what a model wrote; spaces around a line do not count.
      question: with at least one answer.

    Example:
      >>> exact_match(" 7\\nv3 = 4", Question("", ("7",), {})), exact_match("71", Question("", ("7",), {}))
      (1.0, 0.0)
    """
    return float(_first_line(output) == " ".join(question.answers))


def hash_hop_match(output: str, question: Question) -> float:
    """1 if the first line of the output that is not empty is the answer, quotation marks or not.

    With a chain of thought the whole chain has to be right.

    Args:
      output: what a model wrote behind `name =`.
      question: of `data.hash_hop`.

    Example:
      >>> question = Question("abc =", ("'xyz'",), {})
      >>> hash_hop_match(" 'xyz'\\n", question), hash_hop_match("xyz", question), hash_hop_match("'xyZ'", question)
      (1.0, 1.0, 0.0)
    """
    return float(_first_line(output).strip("'\" ") == question.answers[0].strip("'\" "))


def babilong_match(output: str, question: Question, *, cut_at_question: bool = True) -> float:
    """1 if the answer is the only label of the task in the output, labels in the question left out (BABILong).

    Of the lower-cased output only what is before the first `.`, `<context>`, `<example>` and `question` is read. A
    label is found anywhere, also within a word.

    Args:
      output: what a model wrote.
      question: of `data.babilong`; its text is behind the last "Question:" of the prompt, its task in `about`.
      cut_at_question: False scores as the public code runs: it looks for a capital Q in the lower-cased text, so that
        this cut never happens.

    Raises:
      ValueError: if `about` names no task of bAbI.

    Example:
      >>> question = Question("Question: Where is Mary?", ("garden",), {"task": "qa1"})
      >>> babilong_match("Mary is in the Garden. Or the office.", question)
      1.0
      >>> babilong_match("the garden or the office", question)
      0.0
    """
    task = question.about.get("task")
    if task not in LABELS:
        raise ValueError(f"question: expected a task in its about, one of {', '.join(LABELS)}, got {task!r}")
    text = output.lower()
    for mark in (".", "<context>", "<example>", *(["question"] if cut_at_question else [])):
        text = text.split(mark)[0]
    asked = question.prompt.rpartition("Question:")[2].lower()
    labels = {label.lower() for label in LABELS[task]}
    named = {label for label in labels if label in text and label not in asked}
    return float(named == {question.answers[0].lower()})


def chrf(outputs: Sequence[str], references: Sequence[str], *, order: int = 6, beta: float = 2.0) -> float:
    """Character n-gram F-score of texts against one reference each, in percent: chrF2, as sacreBLEU defines it.

    For n in 1..order, with white space removed, counts of all texts are added up: matches, n-grams of the outputs (not
    of one whose reference has none), of the references. Precision and recall are means over those n for which both
    sides have n-grams, and

        F = (1 + beta²) · precision · recall / (beta² · precision + recall).

    Args:
      outputs: texts; one alone gives the score of a sentence.
      references: as many.
      order: longest n-gram in characters.
      beta: weight of recall against precision.

    Raises:
      ValueError: if there are none or the numbers differ.

    Example:
      >>> round(chrf(["abc"], ["abd"]), 2)
      38.89

    References:
      Popović 2015, chrF: character n-gram F-score for automatic MT evaluation.
    """
    if not outputs or len(outputs) != len(references):
        raise ValueError(f"outputs: expected as many as references, at least 1, got {len(outputs)}, {len(references)}")
    pairs = [("".join(one.split()), "".join(other.split())) for one, other in zip(outputs, references, strict=True)]
    precisions, recalls = [], []
    for n in range(1, order + 1):
        counts = [(_ngrams(one, n), _ngrams(other, n)) for one, other in pairs]
        matches = sum((ours & theirs).total() for ours, theirs in counts)
        ours = sum(ours.total() for ours, theirs in counts if theirs)
        theirs = sum(theirs.total() for _, theirs in counts)
        if ours and theirs:
            precisions.append(matches / ours)
            recalls.append(matches / theirs)
    precision, recall = (sum(values) / len(values) if values else 0.0 for values in (precisions, recalls))
    if precision + recall == 0:
        return 0.0
    return 100 * (1 + beta**2) * precision * recall / (beta**2 * precision + recall)


def by_group(scores: Sequence[float], questions: Sequence[Question], *fields: str) -> dict[tuple[Any, ...], float]:
    """Mean score of each group of questions.

    Args:
      scores: one per question.
      questions: as many.
      fields: names in `about` whose values make the groups; none for one group of all.

    Returns:
      Values of the fields → mean, in the order in which groups first appear.

    Raises:
      ValueError: if the numbers differ or a question lacks a field.

    Example:
      >>> questions = [Question("", ("a",), {"depth": depth}) for depth in (1, 2, 1)]
      >>> by_group([1.0, 0.0, 0.0], questions, "depth")
      {(1,): 0.5, (2,): 0.0}
    """
    if len(scores) != len(questions):
        raise ValueError(f"scores: expected one for each of {len(questions)} questions, got {len(scores)}")
    groups: dict[tuple[Any, ...], list[float]] = {}
    for score, question in zip(scores, questions, strict=True):
        missing = [field for field in fields if field not in question.about]
        if missing:
            raise ValueError(f"fields: expected some of {', '.join(question.about)}, got {', '.join(missing)}")
        groups.setdefault(tuple(question.about[field] for field in fields), []).append(score)
    return {group: sum(found) / len(found) for group, found in groups.items()}


def _first_line(output: str) -> str:
    return next((line.strip() for line in output.splitlines() if line.strip()), "")


def _ngrams(text: str, n: int) -> Counter[str]:
    return Counter(text[i : i + n] for i in range(len(text) - n + 1))
