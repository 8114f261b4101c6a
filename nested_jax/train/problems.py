"""What the training loop asks of its data, and which kind of data an experiment has."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from flax import linen as nn

from nested_jax.data import BatchIterator, SeriesConfig, TaskConfig
from nested_jax.models import Forecaster, ForecasterConfig, build
from nested_jax.train.experiment import Experiment
from nested_jax.train.report import Report
from nested_jax.train.series_problem import SeriesProblem
from nested_jax.train.step import Loss
from nested_jax.train.task_problem import TaskProblem
from nested_jax.train.text_problem import TextProblem

VALIDATION = "validation"


class Problem(Protocol):
    """What a run learns.

    Attributes:
      description: one line for people.
      batches: an endless iterator that knows its place.
      tokens_per_step: of a batch, over all processes.
      loss: what is minimised.
    """

    description: str
    batches: BatchIterator
    tokens_per_step: int
    loss: Loss

    def units(self, loss: float) -> dict[str, float]:
        """The loss in other units, by name."""
        ...

    def validate(self, params: Any) -> dict[str, float]:
        """Metrics on held-out data, by name; the first is the one to look at."""
        ...

    def report(self, params: Any, parameters: int) -> Report:
        """The end of a run, for a model of so many parameters."""
        ...


def open_model(experiment: Experiment) -> nn.Module:
    """The model of an experiment; of a series, a forecaster of its windows."""
    model, data = experiment.model, experiment.data
    if isinstance(model, ForecasterConfig) and isinstance(data, SeriesConfig):
        return Forecaster(model, data.lookback, data.horizons)
    return build(model)


def open_problem(experiment: Experiment, model: nn.Module, say: Callable[[str], None] = print) -> Problem:
    """The problem of an experiment, its data read or drawn; `say` takes lines on how that goes.

    Raises:
      ValueError: if the data is missing or unusable.
    """
    if isinstance(experiment.data, TaskConfig):
        return TaskProblem(experiment, experiment.data, model)
    if isinstance(experiment.data, SeriesConfig):
        return SeriesProblem(experiment, experiment.data, model)
    return TextProblem(experiment, experiment.data, model, say)


def validation_names(values: Mapping[str, float]) -> dict[str, float]:
    """Metrics of a validation as they are recorded.

    Example:
      >>> validation_names({"bits_per_byte": 2.0})
      {'validation_bits_per_byte': 2.0}
    """
    return {f"{VALIDATION}_{name}": value for name, value in values.items()}
