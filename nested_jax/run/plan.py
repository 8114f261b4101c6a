"""`plan`: step time, tokens/s, hours and the binding resource of a config on topologies, before anything is rented.

    python -m nested_jax plan --config=experiments/families.py:titans-lmm@340m --topologies=v5e:4x4,v5p:4x4x4,h100:8

A step takes as long as the slowest of three: its products at a share of the chip's peak, its bytes through HBM, what it
sends over the interconnect. The counts are those of `compile`; the rates are the vendors' (`nested_jax.run.chips`).
To be quick, two short stacks of blocks are compiled and the line through them is followed to the config's depth:
every block does the same, so that all counts are a constant and so much per block. (Not quite where Newton-Schulz runs
over all devices, which take matrices in whole numbers.) Our choice, tested against whole programs.
"""

import argparse
import csv
import pathlib
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from nested_jax.models import ModelConfig
from nested_jax.run.chips import Topology, topology
from nested_jax.run.compile import WIDTH, amount, fits, has_libtpu, mesh_name, mesh_of, repeated
from nested_jax.run.compiled import Compiled, Memory, Request, run
from nested_jax.run.counts import Collective, Counts
from nested_jax.run.text_table import text_table
from nested_jax.train.experiment import Experiment

COMPILERS = ("auto", "cpu", "tpu")
HEADINGS = ("topology", "chips", "mesh", "compiler", "memory", "fits", "compute ms", "HBM ms", "network ms", "step ms",
            "bound by", "tokens/s", "MFU %", "hours", "chip hours")  # fmt: skip


class Prediction(NamedTuple):
    """What a step takes on a topology.

    Attributes:
      compute: seconds of its products.
      memory: seconds of its bytes through HBM.
      network: seconds of what a device sends.
    """

    compute: float
    memory: float
    network: float

    @property
    def step(self) -> float:
        """Seconds of a step: everything overlaps perfectly."""
        return max(self)

    @property
    def bound(self) -> str:
        """The resource that takes longest."""
        return ("compute", "HBM", "network")[self.index(self.step)]


def predict(found: Compiled, chosen: Topology, efficiency: float, bandwidth: float) -> Prediction:
    """Seconds by resource.

    Args:
      found: counts of a step.
      chosen: where it runs.
      efficiency: share of the peak FLOP/s that products reach, in (0, 1].
      bandwidth: share of the peak bytes/s that HBM and interconnect reach, in (0, 1].
    """
    assert found.counts is not None
    chip = chosen.chip
    products = sum(flops / chip.flops[kind] for kind, flops in found.flops.items() if kind != "unknown")
    sent = sum(one.sent / chip.sends(one.kind, one.group) for one in found.counts.collectives)
    return Prediction(
        compute=products / chosen.chips * max(repeated(found), 1) / efficiency,
        memory=found.counts.traffic * chip.devices / chip.bandwidth / bandwidth,
        network=sent * chip.devices / bandwidth,
    )


def plan(experiment: Experiment, overrides: Mapping[str, str], options: argparse.Namespace) -> None:
    """Prints a line per topology, and what is assumed.

    Args:
      experiment: the config with its overrides.
      overrides: the same as they were written.
      options: `config`, `topologies`, `efficiency`, `bandwidth`, `compiler` and `csv`.

    Raises:
      ValueError: if an option is out of range, or topology, mesh and batch do not go together.
    """
    for name in ("efficiency", "bandwidth"):
        if not 0 < getattr(options, name) <= 1:
            raise ValueError(f"--{name} takes a share of the peak, in (0, 1]; got {getattr(options, name)}")
    if options.compiler == "tpu" and not has_libtpu():
        raise ValueError("--compiler=tpu needs libtpu: pip install 'nested_jax[tpu-compile]'")
    topologies = [topology(name) for name in options.topologies]
    meshes = [mesh_of(experiment, one) for one in topologies]
    known: dict[tuple[str, str | None], Compiled] = {}
    rows = []
    for one, mesh in zip(topologies, meshes, strict=True):
        exact = one.is_tpu and (options.compiler == "tpu" or (options.compiler == "auto" and has_libtpu()))
        request = Request(options.config, overrides, mesh, one.name if exact else None)
        key = mesh_name(mesh), request.topology
        if key not in known:
            print(f"counting {options.config} on {one.name if exact else f'{one.devices} virtual devices'}", flush=True)
            known[key] = counted(experiment.model, request)
        rows.append(row(known[key], one, mesh, experiment.steps, options.efficiency, options.bandwidth))
    first = next(iter(known.values()))
    print(f"\n{options.config}: {first.parameters:,.0f} parameters, {first.tokens:,} tokens per step, ", end="")
    print(f"{experiment.steps:,} steps, {first.tokens * experiment.steps:,} tokens\n")
    print(text_table(HEADINGS, rows))
    print("\n" + "\n".join(textwrap.fill(line, WIDTH) for line in assumptions(experiment, topologies, options)))
    if options.csv is not None:
        path = pathlib.Path(options.csv)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([HEADINGS, *rows])
        print(f"\ntable: {path}")


def row(
    found: Compiled, one: Topology, mesh: Mapping[str, int], steps: int, efficiency: float, bandwidth: float
) -> list[str]:
    """A line of the table."""
    where = [one.name, str(one.chips), mesh_name(mesh), "libtpu" if found.compiler != "cpu" else "CPU"]
    if found.counts is None or found.memory is None:
        assert found.full is not None
        return [*where, found.full[0], "no", *["–"] * 9]
    predicted = predict(found, one, efficiency, bandwidth)
    hours = predicted.step * steps / 3600
    rate = found.tokens / predicted.step
    used = 6 * found.parameters * rate / (one.chips * one.chip.flops["bfloat16"])
    return [
        *where,
        amount(found.memory.total),
        fits(found, one),
        *(f"{1e3 * seconds:,.2f}" for seconds in (*predicted, predicted.step)),
        predicted.bound,
        f"{rate:,.0f}",
        f"{100 * used:.1f}",
        f"{hours:,.2f}",
        f"{hours * one.chips:,.1f}",
    ]


def assumptions(experiment: Experiment, topologies: Sequence[Topology], options: argparse.Namespace) -> list[str]:
    """What enters the table, line by line."""
    chips = {one.name.partition(":")[0]: one.chip.source for one in topologies}
    recomputed = "recomputed" if experiment.model.remat is True else "recomputed but for products"
    if not experiment.model.remat:
        recomputed = "not recomputed"
    return [
        "A step is the slowest of compute, HBM and network: they overlap perfectly, and no step waits for data. "
        f"Products reach {options.efficiency:.0%} of the peak, HBM and network {options.bandwidth:.0%}.",
        f"Parameters, optimizer state and memories are float32; products {_dtypes(experiment.model)}; blocks are "
        f"{recomputed} in the backward pass (model.remat={experiment.model.remat}), which is counted.",
        "On a TPU float32 products of highest precision take six passes; on a GPU they leave the tensor cores.",
        "TPU links are all busy, as in a torus with wrap-around; GPUs stand in nodes of eight, a port each.",
        "Counts of 'CPU' rows: HBM is what products, gathers, slices and collectives touch, all else being fused "
        "into them, a lower bound; bfloat16 is counted as the CPU computes and sends it, as float32; memory has the "
        "CPU's temporaries, more than an accelerator's as a rule; it may "
        "'perhaps' fit where only these are too large.",
        "MFU is 6 · parameters · tokens over the bfloat16 peak. Evaluation, checkpoints and compiling come on top.",
        *(f"{name}: {source}" for name, source in chips.items()),
    ]


def _dtypes(model: ModelConfig) -> str:
    return f"{model.dtype} except those of memories and gates"


def counted(model: ModelConfig, request: Request, run: Callable[[Request], Compiled] = run) -> Compiled:
    """The counts of a config, of deep stacks by the line through two shallow ones.

    Args:
      model: the config's, whose pattern of blocks says what a shallow stack is.
      request: of the whole.
      run: compiles one.

    Returns:
      The counts; times are those of both compilations together.
    """
    first = (2 if model.stacked else 1) * model.pattern  # a loop of one turn is another program
    if model.layers <= first + model.pattern:
        return run(request)
    one, two = (run(request._replace(layers=layers)) for layers in (first, first + model.pattern))
    return follow(one, two, (model.layers - first) / model.pattern)


def follow(one: Compiled, two: Compiled, steps: float) -> Compiled:
    """The line from `one` through `two`, so many steps from `one`; where either does not fit, that one."""
    if one.counts is None or two.counts is None or one.memory is None or two.memory is None:
        return one if one.counts is None else two

    def line(a: float, b: float) -> float:
        return a + (b - a) * steps

    kinds = sorted({*one.flops, *two.flops})
    before, after = ({(c.kind, c.group): c for c in counts.collectives} for counts in (one.counts, two.counts))
    collectives = []
    for key in sorted({*before, *after}):
        a, b = (place.get(key, Collective(*key, 0, 0, 0.0)) for place in (before, after))
        number, nbytes, sent = (max(line(x, y), 0) for x, y in zip(a[2:], b[2:], strict=True))
        collectives.append(Collective(*key, round(number), round(nbytes), sent))
    return one._replace(
        parameters=line(one.parameters, two.parameters),
        flops={kind: line(one.flops.get(kind, 0), two.flops.get(kind, 0)) for kind in kinds},
        trace_seconds=one.trace_seconds + two.trace_seconds,
        compile_seconds=one.compile_seconds + two.compile_seconds,
        memory=Memory(*(line(a, b) for a, b in zip(one.memory, two.memory, strict=True))),
        counts=Counts(
            line(one.counts.flops, two.counts.flops),
            line(one.counts.traffic, two.counts.traffic),
            tuple(collectives),
            max(one.counts.unknown_loops, two.counts.unknown_loops),
        ),
    )
