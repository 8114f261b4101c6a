"""CMS §5-6 as properties of any decays, gates, addresses and values; what is printed and fails; erasing and adding."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nested_jax.memory.slots import Event, Level
from nested_jax.memory.slots import rows as store
from nested_jax.memory.slots.level import Address
from nested_jax.memory.slots.memory import SlotState
from nested_jax.memory.slots.theorems import dissipation, energy, limit, norm_bound

pytestmark = pytest.mark.usefixtures("x64")

N, W, K, T = 4, 3, 2, 30
DECAYS = st.floats(0.001, 0.999)
CONTENTS = st.sampled_from([1.0, 0.5, 0.0])
SEEDS = st.integers(0, 2**32 - 1)
many = settings(max_examples=60, deadline=None)


@functools.cache
def compiled(content: float):
    level = Level(N, W, 0.5, content)

    @jax.jit
    def run(values, keys, events):
        def token(state, xs):
            query, event = xs
            state = level.write(state, level.attend(state, query), level.place(state, event.key), event)
            return state, state

        start = level.start({"values": values, "keys": keys}, chunked=False)
        return jax.lax.scan(token, start, events)[1]

    return run


def written(content: float, decay: float, seed: int, start: float = 1.0, gate=None):
    """Values [T + 1, N, W] over T writes of a random level; V is 1, and reached by half of them."""
    draw = np.random.default_rng(seed)
    values, keys = start * draw.normal(size=(N, W)), draw.normal(size=(N, K))
    vectors = draw.normal(size=(T, W))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors *= np.where(draw.random((T, 1)) < 0.5, 1.0, draw.random((T, 1)))
    gates = draw.integers(0, 2, T).astype(float) if gate is None else np.full(T, gate)
    events = Event(gates, vectors, 3 * draw.normal(size=(T, K)), np.full(T, decay))
    states = compiled(content)(values, keys, (draw.normal(size=(T, K)), jax.tree.map(jnp.asarray, events)))
    return np.concatenate([values[None], jax.vmap(store.decode)(states.values)])


def norms(values):
    return np.linalg.norm(values.reshape(len(values), -1), axis=1)


@many
@given(CONTENTS, DECAYS, SEEDS, st.sampled_from([0.0, 1.0, 100.0]), st.sampled_from([None, 1.0]))
def test_norms_stay_below_their_bound(content, decay, seed, start, gate):
    found = norms(written(content, decay, seed, start, gate))
    assert found.max() <= norm_bound(Level(N, W, decay), found[0], 1.0) * (1 + 1e-12)


def test_the_bound_is_reached_without_a_root_of_n():
    """One slot, the same write: ‖M‖ → V / d. And softmax addresses are shorter than one."""
    state, level = np.zeros((N, W)), Level(N, W, 0.1)
    address, value = np.eye(N)[0], np.eye(W)[0]
    for _ in range(500):
        state = 0.9 * state + np.outer(address, value)
    np.testing.assert_allclose(np.linalg.norm(state), norm_bound(level, 0.0, 1.0), rtol=1e-12)
    assert np.linalg.norm(jax.nn.softmax(jnp.zeros(4))) == 0.5


@many
@given(CONTENTS, DECAYS, SEEDS)
def test_what_nothing_is_written_to_fades_exponentially(content, decay, seed):
    found = written(content, decay, seed, gate=0.0)
    shares = (1 - decay) ** np.arange(T + 1)
    np.testing.assert_allclose(found, shares[:, None, None] * found[0], rtol=1e-9, atol=1e-300)


def test_half_lives_are_those_of_the_table():
    for decay, printed, exact in ((0.1, 7, 6.58), (0.05, 14, 13.51), (0.01, 69, 68.97)):
        life = Level(1, 1, decay).half_life
        assert (round(life), round(life, 2)) == (printed, exact)
        assert abs(0.693 / decay - life) < 0.04 * life or decay == 0.1  # the approximation is for small decays
        np.testing.assert_allclose((1 - decay) ** life, 0.5, rtol=1e-12)


@settings(max_examples=12, deadline=None)
@given(st.floats(0.05, 0.9), st.floats(0, 1), SEEDS)
def test_equal_writes_saturate(decay, gate, seed):
    """To the least recently used of one slot, so that addresses are equal: an affine map and its fixed point."""
    draw = np.random.default_rng(seed)
    level, value = Level(1, W, decay, content=0.0), draw.normal(size=W)
    end = limit(level, gate, jnp.ones(1), value)
    state = level.start({"values": jnp.asarray(draw.normal(size=(1, W))), "keys": jnp.ones((1, K))}, chunked=False)
    event = Event(gate, jnp.asarray(value), jnp.ones(K), decay)
    distance = np.linalg.norm(store.decode(state.values) - end)
    for _ in range(3):
        state = level.write(state, level.attend(state, jnp.ones(K)), level.place(state, event.key), event)
        after = np.linalg.norm(store.decode(state.values) - end)
        np.testing.assert_allclose(after, (1 - decay) * distance, rtol=1e-9, atol=1e-12)
        distance = after


@many
@given(st.tuples(DECAYS, DECAYS), SEEDS, st.floats(0.01, 100.0))
def test_energy_dissipates_with_the_corrected_constants(decays, seed, share):
    decays, shares = sorted(decays, reverse=True), (1.0, share)
    levels = [Level(N, W, decay) for decay in decays]
    values = [written(1.0, decay, seed + number, start=3.0, gate=1.0) for number, decay in enumerate(decays)]
    squares = np.stack([norms(each) ** 2 for each in values])
    found = np.asarray(shares) @ squares
    rate, constant = dissipation(levels, [1.0, 1.0], shares)
    for before, after in itertools.pairwise(found):
        assert after <= ((1 - rate) * before + constant) * (1 + 1e-12)


def test_energy_does_not_dissipate_as_printed():
    """The counterexample of the docstring, found by asking for 2 min d and (L + 1) V²."""
    level = Level(1, 1, 0.1)
    state = level.start({"values": jnp.ones((1, 1)), "keys": jnp.ones((1, 1))}, chunked=False)
    event = Event(jnp.ones(()), jnp.ones(1), jnp.ones(1), jnp.asarray(0.1))
    after = level.write(state, level.attend(state, jnp.ones(1)), level.place(state, event.key), event)
    before, now = (float(energy(SlotState((each,), None))) for each in (state, after))
    assert round(now, 12) == 3.61
    assert now > (1 - 2 * 0.1) * before + 1  # printed
    rate, constant = dissipation([level], [1.0])
    assert now <= (1 - rate) * before + constant


def erase_and_add(values, address, erase, add):
    """NTM: M (1 − w ⊗ e) + w ⊗ a, elementwise (Graves et al. 2014, eqs 3-4)."""
    return values * (1 - np.outer(address, erase)) + np.outer(address, add)


@functools.partial(jax.jit, static_argnames="count")
def fade_and_add(values, slot, decay, value, count):
    """The same value written to one slot so many times."""
    level = Level(1, W, 0.5)
    state = level.start({"values": values, "keys": jnp.ones((values.shape[0], K))}, chunked=False)
    address, event = Address(jnp.ones(1), slot[None]), Event(jnp.ones(()), value, jnp.ones(K), decay)
    body = lambda state, _: (level.write(state, address, address, event), None)
    return store.decode(jax.lax.scan(body, state, length=count)[0].values)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 0.9), SEEDS)
def test_against_erasing_and_adding(decay, seed):
    """CMS §7.1: the same where there is one slot; else a Turing machine's slots stay as they are until written."""
    draw = np.random.default_rng(seed)
    memory, value, erase = draw.normal(size=(N, W)), draw.normal(size=W), np.full(W, decay)
    alone = erase_and_add(memory[:1], np.ones(1), erase, value)
    np.testing.assert_allclose(fade_and_add(memory[:1], jnp.array(0), decay, value, 1), alone, rtol=1e-12)
    faded, erased = fade_and_add(memory, jnp.array(1), decay, value, 50), memory
    for _ in range(50):
        erased = erase_and_add(erased, np.eye(N)[1], erase, value)
    np.testing.assert_allclose(faded[1], erased[1], rtol=1e-9)
    others = [0, 2, 3]
    np.testing.assert_array_equal(erased[others], memory[others])
    np.testing.assert_allclose(faded[np.array(others)], (1 - decay) ** 50 * memory[others], rtol=1e-9)


def test_wrong_numbers_of_levels_are_named():
    level = Level(1, 1, 0.1)
    state = level.start({"values": jnp.ones((1, 1)), "keys": jnp.ones((1, 1))}, chunked=False)
    assert energy(SlotState((state, state), None), [1.0, 2.0]) == 3.0
    with pytest.raises(ValueError, match="shares: expected a number for each of 2 levels, got 1"):
        energy(SlotState((state, state), None), [1.0])
    with pytest.raises(ValueError, match="largest: expected a number for each of 1 levels, got 2"):
        dissipation([level], [1.0, 1.0])
