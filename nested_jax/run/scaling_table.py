"""Cells of `bench scaling`, laid out as a table and drawn."""

import csv
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

FILE = "cells.jsonl"
HEADINGS = ("scaling", "family", "axis", "devices", "collectives", "KiB sent", "work", "MFLOPs", "KiB held")


class Place(NamedTuple):
    """Which cell.

    Attributes:
      family: name of the model's family.
      size: of the family.
      axis: of the mesh; "" for one device.
      devices: along it.
      rows: of the batch.
      tokens: of a row.
    """

    family: str
    size: str
    axis: str
    devices: int
    rows: int
    tokens: int

    def __str__(self) -> str:
        where = f"{self.axis}={self.devices}" if self.axis else "one device"
        return f"{self.family} on {where}, {self.rows} × {self.tokens} tokens"


class Scaling(NamedTuple):
    """A point of a line.

    Attributes:
      kind: "strong" or "weak".
      family: name of the model's family.
      axis: of the mesh.
      devices: along it.
    """

    kind: str
    family: str
    axis: str
    devices: int


class Cell(NamedTuple):
    """What one device does in one step.

    Attributes:
      place: where.
      collectives: how many it takes part in.
      sent: bytes that it sends in them.
      kinds: how many of each kind.
      flops: of matrix products.
      repeated: those times devices, over the FLOPs of the step.
      held: bytes of parameters, optimizer state and batch.
      unknown_loops: loops whose trip count is unknown; they count once.
      wall_seconds: of tracing, compiling and counting.
    """

    place: Place
    collectives: int
    sent: float
    kinds: Mapping[str, int]
    flops: float
    repeated: float
    held: float
    unknown_loops: int
    wall_seconds: float


Table = Mapping[Scaling, Cell]


def series(table: Table, kind: str, family: str, axis: str) -> dict[int, Cell]:
    """Devices → cell of one line."""
    return {point.devices: cell for point, cell in table.items() if point[:3] == (kind, family, axis)}


def work(line: Mapping[int, Cell], kind: str, devices: int) -> float:
    """FLOPs of all devices over those of one device on as much: 1 if nothing is done twice, nor for the splitting.

    Args:
      line: devices → cell, that of one device among them.
      kind: "strong", where one device has the whole batch, or "weak", where it has one share of it.
      devices: how many.
    """
    return line[devices].flops / line[1].flops * (devices if kind == "strong" else 1)


def _names(table: Table, field: str) -> list[str]:
    return list(dict.fromkeys(getattr(point, field) for point in table))


def rows(table: Table, devices: Sequence[int]) -> list[list[str]]:
    """One row per line, its numbers in the order of `devices`, all of one device and one step."""
    found = []
    for kind in _names(table, "kind"):
        for family in _names(table, "family"):
            for axis in _names(table, "axis"):
                line = series(table, kind, family, axis)
                cells = [line[count] for count in devices]
                found.append(
                    [
                        *(kind, family, axis),
                        " ".join(map(str, devices)),
                        " ".join(f"{cell.collectives:,}" for cell in cells),
                        " ".join(f"{cell.sent / 1024:,.0f}" for cell in cells),
                        " ".join(f"{work(line, kind, count):.2f}" for count in devices),
                        " ".join(f"{cell.flops / 1e6:,.0f}" for cell in cells),
                        " ".join(f"{cell.held / 1024:,.0f}" for cell in cells),
                    ]
                )
    return found


def write_csv(path: pathlib.Path, table: Table) -> None:
    """One line per point, with what the table leaves out: kinds of collectives and loops of unknown length."""
    names = ["scaling", "family", "axis", "devices", "size", "rows", "tokens", "collectives", "bytes_sent"]
    names += ["kinds", "flops", "repeated_work", "bytes_held", "unknown_loops"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for point, cell in table.items():
            kinds = " ".join(f"{name}:{count}" for name, count in cell.kinds.items())
            shape = [cell.place.size, cell.place.rows, cell.place.tokens]
            found = [cell.collectives, round(cell.sent), kinds, cell.flops, cell.repeated, cell.held]
            writer.writerow([*point, *shape, *found, cell.unknown_loops])


def draw(path: pathlib.Path, title: str, table: Table) -> None:
    """Bytes sent under strong and weak scaling, and the work of all devices, a column per axis of the mesh.

    Dotted: the work where every device does everything. A line of no bytes at all is left out.

    Args:
      path: of the image; its suffix gives the format.
      title: above everything.
      table: what was counted.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    axes_names, families = _names(table, "axis"), _names(table, "family")
    devices = sorted({point.devices for point in table})
    quantities: tuple[tuple[str, str, Callable[[Mapping[int, Cell], int], float]], ...] = (
        ("strong", "KiB sent per device, strong", lambda line, count: line[count].sent / 1024),
        ("weak", "KiB sent per device, weak", lambda line, count: line[count].sent / 1024),
        ("strong", "work of all, strong (one device: 1)", lambda line, count: work(line, "strong", count)),
    )
    figure = Figure(figsize=(4 * len(axes_names) + 2, 10), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(quantities), len(axes_names), sharex=True, sharey="row", squeeze=False)
    for line, (kind, label, value) in zip(grid, quantities, strict=True):
        for axes, axis in zip(line, axes_names, strict=True):
            for number, family in enumerate(families):
                found = series(table, kind, family, axis)
                points = [(count, y) for count in found if (y := value(found, count)) > 0]
                style = {"marker": "os^Dvx"[number % 6], "linestyle": ("-", "--", "-.")[number % 3]}
                if points:
                    axes.plot(*zip(*points, strict=True), label=family, color=f"C{number % 10}", **style)
            if label.startswith("work"):
                axes.plot(devices, devices, ":", color="0.4", label="all do everything")
            axes.set(xscale="log", yscale="log")
            axes.set_xticks(devices, [str(count) for count in devices])
            axes.minorticks_off()
            axes.grid(alpha=0.25)
        line[0].set_ylabel(label)
    for axes in grid[-1]:
        axes.set_yticks(devices, [str(count) for count in devices])
        axes.set_xlabel("devices")
    for axes, axis in zip(grid[0], axes_names, strict=True):
        axes.set_title(f"split over {axis!r}")
    handles, labels = grid[-1][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=9)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)
