"""`table --all`: every table of the experiments, from the records beside their files, in one document."""

from __future__ import annotations

import pathlib
import re

from nested_jax.models import SIZES
from nested_jax.run.comparison import Comparison, load
from nested_jax.run.records import Record, read
from nested_jax.run.table import lay, picture
from nested_jax.run.text_table import markdown

NAME = "RESULTS.md"
HEADINGS = ("table", "tier", "rows × parts that were run", "times")
ABOUT = """# Results

Published numbers beside those measured here. Made by `python -m nested_jax table --all` from the records beside the
experiments (`experiments/PAPER/TABLE.jsonl`, one line per run, with its command, device, versions and date). A number
is a reproduction only where tier, data, metric and budget are the paper's; what differs is said above each table. What
the docstrings of experiments say of other budgets, or of runs before they were recorded, counts as not run here.
"""


def write(folder: pathlib.Path) -> str:
    """Writes `RESULTS.md` and the pictures of what was run.

    Args:
      folder: of the experiments; files that define `ROWS` and `RESULT` are its tables.

    Returns:
      What was written, for people.

    Raises:
      ValueError: if there is no table.
    """
    tables = found(folder)
    if not tables:
        raise ValueError(f"table --all: expected tables below {folder}, found none")
    sections, lines, pictures = [], [], 0
    for comparison in tables:
        records = comparison.records(None)
        laid = lay(comparison, records)
        lines.append((f"[{laid.title}](#{anchor(laid.title)})", comparison.tier, *_counts(comparison, records)))
        text = f"## {laid.title}\n\n{laid.markdown}\n"
        if laid.run:
            file = pathlib.Path(comparison.file).with_name(
                f"{pathlib.Path(comparison.file).stem}-{comparison.size}.png"
            )
            picture(laid, file)
            text += f"\n![{laid.title}]({file.relative_to(folder.resolve()).as_posix()})\n"
            pictures += 1
        sections.append(text)
    path = folder / NAME
    path.write_text("\n".join([ABOUT, markdown(HEADINGS, lines) + "\n", *sections]))
    return f"{path}: {len(tables)} tables, {pictures} of them with runs"


def anchor(title: str) -> str:
    """Where a heading is found in a page made of Markdown.

    Example:
      >>> anchor("experiments/titans/table5.py, small")
      'experimentstitanstable5py-small'
    """
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def _counts(comparison: Comparison, records: list[Record]) -> tuple[str, ...]:
    """Cells of rows and parts that were run to their end, of how many, how often at least and at most."""
    cells = {(row, part): 0 for row in comparison.rows for part in comparison.parts}
    for record in records:
        cells[record.row, record.part] += not record.stopped
    run = [count for count in cells.values() if count]
    times = f"{min(run)} to {max(run)}" if len(set(run)) > 1 else str(max(run, default=""))
    return f"{len(run)} of {len(cells)}", times


def found(folder: pathlib.Path) -> list[Comparison]:
    """Every table in the sizes that it has records of and was published in; in "small" where there are none."""
    tables = []
    for file in sorted(folder.resolve().glob("*/*.py")):
        text = file.read_text()
        if "ROWS = " not in text or "RESULT = " not in text:
            continue
        records = read(file.with_suffix(".jsonl"))
        run = [size for size in SIZES if any(record.size == size for record in records)]
        printed = [key.partition("@")[2] for key in load(str(file)).published.values]
        sizes = dict.fromkeys([*run, *(size for size in printed if size)]) or ["small"]
        tables += [load(f"{file}:{size}") for size in sizes]
    return tables
