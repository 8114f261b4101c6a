"""Series of numbers: CSV files of many channels, split by time, standardised, and cut into windows to forecast from.

The protocol of long-term forecasting (Zhou et al. 2021 and all later ones, thuml/Time-Series-Library): all channels are
forecast from the last `lookback` steps; what is held out is later in time; numbers are standardised by the mean and the
deviation of the training rows, and scored so.
"""

import dataclasses
import hashlib
import pathlib
from typing import Literal, NamedTuple

import numpy as np

from nested_jax.data.batches import Batch, BatchIterator, numbered_batches, shuffled

HOURLY, QUARTERLY = (8_640, 2_880, 2_880), (34_560, 11_520, 11_520)
ROWS = {"ETTh1": HOURLY, "ETTh2": HOURLY, "ETTm1": QUARTERLY, "ETTm2": QUARTERLY}
FILES = {"ECL": "electricity.csv", "Traffic": "traffic.csv", "Weather": "weather.csv"}
GENERATED = "sines"
PARTS = ("train", "validation", "test")

OBTAINED = """\
A series is a CSV file: a line of headings, then one line per step, its date and one number per channel:
  date,HUFL,HULL,MUFL,MULL,LUFL,LULL,OT
  2016-07-01 00:00:00,5.827,2.009,1.599,0.462,4.203,1.340,30.531
ETTh1, ETTh2, ETTm1 and ETTm2 (CC BY-ND 4.0):
  git clone https://github.com/zhouhaoyi/ETDataset
and data.path is ETDataset/ETT-small, or one of the files in it. Electricity (ECL), Traffic and Weather in this layout
are linked in the README of https://github.com/thuml/Time-Series-Library."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeriesConfig:
    """Which series to forecast, from how many steps, and how far.

    Attributes:
      dataset: "ETTh1", "ETTh2" (12, 4 and 4 months of 30 days to train, validate and test on, by the hour), "ETTm1",
        "ETTm2" (by the quarter of an hour); any other is split 70, 10 and 20 %. "sines" is generated, for tests only.
      path: the CSV file, or a folder that has it as `DATASET.csv` ("ECL" `electricity.csv`, "Traffic" `traffic.csv`,
        "Weather" `weather.csv`).
      lookback: steps that are read.
      horizons: steps that are forecast, one forecast for each.
      batch_size: windows per batch, over all processes.
      seed: of the order of windows.
    """

    dataset: str = "ETTh1"
    path: str | None = None
    lookback: int = 96
    horizons: tuple[int, ...] = (96, 192, 336, 720)
    batch_size: int = 32
    seed: int = 0

    @property
    def sequence_length(self) -> int:
        """Steps of a window that are read."""
        return self.lookback

    def validate(self) -> None:
        """Raise `ValueError` if a field is out of range."""
        for name in ("lookback", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not self.horizons or min(self.horizons) < 1 or list(self.horizons) != sorted(set(self.horizons)):
            raise ValueError(f"horizons: expected numbers of at least 1 in ascending order, got {self.horizons}")
        if self.seed < 0:
            raise ValueError(f"seed: expected 0 or more, got {self.seed}")
        if self.dataset == GENERATED and self.path is not None:
            raise ValueError(f"path: expected None for generated sines, got {self.path!r}")


class Windows(NamedTuple):
    """Windows of a series.

    Attributes:
      inputs: float32 [N, lookback, C].
      targets: float32 [N, horizon, C], the steps behind them.
    """

    inputs: np.ndarray
    targets: np.ndarray


@dataclasses.dataclass(frozen=True)
class Series:
    """A series, standardised.

    Attributes:
      values: float32 [T, C]; the training rows have mean 0 and deviation 1 in every channel that is not constant.
      ends: row behind the last one of "train", "validation" and "test".
      channels: their names.
      mean: float64 [C], of the training rows of the file.
      deviation: float64 [C], likewise; 1 where a channel is constant.
      description: one line for people.
    """

    values: np.ndarray
    ends: tuple[int, int, int]
    channels: tuple[str, ...]
    mean: np.ndarray
    deviation: np.ndarray
    description: str

    def starts(self, part: str, lookback: int, horizon: int) -> np.ndarray:
        """First rows of all windows whose targets lie in a part, int [N]; what is read may lie before the part.

        Args:
          part: "train", "validation" or "test".
          lookback: steps that are read.
          horizon: steps that are forecast.

        Raises:
          ValueError: if the part has no window.

        Example:
          >>> series = load_series(SeriesConfig(dataset="sines"))
          >>> len(series.values), series.starts("test", 96, 24)[[0, -1]].tolist()
          (1200, [864, 1080])
        """
        place = PARTS.index(part)
        begin = 0 if place == 0 else self.ends[place - 1] - lookback
        found = np.arange(begin, self.ends[place] - lookback - horizon + 1)
        if begin < 0 or not len(found):
            rows = self.ends[place] - (self.ends[place - 1] if place else 0)
            raise ValueError(
                f"series: its {rows:,} rows to {part} have no window of lookback {lookback} and horizon {horizon}"
            )
        return found

    def windows(self, starts: np.ndarray, lookback: int, horizon: int) -> Windows:
        """The windows that begin at some rows."""
        rows = starts[:, None] + np.arange(lookback + horizon)
        whole = self.values[rows]
        return Windows(whole[:, :lookback], whole[:, lookback:])

    def digest(self) -> str:
        """A hash of the training rows, 16 hexadecimal digits."""
        return hashlib.sha256(self.values[: self.ends[0]].tobytes()).hexdigest()[:16]


def load_series(config: SeriesConfig) -> Series:
    """Read a series, split it by time and standardise it.

    Args:
      config: Says which.

    Raises:
      ValueError: If there is no such file, it is no table of numbers, or it has too few rows for the split.
    """
    config.validate()
    if config.dataset == GENERATED:
        names, raw, source = ("a", "b", "c"), _sines(), "generated sines, for tests only"
    else:
        file = _file(config)
        (names, raw), source = _read(file), str(file)
    counts = ROWS.get(config.dataset)
    if counts is None:
        train, test = int(len(raw) * 0.7), int(len(raw) * 0.2)
        counts = (train, len(raw) - train - test, test)
    if sum(counts) > len(raw):
        raise ValueError(f"data.path: {config.dataset} is split {counts}, {source} has {len(raw):,} rows")
    ends = (counts[0], counts[0] + counts[1], sum(counts))
    mean, deviation = raw[: ends[0]].mean(axis=0), raw[: ends[0]].std(axis=0)
    deviation = np.where(deviation == 0, 1.0, deviation)
    values = ((raw[: ends[2]] - mean) / deviation).astype(np.float32)
    description = (
        f"{config.dataset} ({source}): {len(names)} channels; {counts[0]:,} rows to train, {counts[1]:,} to validate, "
        f"{counts[2]:,} to test"
    )
    return Series(values, ends, names, mean, deviation, description)


def series_batches(
    series: Series,
    config: SeriesConfig,
    *,
    process_index: int = 0,
    process_count: int = 1,
    backend: Literal["auto", "grain", "numpy"] = "auto",
) -> BatchIterator:
    """Iterate for ever over the shuffled training windows of a series, in a fresh seeded order in every epoch.

    Windows begin at every row from which the longest horizon lies within the training rows, for all horizons the same.

    Args:
      series: The series.
      config: Gives `lookback`, `horizons`, `batch_size` (rows over all processes) and `seed`.
      process_index: As for `batches`.
      process_count: As for `batches`.
      backend: As for `batches`.

    Returns:
      An iterator over `{"inputs": float32 [B, lookback, C], "targets": float32 [B, longest horizon, C]}`, B being
      `batch_size / process_count`.

    Raises:
      ValueError: If there is no window or the rows cannot be shared out.
    """
    config.validate()
    horizon = config.horizons[-1]
    starts = series.starts("train", config.lookback, horizon)

    def rows_of(records: np.ndarray) -> Batch:
        chosen = starts[shuffled(records, config.seed, len(starts))]
        return series.windows(chosen, config.lookback, horizon)._asdict()

    identity = {
        "seed": config.seed,
        "batch_size": config.batch_size,
        "lookback": config.lookback,
        "horizon": horizon,
        "windows": len(starts),
        "sha256": series.digest(),
    }
    return numbered_batches(rows_of, config.batch_size, (process_index, process_count), identity, backend)


def _file(config: SeriesConfig) -> pathlib.Path:
    if config.path is None:
        raise ValueError(f"data.path: expected a file with the series {config.dataset}, got None\n{OBTAINED}")
    path = pathlib.Path(config.path).expanduser()
    file = path / FILES.get(config.dataset, f"{config.dataset}.csv") if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"data.path: no such file: {file}\n{OBTAINED}")
    return file


def _read(file: pathlib.Path) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of the channels, and float64 [T, C]."""
    try:
        with file.open(encoding="utf-8-sig") as lines:
            names = tuple(next(lines, "").strip().split(",")[1:])
            columns = range(1, len(names) + 1)
            raw = np.loadtxt(lines, np.float64, comments=None, delimiter=",", usecols=columns, ndmin=2)
    except (OSError, ValueError) as error:
        raise ValueError(f"data.path: {file} is no table of numbers: {error}\n{OBTAINED}") from error
    if not names or not len(raw):
        raise ValueError(f"data.path: {file} has {len(names)} channels and {len(raw)} rows\n{OBTAINED}")
    if not np.isfinite(raw).all():
        row, channel = np.argwhere(~np.isfinite(raw))[0]
        raise ValueError(f"data.path: {file} has no number of {names[channel]} in line {row + 2}\n{OBTAINED}")
    return names, raw


def _sines() -> np.ndarray:
    """1,200 steps of three channels: sines of two periods, other in every channel, and a little noise."""
    steps, rng = np.arange(1200)[:, None], np.random.default_rng(0)
    periods, phases = np.array([[24, 48, 32], [96, 80, 60]]), np.array([[0, 1, 2], [2, 0, 1]])
    waves = [np.sin(2 * np.pi * steps / period + phase) for period, phase in zip(periods, phases, strict=True)]
    return waves[0] + 0.5 * waves[1] + 0.05 * rng.standard_normal((1200, 3))
