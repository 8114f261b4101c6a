"""Questions in words: a prompt, the answers that count, and what the question is about; as text, or as examples."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nested_jax.data.examples import Examples, examples
from nested_jax.data.tokenizers import Tokenizer


class Question(NamedTuple):
    """One question of a benchmark in words.

    Attributes:
      prompt: everything the model reads before it answers.
      answers: what the answer should hold; a benchmark's scorer says whether all or one of them.
      about: what scores are grouped by, e.g. ``{"depth": 2, "length": 1024}``.
    """

    prompt: str
    answers: tuple[str, ...]
    about: Mapping[str, Any]


def as_examples(questions: Sequence[Question], tokenizer: Tokenizer, length: int, separator: str = " ") -> Examples:
    """Questions as sequences to train on: the prompt, then the answers, of which every token is trained and scored.

    Args:
      questions: each with at least one answer that is not empty.
      tokenizer: of both.
      length: tokens per sequence, less one: inputs and targets are shifted by one. The rest of a short one is zeros.
      separator: stands between prompt and answer and between answers; the one after the prompt is not scored.

    Returns:
      Examples [len(questions), length].

    Raises:
      ValueError: if a question does not fit.

    Example:
      >>> from nested_jax.data.tokenizers import Bytes
      >>> found = as_examples([Question("2 + 2 =", ("4",), {})], Bytes(), 10)
      >>> bytes(found.targets[found.scored].astype("uint8"))
      b'4'
    """
    tokens = np.zeros((len(questions), length + 1), np.int32)
    scored = np.zeros((len(questions), length), bool)
    for row, question in enumerate(questions):
        prompt = tokenizer.encode(question.prompt + separator)
        whole = np.concatenate([prompt, tokenizer.encode(separator.join(question.answers))])
        if len(whole) > length + 1:
            raise ValueError(f"length: expected at least {len(whole) - 1} for question {row}, got {length}")
        tokens[row, : len(whole)] = whole
        scored[row, len(prompt) - 1 : len(whole) - 1] = True
    return examples(tokens[:, :-1], tokens[:, 1:], scored)
