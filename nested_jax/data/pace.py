"""Lines on how the preparation of data goes: how much, how fast, how long still."""

import time
from collections.abc import Callable
from typing import Any

SECONDS = 5.0  # between two lines


class Pace:
    """Lines on how a preparation goes, one every few seconds.

    Args:
      say: takes them.
      size: bytes of the corpus' files.
      limit: bytes of text at which it ends, None if there is no such limit.
      progress: where it begins.
    """

    def __init__(self, say: Callable[[str], None], size: int, limit: int | None, progress: dict[str, Any]):
        self._say, self._size, self._limit = say, size, limit
        self._began = self._said = time.monotonic()
        self._text, self._first = total(progress, "bytes"), self._done(progress)

    def _done(self, progress: dict[str, Any]) -> float:
        text = 0.0 if self._limit is None else total(progress, "bytes") / self._limit
        return max(text, progress["read"] / max(self._size, 1))

    def say(self, progress: dict[str, Any]) -> None:
        """Says a line if the last one is long ago."""
        now = time.monotonic()
        if now - self._said < SECONDS:
            return
        self._said, seconds = now, now - self._began
        rate = (total(progress, "bytes") - self._text) / seconds
        done = self._done(progress)
        left = (1 - done) * seconds / max(done - self._first, 1e-9)
        self._say(
            f"{total(progress, 'documents'):,} documents, {total(progress, 'tokens'):,} tokens, "
            f"{rate / 1e6:.1f} MB/s, {done:.0%}, {_duration(left)} left"
        )


def total(progress: dict[str, Any], name: str) -> int:
    """A count of both halves together."""
    return sum(half[name] for half in progress["halves"].values())


def _duration(seconds: float) -> str:
    """A length of time for people.

    Example:
      >>> _duration(50), _duration(1000), _duration(10000)
      ('50 s', '17 min', '2 h 47 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
