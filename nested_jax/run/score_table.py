"""A table of scores: published and measured numbers, column by column, with their difference."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nested_jax.run.comparison import Comparison
from nested_jax.run.records import Record
from nested_jax.train.comparison import Sweep

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


def chosen(records: Sequence[Record], sweep: Sweep, select: str) -> Settings:
    """The settings of the grid with the greatest lower median of a metric, the first of equals in the grid's order.

    Only settings that were run with the most seeds are compared: an unfinished sweep has no lucky winner. "a+b" is a
    sum, "-a" asks for the least. Runs without the metric or with one that is not finite, as those that had to stop,
    count as less than any number.
    """
    sign, names = (-1, select[1:].split("+")) if select.startswith("-") else (1, select.split("+"))
    groups: dict[Settings, list[float]] = {_key(settings): [] for settings in sweep.settings}
    for record in records:
        value = sign * sum(record.metrics.get(name, math.nan) for name in names)
        groups.setdefault(of_grid(record, sweep), []).append(value if math.isfinite(value) else -math.inf)
    most = max(map(len, groups.values()))
    return max(
        (settings for settings, values in groups.items() if len(values) == most),
        key=lambda settings: statistics.median_low(groups[settings]),
    )


def of_grid(record: Record, sweep: Sweep) -> Settings:
    """A run's settings that the grid goes through."""
    return _key({field: value for field, value in record.settings.items() if field in sweep.grid})


def _key(settings: Mapping[str, str]) -> Settings:
    return tuple(sorted(settings.items()))


def lines(comparison: Comparison, records: Sequence[Record]) -> list[Line]:
    """All rows of the paper and of the experiment, the experiment's first.

    Raises:
      ValueError: if there are settings to choose from, and no finished run has the metric to choose by.
    """
    sweep = comparison.sweep
    known = {name for record in records if not record.stopped for name in record.metrics}
    if known and len(sweep.settings) > 1 and not known >= {*sweep.select.removeprefix("-").split("+")}:
        raise ValueError(
            f"SWEEP.select: expected metrics of the runs, {', '.join(sorted(known))}, got {sweep.select!r}"
        )
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
        settings = chosen(own, comparison.sweep, select)
        same = [record for record in own if of_grid(record, comparison.sweep) == settings]
        values = tuple(
            comparison.published.unit * record.metrics[metric] for record in same if metric in record.metrics
        )
        stopped = sum(bool(record.stopped) for record in same)
        cells[column] = Cell(published.get(column), values, settings, stopped, same[0])
    for column, averaged in comparison.published.means.items():
        medians = [median for name in averaged if (median := cells[name].median) is not None]
        values = (statistics.fmean(medians),) if len(medians) == len(averaged) else ()
        cells[column] = Cell(published.get(column), values)
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


LONG = ("row", "column", "published", "here", "difference", "chosen", "seed", "settings", "tier", "steps", "tokens")
LONG += ("parameters", "seconds", "device", "date", "command")


def long(comparison: Comparison, laid: Sequence[Line], records: Sequence[Record]) -> list[list[str]]:
    """Every number of every run, under `LONG`; "chosen" says whether its settings are those of the table."""
    rows, unit = [], comparison.published.unit
    for line in laid:
        for column, cell in line.cells.items():
            part, metric = split(comparison.published.measured.get(column, ""))
            own = [record for record in records if (record.row, record.part) == (line.row, part)]
            own = [record for record in own if metric in record.metrics or record.stopped]
            if not own:
                rows.append([line.title, column, _number(cell.published), *[""] * (len(LONG) - 3)])
            for record in own:
                here = unit * record.metrics[metric] if record.metrics else None
                away = None if here is None or cell.published is None else here - cell.published
                settings = " ".join(f"{field}={value}" for field, value in record.settings.items())
                taken = "yes" if of_grid(record, comparison.sweep) == cell.settings else "no"
                numbers = [_number(cell.published), _number(here) if record.metrics else "stopped", _signed(away)]
                budget = [record.steps, record.tokens, record.parameters, record.seconds, record.device, record.date]
                rows.append([line.title, column, *numbers, taken, str(record.seed), settings, comparison.tier])
                rows[-1] += [*map(str, budget), record.command]
    return rows


def notes(comparison: Comparison, records: Sequence[Record]) -> list[str]:
    """What the numbers are."""
    found = [f"published: {comparison.published.source}; here: median (least to greatest) over seeds"]
    if comparison.sweep.grid:
        run = {settings for record in records for settings in of_grid(record, comparison.sweep)}
        grid = "; ".join(
            f"{field} among {', '.join(value for value in values if (field, value) in run) or 'none'} "
            f"(planned: {', '.join(values)})"
            for field, values in comparison.sweep.grid.items()
        )
        found.append(f"settings chosen by {comparison.sweep.select}: {grid}{_left_out(comparison.sweep, records)}")
    if comparison.sweep.select_published:
        found.append(f"settings by test, as in the published protocol: by {comparison.sweep.select_published}")
    return found


def _left_out(sweep: Sweep, records: Sequence[Record]) -> str:
    """A remark on cells of which not every setting was compared, as others were run with more seeds."""
    counts = Counter((record.row, record.part, of_grid(record, sweep)) for record in records)
    cells, settings = {(row, part) for row, part, _ in counts}, {chosen for *_, chosen in counts}
    fewer = sum(len({counts[*cell, one] for one in settings}) > 1 for cell in cells)
    return f"; in {fewer} of {len(cells)} cells only those run with the most seeds are compared" if fewer else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.3g}"


def _ours(cell: Cell) -> str:
    if cell.median is None:
        return "diverged" if cell.diverged else "no score" if cell.example else "not run"
    text = _number(cell.median)
    if len(cell.values) > 1:
        text += f" ({_number(min(cell.values))} to {_number(max(cell.values))})"
    return text + (f", {cell.diverged} diverged" if cell.diverged else "")
