"""A table of what parts are worth: relative changes of the loss against a base row, published and measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from nested_jax.run.comparison import Comparison
from nested_jax.run.records import Record

HEADINGS = ("row", "published", "change", "bits/byte", "change, median", "range", "seeds", "sign")
METRIC = "bits_per_byte"


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
      others: of each further column the published number, and the median of ours; None where there is none.
    """

    title: str
    published: float | None
    published_change: float | None
    bits: tuple[float, ...]
    changes: tuple[float, ...]
    diverged: int = 0
    others: tuple[tuple[float | None, float | None], ...] = ()

    @property
    def sign(self) -> str:
        """Whether the change has the published sign for every seed, the opposite one, or depends on the seed."""
        if not self.published_change or not self.changes:
            return ""
        same = [change * self.published_change > 0 for change in self.changes]
        return "same" if all(same) else "unclear" if any(same) else "opposite"


def headings(comparison: Comparison) -> tuple[str, ...]:
    """Of the columns; further ones of the paper stand behind the changes."""
    return (*HEADINGS, *(f"{title} (here)" for title in list(comparison.published.columns.values())[1:]))


def lines(comparison: Comparison, records: Sequence[Record]) -> list[Line]:
    """The table's rows, from the runs that are done."""
    published, laid = comparison.published, []
    column, *others = published.columns
    found: dict[str, dict[int, float]] = {row: {} for row in comparison.rows}
    for record in sorted(records, key=lambda record: record.seed):
        if not record.stopped:
            found[record.row][record.seed] = record.metrics[METRIC]
    first = published.of(comparison.base(""), comparison.size).get(column)
    for row, model in comparison.rows.items():
        value, base = published.of(row, comparison.size).get(column), comparison.base(row)
        change = None
        if row != published.base and value is not None and first is not None:
            change = math.log(value) / math.log(first) - 1
        bits, against = found[row], found[base] if row != base else {}
        changes = tuple(bits[seed] / against[seed] - 1 for seed in bits if seed in against)
        stopped = sum(record.row == row and bool(record.stopped) for record in records)
        further = tuple(_further(comparison, records, row, other) for other in others)
        laid.append(Line(model.title, value, change, tuple(bits.values()), changes, stopped, further))
    return laid


def _further(
    comparison: Comparison, records: Sequence[Record], row: str, column: str
) -> tuple[float | None, float | None]:
    published = comparison.published
    metric = published.measured.get(column)
    found = [
        record.metrics[metric] * published.unit
        for record in records
        if record.row == row and not record.stopped and metric in record.metrics
    ]
    return published.of(row, comparison.size).get(column), statistics.median(found) if found else None


def cells(line: Line) -> list[str]:
    """A line as text."""

    def percent(change: float) -> str:
        return f"{100 * change:+.2f} %"

    def both(published: float | None, ours: float | None) -> str:
        printed = "" if published is None else f"{published:g} "
        return f"{printed}({'–' if ours is None else f'{ours:.2f}'})"

    bits = "" if not line.bits else f"{statistics.median(line.bits):.4f}"
    if len(line.bits) > 1:
        bits += f" ({min(line.bits):.4f} to {max(line.bits):.4f})"
    return [
        line.title,
        "" if line.published is None else f"{line.published:g}",
        "" if line.published_change is None else percent(line.published_change),
        bits if line.bits else "diverged" if line.diverged else "not run",
        percent(statistics.median(line.changes)) if line.changes else "",
        f"{percent(min(line.changes))} to {percent(max(line.changes))}" if line.changes else "",
        f"{len(line.bits)}, {line.diverged} diverged" if line.diverged else str(len(line.bits)),
        line.sign,
        *(both(*other) for other in line.others),
    ]


def notes(comparison: Comparison) -> list[str]:
    """What the numbers are."""
    published, rows = comparison.published, comparison.rows
    if not published.values:
        return [f"{published.source}; bits per byte, changes seed by seed, against {rows[comparison.base('')].title}"]
    what = next(iter(published.columns.values()))
    found = [
        f"published: {published.source}; {what}; changes are of its logarithm, against "
        f"{rows[comparison.base('')].title}; here: bits per byte, changes seed by seed"
    ]
    return found + [
        f"{rows[row].title} is compared here with {rows[base].title}" for row, base in published.bases.items()
    ]
