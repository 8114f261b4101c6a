"""Memories whose pieces are no affine maps, on sequences split over a mesh axis: as on one device, with gradients."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import nested_jax as nj
from nested_jax.memory import across

N, D, MEMBERS, PIECE = 4, 3, 4, 8
T = MEMBERS * PIECE
RULE = nj.rules.titans()
MLP = nj.networks.MLP(expansion=1)
ONE = nj.Memory(MLP, rule=RULE, chunk_size=4)
LINEAR = nj.Memory(nj.networks.Linear(), rule=nj.rules.gradient_descent(), chunk_size=4, read="start")
HOPE = nj.Memory(MLP, rule=nj.rules.hope(), chunk_size=4, read="start")


def level(period: int) -> nj.Memory:
    return nj.Memory(MLP, rule=nj.rules.gradient_descent(0.05), chunk_size=period, step_per="chunk", read="start")


MEMORIES = {
    "mlp": ONE,
    "atlas": nj.Memory(nj.networks.Linear(), rule=nj.rules.atlas(steps=2), chunk_size=4, window=3),
    "adam": nj.Memory(MLP, rule=optax.adam(0.01), chunk_size=4),
    "tnt": nj.memory.TNT(LINEAR, (LINEAR,), shard_size=8),
    "deep tnt": nj.memory.TNT(HOPE, (ONE, LINEAR), shard_size=(4, 8)),
    "cached": nj.memory.Cached(ONE, segment_size=8, capacity=2),
    "soup": nj.memory.Cached(ONE, segment_size=4, capacity=3, combine="soup"),
    "self-modifying": nj.memory.SelfModifying(HOPE, HOPE),
    "continuum": nj.memory.Continuum((MLP, level(8), level(4))),
    "nested continuum": nj.memory.Continuum((level(8), level(4)), "nested"),
}


def arguments(name: str):
    """Weights [N], the float arguments of `scan`, and documents that begin inside a piece and at one's start."""
    memory, rng = MEMORIES[name], np.random.default_rng(0)
    shapes = jax.eval_shape(jax.vmap(lambda key: memory.init(key, D)), jax.random.split(jax.random.key(0), N))
    weights = jax.tree.map(lambda w: jnp.asarray(0.5 * rng.normal(size=w.shape)), shapes)
    keys, values, queries = (jnp.asarray(0.5 * rng.normal(size=(N, T, D))) for _ in range(3))
    rates = {"learning_rate": 0.2, "momentum": 0.8, "decay": 0.3}
    gates = {gate: jnp.asarray(rate * rng.uniform(size=(N, T))) for gate, rate in rates.items()}
    if name == "self-modifying":
        given: tuple = keys, {"query": queries}
    elif isinstance(memory, nj.memory.Continuum):
        given = keys, values, {}
    else:
        start = jax.tree.map(lambda x: x[0], weights)
        used = [gate for gate in gates if any(known.endswith(gate) for known in memory.gates(start))]
        given = keys, values, queries, {} if name == "adam" else {gate: gates[gate] for gate in used}
    grid = getattr(memory, "grid", None) or memory.chunk_size
    reset = np.zeros((N, T // grid), bool)
    reset[1, T // grid // 2] = reset[2, -1] = reset[3, 0] = True
    return weights, given, jnp.asarray(reset)


def split(name: str):
    """The memory on a mesh, from weights, arguments and resets."""
    memory = MEMORIES[name]
    mesh = jax.make_mesh((MEMBERS,), ("time",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:MEMBERS])
    specs = {"in_specs": (P(), P(None, "time"), P(None, "time")), "out_specs": (P(None, "time"), P())}
    local = lambda states, given, reset: across.scan_across(memory, "time", states, *given, reset)
    ran = jax.shard_map(local, mesh=mesh, check_vma=False, **specs)
    return lambda weights, given, reset: ran(jax.vmap(memory.start)(weights), given, reset)


def whole(name: str):
    memory = MEMORIES[name]
    run = lambda weights, given, reset: memory.scan(memory.start(weights), *given, reset)
    return jax.vmap(run)


def value(function, reset, weights, given):
    y, after = function(weights, given, reset)
    floats = [x for x in jax.tree.leaves(after) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.sum(jnp.sin(3 * y)) + sum(jnp.sum(jnp.cos(x)) for x in floats), (y, after)


def compare(name: str, tolerance: float):
    weights, given, reset = arguments(name)
    (found, gradients), (expected, theirs) = (
        jax.jit(jax.grad(functools.partial(value, function(name), reset), (0, 1), has_aux=True))(weights, given)[::-1]
        for function in (split, whole)
    )
    for a, b in zip(jax.tree.leaves((found, gradients)), jax.tree.leaves((expected, theirs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    assert max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(gradients)) > 0.1


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", MEMORIES)
def test_outputs_last_states_and_gradients_are_those_of_one_device(name):
    compare(name, 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "deep tnt", "self-modifying"])
def test_single_precision(name):
    compare(name, 1e-5)


def pieces(function, *given) -> tuple[list[str], jax.Array]:
    """What a function of states and pieces exchanges as compiled, and its result."""
    mesh = jax.make_mesh((MEMBERS,), ("time",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:MEMBERS])
    specs = {"in_specs": (P(), P(None, "time")), "out_specs": P(None, "time")}
    ran = jax.jit(jax.shard_map(function, mesh=mesh, check_vma=False, **specs)).lower(*given).compile()
    found = re.findall(r"= \S+ (all-[\w-]+|collective-[\w-]+|reduce-scatter)\(", ran.as_text())
    return found, ran(*jax.device_put(given, ran.input_shardings[0]))


@pytest.mark.usefixtures("x64")
def test_local_memories_exchange_nothing():
    """Without the global memory there is no collective, with it only its own: one all-gather, as it is linear."""
    memory = MEMORIES["tnt"]
    weights, (*inputs, gates), _ = arguments("tnt")
    states, given = jax.vmap(memory.start)(weights), {part: gates for part in memory.parts}

    def local(states, xs):
        return jax.vmap(memory._with_local)(jnp.zeros_like(xs[0][1]), states.local_memories, *xs[0], xs[1])[0]

    exchanged, alone = pieces(local, states, (inputs, given))
    assert exchanged == []
    exchanged, both = pieces(
        lambda states, xs: across.scan_across(memory, "time", states, *xs)[0], states, (*inputs, gates)
    )
    assert exchanged == ["all-gather"]
    whole_sequences = jax.jit(lambda states, xs: jax.vmap(memory.scan)(states, *xs)[0])(states, (*inputs, gates))
    np.testing.assert_allclose(both, whole_sequences, rtol=1e-10, atol=1e-10)
    assert float(jnp.max(jnp.abs(both - alone))) > 0.01
