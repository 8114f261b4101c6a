"""An experiment file that is a table: its rows, what a paper printed of them, and the records of runs."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nested_jax import config as configs
from nested_jax import description
from nested_jax.run.records import Record, merged, read, told
from nested_jax.train.comparison import Published, Row, Sweep, variant
from nested_jax.train.experiment import FREE

ROWS_FILE = "rows.jsonl"
PLACES = ("data.path", "data.task.path")
ASKING = ("zero_shot", "questions")
"""Fields that say where something lies and not what is run: records with others of them are of the same table."""
TIERS = {"tiny": "unit", "small": "small", "20m": "slot"}


@dataclass(frozen=True)
class Comparison:
    """An experiment file that is a table.

    Attributes:
      file: path of the experiment.
      size: of all rows.
      rows: row → model.
      published: the paper's numbers.
      parts: what each row is trained on, one run each; ("",) where a row is one run.
      sweep: how the rows are run.
      overrides: fields of every config that the command line sets; records with other settings, those of the sweep's
        grid and of how and where a run is run aside, are not of this table.
    """

    file: str
    size: str
    rows: Mapping[str, Row]
    published: Published
    parts: tuple[str, ...] = ("",)
    sweep: Sweep = field(default_factory=Sweep)
    overrides: Mapping[str, str] = field(default_factory=dict)

    @property
    def tier(self) -> str:
        """Of the budget: "unit" (seconds), "small" (minutes on a CPU), "slot" (one GPU) or "paper"."""
        return TIERS.get(self.size, "paper")

    def spec(self, row: str, part: str = "") -> str:
        """A run's config, as `--config` takes it."""
        return f"{self.file}:{self._variant(row, part)}"

    def shown(self, row: str, part: str = "") -> str:
        """The same for people: the file from the folder `experiments` on."""
        return f"{self.name}:{self._variant(row, part)}"

    @property
    def name(self) -> str:
        """The file from the folder `experiments` on; one that is in none from the present directory on."""
        path = pathlib.Path(self.file).resolve()
        parts, here = path.parts, pathlib.Path.cwd().resolve()
        if "experiments" in parts:
            first = len(parts) - 1 - parts[::-1].index("experiments")
        else:
            first = len(here.parts) if path.is_relative_to(here) else len(parts) - 2
        return pathlib.PurePosixPath(*parts[first:]).as_posix()

    def _variant(self, row: str, part: str) -> str:
        return f"{row}{'/' if part else ''}{part}@{self.size}"

    def base(self, row: str) -> str:
        """The row that a row of an ablation is compared with."""
        base = self.published.bases.get(row, self.published.base)
        assert base is not None
        return base

    def cells(self, rows: Sequence[str] = (), parts: Sequence[str] = ()) -> list[tuple[str, str]]:
        """The pairs of a row and a part, of those given or, where none is, of all; a `ValueError` for one unknown."""
        for what, given, known in (("rows", rows, self.rows), ("parts", parts, self.parts)):
            for name in given:
                if name not in known:
                    raise ValueError(f"{what} must be among {', '.join(known)}; got {name!r}")
        return [(row, part) for row in rows or self.rows for part in parts or self.parts]

    def records(self, workdir: pathlib.Path | None, beside: bool = True) -> list[Record]:
        """The finished runs of this size: those `beside` the experiment's file, then those of a directory."""
        older = read(pathlib.Path(self.file).with_suffix(".jsonl")) if beside else []
        found = merged(older, [] if workdir is None else read(workdir / ROWS_FILE))
        return [
            record
            for record in found
            if record.size == self.size
            and record.row in self.rows
            and record.part in self.parts
            and self._given(record.settings) == self._given(self.overrides)
        ]

    def digest(self, row: str, part: str, settings: Mapping[str, str]) -> str:
        """A hash of a run's config without its seeds, places and all that has no influence on the updates.

        A record with another one was made before the experiment's file was changed.
        """
        experiment = configs.load(self.spec(row, part), settings)
        return description.digest(experiment, without=(*FREE, *PLACES, "seed", "data.seed"))

    def outdated(self, records: Iterable[Record]) -> list[Record]:
        """Those whose config is not today's; of records without a hash nothing is known."""
        today: dict[tuple, str] = {}
        found = []
        for record in records:
            run = (record.row, record.part, tuple(sorted(record.settings.items())))
            if record.config and run not in today:
                today[run] = self.digest(record.row, record.part, record.settings)
            if record.config and record.config != today[run]:
                found.append(record)
        return found

    def unscored(self, records: Iterable[Record]) -> list[Record]:
        """Those that came to their end without a score that is asked for now.

        Other overrides are left out: they may suit the rows and parts alone that are to be run.
        """
        asking = {name: value for name, value in self.overrides.items() if name.split(".")[0] in ASKING}

        @functools.cache
        def asked(row: str, part: str) -> frozenset[str]:
            return frozenset(configs.load(self.spec(row, part), asking).asked)

        return [
            record
            for record in records
            if not record.stopped and not asked(record.row, record.part) <= record.metrics.keys()
        ]

    def _given(self, settings: Mapping[str, str]) -> dict[str, str]:
        """Settings that make runs those of another table: not the sweep's grid, not places."""
        left_out = (*self.sweep.grid, *PLACES)
        return {field: value for field, value in told(settings).items() if field not in left_out}


def load(spec: str, overrides: Mapping[str, str] | None = None) -> Comparison:
    """Reads `FILE.py` or `FILE.py:SIZE`, with fields of every config that the command line sets.

    Raises:
      ValueError: if the file has no `ROWS` and `RESULT`, measures a part that it has not, or there is no such size.
    """
    module, arg = configs.module(spec)
    rows, published = getattr(module, "ROWS", None), getattr(module, "RESULT", None)
    if not isinstance(rows, Mapping) or not isinstance(published, Published):
        raise ValueError(f"config: {spec} is no table: it must define ROWS and RESULT (a Published)")
    parts: Any = tuple(getattr(module, "PARTS", ("",)))
    for column, metric in published.measured.items():
        part, colon, _ = metric.partition(":")
        if colon and part not in parts:
            known = ", ".join(parts)
            raise ValueError(f"RESULT.measured[{column!r}]: expected a part before the colon, {known}, got {metric!r}")
    _, _, size = variant(rows, arg and f"@{arg}", parts)
    sweep = getattr(module, "SWEEP", Sweep())
    return Comparison(str(module.__file__), size, rows, published, parts, sweep, overrides or {})
