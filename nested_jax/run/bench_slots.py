"""`bench slots`: time and bytes of a slot memory against its slots, its width and its levels (CMS §8).

    python -m nested_jax bench slots
    python -m nested_jax bench slots --tokens=64 --rounds=5 --output=runs/bench_slots

A cell is a memory that reads and writes so many tokens one by one (`SlotMemory.scan`, forward). "all" attends to all
slots and writes to all; "best 16" keeps to 16 of them (`top_k`), "search" is what that cannot do without: the scores of
all keys for a query and a write key, the best 16 of each, and the fading of all scales. Seconds are medians over
interleaved rounds. §8 says N (d_k + w) per level and token: slopes of log time and log bytes over the last three points
stand beside the table.
"""

import argparse
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from nested_jax.memory.slots import Level, SlotMemory, footprint
from nested_jax.memory.slots import rows as store
from nested_jax.run import host
from nested_jax.run.growth import growth
from nested_jax.run.text_table import markdown, text_table
from nested_jax.run.timing import Compiled, interleave

BEST, FEATURES = 16, 32
SIZES = {
    "slots": (256, 1024, 4096, 16384, 65536),
    "width": (32, 64, 128, 256, 512),
    "levels": (1, 2, 4, 8),
}


class Cell(NamedTuple):
    """A memory: which quantity varies, its value, and how slots are addressed ("all", "best 16", "search")."""

    axis: str
    size: int
    kind: str


def memory(cell: Cell) -> SlotMemory:
    """The slots of a cell: 1,024 of width 64 in one level, but for what varies."""
    found = {"slots": 1024, "width": 64, "levels": 1} | {cell.axis: cell.size}
    level = Level(found["slots"], found["width"], 0.01, top_k=None if cell.kind == "all" else BEST)
    return SlotMemory((level,) * found["levels"], key_dim=64, event_dim=64, context_dim=64)


def compiled(cell: Cell, tokens: int) -> Compiled:
    """Tokens one by one through a memory, or through the search for its keys alone."""
    slots = memory(cell)
    params = jax.jit(lambda key: slots.init(key, FEATURES))(jax.random.key(0))
    inputs = jax.random.normal(jax.random.key(1), (tokens, FEATURES))

    def search(params: Any, inputs: jax.Array) -> Any:
        def token(levels: tuple, query: jax.Array):
            pairs = zip(slots.levels, levels, strict=True)
            addresses = [level.search(state, vector) for level, state in pairs for vector in (query, -query)]
            faded = (state._replace(keys=store.scaled(state.keys, 0.99)) for state in levels)
            return tuple(faded), addresses

        return jax.lax.scan(token, slots.start(params).levels, inputs @ params["query"])[1]

    def whole(params: Any, inputs: jax.Array) -> Any:
        return slots.scan(params, slots.start(params), inputs)

    return Compiled(search if cell.kind == "search" else whole, (params, inputs))


def cells(axis: str) -> list[Cell]:
    """The cells of an axis; how slots are addressed is compared against their number only."""
    kinds = ("all", f"best {BEST}", "search") if axis == "slots" else ("all",)
    return [Cell(axis, size, kind) for size in SIZES[axis] for kind in kinds]


def main(arguments: Sequence[str] = ()) -> None:
    """Runs the benchmark, prints its table, and writes it with a picture to the output directory."""
    parser = argparse.ArgumentParser(prog="nested-jax bench slots", description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=64, metavar="N", help="of a sequence (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="calls that count (%(default)s)")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/bench_slots"), metavar="DIR")
    options = parser.parse_args(arguments)
    for name in ("tokens", "rounds"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} takes a whole number of at least 1; got {getattr(options, name)}")
    host.keep_freed_memory()
    seconds: dict[Cell, float] = {}
    for axis in SIZES:
        chosen = cells(axis)
        print(f"{axis}: {len(chosen)} cells", flush=True)
        timed = interleave({cell: compiled(cell, options.tokens) for cell in chosen}, options.rounds)
        seconds |= {cell: found.median / options.tokens for cell, found in timed.items()}
    sizes = {cell: sum(row.bytes + row.extra for row in footprint(memory(cell))) for cell in seconds}
    rows = [row for axis in SIZES for row in _rows(axis, seconds, sizes)]
    headings = ["against", "address", "measured", "at", "values", "slope"]
    title = f"{options.tokens} tokens, jax {jax.__version__} on {platform.machine()}, {host.cores()} cores"
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "slots.md").write_text(f"{title}\n\n{markdown(headings, rows)}\n")
    draw(options.output / "slots.png", title, seconds, sizes)
    print(f"\n{title}\n\n{text_table(headings, rows)}\n\ntable and picture: {options.output}/slots.{{md,png}}")


def lines(axis: str, values: Mapping[Cell, float]) -> dict[str, dict[int, float]]:
    """The values of an axis: how slots are addressed → size → value."""
    found: dict[str, dict[int, float]] = {}
    for cell, value in values.items():
        if cell.axis == axis:
            found.setdefault(cell.kind, {})[cell.size] = value
    return found


def _rows(axis: str, seconds: Mapping[Cell, float], sizes: Mapping[Cell, int]) -> list[list[str]]:
    timed = [(kind, "µs per token", 1e6, line) for kind, line in lines(axis, seconds).items()]
    stored = [(kind, "KiB", 1 / 1024, line) for kind, line in lines(axis, sizes).items() if kind == "all"]
    rows = []
    for kind, what, unit, line in (*timed, *stored):
        slope = growth(line.items())
        shown = " ".join(f"{unit * value:,.0f}" for value in line.values())
        rows.append([axis, kind, what, " ".join(f"{size:,}" for size in line), shown, f"{slope:z.2f}"])
    return rows


def draw(path: pathlib.Path, title: str, seconds: Mapping[Cell, float], sizes: Mapping[Cell, int]) -> None:
    """Time above and bytes below, a column per axis, logarithmic; dotted lines grow in proportion."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(SIZES), sharex="col", squeeze=False)
    for column, axis in enumerate(SIZES):
        for axes, values, unit in ((grid[0][column], seconds, 1e6), (grid[1][column], sizes, 1 / 1024)):
            for kind, line in lines(axis, values).items():
                axes.plot(list(line), [unit * value for value in line.values()], "o-", markersize=4, label=kind)
            ends = [min(SIZES[axis]), max(SIZES[axis])]
            least = unit * lines(axis, values)["all"][ends[0]]
            axes.plot(ends, [least, least * ends[1] / ends[0]], ":", color="0.4", label="in proportion")
            axes.set(xscale="log", yscale="log", xlabel=axis)
            axes.set_xticks(SIZES[axis], [f"{size:,}" for size in SIZES[axis]])
            axes.minorticks_off()
            axes.grid(alpha=0.25)
    grid[0][0].set_ylabel("µs per token")
    grid[1][0].set_ylabel("KiB")
    grid[0][0].legend(fontsize=9)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
