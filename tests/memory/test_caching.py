"""Memory caching: the paper's equations as loops, soup against GRM, hand-off, steps, resets, causality, bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nested_jax as nj

double = pytest.mark.usefixtures("x64")

T, D, SEGMENT, CAPACITY = 22, 4, 4, 3
RNG = np.random.default_rng(0)
K, V, Q, U = RNG.normal(size=(4, T, D))
K, Q = 0.6 * K, Q / np.linalg.norm(Q, axis=-1, keepdims=True)
RATE = 0.2 * RNG.uniform(size=T)
LINEAR, DEEP = nj.networks.Linear(), nj.networks.MLP(expansion=2, activation=jnp.tanh, residual=False)
KINDS = {
    "grm": {"combine": "grm"},
    "grm restart": {"combine": "grm", "restart": True},
    "residual": {"combine": "residual", "restart": True},
    "soup": {"combine": "soup"},
    "soup restart": {"combine": "soup", "restart": True},
    "ssc": {"combine": "ssc", "top_k": 2},
}


def kinds(*quick: str):
    """All kinds, the others slow."""
    return pytest.mark.parametrize(
        "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in quick)) for kind in KINDS]
    )


def cached(kind: str, network=LINEAR, implementation: str = "scan") -> nj.memory.Cached:
    inner = nj.Memory(network, rule=nj.rules.gradient_descent(), chunk_size=2, implementation=implementation)
    return nj.memory.Cached(inner, SEGMENT, capacity=CAPACITY, **KINDS[kind])


@functools.cache
def compiled(kind: str, network=LINEAR, implementation: str = "scan"):
    """A memory with its compiled scan, which is always told of resets, and step."""
    memory = cached(kind, network, implementation)
    run = jax.jit(memory.scan)

    def scan(state, keys, values, queries, gates, reset=None):
        chunks = -(-len(keys) // SEGMENT)
        return run(state, keys, values, queries, gates, jnp.zeros(chunks, bool) if reset is None else reset)

    return memory, scan, jax.jit(memory.step)


def begin(memory):
    shapes = jax.eval_shape(lambda key: memory.init(key, D), jax.random.key(0))
    draw = np.random.default_rng(1)
    weights = jax.tree.map(lambda w: jnp.asarray(0.5 * draw.normal(size=w.shape)), shapes)
    return jax.jit(memory.start)(weights)


def arrays(memory):
    route = {"route": U} if memory.routed else {}
    return jax.tree.map(jnp.asarray, (K, V, Q, {"learning_rate": RATE, **route}))


def part(data, start, stop=None):
    """Tokens of arrays."""
    return jax.tree.map(lambda x: x[start:stop], data)


def close(a, b, tolerance: float = 1e-11):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def deep(W, x):
    return np.tanh(x @ W["w1"]) @ W["w2"]


def deep_gradient(W, k, v):
    h = np.tanh(k @ W["w1"])
    error = h @ W["w2"] - v
    return {"w1": np.outer(k, (W["w2"] @ error) * (1 - h**2)), "w2": np.outer(h, error)}


def softmax(x):
    e = np.exp(x - np.max(x))
    return e / e.sum()


@double
@kinds("grm restart", "ssc")
def test_equations_7_to_17(kind):
    """Token by token, everything cached in a list."""
    memory, scan, _ = compiled(kind, DEEP, "auto")
    state = begin(memory)
    y, _ = scan(state, *arrays(memory))
    init = W = jax.tree.map(np.asarray, state.memory.initial)
    ended: list = []
    for t in range(T):
        begins = t - t % SEGMENT
        if t == begins and t:
            ended = [*ended, (W, K[begins - SEGMENT : begins].mean(0))][-CAPACITY:]
            W = init if memory.restart else W
        if t % 2 == 0:
            frozen = W
        gradient = deep_gradient(frozen, K[t], V[t])
        W = {name: w - RATE[t] * gradient[name] for name, w in W.items()}
        scores = np.array([U[t] @ mean for _, mean in ended])
        keep = list(range(len(ended)))
        if memory.combine == "ssc":
            keep = sorted(keep, key=lambda i: -scores[i])[:2]
        g = softmax(np.array([U[t] @ K[begins : t + 1].mean(0), *scores[keep]]))
        found = [W, *(ended[i][0] for i in keep)]
        if memory.combine == "residual":
            g = np.ones_like(g)
        if memory.combine == "soup":
            expected = deep({name: sum(a * w[name] for a, w in zip(g, found, strict=True)) for name in W}, Q[t])
        else:
            expected = sum(a * deep(w, Q[t]) for a, w in zip(g, found, strict=True))
        np.testing.assert_allclose(y[t], expected, rtol=1e-11, atol=1e-11)


@double
def test_a_soup_of_linear_memories_is_their_mixture():
    grm, soup = (compiled(kind) for kind in ("grm", "soup"))
    state, inputs = begin(grm[0]), arrays(grm[0])
    close(soup[1](state, *inputs), grm[1](state, *inputs))


@double
@kinds()
def test_pieces_documents_and_steps(kind):
    """Pieces handed over and packed documents are what they should be; steps go on from any place."""
    memory, scan, step = compiled(kind)
    inputs, state, cut = arrays(memory), begin(memory), 3 * SEGMENT
    y, last = scan(state, *inputs)
    first, between = scan(state, *part(inputs, 0, cut))
    second, after = scan(between, *part(inputs, cut))
    close(jnp.concatenate([first, second]), y)
    close(after, last)
    packed, end = scan(state, *inputs, jnp.arange(6) == 3)
    alone, separate = scan(state, *part(inputs, cut))
    close(packed, jnp.concatenate([first, alone]))
    live = separate.cache.live
    np.testing.assert_array_equal(live, end.cache.live)
    close((end.memory, end.cache.keys[live]), (separate.memory, separate.cache.keys[live]))
    assert not np.allclose(packed[cut:], y[cut:], atol=1e-3)
    _, ragged = scan(state, *part(inputs, 0, T - cut))
    for now, start in ((state, 0), (between, cut), (ragged, T - cut)):
        for t in range(start, T):
            one, now = step(now, *jax.tree.map(lambda x, t=t: x[t], inputs))
            close(one, y[t])
        close(now._replace(memory=now.memory.weights), last._replace(memory=last.memory.weights))
    if memory.routed:
        close(memory.recall(now, inputs[2][-1:], inputs[3]["route"][-1:])[0], y[-1])
    else:
        close(memory.recall(now, inputs[2][-1:])[0], y[-1])


@double
@kinds()
def test_causal(kind):
    memory, scan, _ = compiled(kind)
    inputs, state = arrays(memory), begin(memory)
    y, _ = scan(state, *inputs)
    for p in (0, 3, 4, 7, 13, T - 1):
        changed, _ = scan(state, *jax.tree.map(lambda x, p=p: x.at[p].add(0.3), inputs))
        np.testing.assert_array_equal(changed[:p], y[:p])
        assert not np.array_equal(changed[p], y[p])


@double
@pytest.mark.slow
def test_outer_gradients_are_finite_differences():
    memory = cached("grm")
    inputs, start = part(arrays(memory), 0, 10), begin(memory).memory.initial

    @jax.jit
    def loss(params):
        return jnp.sum(jnp.sin(memory.scan(memory.start(params), *inputs)[0]))

    way = jnp.asarray(np.random.default_rng(3).normal(size=(D, D)))
    ahead, behind = (loss({"w": start["w"] + e * way}) for e in (1e-5, -1e-5))
    slope = jnp.vdot(jax.jit(jax.grad(loss))(start)["w"], way)
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-5, rtol=1e-7)


@double
@pytest.mark.slow
def test_an_open_segment_ends_with_the_next_scan():
    """It goes into the cache with the mean of the keys it has."""
    memory, scan, _ = compiled("grm")
    inputs, state = arrays(memory), begin(memory)
    _, between = scan(state, *part(inputs, 0, 6))
    _, after = scan(between, *part(inputs, 6, 10))
    close(after.cache.keys, jnp.stack([x.mean(0) for x in (inputs[0][:4], inputs[0][4:6], inputs[0][6:10])]))


def test_bad_input_is_named():
    memory = cached("grm")
    inner, state, (keys, values, queries, gates) = memory.memory, begin(memory), arrays(memory)
    Cached = nj.memory.Cached
    for build, words in (
        (lambda: Cached(memory), "memory: expected an nj.Memory, got Cached"),
        (lambda: Cached(inner, 3), "segment_size: expected a multiple of the memory's chunk_size=2, got 3"),
        (lambda: Cached(inner, 4, capacity=0), "capacity: expected an integer >= 1, got 0"),
        (lambda: Cached(inner, 4, "sum"), "combine: expected one of .*'grm'.*, got 'sum'"),
        (lambda: Cached(inner, 4, "ssc"), "top_k: expected a number up to capacity=16 .* got None with 'ssc'"),
        (lambda: Cached(inner, 4, top_k=2), "top_k: .* None with others, got 2 with 'grm'"),
        (lambda: memory.scan(state, keys, values, queries[:, :2], gates), "queries: expected 4 features"),
        (
            lambda: memory.scan(state, keys, values, queries, gates | {"route": keys[:, 0]}),
            r"gates\['route'\]: expected",
        ),
        (
            lambda: memory.scan(state, keys, values, queries, {"learnin_rate": RATE}),
            "did you mean 'learning_rate'",
        ),
        (lambda: memory.scan(state, keys, values, queries, gates, jnp.zeros(2, bool)), r"reset: expected shape \(6,\)"),
    ):
        with pytest.raises(ValueError, match=words):
            build()
