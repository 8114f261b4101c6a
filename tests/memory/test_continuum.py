"""The continuum memory (Nested Learning 70-74): literal loops with clocks, and what no level may do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nested_jax as nj
from nested_jax.memory.continuum import TOPOLOGIES, Continuum
from nested_jax.scan.restarts import RestartsState

T, D, PERIODS = 21, 3, (8, 4, 1)
NETWORK = nj.networks.MLP(expansion=1)
RNG = np.random.default_rng(0)
X, V = RNG.normal(size=(2, T, D))
RANGES = {"learning_rate": (0.02, 0.08), "momentum": (0.1, 0.5), "decay": (0.1, 0.4)}
GATES = [{name: RNG.uniform(*ends, T) for name, ends in RANGES.items()} for _ in range(3)]


def memory(period, **options):
    return nj.Memory(NETWORK, rule=nj.rules.titans(), chunk_size=period, step_per="chunk", read="start", **options)


def continuum(topology):
    """Three levels that learn, after a plain network."""
    return Continuum((NETWORK, *map(memory, PERIODS)), topology)


def params_of(system):
    draw = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda key: system.init(key, D), jax.random.key(0))
    return jax.tree.map(lambda w: 0.5 * draw.normal(size=w.shape), shapes)


def gates(first=0, last=T):
    return [None, *jax.tree.map(lambda g: g[first:last], GATES)]


@functools.cache
def compiled(topology):
    system = continuum(topology)

    def scan(params, inputs, values, gates, reset=None):
        return system.scan(system.start(params), inputs, values, gates, reset)

    def steps(state, inputs, values, gates):
        def one(state, token):
            return system.step(state, *token)[::-1]

        state, y = jax.lax.scan(one, state, (inputs, values, gates))
        return y, state

    return jax.jit(scan), jax.jit(steps), jax.jit(system.scan)


def answer(weights, x):
    return x + jax.nn.gelu(x @ weights["w1"]) @ weights["w2"]


@jax.jit
def answer_and_gradient(weights, x, v):
    loss = lambda weights: 0.5 * jnp.sum((answer(weights, x) - v) ** 2)
    return answer(weights, x), jax.grad(loss)(weights)


def literal(topology, params):
    """Token by token, clock by clock: outputs, and the weights W[level, owner]."""
    levels, nested = range(3), topology == "nested"
    owners = {level: range(level + 1) if nested else (level,) for level in levels}
    initial = [params[f"level_{level + 1}"] for level in levels]
    nothing = jax.tree.map(np.zeros_like, initial[0])
    W = {(level, s): initial[level] for level in levels for s in owners[level]}
    S, G = ({place: nothing for place in W} for _ in range(2))
    outputs = []
    for t in range(T):
        plain = answer(params["level_0"], X[t])
        x, read = plain, [plain]
        for level in levels:
            x = X[t] if topology == "independent" else x
            x, g = answer_and_gradient(W[level, level], x, V[t])
            read.append(x)
            for s in owners[level]:
                rate = GATES[s]["learning_rate"][t]
                G[level, s] = jax.tree.map(lambda a, b, rate=rate: a + rate * b, G[level, s], g)
        outputs.append(x if topology != "independent" else jax.nn.softmax(params["combine"]) @ np.stack(read))
        for level, s in sorted(W, reverse=True):
            if (t + 1) % PERIODS[s] == 0:
                past = slice(t + 1 - PERIODS[s], t + 1)
                momentum, decay = (np.mean(GATES[s][name][past]) for name in ("momentum", "decay"))
                S[level, s] = jax.tree.map(lambda a, b, eta=momentum: eta * a - b, S[level, s], G[level, s])
                W[level, s] = jax.tree.map(lambda a, b, alpha=decay: (1 - alpha) * a + b, W[level, s], S[level, s])
                G[level, s] = nothing
                for faster in owners[level]:
                    if faster > s:
                        W[level, faster], S[level, faster], G[level, faster] = W[level, s], nothing, nothing
    return np.stack(outputs), W


def close(a, b):
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(a))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-10), a, b)


each_topology = pytest.mark.parametrize(
    "topology", ["nested", *(pytest.param(name, marks=pytest.mark.slow) for name in TOPOLOGIES if name != "nested")]
)


@each_topology
def test_is_the_loop_with_clocks(topology, x64):
    params = params_of(continuum(topology))
    expected, weights = literal(topology, params)
    y, state = compiled(topology)[0](params, X, V, gates())
    close(y, expected)
    assert all(np.max(np.abs(w["w1"] - params[f"level_{place[0] + 1}"]["w1"])) > 1e-2 for place, w in weights.items())
    for level in range(3):
        found = state.levels[level + 1]
        if isinstance(found, RestartsState):
            for owner, copy in enumerate(found.copies):
                close(copy.weights, weights[level, owner])
        elif PERIODS[level] == 1:  # the chunks of the others are open after 21 tokens
            close(found.weights, weights[level, level])


@pytest.mark.slow
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_steps_pieces_and_documents(topology, x64):
    """Steps from any prompt, pieces on the grid and packed documents give the numbers of one scan."""
    params = params_of(continuum(topology))
    scan, steps, go_on = compiled(topology)
    start = continuum(topology).start(params)
    whole, _ = scan(params, X, V, gates())
    stepped, state = steps(start, X[:10], V[:10], gates(0, 10))
    close(stepped, whole[:10])
    close(steps(state, X[10:], V[10:], gates(10))[0], whole[10:])
    first, state = go_on(start, X[:8], V[:8], gates(0, 8))
    rest, _ = go_on(state, X[8:], V[8:], gates(8))
    close(jnp.concatenate([first, rest]), whole)
    alone, ended = go_on(start, X[8:], V[8:], gates(8))
    packed, last = scan(params, X, V, gates(), np.array([False, True, False]))
    close(packed, jnp.concatenate([first, alone]))
    close(last, ended)
    assert jnp.max(jnp.abs(alone - rest)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_open_chunks_end_where_a_scan_begins(topology, x64):
    """As if the rest of the slowest chunk had come with learning rates of 0."""
    rule = nj.rules.gradient_descent()
    levels = tuple(nj.Memory(NETWORK, rule=rule, chunk_size=n, step_per="chunk", read="start") for n in (8, 4))
    system = Continuum(levels, topology)
    run, start = jax.jit(system.scan), system.start(params_of(system))
    rates = {"learning_rate": np.where(np.arange(8) < 5, GATES[0]["learning_rate"][:8], 0.0)}
    _, filled = run(start, X[:8], V[:8], rates)
    _, short = run(start, X[:5], V[:5], {"learning_rate": rates["learning_rate"][:5]})
    following = X[8:], V[8:], {"learning_rate": GATES[0]["learning_rate"][8:]}
    close(run(short, *following)[0], run(filled, *following)[0])


@pytest.mark.slow
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_nothing_leaks_inside_a_chunk(topology, x64):
    """Tokens read what was written by the last boundary of each level, and nothing later."""
    params = params_of(continuum(topology))
    run = compiled(topology)[0]
    before, _ = run(params, X, V, gates())
    for place in (0, 3, 4, 7, 8, 20):
        targets = V.copy()
        targets[place] += 1
        after, _ = run(params, X, targets, gates())
        np.testing.assert_array_equal(after[: place + 1], before[: place + 1])
        if place < T - 1:  # the level of period 1 has learned it at the next token
            assert jnp.any(after[place + 1] != before[place + 1])
    slow = Continuum((memory(8), memory(4)), topology)
    params, late = params_of(slow), gates()[2:]
    run = jax.jit(lambda targets: slow.scan(slow.start(params), X, targets, late)[0])
    targets = V.copy()
    targets[1] += 1
    moved = jnp.any(run(targets) != run(V), axis=-1)
    np.testing.assert_array_equal(moved, np.arange(T) >= 4)  # frozen up to the fast level's boundary


@pytest.mark.slow
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_gradients_reach_every_start(topology, x64):
    """Reverse mode against central differences, for the initial weights of all levels and the mixture."""
    params = params_of(continuum(topology))
    run = compiled(topology)[0]
    loss = jax.jit(lambda params: jnp.sum(jnp.sin(run(params, X, V, gates())[0])))
    found = jax.jit(jax.grad(loss))(params)
    draw = np.random.default_rng(3)
    for name in params:
        direction = jax.tree.map(lambda w: draw.normal(size=w.shape), params[name])
        ahead, behind = (
            loss(params | {name: jax.tree.map(lambda w, d, e=e: w + e * d, params[name], direction)})
            for e in (1e-5, -1e-5)
        )
        slope = sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (found[name], direction)), strict=True))
        assert abs(slope) > 1e-3
        np.testing.assert_allclose(slope, (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_one_level_is_its_memory(x64):
    alone = memory(4)
    weights = params_of(Continuum((alone,)))["level_0"]
    expected, _ = jax.jit(alone.scan)(alone.start(weights), X, V, X, GATES[0])
    for topology in ("sequential", "nested"):
        system = Continuum((alone,), topology)
        found, _ = jax.jit(system.scan)(system.start({"level_0": weights}), X, V, GATES[0])
        close(found, expected)


@pytest.mark.parametrize(
    ("levels", "topology", "message"),
    [
        ((memory(4),), "parallel", "topology: expected one of"),
        ((), "nested", "levels: expected a tuple"),
        ((memory(4), 3), "nested", r"levels\[1\]: expected a Memory or a network, got int"),
        ((nj.Memory(),), "sequential", r"levels\[0\]: expected step_per='chunk'"),
        ((memory(6), memory(4)), "sequential", "expected every period to divide the longer ones, got 6 and 4"),
        ((memory(2), memory(4)), "nested", "from slow to fast"),
        ((memory(4), memory(4)), "nested", "from slow to fast"),
        ((memory(4), NETWORK), "nested", "from slow to fast"),
        ((memory(4), memory(2, window=2)), "nested", "window=1"),
    ],
)
def test_levels_that_do_not_fit(levels, topology, message):
    with pytest.raises(ValueError, match=message):
        Continuum(levels, topology)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": X[0]}, r"inputs: expected one sequence, shape \[T, D\]"),
        ({"values": V[:5]}, r"values: expected shape \(21, 3\) as the inputs of level 1"),
        ({"values": [V, V]}, "values: expected one for all or a sequence of 4, got 2"),
        ({"gates": GATES}, "gates: expected one for all or a sequence of 4, got 3"),
        ({"gates": [None, GATES[0], GATES[1] | {"momentun": GATES[0]["decay"]}, GATES[2]]}, "did you mean 'momentum'"),
        ({"gates": [None, *GATES[:2], GATES[2] | {"decay": np.ones((T, D))}]}, "one number per token"),
        ({"reset": np.zeros(6, bool)}, r"reset: expected shape \(3,\), one flag per chunk of 8"),
    ],
)
def test_bad_input_is_named(change, message, x64):
    system = continuum("nested")
    state = system.start(params_of(system))
    given = {"inputs": X, "values": V, "gates": gates()} | change
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(functools.partial(system.scan, state), **given)
