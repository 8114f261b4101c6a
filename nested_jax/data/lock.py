"""A lock that one process holds at a time, and that goes away with it."""

import contextlib
import fcntl
import pathlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def locked(path: pathlib.Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds the lock of a file, which is made for it; waits where another process has it.

    Args:
      path: of the file.
      waiting: is called before waiting.

    Raises:
      ValueError: if the filesystem has no locks.
    """
    with path.open("w") as file:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise ValueError(
                f"{path}: its filesystem has no locks ({error.strerror}): choose a folder elsewhere, or mount it with "
                "them (Lustre: -o flock)"
            ) from error
        yield
