"""TNT: the paper's equations as loops, causality, hand-off, steps, resets, gradients, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nested_jax as nj

double = pytest.mark.usefixtures("x64")

T, D, COARSE, SIZES = 21, 4, 4, (4, 8)
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


def begin(memory, seed: int = 1):
    shapes = jax.eval_shape(lambda key: memory.init(key, D), jax.random.key(0))
    draw = np.random.default_rng(seed)
    return memory.start(jax.tree.map(lambda w: jnp.asarray(0.5 * draw.normal(size=w.shape)), shapes))


def arrays():
    return jax.tree.map(jnp.asarray, (K, V, Q, GATES))


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
@pytest.mark.parametrize("project", [True, False])
def test_equations_5_to_7(project):
    """Token by token, P formed anew from all keys of the shard at every token."""
    memory = tnt(project)
    state = begin(memory)
    y, after = jax.jit(memory.scan)(state, *arrays())
    first = [
        jax.tree.map(np.asarray, s.initial) for s in (state.global_memory, *(x.memory for x in state.local_memories))
    ]
    V_now, V_start = first[0], first[0]
    local, frozen = first[1:], first[1:]
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
                local[i] = first[1 + i]
            if t % chunk == 0:
                frozen[i] = local[i]
            local[i] = descend(local[i], gradient(frozen[i], K[t], V[t]), rate[t])
            P = sum(np.outer(k, k) / (k @ k) for k in K[begins : t + 1])
            expected = expected + f(local[i], Q[t] @ P if project else Q[t])
        np.testing.assert_allclose(y[t], expected, rtol=1e-11, atol=1e-11)
    close(after.global_memory.weights, V_now)
    close([shard.memory.weights for shard in after.local_memories], local)


@double
def test_shards_side_by_side_are_resets_one_after_the_other():
    memory = tnt(project=False)
    state = begin(memory)
    y, _ = jax.jit(memory.scan)(state, *arrays())
    keys, values, queries, gates = arrays()
    expected, _ = memory.global_memory.scan(
        state.global_memory, keys, values, queries, {"learning_rate": gates["learning_rate"]}
    )
    rates = gates["learning_rate"], gates["local2_learning_rate"]
    for part, size, shard, rate in zip(memory.local_memories, SIZES, state.local_memories, rates, strict=True):
        chunk = part.chunk_size
        flags = jnp.arange(-(-T // chunk)) * chunk % size == 0
        expected += part.scan(shard.memory, keys, values, queries, {"learning_rate": rate}, flags)[0]
    close(y, expected)


@double
def test_steps_are_a_scan_and_go_on_with_one():
    memory = tnt()
    inputs, state = arrays(), begin(memory)
    y, last = jax.jit(memory.scan)(state, *inputs)
    step = jax.jit(memory.step)
    for start in (0, 3, 8):
        now = state
        if start:
            _, now = memory.scan(state, *jax.tree.map(lambda x, n=start: x[:n], inputs))
        for t in range(start, T):
            one, now = step(now, *jax.tree.map(lambda x, t=t: x[t], inputs))
            close(one, y[t])
        close(memory.recall(now, inputs[2]), memory.recall(last, inputs[2]))
        close(now.position, last.position)


@double
def test_a_sequence_in_pieces():
    memory = tnt()
    inputs, state = arrays(), begin(memory)
    y, last = memory.scan(state, *inputs)
    for cut in (memory.chunk_size, 2 * memory.chunk_size):
        first, between = memory.scan(state, *jax.tree.map(lambda x, n=cut: x[:n], inputs))
        second, after = memory.scan(between, *jax.tree.map(lambda x, n=cut: x[n:], inputs))
        close(jnp.concatenate([first, second]), y)
        close(after, last)


@double
def test_packed_documents_are_separate_ones():
    memory = tnt()
    inputs, state = arrays(), begin(memory)
    cut = memory.chunk_size
    y, last = memory.scan(state, *inputs, jnp.array([False, True, False]))
    first, _ = memory.scan(state, *jax.tree.map(lambda x: x[:cut], inputs))
    second, after = memory.scan(state, *jax.tree.map(lambda x: x[cut:], inputs))
    close(y, jnp.concatenate([first, second]))
    close(last, after)
    whole, _ = memory.scan(state, *inputs)
    assert not np.allclose(whole[cut:], y[cut:], atol=1e-3)


@double
def test_causal_and_local():
    """A token moves no output before it, and beyond its shard only through the global memory."""
    memory = tnt(sizes=(8, 8))
    inputs, state = arrays(), begin(memory)
    scan = jax.jit(memory.scan)
    y, _ = scan(state, *inputs)
    for p in (0, 3, 4, 7, 8, 15, T - 1):
        changed, _ = scan(state, *jax.tree.map(lambda x, p=p: x.at[p].add(0.3), inputs))
        np.testing.assert_array_equal(changed[:p], y[:p])
        assert not np.array_equal(changed[p], y[p])
    still = inputs[:3] + ({"learning_rate": inputs[3]["learning_rate"], "global_learning_rate": jnp.zeros(T)},)
    (one, _), (two, _) = (scan(state, keys, *still[1:]) for keys in (still[0], still[0].at[5].add(0.3)))
    np.testing.assert_array_equal(one[8:], two[8:])
    assert not np.allclose(one[5:8], two[5:8])


@double
def test_outer_gradients_are_finite_differences():
    memory = tnt()
    keys, values, queries, gates = jax.tree.map(lambda x: x[:10], arrays())
    start = begin(memory)
    params = {"global": start.global_memory.initial}
    params |= {f"local{i}": shard.memory.initial for i, shard in enumerate(start.local_memories, 1)}

    @jax.jit
    def loss(params):
        return jnp.sum(jnp.sin(memory.scan(memory.start(params), keys, values, queries, gates)[0]))

    found = jax.grad(loss)(params)
    draw = np.random.default_rng(3)
    way = jax.tree.map(lambda w: jnp.asarray(draw.normal(size=w.shape)), params)
    for name in params:
        along = {other: jax.tree.map(lambda d, s=float(other == name): s * d, d) for other, d in way.items()}
        ahead, behind = (loss(jax.tree.map(lambda w, d, e=e: w + e * d, params, along)) for e in (1e-5, -1e-5))
        slope = sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(found), jax.tree.leaves(along), strict=True))
        np.testing.assert_allclose(slope, (ahead - behind) / 2e-5, rtol=1e-7)


def test_gates_by_name():
    memory = tnt()
    assert list(memory.gates()) == ["global_learning_rate", "local1_learning_rate", "local2_learning_rate"]
    inputs, state = arrays(), begin(memory)
    rates = inputs[3]["learning_rate"], inputs[3]["local2_learning_rate"]
    named = {"global_learning_rate": rates[0], "local1_learning_rate": rates[0], "local2_learning_rate": rates[1]}
    np.testing.assert_array_equal(memory.scan(state, *inputs)[0], memory.scan(state, *inputs[:3], named)[0])


def test_a_key_of_zeros_projects_nothing():
    memory = tnt()
    keys, values, queries, gates = arrays()
    state = begin(memory)

    def loss(keys):
        return jnp.sum(memory.scan(state, keys, values, queries, gates)[0])

    assert jnp.isfinite(jax.grad(loss)(keys.at[2].set(0.0))).all()


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
