"""Reads the text of a compiled XLA program: its instructions, and how often each is executed.

XLA's own cost analysis counts the body of a loop once. Here it counts as often as the loop goes round: the trip count
is written beside the loop by some backends, and else read off its condition, a counter from 0 compared with a constant,
which is what `jax.lax.scan` becomes.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

BYTES = {"pred": 1, "token": 0, "opaque": 0}
_LEAF = re.compile(r"(\w+)\[([\d,<=]*)\](\{[^}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"(calls|body|condition|to_apply|called_computations|branch_computations|true_computation"
                     r"|false_computation)=(\{[^}]*\}|%?[\w.\-]+)")  # fmt: skip
_CALLS = ("fusion", "call", "async-start", "conditional", "custom-call")


@dataclasses.dataclass(frozen=True)
class Array:
    """The type of an array.

    Attributes:
      dtype: as HLO names it: "f32", "bf16", "s32", "pred".
      shape: sizes.
      space: memory space; 0 is the device's main memory, on a TPU 1 is VMEM.
    """

    dtype: str
    shape: tuple[int, ...]
    space: int = 0

    @property
    def size(self) -> int:
        """Entries."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes without padding; those of a type of 4 bits are rounded up to 8."""
        if self.dtype in BYTES:
            return BYTES[self.dtype] * self.size
        bits = re.search(r"\d+", self.dtype)
        return self.size * max(int(bits[0]) // 8, 1) if bits else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program.

    Attributes:
      name: unique in the program.
      opcode: what it does: "dot", "fusion", "all-gather", ...
      results: types of what it gives, a tuple's one by one.
      operands: names of instructions of the same computation.
      attributes: the rest of the line.
      called: attribute → names of computations.
      root: whether its result is the computation's.
    """

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    called: Mapping[str, tuple[str, ...]]
    root: bool


@dataclasses.dataclass(frozen=True)
class Executed:
    """An instruction in its place.

    Attributes:
      instruction: which.
      within: the name of its computation.
      computation: the instructions of that by name.
      times: how often it is executed in one call of the program.
      fused: whether it is inside of a fusion, so that what it reads and gives does not go through main memory.
    """

    instruction: Instruction
    within: str
    computation: Mapping[str, Instruction]
    times: int
    fused: bool

    def operand(self, place: int) -> Array:
        """Type of an operand that is an array."""
        return self.computation[self.instruction.operands[place]].results[0]


class Program:
    """A compiled program.

    Args:
      text: what `compiled.as_text()` gives.

    Attributes:
      computations: name → instructions by name.
      unknown_loops: loops whose trip count could not be read; they count once.
    """

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry, self.unknown_loops = "", 0
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            header = None if line.startswith(" ") else _HEADER.match(line)
            if header:
                current = self.computations.setdefault(header[2], {})
                if header[1]:
                    self.entry = header[2]
            elif line.startswith("  ") and " = " in line:
                found = _instruction(line)
                current[found.name] = found

    def executed(self) -> Iterator[Executed]:
        """Every instruction that is reached from the entry, with how often; conditions of loops are left out."""
        times: dict[tuple[str, bool], int] = collections.Counter({(self.entry, False): 1})
        unknown = set()
        for name, fused in self._order():
            computation, count = self.computations[name], times[name, fused]
            for one in computation.values():
                factor = 1
                if one.opcode == "while":
                    trips = self._trips(one, computation)
                    if trips is None:
                        unknown.add(one.name)
                    factor = 1 if trips is None else trips
                for called, inside in _followed(one):
                    times[called, fused or inside] += count * factor
                yield Executed(one, name, computation, count, fused)
        self.unknown_loops = len(unknown)

    def _order(self) -> list[tuple[str, bool]]:
        """Computations that are executed, every caller before what it calls."""
        done, order = set(), []

        def visit(name: str, fused: bool) -> None:
            if (name, fused) in done:
                return
            done.add((name, fused))
            for one in self.computations[name].values():
                for called, inside in _followed(one):
                    visit(called, fused or inside)
            order.append((name, fused))

        visit(self.entry, False)
        return order[::-1]

    def _trips(self, loop: Instruction, computation: Mapping[str, Instruction]) -> int | None:
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known[1])
        condition = self.computations[loop.called["condition"][0]]
        bounds = {int(value) for value in (_constant(one) for one in condition.values()) if value is not None}
        less = [one for one in condition.values() if one.root and "direction=LT" in one.attributes]
        if not less:  # the comparison may have been wrapped in a fusion
            roots = [name for one in condition.values() if one.root for name, _ in _followed(one)]
            less = [
                one for name in roots for one in self.computations[name].values() if "direction=LT" in one.attributes
            ]
        return bounds.pop() if less and len(bounds) == 1 else None


def _followed(one: Instruction) -> list[tuple[str, bool]]:
    """Computations that an instruction executes, and whether they are fused into it."""
    if one.opcode == "while":
        return [(name, False) for name in one.called["body"]]
    if one.opcode not in _CALLS:
        return []
    return [(name, one.opcode == "fusion") for names in one.called.values() for name in names]


def _constant(one: Instruction) -> str | None:
    found = re.match(r"constant\((\d+)\)", one.attributes) if one.opcode == "constant" else None
    return found[1] if found else None


def _instruction(line: str) -> Instruction:
    left, _, right = line.strip().partition(" = ")
    kind, rest = _split_type(right)
    opcode, _, rest = rest.partition("(")
    end = _close(rest, 0, 1)
    inside, attributes = rest[: end - 1], rest[end:]
    if opcode == "constant":
        attributes = f"constant({inside})"
        inside = ""
    called = {name: tuple(part.strip(" %") for part in names.strip("{}").split(",")) for name, names in
              _CALLED.findall(attributes)}  # fmt: skip
    return Instruction(
        name=left.removeprefix("ROOT ").lstrip("%"),
        opcode=opcode.strip(),
        results=arrays(kind),
        operands=tuple(re.findall(r"%([\w.\-]+)", inside)) or _bare(inside),
        attributes=attributes,
        called=called,
        root=left.startswith("ROOT "),
    )


def _bare(inside: str) -> tuple[str, ...]:
    """Names of operands that are written without %."""
    inside = re.sub(r"/\*.*?\*/", "", inside)
    return tuple(part.split()[-1] for part in inside.split(",") if part.strip() and not part.strip()[0].isdigit())


def _split_type(text: str) -> tuple[str, str]:
    end = _close(text, 1, 1) if text.startswith("(") else text.index(" ")
    return text[:end], text[end:].lstrip()


def _close(text: str, start: int, depth: int) -> int:
    """The place behind the bracket that closes the `depth` open ones."""
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place + 1
    return len(text)


def arrays(text: str) -> tuple[Array, ...]:
    """The types in a type, a tuple's one by one.

    Example:
      >>> arrays("(f32[2,3]{1,0:T(8,128)S(1)}, pred[])")
      (Array(dtype='f32', shape=(2, 3), space=1), Array(dtype='pred', shape=(), space=0))
    """
    found = []
    for dtype, sizes, layout in _LEAF.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        shape = tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size)
        found.append(Array(dtype, shape, int(space[1]) if space else 0))
    return tuple(found)


def group_size(attributes: str, devices: int) -> int:
    """How many devices take part in a collective.

    Args:
      attributes: of its instruction.
      devices: of the whole program.

    Example:
      >>> [group_size(one, 8) for one in ("replica_groups={{0,1},{2,3}}", "replica_groups=[2,4]<=[8]", "")]
      [2, 4, 8]
      >>> group_size("replica_groups=mesh['a'=2,'b'=4] {'b'}", 8)
      4
    """
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
    if listed:
        return len(listed[1].split(","))
    counted = re.search(r"replica_groups=\[\d+,(\d+)\]", attributes)
    if counted:
        return int(counted[1])
    named = re.search(r"replica_groups=mesh\[(.*?)\]\s*\{(.*?)\}", attributes)
    if named:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", named[2]))
    return devices
