"""A table of scores: published and measured numbers, column by column, with their difference."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nested_jax.run.comparison import Comparison
from nested_jax.run.records import Record

Settings = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Cell:
    """One number of a row.

    Attributes:
      published: the paper's, None where it has none.
      values: ours, one per seed; empty if it was not run.
      settings: of the grid, with which they were measured.
      diverged: seeds whose training had to stop.
      example: one of the records.
    """

    published: float | None
    values: tuple[float, ...] = ()
    settings: Settings = ()
    diverged: int = 0
    example: Record | None = None

    @property
    def median(self) -> float | None:
        return statistics.median(self.values) if self.values else None

    @property
    def difference(self) -> float | None:
        """Ours less the published one."""
        return None if self.median is None or self.published is None else self.median - self.published


@dataclass(frozen=True)
class Line:
    """A row of the table: its name, title, and column → cell, by our choice of settings and by the published one."""

    row: str
    title: str
    cells: Mapping[str, Cell]
    as_published: Mapping[str, Cell] = field(default_factory=dict)


def split(metric: str) -> tuple[str, str]:
    """A part and the metric in it.

    Example:
      >>> split("parity:bin0/sequence"), split("wiki/perplexity")
      (('parity', 'bin0/sequence'), ('', 'wiki/perplexity'))
    """
    part, colon, name = metric.partition(":")
    return (part, name) if colon else ("", metric)


def chosen(records: Sequence[Record], select: str) -> Settings:
    """The settings with the greatest median of a metric over the seeds, the first of equals.

    "a+b" is a sum, "-a" asks for the least. Runs without it, as those that had to stop, count as
    less than any number.
    """
    sign, names = (-1, select[1:].split("+")) if select.startswith("-") else (1, select.split("+"))
    groups: dict[Settings, list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(sorted(record.settings.items())), []).append(record)

    def median(settings: Settings) -> float:
        values = [
            sign * sum(record.metrics[name] for name in names) if set(names) <= set(record.metrics) else -float("inf")
            for record in groups[settings]
        ]
        return statistics.median_low(values)

    return max(groups, key=median)


def lines(comparison: Comparison, records: Sequence[Record]) -> list[Line]:
    """All rows of the paper and of the experiment, the experiment's first."""
    printed = (key.partition("@") for key in comparison.published.values)
    others = [row for row, _, size in printed if size in ("", comparison.size)]
    rows = dict.fromkeys([*comparison.rows, *others])
    select = comparison.sweep.select_published
    found = []
    for row in rows:
        own = [record for record in records if record.row == row]
        title = comparison.rows[row].title if row in comparison.rows else row
        again = {} if select is None else _cells(comparison, row, own, select)
        found.append(Line(row, title, _cells(comparison, row, own, comparison.sweep.select), again))
    return found


def _cells(comparison: Comparison, row: str, records: Sequence[Record], select: str) -> dict[str, Cell]:
    published, cells = comparison.published.of(row, comparison.size), {}
    for column in comparison.published.columns:
        part, metric = split(comparison.published.measured.get(column, ""))
        own = [record for record in records if record.part == part] if metric else []
        if not own:
            cells[column] = Cell(published.get(column))
            continue
        settings = chosen(own, select)
        same = [record for record in own if tuple(sorted(record.settings.items())) == settings]
        values = tuple(
            comparison.published.unit * record.metrics[metric] for record in same if metric in record.metrics
        )
        stopped = sum(bool(record.stopped) for record in same)
        cells[column] = Cell(published.get(column), values, settings, stopped, same[0])
    return cells


def wide(comparison: Comparison, laid: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows for people: published, ours as median (least to greatest), and the difference."""
    headings = ["row", "", *comparison.published.columns.values()]
    rows = []
    for line in laid:
        cells = line.cells.values()
        printed = any(cell.published is not None for cell in cells)
        run = any(cell.example for cell in cells)
        lines = []
        if printed or not run:
            absent = "not run" if line.row in comparison.rows else "no model here"
            what = ", ".join(["published"] * printed + [absent] * (not run))
            lines.append([what, *(_number(cell.published) for cell in cells)])
        if run:
            lines.append(["here", *map(_ours, cells)])
        if run and line.as_published and line.as_published != line.cells:
            lines.append(["here, settings by test", *map(_ours, line.as_published.values())])
        if run and printed:
            lines.append(["difference", *(_signed(cell.difference) for cell in cells)])
        rows += [[title, *found] for title, found in zip([line.title, *[""] * len(lines)], lines, strict=False)]
    return headings, rows


LONG = ("row", "column", "published", "median", "least", "greatest", "difference", "seeds", "diverged")
LONG += ("tier", "steps", "tokens", "settings", "command")


def long(comparison: Comparison, laid: Sequence[Line]) -> list[list[str]]:
    """Everything, one line per number, under `LONG`."""
    rows = []
    for line in laid:
        for column, cell in line.cells.items():
            one, values = cell.example, cell.values
            ends = (min(values), max(values)) if values else (None, None)
            budget = [str(one.steps), str(one.tokens)] if one else ["", ""]
            numbers = [_number(value) for value in (cell.published, cell.median, *ends)]
            settings = " ".join(f"{field}={value}" for field, value in cell.settings)
            counts = [str(len(values)), str(cell.diverged)]
            rows.append([line.title, column, *numbers, _signed(cell.difference), *counts, comparison.tier, *budget])
            rows[-1] += [settings, one.command if one else ""]
    return rows


def notes(comparison: Comparison) -> list[str]:
    """What the numbers are."""
    found = [f"published: {comparison.published.source}; here: median (least to greatest) over seeds"]
    if comparison.sweep.grid:
        grid = "; ".join(f"{field} among {', '.join(values)}" for field, values in comparison.sweep.grid.items())
        found.append(f"settings chosen by {comparison.sweep.select}: {grid}")
    if comparison.sweep.select_published:
        found.append(f"settings by test, as in the published protocol: by {comparison.sweep.select_published}")
    return found


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.3g}"


def _ours(cell: Cell) -> str:
    if cell.median is None:
        return "diverged" if cell.diverged else "not run"
    text = _number(cell.median)
    if len(cell.values) > 1:
        text += f" ({_number(min(cell.values))} to {_number(max(cell.values))})"
    return text + (f", {cell.diverged} diverged" if cell.diverged else "")
