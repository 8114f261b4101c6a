"""TNT: the paper's equations as loops, causality, hand-off, steps, resets, gradients, bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nested_jax as nj

double = pytest.mark.usefixtures("x64")

T, D, COARSE, SIZES, SHARD, CUT = 21, 4, 4, (4, 8), 8, 16
RNG = np.random.default_rng(0)
K, V, Q = RNG.normal(size=(3, T, D))
K, Q = 0.6 * K, Q / np.linalg.norm(Q, axis=-1, keepdims=True)
GATES = {name: rate * RNG.uniform(size=T) for name, rate in (("learning_rate", 0.2), ("local2_learning_rate", 0.1))}
MLP = nj.networks.MLP(expansion=2, activation=jnp.tanh)


def tnt(project: bool = True, sizes=SIZES) -> nj.memory.TNT:
    rule = nj.rules.gradient_descent()
    coarse = nj.Memory(MLP, rule=rule, chunk_size=COARSE, read="start")
    fine = nj.Memory(MLP, rule=rule, chunk_size=2), nj.Memory(nj.networks.Linear(), rule=rule, chunk_size=1)
    return nj.memory.TNT(coarse, fine, sizes, project)


def tiny() -> nj.memory.TNT:
    """Linear memories, token by token: little to compile."""
    options = {"rule": nj.rules.gradient_descent(), "implementation": "scan"}
    coarse, fine = (nj.Memory(nj.networks.Linear(), chunk_size=chunk, **options) for chunk in (COARSE, 2))
    return nj.memory.TNT(coarse, (fine,), shard_size=SHARD)


@functools.cache
def compiled(kind: str):
    """A memory with its compiled scan, which is always told of resets, and step."""
    memory = {"deep": tnt(), "unprojected": tnt(project=False), "tiny": tiny()}[kind]
    run = jax.jit(memory.scan)

    def scan(state, keys, values, queries, gates, reset=None):
        chunks = -(-len(keys) // memory.chunk_size)
        return run(state, keys, values, queries, gates, jnp.zeros(chunks, bool) if reset is None else reset)

    return memory, scan, jax.jit(memory.step)


def part(data, start, stop=None):
    """Tokens of arrays."""
    return jax.tree.map(lambda x: x[start:stop], data)


def begin(memory, seed: int = 1):
    shapes = jax.eval_shape(lambda key: memory.init(key, D), jax.random.key(0))
    draw = np.random.default_rng(seed)
    weights = jax.tree.map(lambda w: jnp.asarray(0.5 * draw.normal(size=w.shape)), shapes)
    return jax.jit(memory.start)(weights)


def arrays(memory=None):
    """Inputs, without gates that the memory does not have."""
    known = GATES if memory is None else {"learning_rate": 0, **memory.gates()}
    return jax.tree.map(jnp.asarray, (K, V, Q, {name: gate for name, gate in GATES.items() if name in known}))


def close(a, b, tolerance: float = 1e-11):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def mlp(W, x):
    return x + np.tanh(x @ W["w1"]) @ W["w2"]


def mlp_gradient(W, k, v):
    h = np.tanh(k @ W["w1"])
    error = k + h @ W["w2"] - v
    return {"w1": np.outer(k, (W["w2"] @ error) * (1 - h**2)), "w2": np.outer(h, error)}


def linear(W, x):
    return x @ W["w"]


def linear_gradient(W, k, v):
    return {"w": np.outer(k, k @ W["w"] - v)}


def descend(W, gradient, rate):
    return {name: w - rate * gradient[name] for name, w in W.items()}


@double
@pytest.mark.parametrize("kind", ["deep", pytest.param("unprojected", marks=pytest.mark.slow)])
def test_equations_5_to_7(kind):
    """Token by token, P formed anew from all keys of the shard at every token."""
    memory, scan, _ = compiled(kind)
    state = begin(memory)
    y, after = scan(state, *arrays())
    starts = (state.global_memory, *(shard.memory for shard in state.local_memories))
    V_init, *init = [jax.tree.map(np.asarray, start.initial) for start in starts]
    V_now = V_start = V_init
    local, frozen = [*init], [*init]
    parts = ((mlp, mlp_gradient, 2, SIZES[0], GATES["learning_rate"]),)
    parts += ((linear, linear_gradient, 1, SIZES[1], GATES["local2_learning_rate"]),)
    for t in range(T):
        if t % COARSE == 0:
            V_start = V_now
        expected = mlp(V_start, Q[t])
        V_now = descend(V_now, mlp_gradient(V_start, K[t], V[t]), GATES["learning_rate"][t])
        for i, (f, gradient, chunk, size, rate) in enumerate(parts):
            begins = t - t % size
            if t == begins:
                local[i] = init[i]
            if t % chunk == 0:
                frozen[i] = local[i]
            local[i] = descend(local[i], gradient(frozen[i], K[t], V[t]), rate[t])
            P = sum(np.outer(k, k) / (k @ k) for k in K[begins : t + 1])
            expected = expected + f(local[i], Q[t] @ P if memory.project else Q[t])
        np.testing.assert_allclose(y[t], expected, rtol=1e-11, atol=1e-11)
    close(after.global_memory.weights, V_now)
    close([shard.memory.weights for shard in after.local_memories], local)


@double
@pytest.mark.slow
def test_shards_side_by_side_are_resets_one_after_the_other():
    memory, scan, _ = compiled("unprojected")
    state, (keys, values, queries, gates) = begin(memory), arrays()
    y, _ = scan(state, keys, values, queries, gates)
    rates = gates["learning_rate"], gates["local2_learning_rate"]
    one = {"learning_rate": rates[0]}
    expected, _ = jax.jit(memory.global_memory.scan)(state.global_memory, keys, values, queries, one)
    for local, size, shard, rate in zip(memory.local_memories, SIZES, state.local_memories, rates, strict=True):
        flags = jnp.arange(-(-T // local.chunk_size)) * local.chunk_size % size == 0
        expected += jax.jit(local.scan)(shard.memory, keys, values, queries, {"learning_rate": rate}, flags)[0]
    close(y, expected)


@double
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tiny", "deep"])
def test_pieces_documents_and_steps(kind):
    """Pieces handed over and packed documents are what they should be; steps go on from any place."""
    memory, scan, step = compiled(kind)
    inputs, state = arrays(memory), begin(memory)
    y, last = scan(state, *inputs)
    first, between = scan(state, *part(inputs, 0, CUT))
    second, after = scan(between, *part(inputs, CUT))
    close(jnp.concatenate([first, second]), y)
    close(after, last)
    packed, end = scan(state, *inputs, jnp.array([False, False, True]))
    alone, separate = scan(state, *part(inputs, CUT))
    close(packed, jnp.concatenate([first, alone]))
    close(end, separate)
    assert not np.allclose(packed[CUT:], y[CUT:], atol=1e-3)
    _, ragged = scan(state, *part(inputs, 0, T - CUT))
    for now, start in ((state, 0), (between, CUT), (ragged, T - CUT)):
        for t in range(start, T):
            one, now = step(now, *jax.tree.map(lambda x, t=t: x[t], inputs))
            close(one, y[t])
            if t == CUT - 1:
                close(memory.recall(now, inputs[2]), memory.recall(between, inputs[2]))
        close(now.position, last.position)
    close(memory.recall(now, inputs[2]), memory.recall(last, inputs[2]))


@double
@pytest.mark.slow
def test_causal_and_local():
    """A token moves no output before it, and beyond its shard only through the global memory."""
    memory, scan, _ = compiled("tiny")
    inputs, state = arrays(memory), begin(memory)
    y, _ = scan(state, *inputs)
    for p in (0, 3, 4, 7, 8, 15, T - 1):
        changed, _ = scan(state, *jax.tree.map(lambda x, p=p: x.at[p].add(0.3), inputs))
        np.testing.assert_array_equal(changed[:p], y[:p])
        assert not np.array_equal(changed[p], y[p])
    deaf = {"learning_rate": inputs[3]["learning_rate"], "global_learning_rate": jnp.zeros(T)}
    keys, values, queries, _ = inputs
    (one, _), (two, _) = (scan(state, k, values, queries, deaf) for k in (keys, keys.at[10].add(0.3)))
    np.testing.assert_array_equal(one[2 * SHARD :], two[2 * SHARD :])
    assert not np.allclose(one[10 : 2 * SHARD], two[10 : 2 * SHARD])


@double
def test_outer_gradients_are_finite_differences_with_a_key_of_zeros():
    memory = tiny()
    keys, values, queries, gates = part(arrays(), 0, 5)
    keys, gates = keys.at[2].set(0.0), {"learning_rate": gates["learning_rate"]}
    start = begin(memory)
    params = {"global": start.global_memory.initial, "local1": start.local_memories[0].memory.initial}

    @jax.jit
    def loss(params, keys):
        return jnp.sum(jnp.sin(memory.scan(memory.start(params), keys, values, queries, gates)[0]))

    found, of_keys = jax.jit(jax.grad(loss, (0, 1)))(params, keys)
    assert jnp.isfinite(of_keys).all()
    draw = np.random.default_rng(3)
    for name in params:
        way = {"w": jnp.asarray(draw.normal(size=(D, D)))}
        ends = [params | {name: {"w": params[name]["w"] + e * way["w"]}} for e in (1e-5, -1e-5)]
        slope = (loss(ends[0], keys) - loss(ends[1], keys)) / 2e-5
        np.testing.assert_allclose(jnp.vdot(found[name]["w"], way["w"]), slope, rtol=1e-7)


@double
def test_gates_by_name():
    """A plain name is for all memories, a memory's own wins."""
    memory, scan, _ = compiled("tiny")
    assert list(tnt().gates()) == ["global_learning_rate", "local1_learning_rate", "local2_learning_rate"]
    (keys, values, queries, _), state = arrays(), begin(memory)
    rate, other = map(jnp.asarray, GATES.values())
    mixed, _ = scan(state, keys, values, queries, {"learning_rate": other, "global_learning_rate": rate})
    named = {"global_learning_rate": rate, "local1_learning_rate": other}
    np.testing.assert_array_equal(mixed, scan(state, keys, values, queries, named)[0])


def test_bad_input_is_named():
    memory = tnt()
    state, (keys, values, queries, gates) = begin(memory), arrays()
    plain = memory.global_memory
    for build, words in (
        (lambda: nj.memory.TNT(nj.networks.MLP(), (plain,)), "global_memory: expected an nj.Memory, got MLP"),
        (lambda: nj.memory.TNT(plain, ()), "local_memories: expected a tuple of one or more"),
        (lambda: nj.memory.TNT(plain, [plain]), "local_memories: expected a tuple"),
        (lambda: nj.memory.TNT(plain, (plain,), 6), "shard_size: expected multiples >= 1 .*=4, got 6"),
        (lambda: nj.memory.TNT(plain, (plain,), (4, 8)), "shard_size: .* each of 1 local memories"),
        (lambda: memory.scan(state, keys[None], values, queries, gates), "keys: expected one sequence of one head"),
        (lambda: memory.scan(state, keys, values[1:], queries, gates), "values, queries: expected 21 tokens"),
        (lambda: memory.scan(state, keys, values, queries, gates, jnp.zeros(2, bool)), r"reset: expected shape \(3,\)"),
        (
            lambda: memory.scan(state, keys, values, queries, {"local1_learnin": 1.0}),
            "did you mean 'local1_learning_rate'",
        ),
        (lambda: memory.scan(state, keys, values, queries), r"expected a value for \['global_learning_rate', 'local1"),
        (lambda: memory.start({"global": {}}), "params: expected weights for .*'local2'.*, got"),
    ):
        with pytest.raises(ValueError, match=words):
            build()
