"""Batches: both backends give the same bits, resume exactly, cover the text and share rows between processes."""

import dataclasses
import json

import numpy as np
import pytest

from nested_jax.data import TextConfig, batches, validation_windows
from nested_jax.data.batches import window_starts

CONFIG = TextConfig(sequence_length=8, batch_size=4, seed=3)
TOKENS = np.random.default_rng(0).integers(0, 256, 1000).astype(np.uint8)
BACKENDS = ["grain", "numpy"]


def take(iterator, count):
    return np.stack([next(iterator)["tokens"] for _ in range(count)])


def test_backends_agree_bit_for_bit():
    grain, numpy = (batches(TOKENS, CONFIG, backend=backend) for backend in BACKENDS)
    assert (grain.backend, numpy.backend, batches(TOKENS, CONFIG).backend) == ("grain", "numpy", "grain")
    np.testing.assert_array_equal(take(grain, 100), take(numpy, 100))
    assert grain.get_state() == numpy.get_state()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch(backend):
    iterator = iter(batches(TOKENS, CONFIG, backend=backend))
    batch = next(iterator)
    assert list(batch) == ["tokens"]
    assert batch["tokens"].shape == (4, 9)
    assert batch["tokens"].dtype == np.int32
    rows = {TOKENS[i : i + 9].tobytes() for i in range(len(TOKENS) - 8)}
    assert all(row.astype(np.uint8).tobytes() in rows for row in batch["tokens"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stop", [0, 1, 7, 31, 64])
def test_resumes_exactly(backend, stop):
    whole = batches(TOKENS, CONFIG, backend=backend)
    expected = take(whole, 80)
    first = batches(TOKENS, CONFIG, backend=backend)
    for _ in range(stop):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    for other in BACKENDS:
        second = batches(TOKENS, CONFIG, backend=other)
        next(second)
        second.set_state(state)
        np.testing.assert_array_equal(take(second, 80 - stop), expected[stop:])
        assert second.get_state() == whole.get_state()


@pytest.mark.parametrize("size", [9, 10, 16, 17, 24, 100, 1000])
def test_every_epoch_visits_every_window_of_one_grid(size):
    windows = max(1, (size - 8) // 8)
    seen = []
    for epoch in range(30):
        records = np.arange(epoch * windows, (epoch + 1) * windows)
        starts = window_starts(records, size=size, length=8, seed=5)
        assert starts.min() >= 0
        assert starts.max() + 8 < size
        assert np.all(np.diff(np.sort(starts)) == 8)
        seen.append(starts)
    if size == 1000:
        assert {int(starts.min()) for starts in seen} == set(range(8))
        assert not np.array_equal(np.argsort(seen[0]), np.argsort(seen[1]))
    np.testing.assert_array_equal(
        window_starts(np.arange(30 * windows), size=size, length=8, seed=5), np.concatenate(seen)
    )


def test_the_order_is_written_down():
    """The stream is a promise to checkpoints: it may not change with a NumPy or project release."""
    assert window_starts(np.arange(15), size=100, length=8, seed=0).tolist() == (
        [57, 65, 17, 49, 33, 1, 81, 9, 73, 41, 25] + [16, 48, 24, 8]
    )


def test_seeds_differ():
    other = dataclasses.replace(CONFIG, seed=4)
    assert not np.array_equal(take(batches(TOKENS, CONFIG), 3), take(batches(TOKENS, other), 3))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_rows_of_one_batch(backend, count):
    whole = take(batches(TOKENS, CONFIG, backend="numpy"), 40)
    parts = [batches(TOKENS, CONFIG, process_index=i, process_count=count, backend=backend) for i in range(count)]
    np.testing.assert_array_equal(np.concatenate([take(part, 40) for part in parts], axis=1), whole)
    assert parts[0].get_state() == parts[1].get_state()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 9}, "its seed is 3, this iterator's is 9"),
        ({"sequence_length": 4}, "its sequence_length is 8"),
        ({"batch_size": 2}, "its batch_size is 4"),
    ],
)
def test_a_state_of_other_data_is_refused(change, message):
    state = batches(TOKENS, CONFIG).get_state()
    with pytest.raises(ValueError, match=message):
        batches(TOKENS, dataclasses.replace(CONFIG, **change)).set_state(state)
    with pytest.raises(ValueError, match="its sha256 is"):
        batches(TOKENS ^ 1, CONFIG).set_state(state)
    with pytest.raises(ValueError, match="next_batch"):
        batches(TOKENS, CONFIG).set_state({**state, "next_batch": -1})


@pytest.mark.parametrize(
    ("tokens", "arguments", "message"),
    [
        (
            TOKENS[:8],
            {},
            r"tokens: expected unsigned integers \[N\] with N >= sequence_length \+ 1 = 9, got uint8 \[8\]",
        ),
        (TOKENS.astype(np.int32), {}, r"got int32 \[1000\]"),
        (TOKENS[None], {}, r"got uint8 \[1, 1000\]"),
        (TOKENS, {"process_count": 3}, "batch_size=4, process_index=0, process_count=3"),
        (TOKENS, {"process_index": 2, "process_count": 2}, "process_index=2"),
        (TOKENS, {"backend": "torch"}, "expected 'auto', 'grain' or 'numpy', got 'torch'"),
    ],
)
def test_bad_arguments(tokens, arguments, message):
    with pytest.raises(ValueError, match=message):
        batches(tokens, CONFIG, **arguments)


def test_without_grain_numpy_stands_in(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert batches(TOKENS, CONFIG).backend == "numpy"


def test_validation_windows_are_fixed_spread_and_share_no_target():
    windows = validation_windows(TOKENS, 8, 10)[:]
    assert windows.shape == (10, 9)
    assert windows.dtype == np.int32
    np.testing.assert_array_equal(windows[0], TOKENS[:9])
    np.testing.assert_array_equal(windows, validation_windows(TOKENS, 8, 10)[:])
    everything = validation_windows(TOKENS, 8, 10_000)[:]
    np.testing.assert_array_equal(everything[:, 1:].reshape(-1), TOKENS[1 : 1 + everything.shape[0] * 8])
    assert everything.shape[0] == 999 // 8
    assert validation_windows(TOKENS[:9], 8, 3)[:].shape == (1, 9)
    for count, tokens in ((0, TOKENS), (1, TOKENS[:8])):
        with pytest.raises(ValueError, match="validation_windows: expected"):
            validation_windows(tokens, 8, count)
