"""Interleaved timing: every candidate once per round in one process, medians and ratios over the rounds."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax

Name = TypeVar("Name")


@dataclasses.dataclass(frozen=True)
class Measured:
    """One candidate's numbers.

    Attributes:
      seconds: wall time of every round.
      compile_seconds: time of lowering and compiling, None where nothing was compiled.
      temporary_bytes: what the compiled program allocates besides its inputs and outputs, None where unknown.
    """

    seconds: tuple[float, ...]
    compile_seconds: float | None = None
    temporary_bytes: int | None = None

    @property
    def median(self) -> float:
        """Median seconds of a round."""
        return statistics.median(self.seconds)


def asked_bytes(compiled: jax.stages.Compiled) -> tuple[int | None, int | None]:
    """What a compiled program allocates besides its inputs and outputs, and with them; None where unknown."""
    memory = compiled.memory_analysis()
    if memory is None:
        return None, None
    ends = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return int(memory.temp_size_in_bytes), int(memory.temp_size_in_bytes + ends)


class Compiled:
    """A jitted function compiled for its arguments, with what compiling cost and what memory a call takes.

    Attributes:
      compile_seconds: time of lowering and compiling.
      temporary_bytes: what the compiled program allocates besides its inputs and outputs, None where unknown.
      total_bytes: the same with its inputs and outputs.
    """

    def __init__(self, function: Callable[..., Any], arguments: Sequence[Any]):
        begin = time.perf_counter()
        self._call = jax.jit(function).lower(*arguments).compile()
        self.compile_seconds = time.perf_counter() - begin
        self.temporary_bytes, self.total_bytes = asked_bytes(self._call)
        self._arguments = tuple(arguments)

    def __call__(self) -> None:
        jax.block_until_ready(self._call(*self._arguments))


def interleave(
    candidates: Mapping[Name, Callable[[], None]], rounds: int, within: float = math.inf
) -> dict[Name, Measured]:
    """Times candidates against each other.

    Args:
      candidates: name -> a call that returns when its work is done; `Compiled` ones also report compiling.
      rounds: rounds that count, >= 1; one more warms up.
      within: seconds of rounds that count after which none begins, one at least. A warming round that takes longer
        counts itself and stays the only one: next to so much work, touching memory for the first time is nothing.

    Returns:
      name -> `Measured`.
    """
    seconds = {name: [_seconds(call)] for name, call in candidates.items()}
    if sum(warming[0] for warming in seconds.values()) < within:
        seconds = {name: [] for name in candidates}
        spent = 0.0
        while spent < within and min(map(len, seconds.values()), default=rounds) < rounds:
            for name, call in candidates.items():
                seconds[name].append(_seconds(call))
                spent += seconds[name][-1]
    return {
        name: Measured(
            tuple(seconds[name]), getattr(call, "compile_seconds", None), getattr(call, "temporary_bytes", None)
        )
        for name, call in candidates.items()
    }


def _seconds(call: Callable[[], None]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def ratio(slow: Measured, fast: Measured) -> tuple[float, float, float]:
    """(median, least, greatest) over the rounds of the time of `slow` over that of `fast`."""
    ratios = [a / b for a, b in zip(slow.seconds, fast.seconds, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)
