"""A task as what a run learns: its examples in batches, scores on its sets, and what is reported at the end."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from nested_jax.data import Examples, TaskConfig, example_batches
from nested_jax.evals.scores import scores
from nested_jax.models import ModelConfig
from nested_jax.models.placement import PLACES, constrain
from nested_jax.train.experiment import Experiment
from nested_jax.train.multiprocess import share
from nested_jax.train.report import Report
from nested_jax.train.sharding import make_mesh
from nested_jax.train.step import loss


class TaskProblem:
    """The answers of a task; logits are made of no more places of a row than count."""

    def __init__(self, experiment: Experiment, data: TaskConfig, model: nn.Module):
        self._steps, self._tests = experiment.steps, dict(data.task.tests())
        train = data.examples()
        count, length = train.inputs.shape
        self.description = f"{type(data.task).__name__}: {count:,} examples of {length} symbols; tests: " + ", ".join(
            f"{name} ({len(test.inputs):,} of {test.inputs.shape[1]})" for name, test in self._tests.items()
        )
        processes = share(make_mesh(experiment.mesh))
        config = getattr(model, "config", None)
        chunk_size = config.chunk_size if isinstance(config, ModelConfig) else None
        self.batches = example_batches(train, data, chunk_size=chunk_size, **processes)
        self.tokens_per_step = data.batch_size * length
        self.loss = functools.partial(loss, answers=int(train.trained.sum(axis=1).max()))
        self._answer = answerer(model)

    def units(self, loss: float) -> dict[str, float]:
        del loss
        return {}

    def validate(self, params: Any) -> dict[str, float]:
        return self._scores(params, next(iter(self._tests)))

    def report(self, params: Any, parameters: int) -> Report:
        metrics = {}
        for name in self._tests:
            metrics |= {f"{name}/{score}": value for score, value in self._scores(params, name).items()}
        return Report(
            steps=self._steps,
            tokens=self.tokens_per_step,
            parameters=parameters,
            metrics=metrics,
            scored=", ".join(f"{name}: {len(test.inputs):,}" for name, test in self._tests.items()),
            data=self.description,
        )

    def _scores(self, params: Any, name: str) -> dict[str, float]:
        test = self._tests[name]
        count, length = test.inputs.shape
        rows = min(max(self.tokens_per_step // length, 1), count)
        return scores(answers(self._answer, params, test, rows), test)


def answerer(model: nn.Module) -> Callable[[Any, ArrayLike], jax.Array]:
    """A jitted function of parameters and inputs [B, T]: the likeliest answer at every place."""

    @jax.jit
    def answer(params: Any, inputs: jax.Array) -> jax.Array:
        logits, _ = model.apply({"params": params}, constrain(inputs, PLACES))
        return constrain(jnp.argmax(logits, axis=-1), P())

    return answer


def answers(
    answer: Callable[[Any, ArrayLike], jax.Array], params: Any, examples: Examples, batch_size: int
) -> np.ndarray:
    """The likeliest answer at every place of all examples, int [N, T], in batches of one size."""
    found = []
    for start in range(0, len(examples.inputs), batch_size):
        batch = examples.inputs[start : start + batch_size]
        filled = np.concatenate([batch, np.repeat(batch[-1:], batch_size - len(batch), axis=0)])
        found.append(np.asarray(answer(params, filled))[: len(batch)])
    return np.concatenate(found)
