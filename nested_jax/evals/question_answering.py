"""Answers to questions in words, written greedily and scored; `answers` holds the scorers and means by group."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from nested_jax.data.questions import Question
from nested_jax.data.tokenizers import Tokenizer
from nested_jax.evals.generation import Generator
from nested_jax.evals.likelihood import context_limit

Scorer = Callable[[str, Question], float]


class Answer(NamedTuple):
    """What a model wrote, and what it is worth.

    Attributes:
      question: what was asked.
      output: the text written, without the stop.
      score: the scorer's, of the output and the question.
    """

    question: Question
    output: str
    score: float


def write(
    generator: Generator,
    tokenizer: Tokenizer,
    prompts: Sequence[np.ndarray],
    length: int,
    *,
    stop: Sequence[str] = (),
    batch_size: int = 16,
    every: int = 16,
) -> list[str]:
    """Continues prompts greedily, prompts of similar lengths side by side.

    A generator reads whole chunks of a prompt in parallel and what is left token by token: one with a small `chunk`
    reads short prompts faster. The last batch is filled up, so that one program does.

    Args:
      generator: with a temperature of 0.
      tokenizer: of prompts and outputs.
      prompts: tokens [N], N ≥ 1 each.
      length: the most tokens to write, at least 1.
      stop: texts that end an output, none of them empty; the tokenizer's `end` ends it too. Where they are looked for
        is the text, so that a stop may begin inside a token.
      batch_size: prompts at once.
      every: tokens between two looks for the stops.

    Returns:
      For each prompt what follows it, up to the first stop or, where there is none, of `length` tokens.

    Raises:
      ValueError: if the generator draws at random or tokens the tokenizer does not know, a prompt or stop is empty, a
        number is out of range, or prompt and output do not fit into the model's context.
    """
    _check(generator, tokenizer, stop, length=length, batch_size=batch_size, every=every)
    limit = context_limit(generator.model.config)
    for number, row in enumerate(prompts):
        if not 1 <= len(row) <= (math.inf if limit is None else limit - length):
            room = "any number of" if limit is None else limit - length
            raise ValueError(
                f"prompts[{number}]: expected 1 to {room} tokens before {length} written ones, got {len(row)}"
            )
    outputs = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        filled = batch + batch[-1:] * (min(batch_size, len(order)) - len(batch))
        written = _write(generator, tokenizer, [prompts[number] for number in filled], length, stop, every)
        for number, text in zip(batch, written, strict=False):
            outputs[number] = text
    return outputs


def answer(
    generator: Generator,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    scorer: Scorer,
    length: int,
    *,
    stop: Sequence[str] = (),
    separator: str = " ",
    cut: bool = False,
    batch_size: int = 16,
    every: int = 16,
) -> list[Answer]:
    """Lets a model answer questions, greedily, and scores what it writes.

    Args:
      generator: with a temperature of 0.
      tokenizer: of prompts and outputs.
      questions: any number.
      scorer: of an output and its question, e.g. `nested_jax.evals.answers.string_match_all`.
      length: the most tokens to write, at least 1; a benchmark's definition says how many.
      stop: texts that end an output, see `write`.
      separator: stands between prompt and answer. A space is what `as_examples` trains with; "" where the answer's
        first token holds its space, as those of subword tokenizers do.
      cut: prompts that do not fit into the model's context lose their beginning; else they are refused.
      batch_size: questions at once.
      every: see `write`.

    Returns:
      An answer for each question, in their order.

    Raises:
      ValueError: see `write`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from nested_jax.data.tokenizers import Bytes
      >>> from nested_jax.evals.answers import by_group
      >>> from nested_jax.evals.sampling import Sampling
      >>> from nested_jax.models import LanguageModel, ModelConfig
      >>> model = LanguageModel(ModelConfig(dim=8, layers=1, blocks=("lstm",)))
      >>> params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
      >>> generator = Generator(model, params, Sampling(temperature=0), alphabet=128)
      >>> questions = [Question("2 + 2 =", ("4",), {"terms": 2}), Question("3 =", ("3",), {"terms": 1})]
      >>> found = answer(generator, Bytes(), questions, lambda output, question: len(output) == 3, 3)
      >>> by_group([each.score for each in found], questions, "terms")
      {(2,): 1.0, (1,): 1.0}
    """
    prompts = [tokenizer.encode(question.prompt + separator) for question in questions]
    limit = context_limit(generator.model.config)
    if cut and limit is not None:
        prompts = [prompt[-max(limit - length, 1) :] for prompt in prompts]
    outputs = write(generator, tokenizer, prompts, length, stop=stop, batch_size=batch_size, every=every)
    return [
        Answer(question, output, float(scorer(output, question)))
        for question, output in zip(questions, outputs, strict=True)
    ]


def _check(generator: Generator, tokenizer: Tokenizer, stop: Sequence[str], **numbers: int) -> None:
    if generator.sampling.temperature != 0:
        raise ValueError(f"generator: expected a temperature of 0, got {generator.sampling.temperature}")
    if generator.alphabet > tokenizer.vocab_size:
        raise ValueError(
            f"generator: expected an alphabet of at most {tokenizer.vocab_size}, the tokens of {tokenizer.name}, "
            f"got {generator.alphabet}"
        )
    if isinstance(stop, str) or "" in stop:
        raise ValueError(f"stop: expected a list of texts that are not empty, got {stop!r}")
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")


def _write(
    generator: Generator,
    tokenizer: Tokenizer,
    prompts: list[np.ndarray],
    length: int,
    stop: Sequence[str],
    every: int,
) -> list[str]:
    """One batch, until all its rows have stopped."""
    end = [] if tokenizer.end is None else [tokenizer.end]
    rows: list[list[int]] = [[] for _ in prompts]
    outputs = [""] * len(prompts)
    going = set(range(len(prompts)))
    for piece in generator.stream([prompt.tolist() for prompt in prompts], length, stop=end, every=every):
        for number in list(going):
            rows[number] += piece.tokens[number]
            ended = bool(end) and end[0] in rows[number]
            text = tokenizer.decode(np.array(rows[number][: -1 if ended else None], np.int32))
            places = [place for place in (text.find(each) for each in stop) if place >= 0]
            outputs[number] = text[: min(places, default=len(text))]
            if ended or places:
                going.remove(number)
        if not going:
            break
    return outputs
