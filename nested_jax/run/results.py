"""`table --all`: every table of the experiments, from the records beside their files, in one document."""

from __future__ import annotations

import pathlib

from nested_jax.models import SIZES
from nested_jax.run.comparison import Comparison, load
from nested_jax.run.records import read
from nested_jax.run.table import lay, picture

NAME = "RESULTS.md"
ABOUT = """# Results

Published numbers beside those measured here. Made by `python -m nested_jax table --all` from the records beside the
experiments (`experiments/PAPER/TABLE.jsonl`, one line per run, with its command, device, versions and date). A number
is a reproduction only where tier, data, metric and budget are the paper's; what differs is said above each table. What
was measured before runs were recorded stands in the docstrings of the experiments and counts as not run here.
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
    sections, pictures = [ABOUT], 0
    for comparison in tables:
        laid = lay(comparison, comparison.records(None))
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
    path.write_text("\n".join(sections))
    return f"{path}: {len(tables)} tables, {pictures} of them with runs"


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
