"""`sweep`: every row of a table with every seed, each in a directory of its own; what is finished is not run again."""

import dataclasses
import pathlib
import shlex
import time
from collections.abc import Mapping, Sequence
from typing import Any

from nested_jax import config as configs
from nested_jax.run import records
from nested_jax.run.comparison import ROWS_FILE, Comparison
from nested_jax.run.records import Record
from nested_jax.train.loop import Run, TrainingStopped
from nested_jax.train.progress import duration
from nested_jax.train.report import Report


def sweep(
    comparison: Comparison,
    workdir: pathlib.Path,
    seeds: Sequence[int] = (),
    rows: Sequence[str] = (),
    parts: Sequence[str] = (),
    again: bool = False,
) -> None:
    """Runs a table, combination by combination of its grid and seed by seed: a part of it is a table with fewer.

    Every finished run is a line of `rows.jsonl`, and what has a line there or beside the experiment's file is not run
    again, unless the experiment's config has changed since. Where it lacks a score that is asked for now, it is scored
    again by the checkpoint in its directory, and trained again where there is none. A row that diverges is said to
    have, and the others go on; an interruption ends the sweep, and the same command continues it.

    A field of the grid that the command line sets is tried at that value alone.

    Args:
      comparison: the table.
      workdir: where the runs go, one directory each.
      seeds: of parameters and data; the table's if empty.
      rows: which; all if empty.
      parts: which; all if empty.
      again: whether what is recorded beside the experiment's file is run, too; what `workdir` has is not.

    Raises:
      ValueError: for an unknown row or part, or an override of a seed.
    """
    overrides, planned = comparison.overrides, comparison.sweep
    for name in ("seed", "data.seed"):
        if name in overrides:
            raise ValueError(f"{name} is what a sweep goes through, give --seeds; got {overrides[name]!r}")
    grid = {field: (overrides[field],) if field in overrides else tried for field, tried in planned.grid.items()}
    cells = comparison.cells(rows, parts)
    runs = [
        (row, part, seed, {**overrides, **settings})
        for settings in dataclasses.replace(planned, grid=grid).settings
        for seed in seeds or planned.seeds
        for row, part in cells
    ]
    file = workdir / ROWS_FILE
    recorded = comparison.records(workdir, beside=not again)
    older = {record.key for record in comparison.outdated(recorded)}
    unscored = {record.key for record in comparison.unscored(recorded)} - older
    known = {record.key: record for record in recorded}
    done = known.keys() - older - unscored
    began, new = time.perf_counter(), 0
    for number, (row, part, seed, settings) in enumerate(runs, 1):
        key = (row, part, comparison.size, seed, tuple(sorted(records.told(settings).items())))
        if key in done:
            continue
        if key in older:
            print(f"{number}/{len(runs)}: recorded with another config of {comparison.name}; it is run again")
        if key in unscored:
            print(f"{number}/{len(runs)}: recorded without a score that is asked for")
        name = "/".join(filter(None, (row, part)))
        label = f"{number}/{len(runs)} {name}, seed {seed}"
        label += "".join(f", {field.split('.')[-1]} {value}" for field, value in settings.items())
        record, interrupted, trained = _run(comparison, (row, part, seed, settings), workdir, label)
        if record is not None:
            if key in known and not trained:
                new_scores = {"metrics": record.metrics, "settings": settings, "command": record.command}
                record = dataclasses.replace(known[key], **new_scores)
            workdir.mkdir(parents=True, exist_ok=True)
            records.append(file, record)
        if record is None or interrupted:
            print("interrupted; the same command continues")
            return
        new += 1
        left = (time.perf_counter() - began) / new * (len(runs) - number)
        shown = ", ".join(f"{metric} {value:.4f}" for metric, value in record.metrics.items()) or record.stopped
        print(f"{label}: {shown}" + (f"; at most {duration(left)} left" if number < len(runs) else ""))


def _run(
    comparison: Comparison, run: tuple[str, str, int, Mapping[str, str]], workdir: pathlib.Path, label: str
) -> tuple[Record | None, bool, bool]:
    """The record of a run, None if it can be continued; whether it was asked to stop; whether it made an update."""
    row, part, seed, settings = run
    spec = comparison.spec(row, part)
    given = {"seed": str(seed), "data.seed": str(seed), **settings}
    experiment: Any = configs.load(spec, given)
    place = workdir / directory(row, part, seed, settings)
    print(f"{label}: {place}")
    began, stopped = time.perf_counter(), ""
    report: Report | None = None
    run_here = Run(experiment, place, say=lambda line: _say(label, line))
    try:
        report = run_here.train()
    except TrainingStopped as error:
        stopped = str(error).replace(str(workdir), "WORKDIR")
    if report is None and not stopped:
        return None, True, run_here.trained
    flags = "".join(f" --config.{field}={shlex.quote(value)}" for field, value in given.items())
    record = Record(
        row=row,
        part=part,
        size=comparison.size,
        seed=seed,
        config=comparison.digest(row, part, settings),
        settings=settings,
        metrics={} if report is None else report.metrics,
        stopped=stopped,
        steps=experiment.steps,
        tokens=0 if report is None else report.tokens,
        parameters=0 if report is None else report.parameters,
        scored="" if report is None else report.scored,
        data="" if report is None else report.data,
        seconds=round(time.perf_counter() - began, 1),
        device=records.device(),
        versions=records.versions(),
        date=records.today(),
        command=f"python -m nested_jax train {comparison.shown(row, part)}{flags}",
    )
    return record, run_here.interrupted, run_here.trained


def directory(row: str, part: str, seed: int, settings: Mapping[str, str]) -> str:
    """The name of a run's directory, from what is trained.

    Example:
      >>> directory("hope", "parity", 0, {"optimizer.learning_rate": "1e-3"})
      'hope-parity-learning_rate=1e-3-0'
    """
    trained = {field: value for field, value in records.told(settings).items() if not field.startswith("questions.")}
    fields = [f"{field.split('.')[-1]}={value}" for field, value in trained.items()]
    name = "-".join([*filter(None, (row, part)), *fields, str(seed)])
    return "".join(c if c.isalnum() or c in "-_.=" else "_" for c in name)


def _say(label: str, line: str) -> None:
    if line.startswith(("step", "asked")):
        print(f"{label}: {line}")
