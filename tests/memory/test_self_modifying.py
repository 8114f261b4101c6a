"""Self-modifying memories: Nested Learning 83-93 as a loop over tokens, and the laws of every memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nested_jax as nj

pytestmark = pytest.mark.usefixtures("x64")

T, D, SMALL, LARGE = 11, 3, 2, 4
RNG = np.random.default_rng(0)
X, Q = RNG.normal(size=(2, T, D)) / 2


def build(rule=None, static=("query",), network=None, **fields):
    network = network or nj.networks.MLP(expansion=2, activation=jnp.tanh)
    rule = nj.rules.hope() if rule is None else rule
    memory = nj.Memory(network=network, rule=rule, chunk_size=LARGE, read="start")
    generators = dataclasses.replace(memory, chunk_size=SMALL)
    return nj.memory.SelfModifying(memory, generators, static, max_learning_rate=0.9, decay=0.1, **fields)


def weights_of(hope):
    shapes = jax.eval_shape(lambda key: hope.init(key, D), jax.random.key(0))
    draw = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(draw.normal(size=x.shape) / 2), shapes)


def given_of(hope):
    draw = np.random.default_rng(2)
    shape = {name: (T, D) if name in ("query", "key", "value") else (T,) for name in hope.static}
    return {name: jnp.asarray(draw.uniform(size=shape[name]) / 2) for name in hope.static}


def run(hope, inputs=X, given=None, reset=None, state=None):
    state = hope.start(weights_of(hope)) if state is None else state
    y, state = jax.jit(hope.scan)(state, jnp.asarray(inputs), given_of(hope) if given is None else given, reset)
    return np.asarray(y), state


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def literal(weights, queries, decays=True, descends="delta", bounded=False):
    """M_b,t = M_b,t−1 (α_t I − η_t a a^T) − η_t ∇L at frozen weights, for every layer with its own input a."""
    live, bias = {name: dict(w) for name, w in weights.items() if name != "bias"}, weights["bias"]
    frozen, y = {}, []

    def answer(name, x, w):
        hidden = np.tanh(x @ w["w1"])
        return hidden @ w["w2"] + (0 if name in ("learning_rate", "decay") else x), hidden

    for t in range(T):
        for name in live:
            if t % (LARGE if name == "memory" else SMALL) == 0:
                frozen[name] = dict(live[name])
        k = answer("key", X[t], frozen["key"])[0]
        v = answer("value", X[t], frozen["value"])[0]
        k, v = k / np.sqrt(k @ k + 1e-6), v / np.sqrt(v @ v + 1e-6)
        eta = 0.9 * sigmoid(answer("learning_rate", X[t], frozen["learning_rate"])[0][0] + bias["learning_rate"])
        if bounded:
            eta /= max(1, 1 - v @ k)
        alpha = 0.0
        if decays:
            alpha = sigmoid(answer("decay", X[t], frozen["decay"])[0][0] + bias["decay"] + np.log(0.1 / 0.9))
        y.append(answer("memory", queries[t], frozen["memory"])[0])
        for name, w in live.items():
            target = answer(name, v, frozen[name])[0]
            found, hidden = answer(name, k, frozen[name])
            error = found - target
            inner = (frozen[name]["w2"] @ error) * (1 - hidden**2)
            for layer, a, delta in (("w1", k, inner), ("w2", hidden, error)):
                if descends == "delta":
                    rate = eta / (1 + eta * (a @ a))
                    moved = -rate * np.outer(a, a @ w[layer]) - rate * np.outer(a, delta)
                else:
                    moved = -eta * np.outer(a, delta)
                w[layer] = (1 - alpha) * w[layer] + moved
    return np.stack(y), live


@pytest.mark.parametrize("bounded", [False, True])
def test_equations_83_to_93(bounded):
    hope = build(bounded=bounded)
    weights = jax.tree.map(np.asarray, weights_of(hope))
    expected, live = literal(weights, np.asarray(given_of(hope)["query"]), bounded=bounded)
    y, state = run(hope)
    np.testing.assert_allclose(y, expected, rtol=1e-10)
    after = {"memory": state.memory.weights, **{name: maker.weights for name, maker in state.generators.items()}}
    for name in live:
        for layer in ("w1", "w2"):
            np.testing.assert_allclose(after[name][layer], live[name][layer], rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_ablations_are_other_rules():
    """Without delta gradient descent, and without decay."""
    for rule, options in (
        (nj.rules.gated_gradient_descent(), {"descends": "gradient"}),
        (nj.rules.hope(decay=0.0), {"decays": False}),
    ):
        hope = build(rule)
        expected, _ = literal(
            jax.tree.map(np.asarray, weights_of(hope)), np.asarray(given_of(hope)["query"]), **options
        )
        np.testing.assert_allclose(run(hope)[0], expected, rtol=1e-10)


CASES = {
    "hope": lambda: build(),
    "with momentum": lambda: build(
        nj.rules.chain(nj.rules.delta_gradient_descent(), nj.rules.momentum(), nj.rules.retention())
    ),
    "adaptive query": lambda: build(static=()),
    "static key and decay": lambda: build(static=("query", "key", "decay")),
    "linear, online": lambda: nj.memory.SelfModifying(
        *(nj.Memory(nj.networks.Linear(), rule=nj.rules.hope(), chunk_size=1, read="start") for _ in range(2)),
        max_learning_rate=1.9,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_steps_pieces_resets_and_causality(name):
    hope = CASES[name]()
    given = given_of(hope)
    y, last = run(hope, given=given)
    state, found = hope.start(weights_of(hope)), []
    step = jax.jit(hope.step)
    for t in range(T):
        one, state = step(state, jnp.asarray(X[t]), {name: x[t] for name, x in given.items()})
        found.append(one)
    np.testing.assert_allclose(np.stack(found), y, rtol=1e-10, atol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), state.memory, last.memory)

    cut = 2 * LARGE
    first, middle = run(hope, X[:cut], {name: x[:cut] for name, x in given.items()})
    rest, _ = run(hope, X[cut:], {name: x[cut:] for name, x in given.items()}, state=middle)
    np.testing.assert_allclose(np.concatenate([first, rest]), y, rtol=1e-10, atol=1e-12)

    chunks = -(-T // hope.chunk_size)
    reset = jnp.arange(chunks) == cut // hope.chunk_size
    packed, _ = run(hope, given=given, reset=reset)
    alone, _ = run(hope, X[cut:], {name: x[cut:] for name, x in given.items()})
    np.testing.assert_allclose(packed, np.concatenate([y[:cut], alone]), rtol=1e-10, atol=1e-12)

    for place in (0, 3, 4, T - 1):
        moved = X.copy()
        moved[place] += 1
        other, _ = run(hope, moved, given)
        np.testing.assert_array_equal(other[:place], y[:place])
        chunk = place - place % hope.chunk_size + hope.chunk_size
        if "query" in hope.static:
            np.testing.assert_array_equal(other[place:chunk], y[place:chunk])
        assert chunk >= T or np.any(other[chunk:] != y[chunk:])


@pytest.mark.parametrize("bounded", [False, True])
def test_a_bounded_memory_turns_around_and_does_not_grow(bounded):
    """Against its own answer to -k: it keeps 1 - η (1 - v·k) of its answer to k, -1 with the bound and -3 without."""
    one = nj.Memory(
        nj.networks.Linear(),
        nj.objectives.dot_product,
        nj.rules.delta_gradient_descent(form="explicit"),
        chunk_size=1,
        read="start",
    )
    hope = nj.memory.SelfModifying(one, one, ("query", "key", "value", "learning_rate"), bounded=bounded)
    assert hope.generated == ()
    key = jnp.array([0.6, 0.8])
    weights = {"memory": {"w": jnp.array([[1.0, 2.0], [3.0, 4.0]])}, "bias": {}}
    given = {name: jnp.tile(sign * key, (4, 1)) for name, sign in (("query", 1), ("key", 1), ("value", -1))}
    given["learning_rate"] = jnp.full(4, 2.0)
    y, _ = hope.scan(hope.start(weights), jnp.zeros((4, 2)), given)
    kept = -1 if bounded else -3
    np.testing.assert_allclose(y, np.outer(kept ** np.arange(4), np.asarray(y)[0]), rtol=1e-6)


@pytest.mark.slow
def test_generators_may_have_a_constant_that_the_memory_has_not():
    hope = build(nj.rules.delta_gradient_descent())
    still = dataclasses.replace(hope.generators, rule=nj.rules.delta_gradient_descent(learning_rate=0.0))
    hope = dataclasses.replace(hope, generators=still)
    assert hope.generated == ("key", "value", "learning_rate")
    weights = weights_of(hope)
    y, state = run(hope)
    for name in hope.generated:
        for part, start in weights[name].items():
            np.testing.assert_array_equal(state.generators[name].weights[part], start)
    assert not np.array_equal(state.memory.weights["w1"], weights["memory"]["w1"])
    assert np.isfinite(y).all()


def test_gradients_reach_every_initial_weight():
    """Against finite differences, along one direction for each memory."""
    hope = build()
    weights, given = weights_of(hope), given_of(hope)

    @jax.jit
    def loss(weights):
        return jnp.sum(jnp.sin(hope.scan(hope.start(weights), jnp.asarray(X), given)[0]))

    gradient = jax.jit(jax.grad(loss))(weights)
    for name in weights:
        draw = np.random.default_rng(3)
        along = jax.tree.map(lambda x, draw=draw: jnp.asarray(draw.normal(size=x.shape)), weights[name])
        found = sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (gradient[name], along)), strict=True))

        def moved(size, name=name, along=along):
            return loss(weights | {name: optax.apply_updates(weights[name], optax.tree.scale(size, along))})

        expected = (moved(1e-5) - moved(-1e-5)) / 2e-5
        assert abs(expected) > 1e-4
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"generators: expected a chunk_size that divides the memory's, 64, got 7"):
        nj.memory.SelfModifying(generators=nj.Memory(rule=nj.rules.hope(), chunk_size=7, read="start"))
    with pytest.raises(ValueError, match=r"memory: expected read='start'.*got 'after'"):
        nj.memory.SelfModifying(memory=nj.Memory(rule=nj.rules.hope()))
    with pytest.raises(ValueError, match=r"static: expected names among \('query', .*'decay'\), got 'keys'"):
        build(static=("keys",))
    with pytest.raises(ValueError, match=r"momentum: expected a number in \(0, 1\), .* got 0.0"):
        build(momentum=0.0)
    hope = build()
    with pytest.raises(ValueError, match=r"params: expected memory, key, .* and bias, got no \['bias'\]"):
        hope.start({name: w for name, w in weights_of(hope).items() if name != "bias"})
    state = hope.start(weights_of(hope))
    with pytest.raises(ValueError, match=r"given: expected what is static, \['query'\], got \[\]"):
        hope.scan(state, jnp.asarray(X))
    with pytest.raises(ValueError, match=r"given\['query'\]: expected shape \(11, 3\), got \(3,\)"):
        hope.scan(state, jnp.asarray(X), {"query": jnp.zeros(3)})
