"""A state is what it was after a round through a file; a file that is not what was expected is refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nested_jax import Memory, networks, rules
from nested_jax.models import load_state, save_state, saved_rows


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_a_memory_goes_on(tmp_path):
    memory = Memory(network=networks.Linear(), rule=rules.titans(), chunk_size=4, window=3)
    params = memory.init(jax.random.key(0), 4)
    keys = jax.random.normal(jax.random.key(1), (9, 4)) / 2
    gates = {name: jnp.full(9, 0.1) for name in ("learning_rate", "momentum", "decay")}
    _, state = jax.jit(memory.scan)(memory.start(params), keys, keys, keys, gates)
    save_state(tmp_path / "memory", state)
    loaded = load_state(tmp_path / "memory", jax.eval_shape(memory.start, params))
    equal(loaded, state)
    step = jax.jit(lambda state: memory.step(state, *keys[:3], {name: 0.1 for name in gates}))
    equal(step(loaded), step(state))


def test_every_dtype_and_nothing_but_shapes_is_asked_for(tmp_path, x64):
    state = {
        "half": jnp.array([1.5, -0.0], jnp.bfloat16),
        "deep": [jnp.float64(0.1), (jnp.int32(3), jnp.zeros((2, 0))), None],
        "flag": jnp.array([True, False]),
    }
    path = tmp_path / "state"
    save_state(path, state, {"model": "a", "sizes": (1, 2)})
    equal(load_state(path, jax.eval_shape(lambda: state), {"model": "a", "sizes": (1, 2)}), state)
    assert saved_rows(path) == 2
    with np.load(path) as archive:
        np.testing.assert_array_equal(archive["flag"], [True, False])


STATE = {"a": np.ones((2, 3), np.float32), "b": [np.arange(2)]}


@pytest.mark.parametrize(
    ("like", "about", "message"),
    [
        ({**STATE, "a": np.ones((2, 4), np.float32)}, {"dim": 3}, r"a: float32\[2, 3\] != float32\[2, 4\]"),
        ({**STATE, "a": np.ones((2, 3))}, {"dim": 3}, r"a: float32\[2, 3\] != float64\[2, 3\]"),
        ({**STATE, "c": np.ones(2)}, {"dim": 3}, "c: not in the file"),
        ({"a": STATE["a"]}, {"dim": 3}, "b/0: in the file only"),
        (STATE, {"dim": 4}, "dim: 3 != 4"),
        (STATE, None, r"dim: 3 != \(absent\)"),
        ({str(n): np.ones(2) for n in range(9)}, {"dim": 3}, "; and 6 more"),
    ],
)
def test_what_does_not_fit_is_named(like, about, message, tmp_path):
    path = tmp_path / "state"
    save_state(path, STATE, {"dim": 3})
    with pytest.raises(ValueError, match=message) as caught:
        load_state(path, like, about)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("damage", [lambda b: b[:-40], lambda b: b.replace(b"\x80?", b"\x81?", 1), lambda b: b"no zip"])
def test_a_damaged_file_is_refused(damage, tmp_path):
    path = tmp_path / "state"
    save_state(path, STATE)
    whole = path.read_bytes()
    assert damage(whole) != whole
    path.write_bytes(damage(whole))
    with pytest.raises(ValueError, match="is not a saved state, or damaged"):
        load_state(path, STATE)
    with np.testing.assert_raises(FileNotFoundError):
        load_state(tmp_path / "other", STATE)


def test_another_archive_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.ones(2))
    with pytest.raises(ValueError, match="is not a saved state"):
        saved_rows(tmp_path / "other.npz")


def test_a_save_that_fails_leaves_the_file_before_it(tmp_path):
    path = tmp_path / "state"
    save_state(path, STATE)
    with pytest.raises(TypeError):
        save_state(path, STATE, {"not": object()})
    equal(load_state(path, STATE), jax.tree.map(jnp.asarray, STATE))
