"""Ctrl-C and SIGTERM as a request to stop after the step under way."""

import os
import signal
import threading
from types import FrameType


class Interruption:
    """While entered, SIGINT and SIGTERM only set `received`; a second SIGINT interrupts at once.

    Outside the main thread, where Python does not allow signal handlers, it changes nothing.

    Example:
      >>> with Interruption() as interruption:
      ...     signal.raise_signal(signal.SIGTERM)
      ...     interruption.received
      'SIGTERM'
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[signal.Signals, object] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
        os.write(2, f"{self.received}: finishing the step under way, then saving\n".encode())

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyrefly: ignore[bad-argument-type]
        self._previous.clear()
