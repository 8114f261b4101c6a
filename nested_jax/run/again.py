"""The command that runs a row of a table: for the first time, or again as it was recorded."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from nested_jax.run.comparison import PLACES, Comparison
from nested_jax.run.records import Record


def commands(comparison: Comparison, records: Sequence[Record]) -> list[tuple[str, str]]:
    """Title and command of every row, or of a table of which nothing was run one command with all names of its rows."""
    if not records:
        return [(f"ROW any of {', '.join(comparison.rows)}", command(comparison, "ROW", ()))]
    return [
        (model.title, command(comparison, row, [record for record in records if record.row == row]))
        for row, model in comparison.rows.items()
    ]


def command(comparison: Comparison, row: str, recorded: Sequence[Record]) -> str:
    """Runs what is recorded of a row again: its parts, times all its seeds and settings; all of it where nothing is."""
    flags, fields = [f"--rows={row}"], dict(comparison.overrides)
    if recorded:
        flags.append("--again")
        parts = [part for part in comparison.parts if any(record.part == part for record in recorded)]
        if parts != list(comparison.parts):
            flags.append(f"--parts={','.join(parts)}")
        seeds = sorted({record.seed for record in recorded})
        if seeds != sorted(comparison.sweep.seeds):
            flags.append(f"--seeds={','.join(map(str, seeds))}")
        for field in (*comparison.sweep.grid, *PLACES):
            value, *others = {record.settings.get(field) for record in recorded}
            if value is not None and not others:
                fields[field] = value
    flags += [f"--config.{field}={shlex.quote(value)}" for field, value in fields.items()]
    return f"python -m nested_jax sweep {comparison.name}:{comparison.size} {' '.join(flags)}"
