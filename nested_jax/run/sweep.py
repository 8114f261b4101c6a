"""`sweep`: every row of a table with every seed, each in a directory of its own; what is finished is not run again."""

import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from nested_jax import config as configs
from nested_jax.run.table import STOPPED, Comparison, directory
from nested_jax.train.loop import Run, TrainingStopped
from nested_jax.train.progress import duration
from nested_jax.train.report import Report


def sweep(
    comparison: Comparison,
    overrides: Mapping[str, str],
    workdir: pathlib.Path,
    seeds: Sequence[int],
    rows: Sequence[str] = (),
) -> None:
    """Runs a table, seed by seed, so that a part of it is a table with fewer seeds.

    A row that diverges is said to have, and the others go on; an interruption ends the sweep, and the same command
    continues it.

    Args:
      comparison: the table.
      overrides: fields of every config, as for `train`.
      workdir: where the runs go, one directory each.
      seeds: of parameters and data.
      rows: which; all if empty.

    Raises:
      ValueError: for an unknown row, no seed, or an override of the seed.
    """
    if not seeds:
        raise ValueError("seeds must hold at least one number; got none")
    for name in ("seed", "data.seed"):
        if name in overrides:
            raise ValueError(f"{name} is what a sweep goes through, see --seeds; got {overrides[name]!r}")
    for row in rows:
        if row not in comparison.rows:
            raise ValueError(f"rows must be among {', '.join(comparison.rows)}; got {row!r}")
    runs = [(row, seed) for seed in seeds for row in rows or comparison.rows]
    began, new = time.perf_counter(), 0
    for number, (row, seed) in enumerate(runs, 1):
        place = directory(workdir, row, seed)
        if Report.load(place / "report.json") is not None:
            continue
        label = f"{number}/{len(runs)} {row}, seed {seed}"
        settings = {"seed": str(seed), "data.seed": str(seed), **overrides}
        experiment: Any = configs.load(comparison.spec(row), settings)
        print(f"{label}: {place}")
        try:
            report = Run(experiment, place, say=lambda line, label=label: _say(label, line)).train()
        except TrainingStopped as error:
            print(f"{label}: {error}")
            (place / STOPPED).write_text(f"{error}\n")
            continue
        if report is None:
            print("interrupted; the same command continues")
            return
        new += 1
        left = (time.perf_counter() - began) / new * (len(runs) - number)
        print(f"{label}: {report.bits_per_byte:.4f} bits/byte; about {duration(left)} left")


def _say(label: str, line: str) -> None:
    if line.startswith("step"):
        print(f"{label}: {line}")
