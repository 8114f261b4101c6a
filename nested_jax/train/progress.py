"""The line that says how far a run is: step, loss, speed and the time left."""

import contextlib
import time
from collections.abc import Iterator, Mapping


def duration(seconds: float) -> str:
    """Seconds in words, two units at most.

    Example:
      >>> duration(7), duration(192), duration(7500), duration(200000)
      ('7 s', '3 min 12 s', '2 h 05 min', '2 d 07 h')
    """
    seconds = max(round(seconds), 0)
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days} d {hours % 24:02d} h"
    if hours:
        return f"{hours} h {minutes % 60:02d} min"
    if minutes:
        return f"{minutes} min {seconds % 60:02d} s"
    return f"{seconds} s"


def quantity(value: float) -> str:
    """A count with three significant digits and a unit prefix.

    Example:
      >>> quantity(950), quantity(12345), quantity(3.2e6)
      ('950', '12.3k', '3.20M')
    """
    for size, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            scaled = value / size
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f}{suffix}"
    return f"{value:.0f}"


class Progress:
    """Turns steps into lines. The clock starts at the first call of `line`, so compilation is not counted.

    Args:
      steps: steps of the whole run.
      tokens_per_step: tokens (bytes) one step trains on.
    """

    def __init__(self, steps: int, tokens_per_step: int):
        self._steps = steps
        self._tokens = tokens_per_step
        self._width = len(str(steps))
        self._first: tuple[int, float] | None = None
        self._last: tuple[int, float] | None = None

    def rates(self, step: int, now: float | None = None) -> tuple[float | None, float | None]:
        """Tokens per second since the last call, seconds left at the mean speed so far; None at the first call."""
        now = time.monotonic() if now is None else now
        if self._first is None or self._last is None:
            self._first = self._last = (step, now)
            return None, None
        speed = (step - self._last[0]) * self._tokens / max(now - self._last[1], 1e-9)
        left = (self._steps - step) * (now - self._first[1]) / max(step - self._first[0], 1)
        self._last = (step, now)
        return speed, left

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """What is done inside is no step: the tokens per second leave its time out, the time left does not."""
        began = time.monotonic()
        yield
        if self._last is not None:
            step, since = self._last
            self._last = (step, since + time.monotonic() - began)

    def line(self, step: int, loss: float, others: Mapping[str, float], speed: float | None, left: float | None) -> str:
        """The progress line of one step.

        Args:
          step: updates done.
          loss: nats per token.
          others: what else the loss is, by its unit.
          speed: tokens per second, None if not known yet.
          left: seconds left, None if not known yet.
        """
        text = f"step {step:{self._width}d}/{self._steps}  loss {loss:.4f}"
        text += "".join(f"  {unit} {value:.3f}" for unit, value in others.items())
        if speed is not None and left is not None:
            text += f"  {quantity(speed)} tokens/s  {duration(left)} left"
        return text
