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


def lines(comparison: Comparison, records: Sequence[Record]) -> list[Line]:
    """The table's rows, from the runs that are done."""
    published, laid = comparison.published, []
    column = next(iter(published.columns))
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
        laid.append(Line(model.title, value, change, tuple(bits.values()), changes, stopped))
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
