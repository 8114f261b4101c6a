"""Whose rows are which on meshes over several processes, and what one process does not have to ask."""

import jax
import numpy as np
import pytest

from nested_jax.data import TextConfig, batches
from nested_jax.train import multiprocess
from nested_jax.train.multiprocess import batch_share
from nested_jax.train.sharding import MeshConfig, make_mesh


def owners(shape, processes):
    """Devices in order, the same number for each process."""
    count = int(np.prod(shape))
    return np.repeat(np.arange(processes), count // processes).reshape(shape)


@pytest.mark.parametrize(
    ("shape", "shares"),
    [
        ((8, 1, 1, 1), 4),  # rows over processes
        ((1, 8, 1, 1), 4),
        ((2, 2, 2, 1), 4),
        ((2, 1, 4, 1), 2),  # two processes hold the same rows
        ((1, 1, 8, 1), 1),  # all of them do
        ((1, 1, 1, 8), 1),
    ],
)
def test_rows_follow_the_mesh(shape, shares):
    found = [batch_share(owners(shape, 4), process) for process in range(4)]
    assert [one["process_count"] for one in found] == [shares] * 4
    assert [one["process_index"] for one in found] == [process * shares // 4 for process in range(4)]


def test_shares_make_up_the_batch():
    """Processes 0 and 1, and 2 and 3, hold the same rows; the two shares are the batch of one process."""
    text = np.arange(200, dtype=np.uint8)
    config = TextConfig(sequence_length=8, batch_size=4)
    whole = next(batches(text, config, backend="numpy"))["tokens"]
    parts = [
        next(batches(text, config, backend="numpy", **batch_share(owners((2, 1, 4, 1), 4), process)))["tokens"]
        for process in range(4)
    ]
    np.testing.assert_array_equal(np.concatenate([parts[0], parts[2]]), whole)
    np.testing.assert_array_equal(parts[0], parts[1])
    np.testing.assert_array_equal(parts[2], parts[3])


def test_the_blocks_of_a_torus_are_shares_as_well():
    """A 4 × 4 torus in rows of four, whose processes are its 2 × 2 blocks: theirs are rows 0 1 4 5, and so on."""
    torus = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]).reshape(16, 1, 1, 1)
    assert [batch_share(torus, process)["process_index"] for process in range(4)] == [0, 1, 2, 3]


def test_meshes_without_a_process_or_with_uneven_rows_are_refused():
    with pytest.raises(ValueError, match="no device of process 2; it must span those of all"):
        batch_share(owners((4, 1, 1, 1), 2), 2)
    with pytest.raises(ValueError, match="as many rows of a batch as any other"):
        batch_share(np.array([0, 0, 0, 1]).reshape(4, 1, 1, 1), 0)
    with pytest.raises(ValueError, match="as many rows of a batch as any other"):
        batch_share(np.array([0, 1, 1, 0, 1, 1]).reshape(3, 1, 2, 1), 0)


def test_one_process_reads_all_rows_and_keeps_its_arrays():
    mesh = make_mesh(MeshConfig(data=2, tensor=2))
    assert multiprocess.share(mesh) == {"process_index": 0, "process_count": 1}
    tree = {"w": jax.numpy.ones(3)}
    assert multiprocess.own_copy(tree, mesh) is tree
    assert multiprocess.verdict(lambda: None) is None
    assert multiprocess.verdict(lambda: "torn") == "torn"
    multiprocess.check_same(3, "step")
    multiprocess.check_shared("/nowhere")


def test_only_the_first_speaks(monkeypatch):
    said = []
    say = multiprocess.from_first(said.append)
    say("one")
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    say("two")
    assert said == ["one"]


def test_others_learn_that_the_first_found_something(monkeypatch):
    """The first looks and tells; another does not look."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multiprocess.multihost_utils, "broadcast_one_to_all", lambda value: value)
    assert multiprocess.verdict(lambda: "torn") == "torn"
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(multiprocess.multihost_utils, "broadcast_one_to_all", lambda value: np.int32(1))
    assert multiprocess.verdict(lambda: pytest.fail("looked")) == "process 0 says what"


@pytest.mark.parametrize(("seen", "good"), [([3, 3], True), ([3, -1], False)])
def test_processes_that_see_other_checkpoints_are_told(monkeypatch, seen, good):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multiprocess.multihost_utils, "process_allgather", lambda value: np.array(seen))
    if good:
        return multiprocess.check_same(3, "the newest checkpoint")
    with pytest.raises(ValueError, match=r"newest checkpoint differs .* \[3, -1\]; the workdir must"):
        multiprocess.check_same(3, "the newest checkpoint")


def test_a_workdir_that_one_does_not_see_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multiprocess, "PATIENCE", 0.0)
    monkeypatch.setattr(multiprocess.multihost_utils, "sync_global_devices", lambda name: None)
    monkeypatch.setattr(multiprocess.multihost_utils, "process_allgather", lambda seen: np.array([1, int(seen)]))
    with pytest.raises(ValueError, match=r"config.json is not seen by processes \[1\]; the workdir must lie"):
        multiprocess.check_shared(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{}")
    multiprocess.check_shared(tmp_path / "config.json")
