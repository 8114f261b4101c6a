"""Cells of a benchmark over lengths of sequences: kept one by one, laid out as tables and drawn, with their growth.

Growth is the slope of log y against log T over the last three lengths; y ∝ T^growth.
"""

import csv
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nested_jax.train.metrics import read

FILE = "cells.jsonl"


class Place(NamedTuple):
    """Which cell.

    Attributes:
      family: name of the model's family.
      size: of the family.
      what: the pass.
      length: tokens of the sequence.
    """

    family: str
    size: str
    what: str
    length: int


@dataclasses.dataclass(frozen=True)
class Cell:
    """What was measured at a place.

    Attributes:
      place: where.
      parameters: of the model.
      seconds: of each call; none where the memory did not suffice.
      memory: bytes that the compiled program asks for, inputs and outputs included; None where unknown.
      compile_seconds: of lowering and compiling.
      wall_seconds: of everything.
    """

    place: Place
    parameters: int
    seconds: tuple[float, ...]
    memory: int | None
    compile_seconds: float
    wall_seconds: float

    @property
    def median(self) -> float | None:
        """Median seconds of a call, None where there was none."""
        return float(np.median(self.seconds)) if self.seconds else None

    @property
    def rate(self) -> str:
        """Tokens per second as text, or why there are none."""
        if self.median is None:
            return f"out of memory ({(self.memory or 0) / 2**30:.1f} GiB)"
        return f"{self.place.length / self.median:,.0f}"

    @property
    def mebibytes(self) -> str:
        """The memory as text."""
        return "–" if self.memory is None else f"{self.memory / 2**20:,.0f}"


Cells = Mapping[Place, Cell]


def series(cells: Cells, family: str, what: str) -> list[Cell]:
    """The cells of a family and a pass, by length."""
    found = [cell for cell in cells.values() if (cell.place.family, cell.place.what) == (family, what)]
    return sorted(found, key=lambda cell: cell.place.length)


def load(folder: pathlib.Path, computer: str) -> dict[Place, Cell]:
    """The cells kept in a folder that were measured on this computer; none if there are none."""
    found = {}
    for record in read(folder / FILE):
        if record.pop("computer") == computer:
            place, seconds = Place(*record.pop("place")), tuple(record.pop("seconds"))
            found[place] = Cell(place=place, seconds=seconds, **record)
    return found


def save(folder: pathlib.Path, computer: str, cells: Cells) -> None:
    """Keeps cells, in one move: a process killed meanwhile leaves those of before."""
    lines = [json.dumps({"computer": computer, **dataclasses.asdict(cell)}) + "\n" for cell in cells.values()]
    temporary = folder / (FILE + ".tmp")
    temporary.write_text("".join(lines))
    os.replace(temporary, folder / FILE)


def growth(points: Iterable[tuple[int, float | None]], last: int = 3) -> float | None:
    """The slope of log y against log T by least squares.

    Args:
      points: (T, y), y positive or None where it is unknown.
      last: how many of the longest T are used.

    Returns:
      The slope, None for fewer than two points.

    Example:
      >>> round(growth([(1, 5.0), (2, 1.0), (4, 4.0), (8, 16.0)]), 6)
      2.0
    """
    known = sorted((length, y) for length, y in points if y)[-last:]
    if len(known) < 2:
        return None
    x, y = np.log(np.array(known)).T
    return float(np.polyfit(x, y, 1)[0])


def rows(cells: Cells, families: Sequence[str], passes: Sequence[str], lengths: Sequence[int]) -> list[list[str]]:
    """One row per pass and family: tokens per second at each length, growth of time, MiB, growth of memory."""

    def slope(line: Sequence[Cell], value: Callable[[Cell], float | None]) -> str:
        found = growth((cell.place.length, value(cell)) for cell in line)
        return "–" if found is None else f"{found:z.2f}"

    found = []
    for what in passes:
        for family in families:
            line = series(cells, family, what)
            at = {cell.place.length: cell for cell in line}
            rates = [at[length].rate if length in at else "–" for length in lengths]
            sizes = [at[length].mebibytes if length in at else "–" for length in lengths]
            time, memory = slope(line, lambda cell: cell.median), slope(line, lambda cell: cell.memory)
            found.append([family, what, *rates, time, *sizes, memory])
    return found


def headings(lengths: Sequence[int]) -> list[str]:
    """Of :func:`rows`."""
    names = [f"{length // 1024}K" if length >= 1024 and length % 1024 == 0 else str(length) for length in lengths]
    rates, sizes = [f"tokens/s at {name}" for name in names], [f"MiB at {name}" for name in names]
    return ["family", "pass", *rates, "growth of time", *sizes, "growth of memory"]


def write_csv(path: pathlib.Path, cells: Cells) -> None:
    """One line per cell, with what the table leaves out: least and greatest seconds, calls and compile seconds."""
    names = ["family", "size", "pass", "tokens", "parameters", "median_seconds", "least_seconds", "greatest_seconds"]
    names += ["calls", "tokens_per_second", "memory_bytes", "compile_seconds"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for cell in cells.values():
            least, greatest = (min(cell.seconds), max(cell.seconds)) if cell.seconds else (None, None)
            rate = cell.place.length / cell.median if cell.median else None
            timed = [cell.median, least, greatest, len(cell.seconds), rate]
            writer.writerow([*cell.place, cell.parameters, *timed, cell.memory, cell.compile_seconds])


def draw(path: pathlib.Path, title: str, cells: Cells, families: Sequence[str], passes: Sequence[str]) -> None:
    """Seconds above and memory below, a column per pass, all axes logarithmic; dotted lines grow as T.

    Families whose attention sees everything should be steeper than those. A cell that did not fit has its memory drawn
    as a cross.

    Args:
      path: of the image; its suffix gives the format.
      title: above everything.
      cells: what was measured.
      families: the curves, in the order of the legend.
      passes: the columns.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * len(passes) + 2, 10), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(passes), sharex=True, sharey="row", squeeze=False)
    values: tuple[tuple[str, str, Callable[[Cell], float | None]], ...] = (
        ("time", "seconds", lambda cell: cell.median),
        ("memory (× did not fit)", "MiB", lambda cell: cell.memory and cell.memory / 2**20),
    )
    for line, (heading, label, value) in zip(grid, values, strict=True):
        for axes, what in zip(line, passes, strict=True):
            _curves(axes, [series(cells, family, what) for family in families], value)
            axes.set(xscale="log", yscale="log", title=f"{what}: {heading}")
            axes.grid(alpha=0.25)
        line[0].set_ylabel(label)
    ticks = sorted({cell.place.length for cell in cells.values()})
    for axes in grid[-1]:
        axes.set_xlabel("tokens of the sequence")
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=9)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def _curves(axes: Any, lines: Sequence[Sequence[Cell]], value: Callable[[Cell], float | None]) -> None:
    lowest, longest = (math.inf, 1), 1
    for number, line in enumerate(lines):
        points = [(cell.place.length, found) for cell in line if (found := value(cell))]
        if not points:
            continue
        (first, least), (last, _) = points[0], points[-1]
        lowest, longest = min(lowest, (least, first)), max(longest, last)
        kind = number // 10
        style = {"color": f"C{number % 10}", "marker": "os^D"[kind % 4], "linestyle": ("-", "--", "-.", ":")[kind % 4]}
        axes.plot(*zip(*points, strict=True), label=line[0].place.family, markersize=4, **style)
        refused = [(cell.place.length, found) for cell in line if not cell.seconds and (found := value(cell))]
        if refused:
            axes.plot(*zip(*refused, strict=True), "x", color=style["color"], markersize=10)
    least, first = lowest
    if longest > first:
        axes.plot([first, longest], [least, least * longest / first], ":", color="0.4", label="∝ T")
