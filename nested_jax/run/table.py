"""`table`: what a paper printed beside what was measured here, as text, Markdown, CSV and a picture."""

from __future__ import annotations

import csv
import io
import pathlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nested_jax.run import ablation, score_table
from nested_jax.run.again import commands
from nested_jax.run.comparison import Comparison
from nested_jax.run.records import Record
from nested_jax.run.text_table import markdown, text_table


@dataclass(frozen=True)
class Panel:
    """A column of the picture: per row a published number, if there is one, and ours."""

    title: str
    rows: tuple[str, ...]
    published: tuple[float | None, ...]
    ours: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Laid:
    """A table that is laid out.

    Attributes:
      title: paper and table.
      notes: what the numbers are, and what they were measured with.
      headings: of the columns.
      rows: cells as text.
      full: the rows of the CSV file, headings first.
      panels: of the picture.
      commands: title and command of each row.
      run: whether anything was.
    """

    title: str
    notes: tuple[str, ...]
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    full: tuple[tuple[str, ...], ...]
    panels: tuple[Panel, ...]
    commands: tuple[tuple[str, str], ...]
    run: bool

    @property
    def text(self) -> str:
        commands = [f"{title}: {command}" for title, command in self.commands]
        return "\n".join([*self.notes, "", text_table(self.headings, self.rows), "", *commands])

    @property
    def markdown(self) -> str:
        notes = [f"- {note}" for note in self.notes]
        commands = [f"- {title}: `{command}`" for title, command in self.commands]
        return "\n".join([*notes, "", markdown(self.headings, self.rows), "", *commands])

    @property
    def csv(self) -> str:
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows(self.full)
        return file.getvalue()


def lay(comparison: Comparison, records: Sequence[Record]) -> Laid:
    """Lays out a table from the runs that are done: changes where it is an ablation, scores else."""
    title, common = f"{comparison.name}, {comparison.size}", _measured(comparison, records)
    again, run = tuple(commands(comparison, records)), bool(records)
    if comparison.published.base is not None:
        changes = ablation.lines(comparison, records)
        headings, rows = ablation.headings(comparison), tuple(tuple(ablation.cells(line)) for line in changes)
        drawn = [line for line in changes if line.published_change is not None or line.changes]
        panel = Panel(
            "change of the loss in %, left is better",
            tuple(line.title for line in drawn),
            tuple(None if line.published_change is None else 100 * line.published_change for line in drawn),
            tuple(tuple(100 * change for change in line.changes) for line in drawn),
        )
        notes = (*ablation.notes(comparison), *common)
        return Laid(title, notes, headings, rows, (headings, *rows), (panel,), again, run)
    laid = score_table.lines(comparison, records)
    headings, cells = score_table.wide(comparison, laid)
    full = [score_table.LONG, *score_table.long(comparison, laid, records)]
    panels = tuple(
        Panel(
            heading,
            tuple(line.title for line in laid),
            tuple(line.cells[column].published for line in laid),
            tuple(line.cells[column].values for line in laid),
        )
        for column, heading in comparison.published.columns.items()
    )
    notes = (*score_table.notes(comparison, records), *common)
    return Laid(title, notes, tuple(headings), tuple(map(tuple, cells)), tuple(map(tuple, full)), panels, again, run)


def _measured(comparison: Comparison, records: Sequence[Record]) -> list[str]:
    """What the runs were, and how they differ from the paper's."""
    if not records:
        return [f"tier: {comparison.tier}; nothing was run"]

    def among(values: Sequence[Any]) -> str:
        return ", ".join(map(str, dict.fromkeys(values)))

    sizes = [record.parameters for record in records if record.parameters]
    tokens = sorted({record.tokens for record in records if record.tokens}) or [0]
    read = f"{tokens[0]:,}" if len(tokens) == 1 else f"{tokens[0]:,} to {tokens[-1]:,}"
    budget = f"{among([f'{record.steps:,}' for record in records])} steps of {read} tokens"
    machines = [f"{r.device} ({', '.join(f'{k} {v}' for k, v in r.versions.items())})" for r in records]
    seconds = statistics.median(record.seconds for record in records)
    found = [
        f"tier: {comparison.tier}; {len(records)} runs of {seconds:.0f} s (median); {budget}; "
        + (f"{min(sizes):,} to {max(sizes):,} parameters" if sizes else "none came to its end"),
        f"measured on {among(machines)}; "
        f"{min(record.date for record in records)} to {max(record.date for record in records)}",
    ]
    older = comparison.outdated(records)
    if older:
        cells = among(["/".join(filter(None, (record.row, record.part))) for record in older])
        found.append(f"{len(older)} runs are of an earlier config of the file and will be run again: {cells}")
    if comparison.parts == ("",):
        found.append(f"scored on {among([record.scored for record in records if record.scored])}")
    if comparison.size in comparison.sweep.differs:
        found.append(f"differs from the paper: {comparison.sweep.differs[comparison.size]}")
    return found


def table(comparison: Comparison, workdir: pathlib.Path) -> str:
    """Makes the table from the runs that are done, writes `table.md`, `.csv` and `.png`, and returns it as text."""
    laid = lay(comparison, comparison.records(workdir))
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "table.md").write_text(f"{laid.markdown}\n")
    (workdir / "table.csv").write_text(laid.csv)
    picture(laid, workdir / "table.png")
    names = "\n".join(f"  {workdir / name}" for name in ("table.md", "table.csv", "table.png"))
    return f"{laid.text}\n\n{names}"


def picture(laid: Laid, output: pathlib.Path, columns: int = 6) -> None:
    """Draws the numbers: the published ones as bars, ours as points, one per seed; columns without any are left out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [
        panel for panel in laid.panels if any(panel.ours) or any(value is not None for value in panel.published)
    ] or laid.panels
    columns = min(columns, len(panels))
    lines, rows = -(-len(panels) // columns), max(len(panel.rows) for panel in panels)
    size = (9, 1.5 + 0.45 * rows) if columns == 1 else (2 + 2.4 * columns, lines * (1.2 + 0.3 * rows))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    grid: Any = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(panels) :]:
        axes.axis("off")
    for panel, axes in zip(panels, grid.flat, strict=False):
        places = range(len(panel.rows))
        axes.barh(places, [value or 0 for value in panel.published], color="0.8", height=0.7, label="published")
        points = [(value, place) for place, values in zip(places, panel.ours, strict=True) for value in values]
        if points:
            drawn = list(zip(*points, strict=True))
            axes.plot(*drawn, "o", color="tab:blue", markersize=5, alpha=0.7, clip_on=False, label="here, a seed")
        axes.axvline(0, color="0.3", linewidth=1)
        axes.set_yticks(list(places), panel.rows)
        axes.set_title(panel.title, fontsize=9)
        axes.grid(alpha=0.25, axis="x")
    grid.flat[0].invert_yaxis()
    handles = {
        label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=2, fontsize=8)
    figure.suptitle(laid.title, fontsize=10)
    figure.savefig(output, dpi=100)
