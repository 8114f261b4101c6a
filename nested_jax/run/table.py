"""`table`: what a paper printed beside what was measured here, row by row, as Markdown, CSV and a picture."""

from __future__ import annotations

import csv
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nested_jax import config as configs
from nested_jax.run.text_table import markdown, text_table
from nested_jax.train.comparison import Published, Row, row_and_size
from nested_jax.train.report import Report

STOPPED = "stopped.txt"
HEADINGS = ("row", "published", "change", "bits/byte", "change, median", "range", "seeds", "sign")


@dataclass(frozen=True)
class Comparison:
    """An experiment file that is a table.

    Attributes:
      file: path of the experiment.
      size: of all rows.
      rows: row → model.
      published: the paper's numbers.
    """

    file: str
    size: str
    rows: Mapping[str, Row]
    published: Published

    def spec(self, row: str) -> str:
        """A row's config, as `--config` takes it."""
        return f"{self.file}:{row}@{self.size}"

    def base(self, row: str) -> str:
        """The row that a row is compared with."""
        return self.published.bases.get(row, self.published.base)


def load(spec: str) -> Comparison:
    """Reads `FILE.py` or `FILE.py:SIZE`.

    Raises:
      ValueError: if the file has no `ROWS` and `RESULT`, or there is no such size.
    """
    module, arg = configs.module(spec)
    rows, published = getattr(module, "ROWS", None), getattr(module, "RESULT", None)
    if not isinstance(rows, Mapping) or not isinstance(published, Published):
        raise ValueError(f"config: {spec} is no table: it must define ROWS and RESULT (a Published)")
    _, size = row_and_size(rows, arg and f"@{arg}")
    return Comparison(str(module.__file__), size, rows, published)


def directory(workdir: pathlib.Path, row: str, seed: int) -> pathlib.Path:
    """Where a row's run is."""
    return workdir / f"{row}-{seed}"


def finished(comparison: Comparison, workdir: pathlib.Path) -> dict[str, dict[int, Report]]:
    """Row → seed → report of the runs that are done."""
    found: dict[str, dict[int, Report]] = {row: {} for row in comparison.rows}
    for row in comparison.rows:
        for place in sorted(workdir.glob(f"{row}-[0-9]*")):
            report = Report.load(place / "report.json")
            if report is not None:
                found[row][int(place.name.rpartition("-")[2])] = report
    return found


@dataclass(frozen=True)
class Line:
    """A row of the table; changes are relative changes of the loss, negative where the row is better than its base.

    Attributes:
      title: of the row.
      published: the paper's number, None where it has none.
      published_change: of its logarithm (the loss is the logarithm of the perplexity), against the base row.
      bits: bits per byte of each seed.
      changes: of each seed that the base row was run with, too.
      diverged: seeds whose training had to stop.
    """

    title: str
    published: float | None
    published_change: float | None
    bits: tuple[float, ...]
    changes: tuple[float, ...]
    diverged: int = 0

    @property
    def sign(self) -> str:
        """Whether the change has the published sign for every seed, the opposite one, or depends on the seed."""
        if not self.published_change or not self.changes:
            return ""
        same = [change * self.published_change > 0 for change in self.changes]
        return "same" if all(same) else "unclear" if any(same) else "opposite"


def diverged(workdir: pathlib.Path, row: str) -> int:
    """How many of a row's runs stopped before their end."""
    stopped = [file.parent for file in workdir.glob(f"{row}-[0-9]*/{STOPPED}")]
    return sum(not (place / "report.json").exists() for place in stopped)


def lines(comparison: Comparison, workdir: pathlib.Path, found: Mapping[str, Mapping[int, Report]]) -> list[Line]:
    """The table's rows, from the runs that are done."""
    values, laid = comparison.published.values, []
    for row, model in comparison.rows.items():
        base = comparison.base(row)
        first = comparison.published.base
        change = None
        if row != first and row in values:
            change = math.log(values[row]) / math.log(values[first]) - 1
        bits = {seed: report.bits_per_byte for seed, report in sorted(found[row].items())}
        against = {seed: report.bits_per_byte for seed, report in found[base].items()} if row != base else {}
        changes = tuple(bits[seed] / against[seed] - 1 for seed in bits if seed in against)
        stopped = diverged(workdir, row)
        laid.append(Line(model.title, values.get(row), change, tuple(bits.values()), changes, stopped))
    return laid


def cells(line: Line) -> list[str]:
    """A line as text."""

    def percent(change: float) -> str:
        return f"{100 * change:+.2f} %"

    return [
        line.title,
        "" if line.published is None else f"{line.published:g}",
        "" if line.published_change is None else percent(line.published_change),
        f"{statistics.median(line.bits):.4f}" if line.bits else "diverged" if line.diverged else "not run",
        percent(statistics.median(line.changes)) if line.changes else "",
        f"{percent(min(line.changes))} to {percent(max(line.changes))}" if line.changes else "",
        f"{len(line.bits)}, {line.diverged} diverged" if line.diverged else str(len(line.bits)),
        line.sign,
    ]


def heading(comparison: Comparison, found: Mapping[str, Mapping[int, Report]]) -> str:
    """What the numbers are and what they were measured with."""
    published = comparison.published
    text = [
        f"published: {published.source}; {published.metric}; changes are of its logarithm, against "
        f"{comparison.rows[published.base].title}."
    ]
    reports = [report for seeds in found.values() for report in seeds.values()]
    if reports:
        one, sizes = reports[0], [report.parameters for report in reports]
        text.append(
            f"here: bits per byte on {one.scored_bytes:,} validation bytes (context {one.context_length}), median over "
            f"seeds, after {one.steps:,} steps; {min(sizes):,} to {max(sizes):,} parameters; changes seed by seed; "
            f"{one.text}."
        )
    for row, base in published.bases.items():
        text.append(f"{comparison.rows[row].title} is compared here with {comparison.rows[base].title}.")
    return "\n".join(text)


def table(comparison: Comparison, workdir: pathlib.Path) -> str:
    """Writes `table.md`, `table.csv` and `table.png` into the sweep's directory.

    Returns:
      The table as text.
    """
    found = finished(comparison, workdir)
    laid = lines(comparison, workdir, found)
    rows, above = [cells(line) for line in laid], heading(comparison, found)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "table.md").write_text(f"{above}\n\n{markdown(HEADINGS, rows)}\n")
    with (workdir / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([HEADINGS, *rows])
    picture(comparison, laid, workdir / "table.png")
    names = "\n".join(f"  {workdir / name}" for name in ("table.md", "table.csv", "table.png"))
    return f"{above}\n\n{text_table(HEADINGS, rows)}\n\n{names}"


def picture(comparison: Comparison, laid: Sequence[Line], output: pathlib.Path) -> None:
    """Draws the changes: the published ones as bars, ours as points, one per seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = [line for line in laid if line.published_change is not None or line.changes]
    figure = Figure(figsize=(9, 1.5 + 0.45 * len(drawn)), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    places = range(len(drawn))
    published = [100 * (line.published_change or 0) for line in drawn]
    axes.barh(places, published, color="0.8", height=0.7, label="published")
    points = [(100 * change, place) for place, line in zip(places, drawn, strict=True) for change in line.changes]
    if points:
        axes.plot(*zip(*points, strict=True), "o", color="tab:blue", markersize=5, alpha=0.7, label="here, each seed")
    axes.axvline(0, color="0.3", linewidth=1)
    axes.set_yticks(list(places), [line.title for line in drawn])
    axes.invert_yaxis()
    axes.set(xlabel="change of the loss in %, left is better", title=comparison.published.source)
    axes.grid(alpha=0.25, axis="x")
    axes.legend(fontsize=8)
    figure.savefig(output, dpi=100)
