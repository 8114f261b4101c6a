"""Ctrl-C and SIGTERM as a request to stop after the step under way, in all processes after the same one."""

import os
import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Interruption:
    """While entered, SIGINT and SIGTERM only set `received`; a second SIGINT interrupts at once.

    Of several processes any may get the signal. There SIGTERM stays with JAX's preemption service, which tells the
    others and agrees with them on a step that none has passed, beside the training and without a collective in it;
    SIGINT becomes SIGTERM.

    Outside the main thread, where Python does not allow signal handlers, it changes nothing.

    Example:
      >>> with Interruption() as interruption:
      ...     signal.raise_signal(signal.SIGTERM)
      ...     interruption.stop_after(1)
      'SIGTERM'
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[signal.Signals, object] = {}
        self._forwarded = False

    def stop_after(self, step: int) -> str | None:
        """The signal because of which to stop after this step, the same in every process; to be asked at every step."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.received = "SIGTERM"
        return self.received

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
        os.write(2, f"{self.received}: finishing what is under way, then stopping\n".encode())

    def _forward(self, number: int, frame: FrameType | None) -> None:
        if self._forwarded:
            raise KeyboardInterrupt
        self._forwarded = True
        signal.raise_signal(signal.SIGTERM)

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            handlers = {signal.SIGINT: self._handle, signal.SIGTERM: self._handle}
            if jax.process_count() > 1:
                handlers = {signal.SIGINT: self._forward}
            for number, handler in handlers.items():
                self._previous[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyrefly: ignore[bad-argument-type]
        self._previous.clear()
