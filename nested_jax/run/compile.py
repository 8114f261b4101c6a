"""`compile`: without any accelerator, whether a config fits a topology, and what one training step does there.

    python -m nested_jax compile --config=experiments/quickstart.py --config.mesh.fsdp=4
    python -m nested_jax compile --config=experiments/families.py:titans-lmm@170m --topology=v5p:4x4x4

With a TPU topology and libtpu (`pip install 'nested_jax[tpu-compile]'`) the program is the one that the TPU would run.
Otherwise it is compiled for as many virtual CPU devices: how arrays are split and what is communicated is the same
partitioner's work, how memory is laid out between arguments and results is not that of an accelerator.
"""

import argparse
import importlib.util
import math
import os
import textwrap
from collections.abc import Mapping, Sequence

from nested_jax.run.chips import Topology, topology
from nested_jax.run.compiled import Compiled, Request, run
from nested_jax.run.text_table import text_table
from nested_jax.train.experiment import Experiment
from nested_jax.train.sharding import AXES

WIDTH = 120  # of lines of prose


def compile(experiment: Experiment, overrides: Mapping[str, str], options: argparse.Namespace) -> None:
    """Prints what the compiler says.

    Args:
      experiment: the config with its overrides.
      overrides: the same as they were written.
      options: `config` and `topology`.

    Raises:
      ValueError: if topology, mesh and batch do not go together.
    """
    chosen = None if options.topology is None else topology(options.topology)
    mesh = mesh_of(experiment, chosen)
    exact = chosen is not None and chosen.is_tpu and has_libtpu()
    found = run(Request(options.config, overrides, mesh, options.topology if exact else None))
    print(report(found, options.config, mesh, chosen))


def has_libtpu() -> bool:
    """Whether the TPU's compiler is installed."""
    return importlib.util.find_spec("libtpu") is not None or "TPU_LIBRARY_PATH" in os.environ


def mesh_of(experiment: Experiment, chosen: Topology | None) -> dict[str, int]:
    """Devices per axis: the config's mesh, or if that is one device and the topology has more, a mesh of all of them.

    That has `fsdp` as large as the batch, or each of its parts, can be split, and what is left as `sequence`.

    Raises:
      ValueError: if the config's mesh has another number of devices than the topology.
    """
    mesh = {axis: getattr(experiment.mesh, axis) for axis in AXES}
    if chosen is None or math.prod(mesh.values()) == chosen.devices:
        return mesh
    if math.prod(mesh.values()) == 1:
        fsdp = math.gcd(chosen.devices, experiment.data.batch_size // experiment.microbatches)
        return mesh | {"fsdp": fsdp, "sequence": chosen.devices // fsdp}
    raise ValueError(
        f"mesh {mesh_name(mesh)} has {math.prod(mesh.values())} devices, and {chosen.name} has {chosen.devices}; "
        "choose its axes by --config.mesh.data=... and so on, or leave them all at 1 for a mesh of all devices"
    )


def mesh_name(mesh: Mapping[str, int]) -> str:
    """A mesh in words.

    Example:
      >>> mesh_name({"data": 1, "fsdp": 8, "tensor": 2, "sequence": 1})
      'fsdp=8 × tensor=2'
    """
    return " × ".join(f"{axis}={size}" for axis, size in mesh.items() if size > 1) or "of one device"


def basis(found: Compiled) -> str:
    """Whose compiler it was, and what that means."""
    if found.compiler != "cpu":
        return f"compiled by libtpu for {found.compiler}: the program that it would run"
    why = "the optional extra 'tpu-compile' brings the TPU's own compiler; of GPUs there is none without a GPU"
    return (
        f"compiled for {found.devices} virtual CPU devices, not for an accelerator ({why}). Splitting, products and "
        "collectives carry over (bfloat16 is sent as float32 here); temporaries do not: they are those of the CPU's "
        "compiler, which fuses less"
    )


def report(found: Compiled, name: str, mesh: Mapping[str, int], chosen: Topology | None) -> str:
    """The text of `compile`.

    Args:
      found: the compiled step.
      name: of the config.
      mesh: devices per axis.
      chosen: the topology, None for virtual devices only.
    """
    where = f"{found.devices} virtual devices" if chosen is None else chosen.name
    lines = [
        f"{name} on {where}, mesh {mesh_name(mesh)}",
        textwrap.fill(basis(found), WIDTH),
        f"parameters {found.parameters:,}, {found.tokens:,} tokens per step",
        "",
        *_memory(found, chosen),
        "",
        *_flops(found),
    ]
    if found.counts is not None:
        lines += ["", *_collectives(found)]
        if found.counts.unknown_loops:
            lines.append(f"{found.counts.unknown_loops} loops of unknown length count once")
    lines += ["", f"traced in {found.trace_seconds:.1f} s, compiled in {found.compile_seconds:.1f} s"]
    return "\n".join(lines)


def capacity(chosen: Topology) -> float:
    """Bytes of memory of a device."""
    return chosen.chip.memory / chosen.chip.devices


def _memory(found: Compiled, chosen: Topology | None) -> list[str]:
    if found.full is not None:
        needed, there, which = found.full
        remedies = "microbatches, model.remat=true, more devices on mesh.fsdp, or fewer rows per step"
        return [f"does NOT fit: the compiler needs {needed} of {which} per device and has {there}; {remedies}"]
    assert found.memory is not None
    names = ("arguments (parameters, optimizer, batch)", "results in new places", "temporaries", "program")
    rows = [[what, amount(nbytes)] for what, nbytes in zip(names, found.memory, strict=True)]
    total = found.memory.total
    rows.append(["all", amount(total)])
    lines = [text_table(["memory per device", "bytes"], rows)]
    if chosen is None:
        return lines
    verdict = {"yes": "fits", "perhaps": "may fit", "no": "does NOT fit"}[fits(found, chosen)]
    share, arguments = (nbytes / capacity(chosen) for nbytes in (total, found.memory.arguments))
    line = f"{verdict}: {share:.1%} of {amount(capacity(chosen))} of memory per device"
    return [
        *lines,
        line if found.compiler != "cpu" else f"{line} by the CPU's temporaries, {arguments:.1%} without them",
    ]


def fits(found: Compiled, chosen: Topology) -> str:
    """ "yes", "no", or "perhaps" where it is the temporaries of the CPU's compiler that do not fit."""
    if found.memory is None:
        return "no"
    if found.memory.total <= capacity(chosen):
        return "yes"
    return "perhaps" if found.compiler == "cpu" and found.memory.arguments <= capacity(chosen) else "no"


def _flops(found: Compiled) -> list[str]:
    total = sum(flops for kind, flops in found.flops.items() if kind != "unknown")
    rows = [
        [kind, _count(flops), f"{flops / total:.1%}"]
        for kind, flops in sorted(found.flops.items())
        if kind != "unknown"
    ]
    rows.append(["all", _count(total), "100.0%"])
    each, plain = total / found.tokens, 6 * found.parameters
    lines = [
        text_table(["FLOPs per step, all devices", "products", "share"], rows),
        f"per token {_count(each)}, {each / plain:.2f} times 6 · parameters",
    ]
    if found.counts is not None:
        lines.append(
            f"per device {_count(found.counts.flops)}, {repeated(found):.2f} times an even share (above 1: devices "
            "repeat each other's work)"
        )
    return lines


def repeated(found: Compiled) -> float:
    """FLOPs of a device's program over an even share of the whole: what is split gives 1, what all do alike more."""
    total = sum(flops for kind, flops in found.flops.items() if kind != "unknown")
    return found.counts.flops * found.devices / total if found.counts is not None and total else 1.0


def _collectives(found: Compiled) -> list[str]:
    assert found.counts is not None
    if not found.counts.collectives:
        return ["collectives: none"]
    rows: list[Sequence[str]] = [
        [one.kind, str(one.group), f"{one.count:,}", amount(one.nbytes), amount(one.sent)]
        for one in found.counts.collectives
    ]
    sent = sum(one.sent for one in found.counts.collectives)
    rows.append(["all", "", f"{sum(one.count for one in found.counts.collectives):,}", "", amount(sent)])
    return [text_table(["collectives per step", "devices", "count", "array bytes", "sent per device"], rows)]


def amount(nbytes: float) -> str:
    """Bytes for people.

    Example:
      >>> amount(512), amount(3 * 2**29)
      ('512 B', '1.50 GiB')
    """
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= size:
            return f"{nbytes / size:,.2f} {unit}"
    return f"{nbytes:,.0f} B"


def _count(number: float) -> str:
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:,.2f} {unit}"
    return f"{number:,.0f}"
