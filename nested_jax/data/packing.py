"""Packing: documents into rows of one length, each beginning on the model's chunk grid, so that memories can be reset.

A row of T + 1 tokens makes T predictions: of token i + 1 from tokens 0 to i. Documents are taken in order. One begins
at the first free place that is a multiple of the chunk size; one that does not fit is cut at the end of the row and
goes on in the next, which repeats the last token, so that every token but a document's first is predicted exactly once.
Nothing predicts a document's first token, and nothing is predicted from its last one. (Order and cuts are our choice: a
search for documents that fit together would save padding and lose the order.)
"""

import array
from collections.abc import Sequence

import numpy as np

Batch = dict[str, np.ndarray]


def join(documents: Sequence[np.ndarray], end: int | None, dtype: np.typing.DTypeLike) -> tuple[np.ndarray, np.ndarray]:
    """Documents one after the other, each followed by the token that ends it.

    Args:
      documents: integers [n] each.
      end: that token; None puts nothing between documents.
      dtype: of the tokens.

    Returns:
      The tokens [N], and int64 [len(documents) + 1]: where each document begins, and N.

    Example:
      >>> tokens, begins = join([np.array([1, 2]), np.array([3])], 9, np.uint8)
      >>> tokens.tolist(), begins.tolist()
      ([1, 2, 9, 3, 9], [0, 3, 5])
    """
    parts = documents if end is None else [part for one in documents for part in (one, [end])]
    added = 0 if end is None else 1
    begins = np.cumsum([0, *(len(one) + added for one in documents)], dtype=np.int64)
    return np.concatenate([np.zeros(0, dtype), *(np.asarray(part).astype(dtype) for part in parts)]), begins


def row_starts(lengths: np.ndarray, sequence_length: int, chunk_size: int) -> np.ndarray:
    """What each row begins with.

    Args:
      lengths: integers [D], tokens of each document. Those with fewer than two have nothing to predict: they are left
        out.
      sequence_length: predictions per row, T ≥ 1.
      chunk_size: of the model, C ≥ 1.

    Returns:
      int64 [R, 2]: number of a document, and of the token in it that is the row's first.

    Example:
      >>> row_starts(np.array([3, 2, 7]), sequence_length=8, chunk_size=4).tolist()
      [[0, 0], [2, 0]]
      >>> row_starts(np.array([11]), sequence_length=8, chunk_size=4).tolist()
      [[0, 0], [0, 8]]
    """
    starts = array.array("q")
    place = sequence_length
    for document, tokens in enumerate(np.asarray(lengths).tolist()):
        first = 0
        while first < tokens - 1:
            if place >= sequence_length:
                starts.extend((document, first))
                place = 0
            taken = min(tokens - 1 - first, sequence_length - place)
            first, place = first + taken, place + taken
        if first:
            place = _next_begin(place, chunk_size)
    return np.frombuffer(starts, np.int64).reshape(-1, 2)


def fill_row(
    tokens: np.ndarray, begins: np.ndarray, start: tuple[int, int], sequence_length: int, chunk_size: int
) -> Batch:
    """One row.

    Args:
      tokens: integers [N], from `join`.
      begins: int64 [D + 1], from `join`.
      start: of the row, from `row_starts`.
      sequence_length: T.
      chunk_size: C.

    Returns:
      `"tokens"` int32 [T + 1], zeros where there are none; `"reset"` bool [ceil(T / C)], true where a document begins
      (a row that goes on with one does not begin it) and at every chunk behind the last one, see
      `nested_jax.data.batches.padding`; `"trained"` bool [T], the predictions that count.

    Example:
      >>> tokens, begins = join([np.array([1, 2, 3]), np.array([4, 5])], None, np.uint8)
      >>> row = fill_row(tokens, begins, (0, 0), 8, 4)
      >>> row["tokens"].tolist(), row["reset"].tolist(), row["trained"].astype(int).tolist()
      ([1, 2, 3, 0, 4, 5, 0, 0, 0], [True, True], [1, 1, 0, 0, 1, 0, 0, 0])
      >>> fill_row(tokens, begins, (1, 0), 8, 2)["reset"].tolist()
      [True, True, True, True]
    """
    row = {
        "tokens": np.zeros(sequence_length + 1, np.int32),
        "reset": np.zeros(-(-sequence_length // chunk_size), bool),
        "trained": np.zeros(sequence_length, bool),
    }
    document, first = start
    place = 0
    while place < sequence_length and document < len(begins) - 1:
        left = int(begins[document + 1] - begins[document]) - 1 - first
        if left > 0:
            taken = min(left, sequence_length - place)
            begin = int(begins[document]) + first
            row["tokens"][place : place + taken + 1] = tokens[begin : begin + taken + 1]
            row["trained"][place : place + taken] = True
            row["reset"][place // chunk_size] = first == 0
            place = _next_begin(place + taken, chunk_size)
        document, first = document + 1, 0
    row["reset"][place // chunk_size :] = True
    return row


class PackedRows:
    """Documents as rows, each of which can be had at any time.

    Args:
      tokens: integers [N], from `join`; may be mapped from a file.
      begins: int64 [D + 1], from `join`.
      sequence_length: predictions per row, T.
      chunk_size: of the model, C: documents begin at multiples of it.

    Attributes:
      sequence_length: T.
      chunk_size: C.
      padding: share of the predictions of all rows that count for nothing, in [0, 1).
      documents: number of documents in the rows.
      left_out: number of documents with fewer than two tokens.

    Raises:
      ValueError: if a length is out of range or no document has two tokens.

    Example:
      >>> rows = PackedRows(*join([np.array([1, 2, 3]), np.array([4, 5])], None, np.uint8), 8, 4)
      >>> len(rows), rows.padding, rows.take([0, 0])["tokens"].shape
      (1, 0.625, (2, 9))
    """

    def __init__(self, tokens: np.ndarray, begins: np.ndarray, sequence_length: int, chunk_size: int):
        for name, value in (("sequence_length", sequence_length), ("chunk_size", chunk_size)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if len(begins) < 1 or begins[0] != 0 or begins[-1] != len(tokens):
            raise ValueError(
                f"begins: expected the first tokens of documents, from 0 to the number of tokens, {len(tokens)}, "
                f"got {list(begins[:1])} to {list(begins[-1:])}"
            )
        lengths = np.diff(begins)
        if not (lengths >= 2).any():
            raise ValueError(f"begins: expected a document of two tokens or more, got {len(lengths)} documents without")
        self._tokens, self._begins = tokens, begins
        self.sequence_length, self.chunk_size = sequence_length, chunk_size
        self._starts = row_starts(lengths, sequence_length, chunk_size)
        self.documents = int(np.sum(lengths >= 2))
        self.left_out = len(lengths) - self.documents
        self.padding = 1 - int(np.sum(np.maximum(lengths - 1, 0))) / (len(self._starts) * sequence_length)

    def __len__(self) -> int:
        return len(self._starts)

    def take(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """Some of the rows.

        Args:
          rows: integers [B], below `len(self)`.

        Returns:
          `"tokens"` int32 [B, T + 1], `"reset"` bool [B, ceil(T / C)] and `"trained"` bool [B, T]; see `fill_row`.
        """
        shape = self.sequence_length, self.chunk_size
        starts = [(int(document), int(first)) for document, first in self._starts[np.asarray(rows)]]
        filled = [fill_row(self._tokens, self._begins, start, *shape) for start in starts]
        return {name: np.stack([row[name] for row in filled]) for name in ("tokens", "reset", "trained")}


def _next_begin(last: int, chunk_size: int) -> int:
    """The first place on the grid behind the place of a document's last token."""
    return (last // chunk_size + 1) * chunk_size
