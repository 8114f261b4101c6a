"""A series as what a run learns: windows in batches, the squared error, and errors by horizon on later rows."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from nested_jax.data import SeriesConfig, load_series, series_batches
from nested_jax.models.placement import constrain
from nested_jax.train.experiment import Experiment
from nested_jax.train.multiprocess import share
from nested_jax.train.report import Report
from nested_jax.train.sharding import make_mesh
from nested_jax.train.step import Batch


def squared_error(model: nn.Module, params: Any, batch: Batch, **options: Any) -> jax.Array:
    """Mean squared error of the forecasts of a batch, over windows, steps and channels, then over the horizons.

    Args:
      model: gives a forecast [B, horizon, C] for each of its horizons.
      params: its parameters.
      batch: "inputs" [B, lookback, C] and "targets" [B, longest horizon, C].
      **options: go to the model's `apply`.
    """
    forecasts, _ = model.apply({"params": params}, batch["inputs"], **options)
    errors = [jnp.mean(jnp.square(one - batch["targets"][:, : one.shape[1]])) for one in forecasts]
    return jnp.mean(jnp.stack(errors))


class SeriesProblem:
    """The steps of a series after those that were read.

    Scores are of standardised numbers, on every window of a part: "mse", "mae", the means over the horizons, and with
    several horizons "mse_96" and so on; and "r2", 1 less the squared error over that of forecasting the training mean.

    Raises:
      ValueError: if the series is missing or too short.
    """

    loss = staticmethod(squared_error)

    def __init__(self, experiment: Experiment, data: SeriesConfig, model: nn.Module):
        self._experiment, self._data = experiment, data
        self._series = load_series(data)
        self._starts = {
            part: [self._series.starts(part, data.lookback, horizon) for horizon in data.horizons]
            for part in ("validation", "test")
        }
        counts = [f"{h} ({len(starts)})" for h, starts in zip(data.horizons, self._starts["test"], strict=True)]
        self.description = (
            f"{self._series.description}; {data.lookback} steps to horizons (test windows) {', '.join(counts)}"
        )
        processes = share(make_mesh(experiment.mesh))
        self.batches = series_batches(self._series, data, **processes)
        self.tokens_per_step = data.batch_size * data.lookback
        self._forecast = jax.jit(lambda params, inputs: constrain(model.apply({"params": params}, inputs)[0], P()))

    def units(self, loss: float) -> dict[str, float]:
        del loss
        return {}

    def validate(self, params: Any) -> dict[str, float]:
        return self._scores(params, "validation", self._experiment.eval_windows)

    def report(self, params: Any, parameters: int) -> Report:
        metrics = {}
        for part in self._starts:
            metrics |= {f"{part}/{name}": value for name, value in self._scores(params, part).items()}
        counts = ", ".join(f"{part}: {len(starts[0]):,}" for part, starts in self._starts.items())
        return Report(
            steps=self._experiment.steps,
            tokens=self.tokens_per_step,
            parameters=parameters,
            metrics=metrics,
            scored=f"windows of horizon {self._data.horizons[0]}, {counts}",
            data=self.description,
        )

    def _scores(self, params: Any, part: str, most: int | None = None) -> dict[str, float]:
        """Scores on all windows of a part, or on `most` spread evenly over those of the longest horizon."""
        horizons, lookback, size = self._data.horizons, self._data.lookback, self._data.batch_size
        counts = [len(starts) for starts in self._starts[part]]
        starts = self._starts[part][0]  # the shortest horizon has all windows of the others, and a few more
        if most is not None and most < counts[-1]:
            starts, counts = starts[np.arange(most) * counts[-1] // most], [most] * len(counts)
        sums = np.zeros((3, len(horizons)))
        for first in range(0, len(starts), size):
            chosen = starts[first : first + size]
            filled = np.concatenate([chosen, np.repeat(chosen[-1:], size - len(chosen))])
            inputs, _ = self._series.windows(filled, lookback, 0)
            forecasts = self._forecast(params, inputs)
            for place, horizon in enumerate(horizons):
                rows = chosen[: max(counts[place] - first, 0)]
                targets = self._series.windows(rows + lookback, 0, horizon).targets.astype(np.float64)
                errors = np.asarray(forecasts[place])[: len(rows)] - targets
                sums[:, place] += [np.square(errors).sum(), np.abs(errors).sum(), np.square(targets).sum()]
        squares, absolutes, powers = sums / (np.array(counts) * horizons * self._series.values.shape[1])
        found = {"mse": float(squares.mean()), "mae": float(absolutes.mean())}
        found["r2"] = 1 - float(squares.mean() / powers.mean())
        if len(horizons) > 1:
            for place, horizon in enumerate(horizons):
                found |= {f"mse_{horizon}": float(squares[place]), f"mae_{horizon}": float(absolutes[place])}
        return found
