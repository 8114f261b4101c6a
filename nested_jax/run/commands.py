"""What the subcommands do once their options are parsed."""

import argparse
import codecs
import dataclasses
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from nested_jax.data import Bytes, TaskConfig, load_text
from nested_jax.evals import bits_per_byte as scoring
from nested_jax.evals.generation import Context, Generator, Piece
from nested_jax.models import parameter_count
from nested_jax.run.describe import describe_model, description
from nested_jax.run.nesting import draw
from nested_jax.run.text_table import text_table
from nested_jax.train.experiment import Experiment
from nested_jax.train.loop import Run
from nested_jax.train.problems import open_problem
from nested_jax.train.report import excerpt
from nested_jax.train.report import table as report_table

SPAN = 100_000
PIECE = 8  # bytes written at a time: a call of the compiled step costs as much as a few of them


def train(experiment: Experiment, workdir: pathlib.Path, options: argparse.Namespace) -> None:
    """Starts a run or goes on with one."""
    del options
    Run(experiment, workdir).train()


def describe(experiment: Experiment, workdir: pathlib.Path, options: argparse.Namespace) -> None:
    """Prints what a model is made of, and draws it."""
    del workdir
    print(describe_model(experiment))
    if options.picture is not None:
        title = f"{options.config}: what changes how often"
        draw(description(experiment).components, title, experiment.data.sequence_length, options.picture)
        print(f"picture: {options.picture}")


def _lengths(text: str | None, trained: int, available: int) -> list[int]:
    if text is None:
        quarter = [trained // 4] if trained % 4 == 0 else []
        return [length for length in (*quarter, trained, 4 * trained, 16 * trained) if length < available]
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--contexts takes whole numbers separated by commas; got {text!r}") from None


def evaluate(experiment: Experiment, workdir: pathlib.Path, options: argparse.Namespace) -> None:
    """Prints bits per byte by context length, or along one long stream; of a task, its scores."""
    run = Run(experiment, workdir)
    step, params = run.restore_params()
    if isinstance(experiment.data, TaskConfig):
        problem = open_problem(experiment, run.model)
        print(f"{run.checkpoints.path(step)}: step {step} of {experiment.steps}\n{problem.description}")
        return print(f"\n{report_table(problem.report(params, parameter_count(params)))}")
    text = load_text(experiment.data)
    if not isinstance(text.tokenizer, Bytes):
        raise ValueError(f"eval reads text as bytes; data.tokenizer is {text.tokenizer.name}: see the end of a run")
    print(f"{run.checkpoints.path(step)}: step {step} of {experiment.steps}\n{text.description}")
    if options.stream is not None:
        return _stream(run, params, text.train, text.validation, options)
    scored = excerpt(text.validation, options.bytes)
    lengths = _lengths(options.contexts, experiment.data.sequence_length, len(scored))
    found = scoring.bits_per_byte(run.model, params, scored, lengths)
    rows = [
        [f"{length:,}", f"{bits:.4f}", "trained on" if length == experiment.data.sequence_length else ""]
        for length, bits in found.items()
    ]
    print(f"\n{(len(scored) - 1) // max(lengths) * max(lengths):,} validation bytes, the same for every context length")
    print(text_table(["context", "bits/byte", ""], rows))


def _stream(run: Run, params: Any, train: np.ndarray, validation: np.ndarray, options: argparse.Namespace) -> None:
    wanted = options.stream
    if wanted < 1:
        raise ValueError(f"--stream is a number of bytes, at least 1; got {wanted}")
    tokens = np.concatenate([validation, train])[: wanted + 1]
    if len(tokens) < wanted + 1:
        raise ValueError(f"--stream={wanted} asks for more than the {len(tokens) - 1:,} bytes of the text")
    if wanted + 1 > len(validation):
        print(f"the context is the {len(validation):,} validation bytes, then training bytes (marked *)")
    spans = []
    headings = ["bytes read", "bits/byte", "µs/token", "resident MB"]
    widths = (14, 10, 9, 12)
    print("  ".join(f"{heading:>{width}}" for heading, width in zip(headings, widths, strict=True)))
    for span in scoring.stream(run.model, params, tokens, chunk=options.chunk, span=SPAN):
        spans.append(span)
        mark = "*" if span.end + 1 > len(validation) else " "
        cells = [f"{span.end:,}", f"{span.bits_per_byte:.4f}{mark}"]
        cells += [f"{span.seconds_per_token * 1e6:.2f}", f"{span.memory / 1e6:.0f}"]
        print("  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))
    first, last = spans[0], spans[-1]
    if last.tokens < first.tokens and len(spans) > 2:
        last = spans[-2]
    state = jax.eval_shape(lambda: run.model.apply({"params": params}, 1, method="start"))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    print(
        f"\ntime per token, last {last.tokens:,} over first {first.tokens:,}: "
        f"{last.seconds_per_token / first.seconds_per_token:.3f}\n"
        f"resident memory, end minus first stretch: {(spans[-1].memory - first.memory) / 1e6:+.1f} MB\n"
        f"state carried from chunk to chunk: {size:,} bytes, {size / spans[-1].end:.3f} per token of context"
    )


def generate(experiment: Experiment, workdir: pathlib.Path, options: argparse.Namespace) -> None:
    """Prints prompts and what a trained model writes after them: one text as it is made, several when they are done."""
    if isinstance(experiment.data, TaskConfig) or experiment.data.tokenizer is not None:
        raise ValueError("generate continues bytes; this experiment learns a task, or tokens of a tokenizer")
    sample = experiment.sample
    length = sample.length if options.length is None else options.length
    given = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p")}
    chosen = {name: value for name, value in given.items() if value is not None}
    sampling = dataclasses.replace(sample.sampling, **chosen)
    if options.state_out is not None and not pathlib.Path(options.state_out).absolute().parent.is_dir():
        raise ValueError(f"--state-out={options.state_out}: no such folder")
    prompts = [text.encode() for text in options.prompt or []]
    if options.prompt_file is not None:
        prompts = [pathlib.Path(options.prompt_file).read_bytes()]
    run = Run(experiment, workdir)
    _, params = run.restore_params()
    generator = Generator(run.model, params, sampling, learn=not options.no_learn, alphabet=256)
    context = None if options.state_in is None else generator.load(options.state_in)
    if not prompts:
        prompts = [sample.prompt.encode()] if context is None else [b""] * len(context.logits)
    key, stop = jax.random.key(options.seed), options.stop.encode()
    pieces = generator.stream(prompts, length, context=context, key=key, stop=stop, every=PIECE)
    context = _print_text(prompts[0], pieces) if len(prompts) == 1 else _print_texts(prompts, pieces)
    if options.state_out is not None and context is not None:
        generator.save(options.state_out, context)


def _print_text(prompt: bytes, pieces: Iterable[Piece]) -> Context | None:
    """Prints one text while it is written; returns the context after it."""
    decoder, context = codecs.getincrementaldecoder("utf-8")("replace"), None
    print(decoder.decode(prompt), end="", flush=True)
    for piece in pieces:
        print(decoder.decode(bytes(piece.tokens[0])), end="", flush=True)
        context = piece.context
    print(decoder.decode(b"", final=True))
    return context


def _print_texts(prompts: Sequence[bytes], pieces: Iterable[Piece]) -> Context | None:
    """Prints several texts under headings once they are written; returns the context after them."""
    texts, context = [bytearray(prompt) for prompt in prompts], None
    for piece in pieces:
        for text, tokens in zip(texts, piece.tokens, strict=True):
            text += bytes(tokens)
        context = piece.context
    for number, text in enumerate(texts, 1):
        print(f"== {number} of {len(texts)} ==\n{text.decode('utf-8', 'replace')}")
    return context
