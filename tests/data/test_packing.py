"""Packing: worked rows, and that whatever the documents, every prediction within one is made exactly once."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nested_jax.data.packing import PackedRows, join

LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=25)


def numbered(lengths):
    """Documents whose tokens are all different, and not 0."""
    ends = np.cumsum(lengths)
    return [np.arange(end - length, end) + 1 for length, end in zip(lengths, ends, strict=True)]


def packed(lengths, length, chunk, end=None):
    return PackedRows(*join(numbered(lengths), end, np.uint16), length, chunk)


def test_rows_worked_by_hand():
    rows = packed([3, 2, 1, 9, 4], length=8, chunk=4)
    found = rows.take(np.arange(len(rows)))
    assert found["tokens"].tolist() == [
        [1, 2, 3, 0, 4, 5, 0, 0, 0],
        [7, 8, 9, 10, 11, 12, 13, 14, 15],
        [16, 17, 18, 19, 0, 0, 0, 0, 0],
    ]
    assert found["reset"].tolist() == [[True, True], [True, False], [True, True]]  # the last of nothing but padding
    assert found["trained"].astype(int).tolist() == [
        [1, 1, 0, 0, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 0, 0, 0, 0, 0],
    ]
    assert (rows.documents, rows.left_out) == (4, 1)
    assert rows.padding == 1 - 14 / 24
    assert (found["tokens"].dtype, found["trained"].dtype, found["reset"].dtype) == (np.int32, bool, bool)


def test_a_long_document_is_cut_at_the_ends_of_rows_and_goes_on_with_its_last_token():
    rows = packed([3, 12], length=8, chunk=4)
    found = rows.take([0, 1])
    assert found["tokens"].tolist() == [[1, 2, 3, 0, 4, 5, 6, 7, 8], [8, 9, 10, 11, 12, 13, 14, 15, 0]]
    assert found["reset"].tolist() == [[True, True], [False, False]]
    assert found["trained"].astype(int).tolist() == [[1, 1, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 0]]


def test_a_document_that_ends_on_the_grid_still_has_its_last_token():
    found = packed([5, 2], length=12, chunk=4).take([0])
    assert found["tokens"][0].tolist() == [1, 2, 3, 4, 5, 0, 0, 0, 6, 7, 0, 0, 0]
    found = packed([4, 2], length=12, chunk=4).take([0])
    assert found["tokens"][0].tolist() == [1, 2, 3, 4, 5, 6, 0, 0, 0, 0, 0, 0, 0]
    assert found["trained"][0].astype(int).tolist() == [1, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0]


def test_end_tokens_are_predicted_and_a_last_short_chunk_is_used():
    found = packed([2, 1, 0, 1], length=7, chunk=3, end=99).take([0])
    assert found["tokens"].tolist() == [[1, 2, 99, 3, 99, 0, 4, 99]]
    assert found["reset"].tolist() == [[True, True, True]]
    assert found["trained"].astype(int).tolist() == [[1, 1, 0, 1, 0, 0, 1]]


@settings(max_examples=200, deadline=None)
@given(LENGTHS, st.integers(1, 20), st.integers(1, 24), st.sampled_from([None, 1023]))
def test_every_prediction_within_a_document_is_made_once_and_no_other(lengths, length, chunk, end):
    documents = numbered(lengths)
    whole = [np.append(one, end) if end else one for one in documents]
    kept = [one for one in whole if len(one) > 1]
    if not kept:
        with pytest.raises(ValueError, match="expected a document of two tokens or more"):
            packed(lengths, length, chunk, end)
        return
    rows = packed(lengths, length, chunk, end)
    found = rows.take(np.arange(len(rows)))
    tokens, trained, reset = found["tokens"], found["trained"], found["reset"]
    assert tokens.shape == (len(rows), length + 1)
    assert reset.shape == (len(rows), -(-length // chunk))

    pairs = np.stack([tokens[:, :-1][trained], tokens[:, 1:][trained]], axis=1)
    expected = np.concatenate([np.stack([one[:-1], one[1:]], axis=1) for one in kept])
    np.testing.assert_array_equal(pairs, expected)  # nothing lost, nothing twice, in order
    assert rows.padding == 1 - len(expected) / trained.size

    firsts = {int(one[0]) for one in kept}
    begins = np.isin(tokens[:, :-1], list(firsts)) & trained
    used = np.pad(trained, ((0, 0), (0, 1))) | np.pad(trained, ((0, 0), (1, 0)))
    last = length - np.argmax(used[:, ::-1], axis=1)
    behind = np.arange(0, length, chunk) > last[:, None]
    np.testing.assert_array_equal(np.argwhere(reset & ~behind) * [1, chunk], np.argwhere(begins))
    assert reset[behind].all()
    starts = trained & ~np.pad(trained, ((0, 0), (1, 0)))[:, :-1]
    assert np.all(starts <= (begins | (np.arange(length) == 0)))  # cut only at the ends of rows
    assert not tokens[~used].any()


@settings(max_examples=50, deadline=None)
@given(LENGTHS, st.integers(1, 20), st.integers(1, 24))
def test_no_row_is_left_before_it_is_full(lengths, length, chunk):
    """A row ends only where no chunk is free for the next document."""
    if max(lengths) < 2:
        return
    rows = packed(lengths, length, chunk)
    trained = rows.take(np.arange(len(rows)))["trained"][:-1]
    last = length - 1 - np.argmax(trained[:, ::-1], axis=1)  # place of the last prediction
    assert np.all((last + 1) // chunk * chunk + chunk >= length)


def test_join():
    tokens, begins = join([np.array([5, 6]), np.array([], int), np.array([7])], 1, np.uint8)
    assert (tokens.tolist(), tokens.dtype, begins.tolist()) == ([5, 6, 1, 1, 7, 1], np.uint8, [0, 3, 4, 6])
    tokens, begins = join([], None, np.uint16)
    assert (tokens.tolist(), begins.tolist()) == ([], [0])


def test_the_rows_are_written_down():
    """The rows are a promise to checkpoints: they may not change with a release."""
    lengths = np.arange(200) ** 2 * 7 % 301
    found = packed(lengths, length=256, chunk=16)
    everything = found.take(np.arange(len(found)))
    data = b"".join(np.ascontiguousarray(everything[name]).tobytes() for name in ("tokens", "reset", "trained"))
    assert (len(found), hashlib.sha256(data).hexdigest()[:16]) == (115, "9350be0b4688fb45")
    picked = found.take([7, 2])
    np.testing.assert_array_equal(picked["tokens"], everything["tokens"][[7, 2]])


@pytest.mark.parametrize(
    ("lengths", "length", "chunk", "message"),
    [
        ([3], 0, 1, "sequence_length: expected at least 1, got 0"),
        ([3], 1, 0, "chunk_size: expected at least 1, got 0"),
        ([1, 0], 4, 2, "expected a document of two tokens or more, got 2 documents without"),
    ],
)
def test_bad_arguments(lengths, length, chunk, message):
    with pytest.raises(ValueError, match=message):
        packed(lengths, length, chunk)


def test_places_that_are_not_of_these_tokens():
    for begins in ([0, 2], [1, 3], []):
        with pytest.raises(ValueError, match=r"begins: expected the first tokens of documents, from 0 to .* 3"):
            PackedRows(np.arange(3), np.array(begins, np.int64), 4, 2)
