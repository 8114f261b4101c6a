"""Interleaved timing: every candidate once per round in one process, medians and ratios over the rounds."""

import dataclasses
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


class Compiled:
    """A jitted function compiled for its arguments, with what compiling cost."""

    def __init__(self, function: Callable[..., Any], arguments: Sequence[Any]):
        begin = time.perf_counter()
        self._call = jax.jit(function).lower(*arguments).compile()
        self.compile_seconds = time.perf_counter() - begin
        memory = self._call.memory_analysis()
        self.temporary_bytes = None if memory is None else int(memory.temp_size_in_bytes)
        self._arguments = tuple(arguments)

    def __call__(self) -> None:
        jax.block_until_ready(self._call(*self._arguments))


def interleave(candidates: Mapping[Name, Callable[[], None]], rounds: int) -> dict[Name, Measured]:
    """Times candidates against each other.

    Args:
      candidates: name -> a call that returns when its work is done; `Compiled` ones also report compiling.
      rounds: rounds that count, >= 1; one more warms up.

    Returns:
      name -> `Measured`.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in candidates}
    for call in candidates.values():
        call()
    for _ in range(rounds):
        for name, call in candidates.items():
            begin = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - begin)
    return {
        name: Measured(
            tuple(seconds[name]), getattr(call, "compile_seconds", None), getattr(call, "temporary_bytes", None)
        )
        for name, call in candidates.items()
    }


def ratio(slow: Measured, fast: Measured) -> tuple[float, float, float]:
    """(median, least, greatest) over the rounds of the time of `slow` over that of `fast`."""
    ratios = [a / b for a, b in zip(slow.seconds, fast.seconds, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)
