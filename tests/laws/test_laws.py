"""Laws 1 and 3-8: duality, causality, independence, purity, hand-off, short sequences, resets, stability."""

import io

import jax
import jax.numpy as jnp
import memory_table as table
import numpy as np
import optax
import pytest
from memory_table import Case
from rule_table import RULES

import nested_jax as nj

double = pytest.mark.usefixtures("x64")

TITANS, ATLAS = nj.rules.titans(), nj.rules.atlas()
CASES = (
    table.case("titans", TITANS, False, "mlp", {"chunk_size": 4, "tokens": 14}),
    table.case("atlas", ATLAS, True, "linear", {"chunk_size": 3, "window": 2, "read": "before", "tokens": 8}),
    table.case("titans", TITANS, False, "gated", {"chunk_size": 4, "step_per": "chunk", "read": "start", "tokens": 10}),
    table.case("adam", optax.adam(0.02), False, "linear", {"chunk_size": 4, "read": "start", "window": 3, "tokens": 9}),
    table.case("schedule", table.STOCK["optax schedule"], False, "deep", {"chunk_size": 4, "tokens": 11}),
    table.case(
        "delta",
        nj.rules.gated_gradient_descent(),
        False,
        "linear",
        {"chunk_size": 1, "retain_first": True, "tokens": 5},
    ),
    table.erasing_cases()[0],
    table.channel_cases()[1],
)
every_case = pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            c,
            marks=[pytest.mark.slow] * c.name.startswith(("adam", "schedule", "channels", "atlas", "erasing")),
            id=c.name,
        )
        for c in CASES
    ],
)


def run(case: Case):
    """The compiled scan of a case, its first state and its data."""
    memory = case.memory
    return jax.jit(memory.scan), memory.start(table.weights(memory)), case.data()


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def close(a, b, tolerance: float = 1e-12):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.allclose(x, y, rtol=tolerance, atol=tolerance), float(np.abs(x - y).max())


@double
@pytest.mark.parametrize("rule", RULES, ids=[r.name for r in RULES])
def test_duality_an_optimizer_is_a_memory(rule):
    """One rule object: as an optimizer on a stream of least-squares problems, and as a memory on the same pairs."""
    memory = nj.Memory(network=nj.networks.Linear(), rule=rule.gated(), chunk_size=1)
    data, weights = table.data(memory, 5), table.weights(memory)
    _, state = jax.jit(memory.scan)(memory.start(weights), *data)

    optimizer = rule.gated()
    params, opt_state = weights, optimizer.init(weights)

    @jax.jit
    def train(params, opt_state, key, value, gates):
        gradient = jax.grad(lambda p: 0.5 * jnp.sum(jnp.square(key @ p["w"] - value)))(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params, **gates)
        return optax.apply_updates(params, updates), opt_state

    for t in range(5):
        gates = {name: gate[t] for name, gate in data.gates.items()}
        params, opt_state = train(params, opt_state, data.keys[t], data.values[t], gates)
    close(state.weights, params)
    close(state.rule_state, opt_state)


@double
@every_case
def test_causality(case):
    """A change at token p reaches no output before p, and the output at p only as the read allows."""
    scan, state, data = run(case)
    y, _ = scan(state, *data)
    chunk = case.memory.chunk_size
    for p in {0, chunk // 2, chunk - 1, chunk, case.tokens - 1} - {case.tokens}:
        moved = jax.tree.map(lambda x, p=p: x.at[p].add(0.5), data)
        changed, _ = scan(state, *moved)
        assert np.array_equal(changed[:p], y[:p])
        assert not np.array_equal(changed[p:], y[p:])
        written, _ = scan(state, *moved._replace(queries=data.queries, gates=data.gates))
        blind = {"after": p, "before": p + 1, "start": (p // chunk + 1) * chunk}[case.memory.read]
        assert np.array_equal(written[:blind], y[:blind])


@double
@every_case
def test_rows_of_a_batch_do_not_touch(case):
    _, state, data = run(case)
    batched = jax.jit(jax.vmap(lambda d: case.memory.scan(state, *d)[0]))
    rows = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), data)
    disturbed = jax.tree.map(lambda x: x.at[1].multiply(-0.9), rows)
    assert np.array_equal(batched(rows)[0], batched(disturbed)[0])
    assert not np.array_equal(batched(rows)[1], batched(disturbed)[1])


@double
@every_case
def test_the_same_call_gives_the_same_bits(case):
    scan, state, data = run(case)
    before = jax.tree.map(np.array, state)
    assert same(scan(state, *data), scan(state, *data))
    assert same(state, before)


@double
@every_case
def test_hand_off_in_chunks_and_token_by_token(case):
    """scan(x) = scan(x[:t]) then scan(x[t:]), = step by step, also from a short scan on and over a saved state."""
    scan, start, data = run(case)
    step = jax.jit(case.memory.step)
    y, last = scan(start, *data)
    grid = case.memory.chunk_size
    first, state = scan(start, *jax.tree.map(lambda x: x[:grid], data))
    rest, state = scan(saved_and_loaded(state), *jax.tree.map(lambda x: x[grid:], data))
    close(jnp.concatenate([first, rest]), y)
    close(state, last)

    short = case.tokens - 2
    outputs, state = scan(start, *jax.tree.map(lambda x: x[:short], data))
    outputs = list(outputs)
    for t in range(short, case.tokens):
        out, state = step(state, *jax.tree.map(lambda x, t=t: x[t], data))
        outputs.append(out)
    close(jnp.stack(outputs), y)
    close((state.weights, state.rule_state, state.window), (last.weights, last.rule_state, last.window))

    outputs, state = [], start
    for t in range(case.tokens):
        out, state = step(state, *jax.tree.map(lambda x, t=t: x[t], data))
        outputs.append(out)
    close(jnp.stack(outputs), y)
    close((state.weights, state.rule_state, state.window), (last.weights, last.rule_state, last.window))


def saved_and_loaded(state):
    """The state through a file of plain arrays."""
    leaves, treedef = jax.tree.flatten(state)
    file = io.BytesIO()
    np.savez(file, *leaves)
    file.seek(0)
    return treedef.unflatten([jnp.asarray(x) for x in np.load(file).values()])


@double
@every_case
def test_sequences_shorter_than_a_chunk_write(case):
    scan, state, data = run(case)
    _, after = scan(state, *jax.tree.map(lambda x: x[:1], data))
    assert not same(after.weights, state.weights)
    _, unchanged = scan(state, *jax.tree.map(lambda x: x[:0], data))
    assert same(unchanged.weights, state.weights)


@double
@every_case
def test_packed_documents_are_separate_documents(case):
    """With resets, outputs, final state and the gradient of the initial weights are those of separate scans."""
    grid = case.memory.chunk_size
    tokens = 2 * grid + (case.tokens % grid)
    weights, data = table.weights(case.memory), case._replace(tokens=tokens).data()
    reset = jnp.zeros(-(-tokens // grid), bool).at[1].set(True)
    documents = [jax.tree.map(lambda x, part=part: x[part], data) for part in (slice(0, grid), slice(grid, None))]

    def packed(weights):
        y, state = case.memory.scan(case.memory.start(weights), *data, reset)
        return jnp.sum(jnp.sin(y)), (y, state)

    def separate(weights):
        first, _ = case.memory.scan(case.memory.start(weights), *documents[0])
        second, state = case.memory.scan(case.memory.start(weights), *documents[1])
        y = jnp.concatenate([first, second])
        return jnp.sum(jnp.sin(y)), (y, state)

    (found, gradient), (expected, expected_gradient) = (
        (aux, g) for (_, aux), g in (jax.jit(jax.value_and_grad(f, has_aux=True))(weights) for f in (packed, separate))
    )
    close(found[0], expected[0])
    close((found[1].weights, found[1].rule_state), (expected[1].weights, expected[1].rule_state))
    close(gradient, expected_gradient, 1e-10)


@pytest.mark.parametrize("gate", [0.0, 1.0])
def test_gates_at_their_ends_are_finite(gate):
    memory = nj.Memory(network=nj.networks.MLP(depth=2, expansion=2), chunk_size=8)
    data = table.data(memory, 24)
    ends = {name: jnp.full(24, gate) for name in data.gates} | {"learning_rate": jnp.full(24, 0.05 * gate)}

    def loss(weights, gates):
        y, state = memory.scan(memory.start(weights), *data[:3], gates)
        return jnp.sum(y) + sum(jnp.sum(w) for w in state.weights.values())

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(table.weights(memory), ends)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


@pytest.mark.slow
def test_deep_memories_on_long_sequences_train_without_clipping():
    """Depth 4, 4096 tokens, 200 outer steps: finite all the way, and the loss falls."""
    memory = nj.Memory(network=nj.networks.MLP(depth=4, expansion=2), chunk_size=64)
    rng = np.random.default_rng(0)
    keys = rng.normal(size=(4096, 8)).astype(np.float32)
    keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
    values = jnp.asarray(np.tanh(keys @ rng.normal(size=(8, 8)).astype(np.float32)))
    keys = jnp.asarray(keys)
    params = {"weights": memory.init(jax.random.key(0), 8), "gates": jnp.array([-4.0, 0.0, -6.0])}
    optimizer = optax.adam(1e-3)

    def loss(params):
        gates = dict(zip(("learning_rate", "momentum", "decay"), jax.nn.sigmoid(params["gates"]), strict=True))
        gates = {name: jnp.broadcast_to(gate, 4096) for name, gate in gates.items()}
        y, _ = memory.scan(memory.start(params["weights"]), keys, values, keys, gates)
        return jnp.mean(jnp.square(y - values))

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, optimizer.init(params)), length=200)

    (params, _), losses = train(params)
    assert np.isfinite(losses).all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))
    assert losses[-1] < losses[0]


def test_bfloat16_parameters_still_learn():
    """Small writes onto bf16 initial weights add up: the state is held in f32."""
    memory = nj.Memory(network=nj.networks.Linear(), rule=nj.rules.gradient_descent(1e-4), chunk_size=1)
    weights = {"w": jnp.ones((table.DIM, table.DIM), jnp.bfloat16)}
    state = memory.start(weights)
    assert state.weights["w"].dtype == jnp.float32
    key = jnp.zeros((100, table.DIM)).at[:, 0].set(1.0)
    _, state = jax.jit(memory.scan)(state, key, jnp.zeros_like(key), key)
    assert np.allclose(state.weights["w"][0], (1 - 1e-4) ** 100, rtol=1e-5)
