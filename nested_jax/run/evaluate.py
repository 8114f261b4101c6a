"""`eval`: a trained model on its task or text, on one long stream, on local benchmarks and on questions in words."""

import argparse
import pathlib
from typing import Any

import jax
import numpy as np

from nested_jax.data import Bytes, TaskConfig, Text, TextConfig, Tokenizer
from nested_jax.data.question_task import QuestionTask
from nested_jax.evals import bits_per_byte as scoring
from nested_jax.evals.generation import Generator
from nested_jax.evals.likelihood import Likelihood
from nested_jax.evals.questions import CHUNK, Asked, score
from nested_jax.evals.sampling import Sampling
from nested_jax.evals.zero_shot import TEMPLATES, columns, zero_shot
from nested_jax.models import parameter_count
from nested_jax.run.questions import parse
from nested_jax.run.text_table import text_table
from nested_jax.train.experiment import Experiment
from nested_jax.train.loop import Run
from nested_jax.train.problems import open_problem
from nested_jax.train.report import excerpt
from nested_jax.train.report import table as report_table

SPAN = 100_000
FEW = 100
_NEEDS = {"limit": "zero_shot", "tasks": "zero_shot", "count": "questions", "by": "questions"}


def evaluate(experiment: Experiment, workdir: pathlib.Path, options: argparse.Namespace) -> None:
    """Prints scores of a run's newest parameters.

    With `--zero-shot` those of local benchmarks, with `--questions` those of what it answers; else, of a task, the
    scores on its tests, and of a text bits per byte by context length, or along one long stream.

    Raises:
      ValueError: for options that do not fit each other or the experiment, missing data, or a run without a checkpoint.
    """
    if options.count is not None and options.count < 1:
        raise ValueError(f"--count is a number of questions, at least 1; got {options.count}")
    for name, needed in _NEEDS.items():
        if getattr(options, name) is not None and getattr(options, needed) is None:
            raise ValueError(f"--{name} belongs to --{needed.replace('_', '-')}")
    if options.zero_shot is not None and not isinstance(experiment.data, TextConfig):
        raise ValueError(f"--zero-shot takes a model of text; this one learns {_learned(experiment)}")
    asked = [(text, parse(text)) for text in options.questions or ()]
    run = Run(experiment, workdir)
    if asked or options.zero_shot is not None:
        tokenizer = tokenizer_of(experiment)
        params = _restore(run)
        return _questions(run, params, tokenizer, asked, options) if asked else _zero_shot(run, params, options)
    if not isinstance(experiment.data, TextConfig):
        params = _restore(run)
        problem = open_problem(experiment, run.model)
        print(problem.description)
        return print(f"\n{report_table(problem.report(params, parameter_count(params)))}")
    return _text(run, experiment.data, _restore(run), options)


def tokenizer_of(experiment: Experiment) -> Tokenizer:
    """The tokenizer of an experiment's text, or of the questions it learns.

    Raises:
      ValueError: if it learns another task, or the tokenizer cannot be read.
    """
    data = experiment.data
    if isinstance(data, TextConfig):
        return data.encoder()
    if isinstance(data, TaskConfig) and isinstance(data.task, QuestionTask):
        return data.task.encoder
    raise ValueError(f"--questions takes a model of text or of questions in words, it learns {_learned(experiment)}")


def _learned(experiment: Experiment) -> str:
    data = experiment.data
    return type(data.task if isinstance(data, TaskConfig) else data).__name__


def _restore(run: Run) -> Any:
    step, params = run.restore_params()
    print(f"{run.checkpoints.path(step)}: step {step} of {run.experiment.steps}")
    return params


def _zero_shot(run: Run, params: Any, options: argparse.Namespace) -> None:
    likelihood = Likelihood(run.model, params, tokenizer_of(run.experiment))
    scores = zero_shot(likelihood, options.zero_shot, options.tasks or None, options.limit)
    found = columns(scores)
    counts = {
        heading: scores[task]["count"] for task in scores for heading in TEMPLATES[task].columns if heading in found
    }
    rows = [[name, f"{value:.2f}", f"{counts[name]:,}" if name in counts else ""] for name, value in found.items()]
    print(f"\nzero-shot, accuracies in %\n{text_table(['benchmark', 'score', 'rows'], rows)}")


def _questions(
    run: Run, params: Any, tokenizer: Tokenizer, asked: list[tuple[str, Asked]], options: argparse.Namespace
) -> None:
    generator = Generator(run.model, params, Sampling(0), alphabet=tokenizer.vocab_size, chunk=CHUNK)
    trained = " " if isinstance(run.experiment.data, TaskConfig) else None
    count = FEW if options.count is None else options.count
    found = score(generator, tokenizer, asked, count, options.by or (), trained)
    rows = [[name, group, f"{percent:.2f}", f"{size:,}"] for name, group, percent, size in found]
    print(f"\nanswers written greedily, scores in %\n{text_table(['questions', 'group', 'score', 'number'], rows)}")


def _text(run: Run, data: TextConfig, params: Any, options: argparse.Namespace) -> None:
    text = data.read()
    print(text.description)
    if data.packed:
        print("documents are joined here: contexts go across them")
    if options.stream is not None:
        return _stream(run, params, text, options)
    unit = unit_of(text.tokenizer)
    wanted = None if options.bytes is None else max(round(options.bytes / text.bytes_per_token), 1)
    scored = excerpt(text.validation, wanted)
    lengths = _lengths(options.contexts, data.sequence_length, len(scored))
    found = scoring.bits_per_byte(run.model, params, scored, lengths)
    rows = [
        [f"{length:,}", f"{bits / text.bytes_per_token:.4f}", "trained on" if length == data.sequence_length else ""]
        for length, bits in found.items()
    ]
    used = (len(scored) - 1) // max(lengths) * max(lengths)
    print(f"\n{used:,} validation {unit}, the same for every context length")
    print(text_table(["context", "bits/byte", ""], rows))


def unit_of(tokenizer: Tokenizer) -> str:
    """What a model reads, in words.

    Example:
      >>> unit_of(Bytes())
      'bytes'
    """
    return "bytes" if isinstance(tokenizer, Bytes) else "tokens"


def _lengths(text: str | None, trained: int, available: int) -> list[int]:
    if text is None:
        quarter = [trained // 4] if trained % 4 == 0 else []
        return [length for length in (*quarter, trained, 4 * trained, 16 * trained) if length < available]
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--contexts takes whole numbers separated by commas; got {text!r}") from None


def _stream(run: Run, params: Any, text: Text, options: argparse.Namespace) -> None:
    wanted, validation, unit = options.stream, text.validation, unit_of(text.tokenizer)
    if wanted < 1:
        raise ValueError(f"--stream is a number of {unit}, at least 1; got {wanted}")
    tokens = np.concatenate([validation[: wanted + 1], text.train[: max(wanted + 1 - len(validation), 0)]])
    if len(tokens) < wanted + 1:
        raise ValueError(f"--stream={wanted} asks for more than the {len(tokens) - 1:,} {unit} of the text")
    if wanted + 1 > len(validation):
        print(f"the context is the {len(validation):,} validation {unit}, then training {unit} (marked *)")
    spans = []
    headings = [f"{unit} read", "bits/byte", "µs/token", "resident MB"]
    widths = (14, 10, 9, 12)
    print("  ".join(f"{heading:>{width}}" for heading, width in zip(headings, widths, strict=True)))
    for span in scoring.stream(run.model, params, tokens, chunk=options.chunk, span=SPAN):
        spans.append(span)
        mark = "*" if span.end + 1 > len(validation) else " "
        cells = [f"{span.end:,}", f"{span.bits_per_byte / text.bytes_per_token:.4f}{mark}"]
        cells += [f"{span.seconds_per_token * 1e6:.2f}", f"{span.memory / 1e6:.0f}"]
        print("  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))
    first, last = spans[0], spans[-1]
    if last.tokens < first.tokens and len(spans) > 2:
        last = spans[-2]
    state = jax.eval_shape(lambda: run.model.apply({"params": params}, 1, method="start"))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    if spans[-1].end < wanted:
        print(f"{spans[-1].end:,} of {wanted:,} {unit} were read: whole chunks")
    ratio = last.seconds_per_token / first.seconds_per_token
    print()
    if len(spans) > 1:
        print(f"time per token, last {last.tokens:,} over first {first.tokens:,}: {ratio:.3f}")
    print(
        f"resident memory, end minus first stretch: {(spans[-1].memory - first.memory) / 1e6:+.1f} MB\n"
        f"state carried from chunk to chunk: {size:,} bytes, {size / spans[-1].end:.3f} per token of context"
    )
