"""`bench models`: time and memory of every family of models at equal parameters, against the length of the sequence.

    python -m nested_jax bench models
    python -m nested_jax bench models --families=all --lengths=512,2048,8192 --output=runs/bench_models

A cell is a family, a number of tokens T and a pass. One sequence of T random tokens; forward is the mean cross-entropy,
forward+backward its value and gradient with respect to the parameters; no state is handed on, and blocks are not
recomputed in the backward pass as wholes (`remat`). Seconds are the median of the calls after a warming one, as many as
begin within `--seconds` and `--rounds` at most; a first call longer than that stays the only one.
Memory is what the compiled program asks for: parameters, tokens, outputs and temporaries. It is known before anything
runs, and a cell that asks for more than `--memory` is not run: its place in the table says so.

"growth" is the slope of log time (and of log memory) against log T over the three longest lengths that a family has:
1 is linear, 2 quadratic. Cells are kept in the output directory one by one, so that an interrupted benchmark goes on
where it was; cells of another device or version of JAX are measured anew.
"""

import argparse
import dataclasses
import functools
import math
import os
import pathlib
import platform
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from nested_jax.evals.bits_per_byte import nats
from nested_jax.models import LanguageModel, ModelConfig, parameter_count
from nested_jax.models.families import FAMILIES, SIZES, family
from nested_jax.run import growth, host
from nested_jax.run.growth import Cell, Place
from nested_jax.run.text_table import markdown, text_table
from nested_jax.run.timing import Compiled, interleave

PASSES = ("forward", "forward+backward")
DEFAULT = (
    *("transformer++", "sliding-window", "lstm", "titans-lmm", "titans-mac", "titans-mag", "omeganet", "atlas"),
    *("moneta", "yaad", "memora", "ttt-mlp", "deltanet", "gated-deltanet", "gated-deltanet-h"),
    "gated-linear-attention",
)
LENGTHS = (512, 2048, 8192, 32768)
SPARE = 2**31  # bytes left to the system by default


def config_of(name: str, size: str, length: int) -> ModelConfig:
    """The family's configuration, with room for `length` tokens in attention without a window."""
    config = family(name, size)
    attention = dataclasses.replace(config.attention, max_length=max(length, config.attention.max_length))
    return dataclasses.replace(config, attention=attention)


@functools.cache
def parameters(name: str, size: str) -> Any:
    """Initial parameters of a family; they do not depend on the length."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    return jax.jit(LanguageModel(family(name, size)).init)(jax.random.key(0), tokens)["params"]


def compiled(place: Place) -> Compiled:
    """One pass of a family over one sequence of random tokens, compiled."""
    config = config_of(place.family, place.size, place.length)
    model = LanguageModel(config)

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        logits, _ = model.apply({"params": params}, tokens[:, :-1])
        return jnp.mean(nats(logits, tokens[:, 1:]))

    tokens = jax.random.randint(jax.random.key(1), (1, place.length + 1), 0, config.vocab_size)
    function = loss if place.what == "forward" else jax.value_and_grad(loss)
    return Compiled(function, (parameters(place.family, place.size), tokens))


def measure(place: Place, rounds: int, within: float, memory: float) -> Cell:
    """Compiles a cell and times it, unless it needs more memory than there is.

    Args:
      place: which cell.
      rounds: calls that count, >= 1.
      within: seconds after which no further call begins.
      memory: the most that may be used, in bytes.

    Returns:
      The cell, without seconds where the memory does not suffice.
    """
    begin = time.perf_counter()
    call = compiled(place)
    fits = call.total_bytes is None or call.total_bytes <= memory
    return Cell(
        place=place,
        parameters=parameter_count(parameters(place.family, place.size)),
        seconds=interleave({"": call}, rounds, within)[""].seconds if fits else (),
        memory=call.total_bytes,
        compile_seconds=call.compile_seconds,
        wall_seconds=time.perf_counter() - begin,
    )


def remaining_seconds(todo: Sequence[Place], done: Sequence[Cell]) -> float:
    """A guess at the time that cells will take.

    Compiling takes as long as at the nearest shorter length of the same family and pass, and calls grow as T; a cell
    without such a neighbour counts as the mean of those measured.

    Args:
      todo: what is left.
      done: what was measured, at least one cell.
    """
    mean = sum(cell.wall_seconds for cell in done) / len(done)
    total = 0.0
    for place in todo:
        near = [cell for cell in done if cell.place[:3] == place[:3] and cell.place.length <= place.length]
        if not near:
            total += mean
            continue
        cell = max(near, key=lambda cell: cell.place.length)
        calls = cell.wall_seconds - cell.compile_seconds
        total += cell.compile_seconds + calls * place.length / cell.place.length
    return total


def run(places: Sequence[Place], options: argparse.Namespace) -> dict[Place, Cell]:
    """Measures the cells that the output directory lacks, shortest first; every one is kept and reported.

    Returns:
      All cells of `places`.
    """
    computer = f"jax {jax.__version__} on {jax.devices()[0].device_kind}, {platform.machine()}"
    kept = growth.load(options.output, computer)
    limit = options.memory * 2**30

    def missing(place: Place) -> bool:
        cell = kept.get(place)
        return cell is None or (not cell.seconds and (cell.memory or 0) <= limit)

    todo, done = [place for place in places if missing(place)], []
    if len(todo) < len(places):
        print(f"{len(places) - len(todo)} of {len(places)} cells are in {options.output / growth.FILE} already")
    for number, place in enumerate(todo, 1):
        cell = measure(place, options.rounds, options.seconds, limit)
        done.append(cell)
        kept[place] = cell
        growth.save(options.output, computer, kept)
        left = remaining_seconds(todo[number:], done) / 60
        unit = " tokens/s" if cell.seconds else ""
        print(
            f"{number}/{len(todo)} {place.family}, {place.length:,} tokens, {place.what}: {cell.rate}{unit}, "
            f"{cell.mebibytes} MiB, compiled in {cell.compile_seconds:.1f} s; about {left:.0f} min left"
        )
    return {place: kept[place] for place in places}


def arguments_of(arguments: Sequence[str]) -> argparse.Namespace:
    """The benchmark's options.

    Raises:
      ValueError: for an option out of range, with its name, what it takes and what came.
    """
    parser = argparse.ArgumentParser(prog="nested-jax bench models", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--families", default=",".join(DEFAULT), metavar="A,B", help="or 'all' (%(default)s)")
    add("--lengths", default=",".join(map(str, LENGTHS)), metavar="N,N", help="tokens of a sequence (%(default)s)")
    add("--size", default="small", help=f"of the families: {', '.join(SIZES)} (%(default)s)")
    add("--rounds", type=int, default=5, metavar="N", help="calls that count, at most (%(default)s)")
    add("--seconds", type=float, default=8.0, metavar="S", help="no further call begins after these (%(default)s)")
    add("--memory", type=float, metavar="GIB", help="skip what needs more (default: what is available less 2)")
    add("--output", type=pathlib.Path, default=pathlib.Path("runs/bench_models"), metavar="DIR", help="(%(default)s)")
    options = parser.parse_args(arguments)
    options.families = list(FAMILIES) if options.families == "all" else options.families.split(",")
    for name in options.families:
        if name not in FAMILIES:
            raise ValueError(f"--families takes 'all' or names among {', '.join(FAMILIES)}; got {name!r}")
    if options.size not in SIZES:
        raise ValueError(f"--size takes one of {', '.join(SIZES)}; got {options.size!r}")
    lengths = options.lengths.split(",")
    if not all(length.isdecimal() and int(length) for length in lengths):
        raise ValueError(f"--lengths takes positive whole numbers separated by commas; got {options.lengths!r}")
    options.lengths = sorted(set(map(int, lengths)))
    if options.rounds < 1:
        raise ValueError(f"--rounds takes a whole number of at least 1; got {options.rounds}")
    if options.memory is None:
        available = host.available_bytes()
        options.memory = math.inf if available is None else max(0.0, (available - SPARE) / 2**30)
    for name in ("seconds", "memory"):
        if not getattr(options, name) >= 0:
            raise ValueError(f"--{name} takes a number of at least 0; got {getattr(options, name)}")
    return options


def main(arguments: Sequence[str] = ()) -> None:
    """Runs the benchmark, prints its table, and writes it with a picture to the output directory."""
    options = arguments_of(arguments)
    host.keep_freed_memory()
    options.output.mkdir(parents=True, exist_ok=True)
    cores = f"{host.cores()} core{'s' if host.cores() > 1 else ''}"
    device = f"jax {jax.__version__} on {jax.devices()[0].device_kind}, {platform.machine()}, {cores}"
    print(f"{device}, Python {platform.python_version()}, at most {options.memory:.1f} GiB", end="")
    print(f", load average {os.getloadavg()[0]:.1f} at the start")
    shapes = [(length, name, what) for length in options.lengths for name in options.families for what in PASSES]
    cells = run([Place(name, options.size, what, length) for length, name, what in shapes], options)
    sizes = [cell.parameters for cell in cells.values()]
    title = f"size {options.size!r} ({min(sizes):,}-{max(sizes):,} parameters), B1 f32, {device}"
    headings, rows = growth.headings(options.lengths), growth.rows(cells, options.families, PASSES, options.lengths)
    (options.output / "models.md").write_text(f"{title}\n\n{markdown(headings, rows)}\n")
    growth.write_csv(options.output / "models.csv", cells)
    growth.draw(options.output / "models.png", title, cells, options.families, PASSES)
    print(f"\n{title}\n\n{text_table(headings, rows)}\n\ntable and picture: {options.output}/models.{{md,csv,png}}")
