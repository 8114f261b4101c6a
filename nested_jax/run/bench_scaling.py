"""`bench scaling`: what a training step of each family sends and repeats on meshes of 1, 2, 4 and 8 devices.

    python -m nested_jax bench scaling
    python -m nested_jax bench scaling --families=titans-lmm,atlas --axes=fsdp,sequence --output=runs/bench_scaling

The devices are virtual ones of the CPU, which share its cores: they can show communication and balance, not speed.
Nothing is run. The step is compiled for a mesh that is long in one axis, and counted in the compiled program, bodies
of loops as often as they go round (`nested_jax.run.counts`, as `compile` does).

- collectives: how many a device takes part in per step, and the bytes it sends in them.
- work: FLOPs of matrix products of all devices together, over those of one device on as much. All devices run one
  program on shares of one size, so that none waits for a longer program; what they can lose is work that several do
  alike, or do for the splitting's sake. 1 is a perfect share; under strong scaling the number of devices is none at
  all. Under weak scaling with `sequence` the work of attention over everything also grows with the length.
- held: bytes of parameters, optimizer state and batch on a device.

Strong scaling splits one batch. Weak scaling gives every device as much as the largest mesh has there: tokens grow with
the axis, rows with `data`, `fsdp` and `tensor`, the length with `sequence` (our choice). Cells are kept in the output
directory one by one; those of another version of JAX, or of another `--label`, are counted anew.

Speed is what `bench throughput` measures, on an accelerator.
"""

import argparse
import json
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

from nested_jax.data import TextConfig
from nested_jax.models.families import FAMILIES, SIZES, family
from nested_jax.run import host, scaling_table
from nested_jax.run.compile import repeated
from nested_jax.run.compiled import compile_step
from nested_jax.run.scaling_table import FILE, Cell, Place, Scaling
from nested_jax.run.text_table import markdown, text_table
from nested_jax.train.experiment import Experiment
from nested_jax.train.metrics import read
from nested_jax.train.sharding import AXES, MeshConfig, make_mesh

DEFAULT = ("transformer++", "gated-deltanet", "titans-lmm", "atlas")
FLAGS = "--xla_backend_optimization_level=0"  # no need of fast code for a program that is not run


class Shape(NamedTuple):
    """The batch that strong scaling splits.

    Attributes:
      rows: of it.
      tokens: of a row.
    """

    rows: int
    tokens: int


def places(
    families: Sequence[str], size: str, axes: Sequence[str], devices: Sequence[int], whole: Shape
) -> dict[Scaling, Place]:
    """What is counted: line and point of a table → cell. One device is the same cell along all axes.

    Args:
      families: names.
      size: of the families.
      axes: of the mesh.
      devices: along each axis, ascending; the largest divides rows and tokens.
      whole: the batch of strong scaling, and of the largest mesh of weak scaling.

    Example:
      >>> found = places(["lstm"], "tiny", ["data", "sequence"], [1, 8], Shape(8, 64))
      >>> found[Scaling("weak", "lstm", "sequence", 1)].tokens, found[Scaling("weak", "lstm", "data", 1)].rows
      (8, 1)
      >>> len(found), len(set(found.values()))
      (8, 5)
    """
    most, found = max(devices), {}
    for name in families:
        for kind in ("strong", "weak"):
            for axis in axes:
                for count in devices:
                    rows, tokens = whole
                    if kind == "weak":
                        if axis == "sequence":
                            tokens = tokens * count // most
                        else:
                            rows = rows * count // most
                    place = Place(name, size, "" if count == 1 else axis, count, rows, tokens)
                    found[Scaling(kind, name, axis, count)] = place
    return found


def counted(place: Place) -> Cell:
    """Compiles the training step of a cell and counts it.

    Raises:
      ValueError: if there are fewer devices than the mesh has.
    """
    begin = time.perf_counter()
    mesh = MeshConfig(**({place.axis: place.devices} if place.axis else {}))
    data = TextConfig(sequence_length=place.tokens, batch_size=place.rows)
    experiment = Experiment(model=family(place.family, place.size), data=data, steps=100, mesh=mesh)
    found = compile_step(experiment, make_mesh(mesh))
    assert found.counts is not None, "virtual devices have as much memory as the program wants"
    assert found.memory is not None
    return Cell(
        place=place,
        collectives=sum(one.count for one in found.counts.collectives),
        sent=sum(one.sent for one in found.counts.collectives),
        kinds={one.kind: one.count for one in found.counts.collectives},
        flops=found.counts.flops,
        repeated=repeated(found),
        held=found.memory.arguments,
        unknown_loops=found.counts.unknown_loops,
        wall_seconds=time.perf_counter() - begin,
    )


def run(wanted: Sequence[Place], output: pathlib.Path, version: str) -> dict[Place, Cell]:
    """Counts the cells that the output directory lacks; every one is kept and reported.

    Returns:
      The cells of `wanted`.
    """
    kept = {}
    for record in read(output / FILE):
        if record.pop("version") == version:
            place = Place(*record.pop("place"))
            kept[place] = Cell(place=place, **record)
    todo, seconds = [place for place in wanted if place not in kept], 0.0
    if len(todo) < len(wanted):
        print(f"{len(wanted) - len(todo)} of {len(wanted)} cells are in {output / FILE} already")
    for number, place in enumerate(todo, 1):
        cell = kept[place] = counted(place)
        save(output, version, kept)
        seconds += cell.wall_seconds
        left = seconds / number * (len(todo) - number) / 60
        print(
            f"{number}/{len(todo)} {place}: {cell.collectives:,} collectives, {cell.sent / 1024:,.0f} KiB sent per "
            f"device, {cell.flops / 1e6:,.0f} MFLOPs; about {left:.0f} min left",
            flush=True,
        )
    return {place: kept[place] for place in wanted}


def save(output: pathlib.Path, version: str, cells: Mapping[Place, Cell]) -> None:
    """Keeps cells, in one move: a process killed meanwhile leaves those of before."""
    lines = [json.dumps({"version": version, **cell._asdict()}) + "\n" for cell in cells.values()]
    temporary = output / (FILE + ".tmp")
    temporary.write_text("".join(lines))
    os.replace(temporary, output / FILE)


def arguments_of(arguments: Sequence[str]) -> argparse.Namespace:
    """The benchmark's options.

    Raises:
      ValueError: for an option out of range, with its name, what it takes and what came.
    """
    parser = argparse.ArgumentParser(prog="nested-jax bench scaling", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--families", default=",".join(DEFAULT), metavar="A,B", help="or 'all' (%(default)s)")
    add("--size", default="small", help=f"of the families: {', '.join(SIZES)} (%(default)s)")
    add("--axes", default=",".join(AXES), metavar="A,B", help="of the mesh (%(default)s)")
    add("--devices", default="1,2,4,8", metavar="N,N", help="along an axis (%(default)s)")
    add("--rows", type=int, default=8, metavar="B", help="of the batch that strong scaling splits (%(default)s)")
    add("--tokens", type=int, default=512, metavar="T", help="of a row of it (%(default)s)")
    add("--label", default="", help="name of the code's version, so that cells of another are counted anew")
    add("--output", type=pathlib.Path, default=pathlib.Path("runs/bench_scaling"), metavar="DIR", help="(%(default)s)")
    options = parser.parse_args(arguments)
    options.families = list(FAMILIES) if options.families == "all" else options.families.split(",")
    options.axes = options.axes.split(",")
    for what, given, known in (("families", options.families, FAMILIES), ("axes", options.axes, AXES)):
        for name in given:
            if name not in known:
                raise ValueError(f"--{what} takes names among {', '.join(known)}; got {name!r}")
    if options.size not in SIZES:
        raise ValueError(f"--size takes one of {', '.join(SIZES)}; got {options.size!r}")
    counts = options.devices.split(",")
    if not all(count.isdecimal() and int(count) for count in counts):
        raise ValueError(f"--devices takes positive whole numbers separated by commas; got {options.devices!r}")
    options.devices = sorted({1, *map(int, counts)})
    for what in ("rows", "tokens"):
        value = getattr(options, what)
        if value < 1 or value % options.devices[-1]:
            raise ValueError(f"--{what} takes a positive multiple of the {options.devices[-1]} devices; got {value}")
    return options


def main(arguments: Sequence[str] = ()) -> None:
    """Runs the benchmark, prints its tables, and writes them with a picture to the output directory."""
    options = arguments_of(arguments)
    os.environ.setdefault("XLA_FLAGS", FLAGS)
    jax.config.update("jax_platforms", "cpu")
    host.cpu_devices(options.devices[-1])
    options.output.mkdir(parents=True, exist_ok=True)
    whole = Shape(options.rows, options.tokens)
    points = places(options.families, options.size, options.axes, options.devices, whole)
    version = f"jax {jax.__version__}{options.label and f', {options.label}'}"
    cells = run(list(dict.fromkeys(points.values())), options.output, version)
    table = {point: cells[place] for point, place in points.items()}
    title = (
        f"a training step of the families at size {options.size!r}, {options.rows} × {options.tokens} tokens, f32, on "
        f"up to {options.devices[-1]} virtual devices, {version}: communication and balance, not speed"
    )
    headings, rows = scaling_table.HEADINGS, scaling_table.rows(table, options.devices)
    (options.output / "scaling.md").write_text(f"{title}\n\n{markdown(headings, rows)}\n")
    scaling_table.write_csv(options.output / "scaling.csv", table)
    scaling_table.draw(options.output / "scaling.png", title, table)
    print(f"\n{title}\n\n{text_table(headings, rows)}")
    print(f"\ntable and picture: {options.output}/scaling.{{md,csv,png}}")
