"""What a run of several processes does otherwise than one: who writes, whose rows are which, what all have to agree on.

Every process runs the same program on its own devices, and arrays lie on a mesh over the devices of all, in training
and where predictions are scored. Texts are written by each process by itself, on its first device with a whole copy of
the parameters: nothing is waited for, and models of one device's memory are still what is trained (our choice).
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, TypedDict

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh

from nested_jax.train.sharding import AXES
from nested_jax.train.step import replicated

PATIENCE = 30.0  # seconds until a file of another host is seen on a network filesystem
SHARED = "the workdir must lie on a filesystem that all processes share"


class Share(TypedDict):
    """Which of so many equal shares, as the arguments that `nested_jax.data.batches` takes."""

    process_index: int
    process_count: int


def first() -> bool:
    """Whether this is the process that writes files and speaks."""
    return jax.process_index() == 0


def from_first(say: Callable[[str], None]) -> Callable[[str], None]:
    """`say`, but in the first process alone."""
    return lambda line: say(line) if first() else None


def batch_share(owners: np.ndarray, process: int) -> Share:
    """Which share of the rows of a batch a process reads.

    Rows are split over the mesh's first two axes. Processes that hold the same rows get the same share. Where the rows
    of a process are not contiguous, as on the torus of a TPU slice, rows of a batch change places; no loss depends on
    their order.

    Args:
      owners: int [data, fsdp, tensor, sequence], the process of each device of the mesh.
      process: this one.

    Returns:
      The share, and the number of different ones.

    Raises:
      ValueError: if the process has no device of the mesh, or shares overlap or differ in size.

    Example:
      >>> batch_share(np.array([0, 0, 1, 1]).reshape(1, 4, 1, 1), 1)
      {'process_index': 1, 'process_count': 2}
      >>> batch_share(np.array([0, 0, 1, 1]).reshape(1, 1, 4, 1), 1)
      {'process_index': 0, 'process_count': 1}
    """
    blocks = owners.reshape(owners.shape[0] * owners.shape[1], -1)
    rows = {int(other): tuple(np.flatnonzero((blocks == other).any(axis=1))) for other in np.unique(owners)}
    if process not in rows:
        raise ValueError(f"mesh: it has no device of process {process}; it must span those of all processes")
    shares = sorted(set(rows.values()))
    if sum(map(len, shares)) != len(blocks) or len(set(map(len, shares))) != 1:
        raise ValueError(
            f"mesh: each process must hold as many rows of a batch as any other, the same as another or none of its; "
            f"got {len(blocks)} blocks of rows, of which the processes hold {rows}"
        )
    return Share(process_index=shares.index(rows[process]), process_count=len(shares))


def share(mesh: Mesh) -> Share:
    """The share of each batch that this process reads, see `batch_share`."""
    owners = np.vectorize(lambda device: device.process_index, otypes=[int])(mesh.devices)
    return batch_share(owners, jax.process_index())


def own_copy(tree: Any, mesh: Mesh) -> Any:
    """Arrays on this process's first device; a single process keeps them where they are."""
    if jax.process_count() == 1:
        return tree
    whole = jax.jit(_same, out_shardings=replicated(mesh))(tree)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), whole)


@contextlib.contextmanager
def alone(tree: Any, mesh: Mesh) -> Iterator[Any]:
    """The arrays of `own_copy`; with several processes, in the context of a mesh of that device alone."""
    own = own_copy(tree, mesh)
    if jax.process_count() == 1:
        yield own
        return
    device = np.array(jax.local_devices()[:1]).reshape((1,) * len(AXES))
    with jax.set_mesh(Mesh(device, AXES, axis_types=(AxisType.Auto,) * len(AXES))):
        yield own


def _same(tree: Any) -> Any:
    return tree


def verdict(problem: Callable[[], str | None]) -> str | None:
    """What the first process finds, once it has looked; to the others, that it found something."""
    found = problem() if first() else None
    if jax.process_count() == 1:
        return found
    bad = int(multihost_utils.broadcast_one_to_all(np.int32(found is not None)))
    return (found or "process 0 says what") if bad else None


def check_same(value: int, what: str) -> None:
    """Raises a `ValueError` in every process if they do not see the same number."""
    if jax.process_count() == 1:
        return
    seen = np.asarray(multihost_utils.process_allgather(np.int32(value))).reshape(-1).tolist()
    if len(set(seen)) > 1:
        raise ValueError(f"{what} differs from process to process: {seen}; {SHARED}")


def check_shared(path: str | os.PathLike[str]) -> None:
    """Raises a `ValueError` in every process if one does not see a file that the first has written."""
    if jax.process_count() == 1:
        return
    multihost_utils.sync_global_devices("the first process has written")
    until = time.monotonic() + PATIENCE
    while not os.path.isfile(path) and time.monotonic() < until:
        time.sleep(0.5)
    seen = np.asarray(multihost_utils.process_allgather(np.int32(os.path.isfile(path)))).reshape(-1)
    if not seen.all():
        blind = np.flatnonzero(seen == 0).tolist()
        raise ValueError(f"{os.fspath(path)} is not seen by processes {blind}; {SHARED}")
