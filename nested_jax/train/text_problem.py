"""Text as what a run learns: windows or packed documents in batches, bits per byte, and what is reported at the end."""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from nested_jax.data import Bytes, PackedRows, Text, TextConfig, batches, packed_batches, validation_windows
from nested_jax.evals.baselines import baseline_table
from nested_jax.evals.bits_per_byte import score_windows, window_scorer
from nested_jax.evals.generation import Generator
from nested_jax.evals.questions import check
from nested_jax.evals.zero_shot import files
from nested_jax.train.experiment import Experiment
from nested_jax.train.multiprocess import alone, first, share
from nested_jax.train.report import Report, excerpt
from nested_jax.train.sharding import make_mesh
from nested_jax.train.step import loss


class TextProblem:
    """The next token of a text: the one of `data`, or one that is given.

    Raises:
      ValueError: if the text is missing or too short, or the model has fewer tokens than its tokenizer.
    """

    loss = staticmethod(loss)

    def __init__(
        self,
        experiment: Experiment,
        data: TextConfig,
        model: nn.Module,
        say: Callable[[str], None],
    ):
        self._experiment, self._model, self._data = experiment, model, data
        if experiment.zero_shot is not None:
            files(experiment.zero_shot)  # what is missing is said before a text is prepared, let alone learned
        check(experiment.questions, data.encoder(), experiment.model)
        self._text = text = data.read(say)
        if experiment.model.vocab_size < text.tokenizer.vocab_size:
            raise ValueError(
                f"model.vocab_size: expected at least {text.tokenizer.vocab_size}, one per token of "
                f"{text.tokenizer.name}, got {experiment.model.vocab_size}"
            )
        try:
            self._prompt = text.tokenizer.encode(experiment.sample.prompt).tolist()
        except ValueError as error:
            raise ValueError(f"sample.prompt: {error}") from error
        self.description = text.description
        self.tokens_per_step = data.batch_size * data.sequence_length
        processes = share(make_mesh(experiment.mesh))
        if data.packed:
            assert text.train_begins is not None
            rows = PackedRows(text.train, text.train_begins, data.sequence_length, model.config.chunk_size)
            self.batches = packed_batches(rows, data, digest=text.digest or "", **processes)
            self.description += f"; {len(rows):,} rows of whole chunks, {100 * rows.padding:.1f} % padding"
            self._scorer: _Scorer = _PackedScorer(model, text, data)
        else:
            self.batches = batches(text.train, data, digest=text.digest, **processes)
            self._scorer = _WindowScorer(model, text, data)

    def units(self, loss: float) -> dict[str, float]:
        return {"bits_per_byte": loss / math.log(2) / self._text.bytes_per_token}

    def validate(self, params: Any) -> dict[str, float]:
        bits, _ = self._scorer(params, self._experiment.eval_windows, None)
        return {"bits_per_byte": bits}

    def report(self, params: Any, parameters: int) -> Report:
        experiment, text = self._experiment, self._text
        plain, most = isinstance(text.tokenizer, Bytes), experiment.final_bytes
        if most is not None:
            most = max(round(most / text.bytes_per_token), self._data.sequence_length + 1)
        bits, scored = self._scorer(params, None, most)
        with alone(params, make_mesh(experiment.mesh)) as own:
            sample = self._sample(own)
        unit = "bytes" if plain else f"tokens ({text.bytes_per_token:.3f} bytes each)"
        baselines: Mapping[str, float] = {}
        if first() and plain and not self._data.packed:
            baselines = baseline_table(text.train, excerpt(text.validation, experiment.final_bytes))
        return Report(
            steps=experiment.steps,
            tokens=self.tokens_per_step,
            parameters=parameters,
            metrics={"bits_per_byte": bits},
            scored=f"{scored:,} validation {unit} (context {self._data.sequence_length})",
            baselines=baselines,
            sample=sample,
            data=self.description,
        )

    def _sample(self, params: Any) -> str:
        sample, tokenizer = self._experiment.sample, self._text.tokenizer
        generator = Generator(self._model, params, sample.sampling, alphabet=tokenizer.vocab_size)
        key = jax.random.key(self._experiment.seed)
        pieces = generator.stream([self._prompt], sample.length, key=key, every=max(min(sample.length, 64), 1))
        written = itertools.chain.from_iterable(piece.tokens[0] for piece in pieces)
        return sample.prompt + tokenizer.decode(np.fromiter(written, np.int32))


_Scorer = Callable[[Any, int | None, int | None], tuple[float, int]]
"""Parameters, windows at most, tokens at most → bits per byte, and of how many tokens."""


class _WindowScorer:
    def __init__(self, model: nn.Module, text: Text, data: TextConfig):
        self._text, self._data, self._score = text, data, window_scorer(model)

    def __call__(self, params: Any, windows: int | None, tokens: int | None) -> tuple[float, int]:
        scored, length = excerpt(self._text.validation, tokens), self._data.sequence_length
        chosen = validation_windows(scored, length, windows)
        bits = score_windows(self._score, params, chosen, self._data.batch_size)
        return bits / self._text.bytes_per_token, len(chosen) * length


class _PackedScorer:
    def __init__(self, model: nn.Module, text: Text, data: TextConfig):
        assert text.validation_begins is not None
        self._rows = PackedRows(text.validation, text.validation_begins, data.sequence_length, model.config.chunk_size)
        self._text, self._data = text, data
        self._loss = jax.jit(lambda params, batch: loss(model, params, batch))

    def __call__(self, params: Any, windows: int | None, tokens: int | None) -> tuple[float, int]:
        most = len(self._rows) if tokens is None else max(tokens // self._data.sequence_length, 1)
        count, size = min(most, len(self._rows) if windows is None else windows), self._data.batch_size
        chosen = np.arange(min(count, len(self._rows))) * len(self._rows) // min(count, len(self._rows))
        total, scored = 0.0, 0
        for start in range(0, len(chosen), size):
            rows = chosen[start : start + size]
            batch = self._rows.take(np.concatenate([rows, np.repeat(rows[-1:], size - len(rows))]))
            batch["trained"][len(rows) :] = False
            answers = int(batch["trained"].sum())
            total += float(self._loss(params, batch)) * answers
            scored += answers
        return total / scored / math.log(2) / self._text.bytes_per_token, scored
