"""Seeded, shuffled, resumable batches of windows, packed documents or a task's examples, by Grain or by plain NumPy.

Both backends ask one function which records a batch holds: they give the same bits, and the whole position of a run in
its data is one number, the next batch.
"""

import functools
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

from nested_jax.data.examples import Examples, TaskConfig
from nested_jax.data.packing import PackedRows
from nested_jax.data.text import TextConfig

Batch = dict[str, np.ndarray]


class BatchIterator:
    """An endless iterator over batches that knows where it stands.

    Attributes:
      windows: Windows, rows or examples in one epoch.
      backend: `"grain"` or `"numpy"`: who serves the batches.
    """

    def __init__(self, open_at: Callable[[int], Iterator[Batch]], identity: dict[str, Any], backend: str):
        self.windows: int = identity["windows"]
        self.backend = backend
        self._open_at = open_at
        self._identity = identity
        self._next_batch = 0
        self._iterator: Iterator[Batch] | None = None

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> Batch:
        if self._iterator is None:
            self._iterator = self._open_at(self._next_batch)
        batch = next(self._iterator)
        self._next_batch += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """The position as a small JSON-able dict, the same for both backends and for every process."""
        return {"next_batch": self._next_batch, **self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to a position given by `get_state`; the batches from there on are those of an uninterrupted run.

        Raises:
          ValueError: If the state was taken over other data, another seed or other shapes.
        """
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise ValueError(
                    f"data state: its {name} is {state.get(name)!r}, this iterator's is {value!r}: "
                    "it was saved over other data or another data config"
                )
        position = state.get("next_batch")
        if not isinstance(position, int) or position < 0:
            raise ValueError(f"data state: expected next_batch to be an integer of 0 or more, got {position!r}")
        self._next_batch = position
        self._iterator = None


def batches(
    tokens: np.ndarray,
    config: TextConfig,
    *,
    process_index: int = 0,
    process_count: int = 1,
    backend: Literal["auto", "grain", "numpy"] = "auto",
    digest: str | None = None,
) -> BatchIterator:
    """Iterate for ever over shuffled windows of an array of tokens.

    An epoch visits the windows of one grid of stride `sequence_length`, which begins at a seeded random offset, in a
    seeded random order; both are fresh in every epoch. A batch may take the last windows of one epoch and the first of
    the next.

    Args:
      tokens: Unsigned integers [N], at least `sequence_length + 1` of them.
      config: Gives `sequence_length`, `batch_size` (rows over all processes) and `seed`.
      process_index: This process, in `range(process_count)`. It gets its contiguous share of the rows of each batch, so
        that the rows of all processes, in order, are the batch of a single process.
      process_count: Number of processes; divides `batch_size`.
      backend: `"grain"`, `"numpy"`, or `"auto"`: Grain where it is installed. The batches are the same.
      digest: What the tokens are told by when a run goes on; None hashes them.

    Returns:
      An iterator over `{"tokens": int32 [batch_size / process_count, sequence_length + 1]}`; inputs are
      `tokens[:, :-1]`, targets `tokens[:, 1:]`.

    Raises:
      ValueError: If there are too few tokens or the rows cannot be shared out.

    Example:
      >>> text = np.arange(64, dtype=np.uint8)
      >>> stream = batches(text, TextConfig(sequence_length=8, batch_size=2), backend="numpy")
      >>> next(stream)["tokens"].shape
      (2, 9)
    """
    config.validate()
    length, rows = config.sequence_length, config.batch_size
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.unsignedinteger) or len(tokens) < length + 1:
        raise ValueError(
            f"tokens: expected unsigned integers [N] with N >= sequence_length + 1 = {length + 1}, "
            f"got {tokens.dtype} {list(tokens.shape)}"
        )
    starts = functools.partial(window_starts, size=len(tokens), length=length, seed=config.seed)

    def rows_of(records: np.ndarray) -> Batch:
        begin = starts(records)
        return {"tokens": tokens[begin[:, None] + np.arange(length + 1)].astype(np.int32)}

    identity = {
        "seed": config.seed,
        "sequence_length": length,
        "batch_size": rows,
        "windows": _grid(len(tokens), length)[0],
        "sha256": digest or hashlib.sha256(np.ascontiguousarray(tokens).data).hexdigest()[:16],
    }
    return numbered_batches(rows_of, rows, (process_index, process_count), identity, backend)


def example_batches(
    examples: Examples,
    config: TaskConfig,
    *,
    process_index: int = 0,
    process_count: int = 1,
    backend: Literal["auto", "grain", "numpy"] = "auto",
    chunk_size: int | None = None,
) -> BatchIterator:
    """Iterate for ever over the shuffled examples of a task, in a fresh seeded order in every epoch.

    Args:
      examples: The training set.
      config: Gives `batch_size` (rows over all processes) and `seed`.
      process_index: As for `batches`.
      process_count: As for `batches`.
      backend: As for `batches`.
      chunk_size: The grid on which a model begins documents anew, see `padding`; None for a model without.

    Returns:
      An iterator over `{"inputs", "targets": int32, "trained": bool}`, `[batch_size / process_count, T]` each; and, if
      some sequence ends a chunk or more before its row does, "reset" `[batch_size / process_count, ceil(T / C)]`.

    Raises:
      ValueError: If the rows cannot be shared out.
    """
    config.validate()
    count = len(examples.inputs)
    behind = np.zeros(0, bool) if chunk_size is None else padding(examples.trained, chunk_size)
    padded = bool(behind.any())

    def rows_of(records: np.ndarray) -> Batch:
        rows = shuffled(records, config.seed, count)
        taken = examples.take(rows)
        batch = {"inputs": taken.inputs, "targets": taken.targets, "trained": taken.trained}
        return batch | {"reset": behind[rows]} if padded else batch

    identity = {
        "seed": config.seed,
        "batch_size": config.batch_size,
        "windows": count,
        "sha256": examples.digest(),
    }
    return numbered_batches(rows_of, config.batch_size, (process_index, process_count), identity, backend)


def padding(trained: np.ndarray, chunk_size: int) -> np.ndarray:
    """Which chunks of rows begin behind the last place that counts: to a model each is a document of its own.

    What a memory makes of padding is of no use, and of hundreds of equal symbols it may make numbers that overflow: the
    loss does not see them, its gradient does. A model whose chunks are longer than its padding (levels with periods of
    thousands of tokens) has nothing to begin anew and reads it as before.

    Args:
      trained: bool [N, T].
      chunk_size: of the model, C.

    Returns:
      bool [N, ceil(T / C)].

    Example:
      >>> padding(np.array([[True, False, True, False, False, False, False]]), 2).tolist()
      [[False, False, True, True]]
    """
    length = trained.shape[1]
    last = length - 1 - np.argmax(trained[:, ::-1], axis=1)
    return np.arange(0, length, chunk_size) > last[:, None]


def packed_batches(
    rows: PackedRows,
    config: TextConfig,
    *,
    process_index: int = 0,
    process_count: int = 1,
    backend: Literal["auto", "grain", "numpy"] = "auto",
    digest: str,
) -> BatchIterator:
    """Iterate for ever over the shuffled rows of packed documents, in a fresh seeded order in every epoch.

    Args:
      rows: The training documents.
      config: Gives `batch_size` (rows over all processes) and `seed`.
      process_index: As for `batches`.
      process_count: As for `batches`.
      backend: As for `batches`.
      digest: What the documents are told by when a run goes on.

    Returns:
      An iterator over what `PackedRows.take` gives: `{"tokens", "reset", "trained"}`.

    Raises:
      ValueError: If the rows cannot be shared out.
    """
    config.validate()
    identity = {
        "seed": config.seed,
        "batch_size": config.batch_size,
        "sequence_length": rows.sequence_length,
        "chunk_size": rows.chunk_size,
        "windows": len(rows),
        "sha256": digest,
    }

    def rows_of(records: np.ndarray) -> Batch:
        return rows.take(shuffled(records, config.seed, len(rows)))

    return numbered_batches(rows_of, config.batch_size, (process_index, process_count), identity, backend)


def numbered_batches(
    rows_of: Callable[[np.ndarray], Batch],
    rows: int,
    process: tuple[int, int],
    identity: dict[str, Any],
    backend: Literal["auto", "grain", "numpy"],
) -> BatchIterator:
    """Iterate for ever over batches of records that are numbered through all epochs.

    Args:
      rows_of: Int [n], numbers of records, to what a batch holds of them.
      rows: Records per batch, over all processes.
      process: This process and the number of them; it reads its contiguous share of each batch.
      identity: What a run is told by when it goes on; its "windows" are the records of one epoch.
      backend: As for `batches`.

    Raises:
      ValueError: If the rows cannot be shared out.
    """
    index, count = process
    if not 0 <= index < count or rows % count:
        raise ValueError(
            f"batch_size: expected a multiple of process_count and process_index in range(process_count), got "
            f"batch_size={rows}, process_index={index}, process_count={count}"
        )
    if backend not in ("auto", "grain", "numpy"):
        raise ValueError(f"backend: expected 'auto', 'grain' or 'numpy', got {backend!r}")
    if backend == "auto":
        backend = "grain" if importlib.util.find_spec("grain") else "numpy"
    local = rows // count

    def read(batch: int) -> Batch:
        first = batch * rows + index * local
        return rows_of(np.arange(first, first + local))

    return BatchIterator({"grain": _with_grain, "numpy": _with_numpy}[backend](read), identity, backend)


def window_starts(records: np.ndarray, *, size: int, length: int, seed: int) -> np.ndarray:
    """First token of each of the given windows, numbered through all epochs.

    Args:
      records: int [n], 0 or more; record r is number `r % windows` of epoch `r // windows`.
      size: Tokens in the text.
      length: Tokens per window, less one.
      seed: Seed of orders and offsets.

    Returns:
      int64 [n], each at most `size - length - 1`.
    """
    windows, _ = _grid(size, length)
    epochs, places = np.divmod(records, windows)
    starts = np.zeros(len(records), np.int64)
    for epoch in np.unique(epochs):
        order, offset = _epoch(seed, int(epoch), size, length)
        here = epochs == epoch
        starts[here] = order[places[here]] * length + offset
    return starts


def _grid(size: int, length: int) -> tuple[int, int]:
    """Windows per epoch, and how many offsets leave room for all of them."""
    windows = max(1, (size - length) // length)
    return windows, min(length, size - windows * length)


@functools.lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, size: int, length: int) -> tuple[np.ndarray, int]:
    """Order and offset of one epoch, from raw Philox output, whose stream NumPy keeps from release to release."""
    windows, offsets = _grid(size, length)
    raw = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(windows + 1)
    return _order(raw[1:]), int(raw[0] % np.uint64(offsets))


def shuffled(records: np.ndarray, seed: int, count: int) -> np.ndarray:
    """Which of `count` rows the records are, numbered through all epochs."""
    epochs, places = np.divmod(records, count)
    chosen = np.zeros(len(records), np.int64)
    for epoch in np.unique(epochs):
        chosen[epochs == epoch] = _row_order(seed, int(epoch), count)[places[epochs == epoch]]
    return chosen


@functools.lru_cache(maxsize=4)
def _row_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Order of the rows of one epoch."""
    return _order(np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(count))


def _order(raw: np.ndarray) -> np.ndarray:
    order = np.argsort(raw, kind="stable")
    order.flags.writeable = False
    return order


def _with_numpy(read: Callable[[int], Batch]) -> Callable[[int], Iterator[Batch]]:
    def open_at(batch: int) -> Iterator[Batch]:
        return map(read, iter(range(batch, sys.maxsize)))

    return open_at


def _with_grain(read: Callable[[int], Batch]) -> Callable[[int], Iterator[Batch]]:
    import grain

    def open_at(batch: int) -> Iterator[Batch]:
        numbers = grain.MapDataset.range(batch, sys.maxsize)
        return iter(numbers.map(read).to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))

    return open_at
