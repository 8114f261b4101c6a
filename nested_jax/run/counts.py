"""Counts of a compiled program on one device: products, bytes through main memory, collectives.

FLOPs are those of matrix products and convolutions, two per multiplication and addition. Everything counts as often as
it is executed, see `nested_jax.run.hlo`. Kinds of collectives are the compiler's choice: a TPU's may gather by an
all-reduce of an array that is zero but for the device's own part.
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from nested_jax.run.hlo import Array, Executed, Instruction, Program, group_size

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_FREE = frozenset(
    ["parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "while", "conditional", "call"]
    + ["after-all", "partition-id", "replica-id", "opt-barrier", "add-dependency", "domain", "async-start"]
    + ["async-update"]
)


class Collective(NamedTuple):
    """Collectives of a kind and group.

    Attributes:
      kind: "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute".
      group: devices that take part.
      count: how many are executed.
      nbytes: of the whole array on a device: what a gather gives, what all others are given.
      sent: bytes that a device sends in a ring: (n − 1) / n of the array, twice that in an all-reduce.
    """

    kind: str
    group: int
    count: int
    nbytes: int
    sent: float


class Counts(NamedTuple):
    """What one device does in one call.

    Attributes:
      flops: of matrix products.
      traffic: bytes read from and written to main memory.
      collectives: by kind and group.
      unknown_loops: loops whose trip count is unknown; they count once.
    """

    flops: float
    traffic: float
    collectives: tuple[Collective, ...]
    unknown_loops: int


def count(text: str, devices: int, *, fused: bool = True) -> Counts:
    """Counts a program.

    Args:
      text: of the compiled program of one device, `compiled.as_text()`.
      devices: how many run it.
      fused: whether its fusions are those of the device in question. If not (it was compiled for a CPU), traffic is
        what products, gathers, scatters, slices and collectives read and give, and the program's own arguments and
        results once each: a lower bound, in which everything else is fused into these.

    Returns:
      The counts.
    """
    program = Program(text)
    flops, traffic = 0.0, 0.0
    found: dict[tuple[str, int], list[float]] = {}
    chunks: set[tuple[str, str]] = set()
    for one in program.executed():
        flops += one.times * _flops(one)
        if fused:
            traffic += 0 if one.fused else one.times * _traffic(one, program)
        elif one.instruction.opcode in _ESSENTIAL or _kind(one.instruction):
            traffic += one.times * _ends(one)
        kind = _kind(one.instruction)
        if kind is None or _seen(one, kind, chunks):
            continue
        if "all-reduce-scatter" in one.within:
            kind = "reduce-scatter"
        group = group_size(one.instruction.attributes, devices)
        nbytes, sent = _sizes(one, kind, group)
        sums = found.setdefault((kind, group), [0, 0, 0])
        for place, value in enumerate((1, nbytes, sent)):
            sums[place] += one.times * value
    if not fused:
        entry = program.computations[program.entry].values()
        traffic += sum(array.nbytes for one in entry if one.opcode == "parameter" or one.root for array in one.results)
    collectives = [Collective(*key, int(sums[0]), int(sums[1]), sums[2]) for key, sums in sorted(found.items())]
    return Counts(flops, traffic, tuple(collectives), program.unknown_loops)


def _kind(one: Instruction) -> str | None:
    kind = one.opcode.removesuffix("-start")
    return kind if kind in COLLECTIVES else None


def _seen(one: Executed, kind: str, chunks: set[tuple[str, str]]) -> bool:
    """Whether this is a further part of a collective that was counted: a TPU runs one in several fusions."""
    channel = re.search(r"channel_id=(\d+)", one.instruction.attributes)
    if not one.fused or channel is None:
        return False
    key = kind, channel[1]
    known = key in chunks
    chunks.add(key)
    return known


def _sizes(one: Executed, kind: str, group: int) -> tuple[int, float]:
    given = 1 if kind == "collective-permute" else len(one.instruction.operands)
    nbytes = sum(one.operand(place).nbytes for place in range(given))
    share = (group - 1) / group
    if kind == "all-gather":
        return nbytes * group, nbytes * group * share
    if kind in ("collective-permute", "collective-broadcast"):
        return nbytes, nbytes
    return nbytes, nbytes * share * (2 if kind == "all-reduce" else 1)


def _flops(one: Executed) -> float:
    instruction = one.instruction
    if instruction.opcode == "dot":
        left = one.operand(0).shape
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        sizes = [left[int(axis)] for axis in contracted[1].split(",") if axis] if contracted else []
        return 2.0 * instruction.results[0].size * math.prod(sizes)
    if instruction.opcode == "convolution":
        return _convolution(one)
    return 0.0


def _convolution(one: Executed) -> float:
    """Two per pair of an output and an input that meet in it; padding and the gaps of dilation do not count."""
    instruction = one.instruction
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels is not None
    window = _window(instruction.attributes)
    left, right, result = one.operand(0).shape, one.operand(1).shape, instruction.results[0].shape
    sizes = [
        dict(zip(names, shape, strict=True))
        for names, shape in zip(labels.groups(), (left, right, result), strict=True)
    ]
    inputs, kernel, outputs = sizes
    total = 2.0 * outputs["b"] * outputs["f"] * kernel["i"]
    for axis, (size, stride, low, dilated, holes) in enumerate(window):
        name = str(axis)
        total *= _meetings(inputs[name], outputs[name], size, stride, low, dilated, holes)
    return total


def _window(attributes: str) -> list[tuple[int, int, int, int, int]]:
    """Size, stride, padding before, dilation of the input and of the kernel, per spatial axis."""
    found = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(part.split("=") for part in found[1].split()) if found and found[1] else {}
    if "size" not in fields:
        return []
    axes = len(fields["size"].split("x"))

    def numbers(name: str, default: str) -> list[str]:
        return fields[name].split("x") if name in fields else [default] * axes

    lows = [pad.split("_")[0] for pad in numbers("pad", "0_0")]
    columns = numbers("size", "1"), numbers("stride", "1"), lows, numbers("lhs_dilate", "1"), numbers("rhs_dilate", "1")
    return [tuple(map(int, row)) for row in zip(*columns, strict=True)]  # pyrefly: ignore[bad-return]


def _meetings(inputs: int, outputs: int, size: int, stride: int, low: int, dilated: int, holes: int) -> int:
    """Pairs of an output and a place of the kernel that meet an input."""
    last = (inputs - 1) * dilated
    places = (out * stride + at * holes - low for out, at in itertools.product(range(outputs), range(size)))
    return sum(0 <= place <= last and place % dilated == 0 for place in places)


_ESSENTIAL = frozenset(["dot", "convolution", "gather", "scatter", "dynamic-slice", "dynamic-update-slice"])


def _ends(one: Executed) -> int:
    """Bytes that an instruction reads and gives, of slices and gathers only what is taken or put."""
    instruction = one.instruction
    if instruction.opcode in ("gather", "dynamic-slice"):
        return 2 * _given(instruction)
    if instruction.opcode == "dynamic-update-slice":
        return 2 * one.operand(1).nbytes
    if instruction.opcode == "scatter":
        return 3 * one.operand(len(instruction.operands) - 1).nbytes
    return sum(one.operand(place).nbytes for place in range(len(instruction.operands))) + _given(instruction)


def _given(instruction: Instruction) -> int:
    return sum(array.nbytes for array in instruction.results if array.space == 0)


def _traffic(one: Executed, program: Program) -> int:
    instruction = one.instruction
    if instruction.opcode in _FREE or instruction.opcode.endswith("-done"):
        return 0
    if instruction.opcode == "fusion":
        return _fusion(one, program)
    if instruction.opcode in ("gather", "dynamic-slice", "dynamic-update-slice", "scatter"):
        return _ends(one)
    reads = sum(array.nbytes for array in _operands(one) if array.space == 0)
    if instruction.opcode.endswith("-start") and len(instruction.results) > 1:
        given = instruction.results[instruction.opcode != "copy-start"]  # beside it are the operand and a semaphore
        return min(reads, given.nbytes) + (given.nbytes if given.space == 0 else 0)
    return reads + _given(instruction)


def _operands(one: Executed) -> Iterator[Array]:
    for name in one.instruction.operands:
        if name in one.computation:
            yield from one.computation[name].results


def _fusion(one: Executed, program: Program) -> int:
    """Bytes that go in and out: of operands that are only sliced the slices, of those updated in place the update."""
    inside = program.computations[one.instruction.called["calls"][0]]
    users: dict[str, list[Instruction]] = {}
    for each in inside.values():
        for name in each.operands:
            users.setdefault(name, []).append(each)
    total = 0
    for each in inside.values():
        if each.opcode == "parameter" and each.results and each.results[0].space == 0:
            total += _read(each, users.get(each.name, []))
    for each in _roots(inside):
        if each.opcode == "dynamic-update-slice":
            total += inside[each.operands[1]].results[0].nbytes
        elif each.opcode != "parameter":
            total += _given(each)
    return total


def _read(parameter: Instruction, users: list[Instruction]) -> int:
    total = 0
    for user in users:
        if user.opcode == "dynamic-slice" and user.operands[0] == parameter.name:
            total += user.results[0].nbytes
        elif not (_kind(user) or "AsyncCollective" in user.attributes or _updates(user, parameter)):
            return sum(array.nbytes for array in parameter.results)
    return total


def _updates(user: Instruction, parameter: Instruction) -> bool:
    return user.opcode == "dynamic-update-slice" and user.operands[0] == parameter.name


def _roots(inside: Mapping[str, Instruction]) -> list[Instruction]:
    root = next(each for each in inside.values() if each.root)
    return [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
