"""What the subcommands do once their options are parsed."""

import argparse
import dataclasses
import pathlib
from collections.abc import Iterable, Sequence

import jax
import numpy as np

from nested_jax.data import Bytes, TextConfig, Tokenizer
from nested_jax.evals.generation import Context, Generator, Piece
from nested_jax.run.describe import describe_model, description
from nested_jax.run.describe_placement import describe_placement
from nested_jax.run.nesting import draw
from nested_jax.train.experiment import Experiment
from nested_jax.train.loop import Run

PIECE = 8  # tokens written at a time: a call of the compiled step costs as much as a few of them
KEPT = 8  # tokens before new ones, on which their text may depend


def train(experiment: Experiment, workdir: pathlib.Path, options: argparse.Namespace) -> None:
    """Starts a run or goes on with one."""
    del options
    Run(experiment, workdir).train()


def describe(experiment: Experiment, workdir: pathlib.Path, options: argparse.Namespace) -> None:
    """Prints what a model is made of, and draws it."""
    del workdir
    print(describe_placement(experiment) if options.sharding else describe_model(experiment))
    if options.picture is not None:
        title = f"{options.config}: what changes how often"
        draw(description(experiment).components, title, experiment.data.sequence_length, options.picture)
        print(f"picture: {options.picture}")


def generate(experiment: Experiment, workdir: pathlib.Path, options: argparse.Namespace) -> None:
    """Prints prompts and what a trained model writes after them: one text as it is made, several when they are done."""
    if not isinstance(experiment.data, TextConfig):
        raise ValueError("generate continues a text; this experiment learns something else")
    sample = experiment.sample
    length = sample.length if options.length is None else options.length
    given = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p")}
    chosen = {name: value for name, value in given.items() if value is not None}
    sampling = dataclasses.replace(sample.sampling, **chosen)
    if options.state_out is not None and not pathlib.Path(options.state_out).absolute().parent.is_dir():
        raise ValueError(f"--state-out={options.state_out}: no such folder")
    prompts = options.prompt or []
    if options.prompt_file is not None:
        prompts = [pathlib.Path(options.prompt_file).read_bytes().decode("utf-8", "surrogateescape")]
    tokenizer = experiment.data.encoder()
    run = Run(experiment, workdir)
    _, params = run.restore_params()
    generator = Generator(run.model, params, sampling, learn=not options.no_learn, alphabet=tokenizer.vocab_size)
    context = None if options.state_in is None else generator.load(options.state_in)
    if not prompts:
        prompts = [sample.prompt] if context is None else [""] * len(context.logits)
    tokens, key = [tokenizer.encode(prompt).tolist() for prompt in prompts], jax.random.key(options.seed)
    stop = stops(tokenizer, options.stop)
    pieces = generator.stream(tokens, length, context=context, key=key, stop=stop, every=PIECE)
    if len(tokens) == 1:
        context = _print_text(tokens[0], pieces, tokenizer)
    else:
        context = _print_texts(tokens, pieces, tokenizer)
    if options.state_out is not None and context is not None:
        generator.save(options.state_out, context)


def stops(tokenizer: Tokenizer, characters: str) -> list[int]:
    """Tokens that end a text: those with any of some characters in them, and the one that ends a document.

    Example:
      >>> stops(Bytes(), ".!")
      [33, 46]
    """
    if isinstance(tokenizer, Bytes):
        return sorted(set(characters.encode()))
    end = [] if tokenizer.end is None else [tokenizer.end]
    if not characters:
        return end
    spelled = {token: tokenizer.decode(np.array([token])) for token in range(tokenizer.vocab_size)}
    return sorted({*end, *(token for token, text in spelled.items() if any(one in text for one in characters))})


class _Spelling:
    """The text of tokens that come piece by piece: characters are given out once they are whole."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer, self._tokens, self._shown = tokenizer, [], 0

    def add(self, tokens: Iterable[int], *, final: bool = False) -> str:
        """What these tokens add to the text; with `final` also characters that are not whole."""
        self._tokens += [int(token) for token in tokens if token != self._tokenizer.end]
        text = self._text()
        ready = text if final else text.rstrip("\N{REPLACEMENT CHARACTER}")
        new, self._shown = ready[self._shown :], max(len(ready), self._shown)
        if len(text) == len(ready):
            self._tokens = self._tokens[-KEPT:]
            self._shown = len(self._text())
        return new

    def _text(self) -> str:
        return self._tokenizer.decode(np.array(self._tokens, np.int32))


def _print_text(prompt: Sequence[int], pieces: Iterable[Piece], tokenizer: Tokenizer = Bytes()) -> Context | None:
    """Prints one text while it is written; returns the context after it."""
    spelling, context = _Spelling(tokenizer), None
    print(spelling.add(prompt), end="", flush=True)
    for piece in pieces:
        print(spelling.add(piece.tokens[0]), end="", flush=True)
        context = piece.context
    print(spelling.add([], final=True))
    return context


def _print_texts(prompts: Sequence[Sequence[int]], pieces: Iterable[Piece], tokenizer: Tokenizer) -> Context | None:
    """Prints several texts under headings once they are written; returns the context after them."""
    texts, context = [list(prompt) for prompt in prompts], None
    for piece in pieces:
        for text, tokens in zip(texts, piece.tokens, strict=True):
            text += tokens
        context = piece.context
    for number, text in enumerate(texts, 1):
        print(f"== {number} of {len(texts)} ==\n{_Spelling(tokenizer).add(text, final=True)}")
    return context
