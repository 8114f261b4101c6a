"""What a run learns, text or a task: its batches, how its loss is said, its validation, and what is reported."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from nested_jax.data import BatchIterator, Examples, TaskConfig, batches, example_batches, load_text, validation_windows
from nested_jax.evals.baselines import baseline_table
from nested_jax.evals.bits_per_byte import score_windows, window_scorer
from nested_jax.evals.generation import generate
from nested_jax.evals.scores import scores
from nested_jax.train.experiment import Experiment
from nested_jax.train.report import Report, excerpt

Params = Any
VALIDATION = "validation"


class Problem(Protocol):
    """What the training loop asks of the data of an experiment.

    Attributes:
      description: one line for people.
      batches: an endless iterator that knows its place.
      tokens_per_step: of a batch, over all processes.
    """

    description: str
    batches: BatchIterator
    tokens_per_step: int

    def units(self, loss: float) -> dict[str, float]:
        """The loss in other units, by name."""
        ...

    def validate(self, params: Params) -> dict[str, float]:
        """Metrics on held-out data, by name; the first is the one to look at."""
        ...

    def report(self, params: Params, parameters: int) -> Report:
        """The end of a run, for a model of so many parameters."""
        ...


def open_problem(experiment: Experiment, model: nn.Module) -> Problem:
    """The problem of an experiment, its data read or drawn."""
    return (TaskProblem if isinstance(experiment.data, TaskConfig) else TextProblem)(experiment, model)


class TextProblem:
    """The next token of a text."""

    def __init__(self, experiment: Experiment, model: nn.Module):
        self._experiment, self._model, data = experiment, model, experiment.data
        assert not isinstance(data, TaskConfig)
        self._data, self._text = data, load_text(data)
        self.description = self._text.description
        self.batches = batches(
            self._text.train, data, process_index=jax.process_index(), process_count=jax.process_count()
        )
        self.tokens_per_step = data.batch_size * data.sequence_length
        self._windows = validation_windows(self._text.validation, data.sequence_length, experiment.eval_windows)
        self._score = window_scorer(model)

    def units(self, loss: float) -> dict[str, float]:
        return {"bits_per_byte": loss / math.log(2)}

    def validate(self, params: Params) -> dict[str, float]:
        return {"bits_per_byte": self._bits(params, self._windows)}

    def report(self, params: Params, parameters: int) -> Report:
        experiment, length = self._experiment, self._data.sequence_length
        scored = excerpt(self._text.validation, experiment.final_bytes)
        windows = validation_windows(scored, length, len(scored))
        prompt, sample = experiment.sample.prompt, experiment.sample
        (written,), _ = generate(
            self._model,
            params,
            [prompt.encode()],
            sample.length,
            sampling=sample.sampling,
            key=jax.random.key(experiment.seed),
        )
        return Report(
            steps=experiment.steps,
            tokens=self.tokens_per_step,
            parameters=parameters,
            metrics={"bits_per_byte": self._bits(params, windows)},
            scored=f"{len(windows) * length:,} validation bytes (context {length})",
            baselines=baseline_table(self._text.train, scored),
            sample=prompt + written.decode("utf-8", "replace"),
            data=self.description,
        )

    def _bits(self, params: Params, windows: np.ndarray) -> float:
        return score_windows(self._score, params, windows, self._data.batch_size)


class TaskProblem:
    """The answers of a task."""

    def __init__(self, experiment: Experiment, model: nn.Module):
        self._experiment, data = experiment, experiment.data
        assert isinstance(data, TaskConfig)
        self._data, self._tests = data, dict(data.task.tests())
        train = data.examples()
        count, length = train.inputs.shape
        self.description = f"{type(data.task).__name__}: {count:,} examples of {length} symbols; tests: " + ", ".join(
            f"{name} ({len(test.inputs):,} of {test.inputs.shape[1]})" for name, test in self._tests.items()
        )
        self.batches = example_batches(
            train, data, process_index=jax.process_index(), process_count=jax.process_count()
        )
        self.tokens_per_step = data.batch_size * length
        self._answer = answerer(model)

    def units(self, loss: float) -> dict[str, float]:
        del loss
        return {}

    def validate(self, params: Params) -> dict[str, float]:
        return self._scores(params, next(iter(self._tests)))

    def report(self, params: Params, parameters: int) -> Report:
        metrics = {}
        for name in self._tests:
            metrics |= {f"{name}/{score}": value for score, value in self._scores(params, name).items()}
        return Report(
            steps=self._experiment.steps,
            tokens=self.tokens_per_step,
            parameters=parameters,
            metrics=metrics,
            scored=", ".join(f"{name}: {len(test.inputs):,}" for name, test in self._tests.items()),
            data=self.description,
        )

    def _scores(self, params: Params, name: str) -> dict[str, float]:
        test = self._tests[name]
        count, length = test.inputs.shape
        rows = min(max(self.tokens_per_step // length, 1), count)
        return scores(answers(self._answer, params, test, rows), test)


def answerer(model: nn.Module) -> Callable[[Params, jax.Array], jax.Array]:
    """A jitted function of parameters and inputs [B, T]: the likeliest answer at every place."""

    @jax.jit
    def answer(params: Params, inputs: jax.Array) -> jax.Array:
        logits, _ = model.apply({"params": params}, inputs)
        return jnp.argmax(logits, axis=-1)

    return answer


def answers(
    answer: Callable[[Params, jax.Array], jax.Array], params: Params, examples: Examples, batch_size: int
) -> np.ndarray:
    """The likeliest answer at every place of all examples, int [N, T], in batches of one size."""
    found = []
    for start in range(0, len(examples.inputs), batch_size):
        batch = examples.inputs[start : start + batch_size]
        filled = np.concatenate([batch, np.repeat(batch[-1:], batch_size - len(batch), axis=0)])
        found.append(np.asarray(answer(params, jnp.asarray(filled)))[: len(batch)])
    return np.concatenate(found)


def validation_names(values: Mapping[str, float]) -> dict[str, float]:
    """Metrics of a validation as they are recorded.

    Example:
      >>> validation_names({"bits_per_byte": 2.0})
      {'validation_bits_per_byte': 2.0}
    """
    return {f"{VALIDATION}_{name}": value for name, value in values.items()}
