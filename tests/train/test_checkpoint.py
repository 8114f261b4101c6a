import json
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nested_jax.train import checkpoint
from nested_jax.train.checkpoint import CHECKSUMS, Checkpoints


def state_of(seed):
    params = {"w": jax.random.normal(jax.random.key(seed), (8, 4)), "b": jnp.full(4, float(seed))}
    return {"params": params, "optimizer": optax.adam(1e-3).init(params), "key": jax.random.key(seed)}


def shapes(state):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)


def saved(directory, steps, keep=3):
    with Checkpoints(directory, keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, state_of(step), {"next_batch": step}, {"dim": 4, "name": "a", "none": None})
    return checkpoints


def test_everything_comes_back_and_the_latest_are_kept(tmp_path):
    checkpoints = saved(tmp_path / "c", [0, 5, 7, 12], keep=2)
    assert checkpoints.steps == [7, 12]
    assert checkpoints.latest == 12
    with Checkpoints(tmp_path / "c") as again:
        state, data = again.restore(12, shapes(state_of(0)))
        assert again.config(12) == {"dim": 4, "name": "a", "none": None}
    assert data == {"next_batch": 12}
    for found, expected in zip(jax.tree.leaves(state), jax.tree.leaves(state_of(12)), strict=True):
        if jnp.issubdtype(found.dtype, jax.dtypes.prng_key):
            found, expected = jax.random.key_data(found), jax.random.key_data(expected)
        np.testing.assert_array_equal(found, expected)
    assert isinstance(state["optimizer"][0], optax.ScaleByAdamState)


def test_nothing_is_created_by_looking(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    assert checkpoints.steps == []
    assert checkpoints.latest is None
    checkpoints.close()
    assert not (tmp_path / "c").exists()


def test_keep_below_one():
    with pytest.raises(ValueError, match=r"keep .* at least 1; got 0"):
        Checkpoints("anywhere", 0)


@pytest.mark.parametrize("part", ["state", "config", "data"])
@pytest.mark.parametrize("how", ["halved", "removed", "flipped"])
def test_damage_is_refused_and_the_previous_one_named(tmp_path, part, how):
    directory = tmp_path / "c"
    saved(directory, [3, 9])
    victim = max((directory / "9" / part).rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    content = victim.read_bytes()
    if how == "removed":
        victim.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]
        victim.write_bytes(content[:middle] if how == "halved" else flipped)
    before = sorted((path, path.stat().st_mtime_ns) for path in directory.rglob("*"))
    with Checkpoints(directory) as checkpoints:
        with pytest.raises(ValueError, match=rf"{directory}/9 cannot be read .*good one before it is step 3"):
            checkpoints.restore(9, shapes(state_of(0)))
        assert sorted((path, path.stat().st_mtime_ns) for path in directory.rglob("*")) == before
        state, data = checkpoints.restore(3, shapes(state_of(0)))
    assert data == {"next_batch": 3}
    np.testing.assert_array_equal(state["params"]["w"], state_of(3)["params"]["w"])


def test_the_only_one_damaged(tmp_path):
    saved(tmp_path / "c", [3])
    (tmp_path / "c" / "3" / CHECKSUMS).write_text("{")
    with Checkpoints(tmp_path / "c") as checkpoints, pytest.raises(ValueError, match="there is no good one before it"):
        checkpoints.config(3)


def test_reading_leaves_a_save_that_is_under_way_alone(tmp_path):
    """Another process may be writing: evaluating a run that trains must not touch its files."""
    directory, like = tmp_path / "c", shapes(state_of(0))
    saved(directory, [3])
    under_way = directory / "4.orbax-checkpoint-tmp"
    (under_way / "state").mkdir(parents=True)
    (under_way / "state" / "half").write_text("half")
    with Checkpoints(directory) as checkpoints:
        checkpoints.config(3)
        checkpoints.restore(3, like)
        params = checkpoints.restore_params(3, like["params"])
    assert (under_way / "state" / "half").read_text() == "half"
    np.testing.assert_array_equal(params["w"], state_of(3)["params"]["w"])


def test_files_are_read_through_once_for_their_checksums(tmp_path, monkeypatch):
    saved(tmp_path / "c", [3])
    looked, damage = [], checkpoint._damage
    monkeypatch.setattr(checkpoint, "_damage", lambda directory: looked.append(directory) or damage(directory))
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.config(3)
        checkpoints.restore(3, shapes(state_of(0)))
    assert looked == [tmp_path / "c" / "3"]


SAVER = textwrap.dedent(
    """
    import sys, jax, jax.numpy as jnp
    from nested_jax.train.checkpoint import Checkpoints
    checkpoints = Checkpoints(sys.argv[1], keep=2)
    for step in range(1000):
        checkpoints.save(step, {"w": jnp.full((1 << 20,), float(step))}, {"next_batch": step}, {})
        print(step, flush=True)
    """
)


def test_killed_while_saving(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", SAVER, str(tmp_path / "c")], stdout=subprocess.PIPE, text=True)
    with process:
        for line in process.stdout:
            if int(line) == 3:
                break
        temporary = time.monotonic() + 20
        while time.monotonic() < temporary and not list((tmp_path / "c").glob("*tmp*")):
            pass
        process.send_signal(signal.SIGKILL)
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        latest = checkpoints.latest
        assert latest >= 3
        target = {"w": jax.ShapeDtypeStruct((1 << 20,), jnp.float32, sharding=jnp.zeros(1).sharding)}
        state, data = checkpoints.restore(latest, target)
        assert data == {"next_batch": latest}
        assert float(state["w"][-1]) == latest
        checkpoints.save(latest + 1, state, {}, {})
        assert checkpoints.steps == [latest, latest + 1]
    assert json.loads((tmp_path / "c" / str(latest + 1) / CHECKSUMS).read_text())
    assert not list((tmp_path / "c").glob("*tmp*"))
