"""Slot memories: the equations as loops, chunks, the laws, what an engine runs, storage, few slots of many, upkeep."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nested_jax as nj
from nested_jax.memory.slots import Event, Level, SlotMemory, footprint, idle, important, merge, replay
from nested_jax.memory.slots import rows as store
from nested_jax.memory.slots.level import Address
from nested_jax.models import load_state, save_state

double = pytest.mark.usefixtures("x64")


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


T, D, E = 13, 5, 3
RNG = np.random.default_rng(0)
X, EVENTS = RNG.normal(size=(T, D)), RNG.normal(size=(T, E))


def slots(content: float = 1.0, chunk: int = 1, **fields) -> SlotMemory:
    """Two levels, the slow one with the fields."""
    fast = Level(3, 4, decay=0.3, content=content)
    slow = dataclasses.replace(Level(5, 6, decay=0.05, content=content, adaptive=True), **fields)
    return SlotMemory((fast, slow), key_dim=4, event_dim=6, context_dim=7, chunk_size=chunk)


def weights(memory: SlotMemory, seed: int = 1, scale: float = 1.5) -> dict:
    """Parameters none of which is zero."""
    shapes = jax.eval_shape(lambda key: memory.init(key, D, E), jax.random.key(0))
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda w: jnp.asarray(scale * draw.normal(size=w.shape) / w.shape[0] ** 0.5), shapes)


@functools.cache
def compiled(content: float, chunk: int):
    memory = slots(content, chunk)
    scan = jax.jit(lambda params, state, x, e, reset=None: memory.scan(params, state, x, e, reset))
    return memory, scan, jax.jit(memory.step)


def run(memory: SlotMemory, params, inputs, events):
    return jax.jit(lambda params: memory.scan(params, memory.start(params), inputs, events))(params)


def softmax(x):
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def literal(memory: SlotMemory, params, inputs, events):
    """CMS §3-4 and 11.1, slot by slot; addresses from the keys at the chunk's start, usage from the token before."""
    params = jax.tree.map(np.asarray, params)
    parts = [params[f"level{number}"] for number in range(len(memory.levels))]
    values, keys = [part["values"] for part in parts], [part["keys"] for part in parts]
    usage, outputs = [np.zeros(level.slots) for level in memory.levels], []
    for t, (x, e) in enumerate(zip(inputs, events, strict=True)):
        if t % memory.chunk_size == 0:
            known = list(keys)
        query, contexts = x @ params["query"], []
        for number, (level, part) in enumerate(zip(memory.levels, parts, strict=True)):
            below = contexts[-1:]
            read = softmax(known[number] @ query / 2)  # the root of d_k = 4
            contexts.append(sum(read[i] * values[number][i] for i in range(level.slots)))
            pre = np.concatenate([e, *below]) @ part["event"]
            event = pre * sigmoid(pre)
            gate, value, key = sigmoid(event @ part["gate"]), event @ part["value"], event @ part["key"]
            decay = sigmoid(np.log(level.decay / (1 - level.decay)) + event @ part["decay"]) if level.adaptive else 0.3
            lru = np.eye(level.slots)[np.argmin(usage[number])]
            written = level.content * softmax(known[number] @ key / 2) + (1 - level.content) * lru
            values[number] = (1 - decay) * values[number] + gate * np.outer(written, value)
            keys[number] = (1 - decay) * keys[number] + gate * np.outer(written, key)
            usage[number] = (1 - decay) * usage[number] + read + gate * written
        shares = softmax(np.concatenate(contexts) @ params["mix"])
        outputs.append(sum(b * c @ part["project"] for b, c, part in zip(shares, contexts, parts, strict=True)))
    return np.stack(outputs), values, keys, usage


def check_state(state, values, keys, usage=None, atol=1e-10):
    for number, level in enumerate(state.levels):
        np.testing.assert_allclose(store.decode(level.values), values[number], atol=atol)
        np.testing.assert_allclose(store.decode(level.keys), keys[number], atol=atol)
        if usage is not None and level.usage is not None:
            np.testing.assert_allclose(level.usage, usage[number], atol=atol)


@double
@pytest.mark.parametrize(("content", "chunk"), [(1.0, 1), slow(1.0, 4), (0.6, 1), (0.6, 4), (0.0, 1), slow(0.0, 4)])
def test_equations_as_loops(content, chunk):
    memory, scan, step = compiled(content, chunk)
    params = weights(memory)
    expected, values, keys, usage = literal(memory, params, X, EVENTS)
    y, state = scan(params, memory.start(params), X, EVENTS)
    np.testing.assert_allclose(y, expected, atol=1e-10)
    check_state(state, values, keys, usage)
    state, reads = memory.start(params), []
    for x, e in zip(X, EVENTS, strict=True):
        read, state = step(params, state, x, e)
        reads.append(read)
    np.testing.assert_allclose(np.stack(reads), expected, atol=1e-10)
    check_state(state, values, keys, usage)


@double
@pytest.mark.parametrize("content", [slow(1.0), 0.6])
def test_gradients_of_chunks_are_those_of_tokens(content):
    memory, scan, step = compiled(content, 4)
    params = weights(memory)

    def tokens(params):
        state, y = jax.lax.scan(lambda s, xs: step(params, s, *xs)[::-1], memory.start(params), (X, EVENTS))
        return y, state

    def loss(run):
        def total(params):
            y, state = run(params)
            return jnp.sum(jnp.sin(y)) + sum(jnp.sum(jnp.cos(store.decode(level.keys))) for level in state.levels)

        return jax.jit(jax.grad(total))(params)

    chunks, single = loss(lambda params: scan(params, memory.start(params), X, EVENTS)), loss(tokens)
    for path, leaf in jax.tree.leaves_with_path(chunks):
        assert np.abs(leaf).max() > 0, path  # what is learned outside is reached
        np.testing.assert_allclose(leaf, functools.reduce(lambda tree, k: tree[k.key], path, single), atol=1e-10)
    direction = weights(memory, seed=2)
    moved = lambda size: jax.tree.map(lambda w, d: w + size * d, params, direction)

    def value(params):
        y, state = scan(params, memory.start(params), X, EVENTS)
        return jnp.sum(jnp.sin(y)) + sum(jnp.sum(jnp.cos(store.decode(level.keys))) for level in state.levels)

    slope = (value(moved(1e-6)) - value(moved(-1e-6))) / 2e-6
    np.testing.assert_allclose(slope, sum(jax.tree.leaves(jax.tree.map(jnp.vdot, chunks, direction))), rtol=1e-6)


@double
@pytest.mark.parametrize("chunk", [1, 4])
def test_tokens_see_no_later_ones(chunk):
    memory, scan, _ = compiled(0.6, chunk)
    params = weights(memory)
    y, _ = scan(params, memory.start(params), X, EVENTS)
    for place in (0, 3, 4, 6, T - 1):
        x, e = X.copy(), EVENTS.copy()
        x[place], e[place] = x[place] + 1, e[place] - 1
        moved, _ = scan(params, memory.start(params), x, e)
        assert (np.asarray(moved[:place]) == np.asarray(y[:place])).all()
        assert (np.asarray(moved[place:]) != np.asarray(y[place:])).any()


@double
@pytest.mark.parametrize(("chunk", "cut"), [slow(1, 5), (4, 8)])
def test_pieces_steps_and_resets(chunk, cut):
    memory, scan, step = compiled(0.6, chunk)
    params = weights(memory)
    start = memory.start(params)
    whole, end = scan(params, start, X, EVENTS)
    first, state = scan(params, start, X[:cut], EVENTS[:cut])
    second, after = scan(params, state, X[cut:], EVENTS[cut:])
    np.testing.assert_allclose(np.concatenate([first, second]), whole, atol=1e-12)
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(end), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
    ragged, state = scan(params, start, X[:6], EVENTS[:6])  # inside a chunk: steps go on
    rest = []
    for x, e in zip(X[6:], EVENTS[6:], strict=True):
        read, state = step(params, state, x, e)
        rest.append(read)
    np.testing.assert_allclose(np.concatenate([ragged, np.stack(rest)]), whole, atol=1e-12)
    reset = np.zeros(-(-T // chunk), bool)
    reset[cut // chunk] = True
    last = T - T % 4 if chunk > 1 else T - 1  # a short chunk is a document, too
    reset[-1] = True
    packed, _ = scan(params, start, X, EVENTS, reset)
    alone = [scan(params, start, X[a:b], EVENTS[a:b])[0] for a, b in ((cut, last), (last, T))]
    np.testing.assert_allclose(packed, np.concatenate([first, *alone]), atol=1e-12)


def test_rows_of_a_batch_do_not_mix_and_calls_repeat():
    memory, scan, _ = compiled(0.6, 4)
    params = jax.tree.map(jnp.float32, weights(memory))
    x, e = (jnp.stack([part, part + 1], dtype=jnp.float32) for part in (X, EVENTS))
    run = jax.jit(jax.vmap(lambda x, e: scan(params, memory.start(params), x, e)[0]))
    both, again = run(x, e), run(x, e)
    assert (both == again).all()
    assert (run(x, e.at[1].add(1))[0] == both[0]).all()


@double
def test_recall_is_a_step_without_an_event():
    for chunk in (1, 4):
        memory, scan, step = compiled(0.6, chunk)
        params = weights(memory)
        for count in (4, 6):
            _, state = scan(params, memory.start(params), X[:count], EVENTS[:count])
            read, _ = step(params, state, X[count], EVENTS[count])
            recalled = jax.jit(memory.recall)(params, state, X[count : count + 1])
            np.testing.assert_allclose(recalled[0], read, atol=1e-12)


@double
def test_a_level_is_a_linear_memory_of_addresses_and_its_rule_an_optimizer():
    """M ← (1 − d) M + g α̃ ⊗ v three ways: a level, `nj.Memory`, and optax on the loss −⟨α̃ M, v⟩."""
    level = Level(5, 6, 0.1)
    gates, written, values = RNG.uniform(size=T), RNG.dirichlet(np.ones(5), T), RNG.normal(size=(T, 6))
    rule = nj.rules.gated_gradient_descent(decay=0.1)
    start = jnp.asarray(RNG.normal(size=(5, 6)))
    memory = nj.Memory(nj.networks.Linear(), nj.objectives.dot_product, rule, chunk_size=4, read="before")
    scan = jax.jit(memory.scan)
    _, state = scan(memory.start({"w": start}), written, values, written, {"learning_rate": jnp.asarray(gates)})
    params, carried = {"w": start}, rule.init({"w": start})
    slots_now = level.start({"values": start, "keys": jnp.ones((5, 2))}, chunked=False)
    for g, a, v in zip(gates, written, values, strict=True):
        address = Address(jnp.asarray(a), None)
        slots_now = level.write(slots_now, address, address, Event(g, jnp.asarray(v), jnp.zeros(2), 0.1))
        gradient = jax.grad(lambda p, a=a, v=v: -jnp.dot(a @ p["w"], v))(params)
        updates, carried = rule.update(gradient, carried, params, learning_rate=g)
        params = jax.tree.map(jnp.add, params, updates)
    np.testing.assert_allclose(state.weights["w"], store.decode(slots_now.values), atol=1e-12)
    np.testing.assert_allclose(params["w"], store.decode(slots_now.values), atol=1e-12)


@pytest.mark.slow
@double
@pytest.mark.parametrize("content", [1.0, 0.6, 0.0])
def test_all_slots_are_the_best_of_many(content):
    dense, sparse = slots(content), slots(content, top_k=5)
    params = weights(dense)
    (y, end), (best, after) = (run(memory, params, X, EVENTS) for memory in (dense, sparse))
    np.testing.assert_allclose(best, y, atol=1e-12)
    check_state(after, *([store.decode(getattr(level, rows)) for level in end.levels] for rows in ("values", "keys")))


@double
@pytest.mark.parametrize("content", [slow(1.0), 0.6, slow(0.0)])
def test_a_token_gathers_once_what_its_four_steps_gather_one_by_one(content):
    level = Level(9, 6, decay=0.1, content=content, top_k=3)
    part = weights(SlotMemory((level,), key_dim=4, event_dim=6, context_dim=7), scale=2.0)["level0"]
    draw = np.random.default_rng(0)

    def steps(part, query, inputs):
        state = level.start(part, chunked=False)
        for x in inputs:
            event = level.event(part, x)
            read, written = level.attend(state, query), level.place(state, event.key)
            context, state = level.read(state, read), level.write(state, read, written, event)
        return context, state

    def token(part, query, inputs):
        state = level.start(part, chunked=False)
        for x in inputs:
            context, state = level.token(state, query, level.event(part, x))
        return context, state

    arguments = part, jnp.asarray(draw.normal(size=4)), jnp.asarray(draw.normal(size=(2, part["event"].shape[0])))
    found = [jax.jit(run)(*arguments) for run in (steps, token)]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-12), *found)
    loss = lambda run: jax.jit(jax.grad(lambda *given: jnp.sum(jnp.sin(run(*given)[0])), argnums=(0, 1, 2)))
    gradients = [loss(run)(*arguments) for run in (steps, token)]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-12), *gradients)


@double
@pytest.mark.parametrize("content", [slow(1.0), 0.6, slow(0.0)])
def test_few_slots_of_many(content):
    """A loop that fades every slot and writes only where it may, against one that touches the chosen slots alone."""
    level = Level(50, 6, decay=0.1, content=content, top_k=3)
    memory = SlotMemory((level,), key_dim=4, event_dim=6, context_dim=7)
    params = weights(memory, scale=2.0)
    y, state = run(memory, params, X, EVENTS)
    part = jax.tree.map(np.asarray, params)["level0"]
    values, keys, usage = part["values"], part["keys"], np.zeros(50)
    for t in range(T):

        def best(vector, keys=keys):
            scores = keys @ vector / 2
            chosen = scores >= np.sort(scores)[-3]
            return np.where(chosen, np.exp(scores), 0) / np.exp(scores[chosen]).sum()

        read = best(X[t] @ np.asarray(params["query"]))
        np.testing.assert_allclose(y[t], (read @ values) @ part["project"], atol=1e-10)
        pre = EVENTS[t] @ part["event"]
        event = pre * sigmoid(pre)
        gate = sigmoid(event @ part["gate"])
        written = content * best(event @ part["key"]) + (1 - content) * np.eye(50)[np.argmin(usage)]
        values = 0.9 * values + gate * np.outer(written, event @ part["value"])
        keys = 0.9 * keys + gate * np.outer(written, event @ part["key"])
        usage = 0.9 * usage + read + gate * written
    check_state(state, [values], [keys], [usage])


@double
def test_weak_writes_are_left_out():
    memory = slots(threshold=0.5)
    params = weights(memory)
    level, part, state = memory.levels[1], params["level1"], memory.start(params)
    events = jnp.asarray(RNG.normal(size=(T, E + 4)))
    gates = sigmoid(np.asarray(jax.nn.silu(events @ part["event"]) @ part["gate"]))
    assert 0 < (gates > 0.5).sum() < T
    np.testing.assert_allclose(level.event(part, events).gate, np.where(gates > 0.5, gates, 0), rtol=1e-12)
    weak = jax.tree.map(lambda x: x[np.argmin(gates)], level.event(part, events))
    before = state.levels[1]
    after = level.write(before, level.attend(before, weak.key), level.place(before, weak.key), weak)
    assert (after.values.codes == before.values.codes).all()  # a decay is all that happened
    np.testing.assert_allclose(after.values.scale, 1 - weak.decay, rtol=1e-12)
    strong = jax.tree.map(lambda x: x[np.argmax(gates)], level.event(part, events))
    after = level.write(before, level.attend(before, strong.key), level.place(before, strong.key), strong)
    written = store.decode(after.values) - (1 - strong.decay) * store.decode(before.values)
    np.testing.assert_allclose(
        written, strong.gate * np.outer(level.place(before, strong.key).weights, strong.value), atol=1e-12
    )


ROUNDING = {"int8": 1 / 254, "float16": 2**-11, "bfloat16": 2**-8}  # of the largest entry, of each, of each


@pytest.mark.parametrize("storage", ROUNDING)
def test_rounding_is_as_small_as_said(storage):
    rows = jnp.asarray(RNG.normal(size=(40, 16)) * np.exp(RNG.normal(size=(40, 1))), jnp.float32).at[3].set(0)
    error = np.abs(store.decode(store.encode(rows, storage)) - rows)
    size = np.abs(rows).max(1, keepdims=True) if storage == "int8" else np.abs(rows)
    small = 2**-25 * np.abs(rows).max(1, keepdims=True) if storage == "float16" else 0.0
    assert (error <= ROUNDING[storage] * size * (1 + 1e-5) + small).all()
    assert (error / np.where(size > 0, size, 1.0)).max() > 0.7 * ROUNDING[storage]
    again = store.encode(store.decode(store.encode(rows, storage)), storage)
    assert (again.codes == store.encode(rows, storage).codes).all()  # what is kept is kept exactly
    faded = store.scaled(again, 0.3)
    assert (faded.codes == again.codes).all()


@pytest.mark.parametrize("storage", ["int8", slow("float16"), slow("bfloat16")])
def test_errors_of_storage_stay_bounded(storage):
    """With decay d an error of at most r per write sums to r / d: fades forget errors as they forget values."""
    decay, steps = 0.1, 400
    level = Level(8, 16, decay, storage=storage)
    rng = np.random.default_rng(3)
    exact = np.zeros((8, 16))
    kept, largest, worst = store.encode(jnp.zeros((8, 16)), storage), 0.0, 0.0
    fade = functools.partial(store.scaled, share=1 - decay)
    write = jax.jit(lambda rows, update: store.encode(store.decode(fade(rows)) + update, level.storage))
    for _ in range(steps):
        update = np.outer(rng.dirichlet(np.ones(8)), rng.normal(size=16))
        exact = (1 - decay) * exact + update
        kept = write(kept, jnp.asarray(update, jnp.float32))
        largest = max(largest, np.abs(store.decode(kept)).max())
        worst = max(worst, np.abs(store.decode(kept) - exact).max())
    assert 0 < worst <= ROUNDING[storage] * largest / decay


@pytest.mark.parametrize("storage", [slow("int8"), slow("float16"), "bfloat16"])
def test_storage_forgets_slowly_and_holds_large_values(storage):
    """2,000 steps of a decay below the type's precision, with writes of next to nothing; values beyond float16's."""
    level = Level(4, 8, 0.0015, storage=storage)
    rows = {"keys": jnp.ones((4, 2)), "values": 1e6 * jnp.asarray(RNG.normal(size=(4, 8)), jnp.float32)}
    event = Event(jnp.float32(1e-9), jnp.ones(8), jnp.ones(2), jnp.float32(0.0015))

    def token(state, _):
        query = jnp.ones(2)
        return level.write(state, level.attend(state, query), level.place(state, query), event), None

    start = level.start(rows, chunked=False)
    end, _ = jax.jit(lambda state: jax.lax.scan(token, state, length=2000))(start)
    left = np.linalg.norm(store.decode(end.values)) / np.linalg.norm(rows["values"])
    np.testing.assert_allclose(left, (1 - 0.0015) ** 2000, rtol=0.02)


def test_rows_that_are_not_numbers_stay_so():
    assert np.isnan(store.decode(store.encode(jnp.array([[1.0, jnp.nan, 300.0]]), "int8"))).all()


@pytest.mark.slow
@pytest.mark.parametrize("storage", ROUNDING)
def test_kept_slots_answer_nearly_the_same(storage):
    exact, rounded = slots(), slots(storage=storage)
    params = jax.tree.map(jnp.float32, weights(exact, scale=1.0))
    x, e = jnp.float32(X), jnp.float32(EVENTS)
    (y, _), (near, state) = (run(memory, params, x, e) for memory in (exact, rounded))
    assert str(state.levels[1].values.codes.dtype) == storage
    assert 0 < np.abs(y - near).max() < 0.05 * np.abs(y).max()


@pytest.mark.parametrize("storage", ["int8", "float16"])
def test_gradients_through_few_bits_are_an_error(storage):
    memory = slots(storage=storage)
    params = jax.tree.map(jnp.float32, weights(memory))
    with pytest.raises(ValueError, match=f"None or 'bfloat16' where gradients are taken, got '{storage}'"):
        jax.grad(lambda p: memory.scan(p, memory.start(p), jnp.float32(X), jnp.float32(EVENTS))[0].sum())(params)


@double
def test_waiting_replay_and_merging():
    memory, scan, _ = compiled(0.6, 1)
    params = weights(memory)
    _, state = scan(params, memory.start(params), X, EVENTS)
    _, branch = scan(params, memory.start(params), X[:4], EVENTS[:4])
    waited = idle(memory, idle(memory, state, 3), 2)
    for level, before, after in zip(memory.levels, state.levels, waited.levels, strict=True):
        share = (1 - level.decay) ** 5
        np.testing.assert_allclose(store.decode(after.values), share * store.decode(before.values), rtol=1e-12)
        np.testing.assert_allclose(store.decode(after.keys), share * store.decode(before.keys), rtol=1e-12)
        np.testing.assert_allclose(after.usage, share * before.usage, rtol=1e-12)
    kept = important(state, 2)
    again = replay(memory, waited, kept, 0.25)
    for source, before, after, one in zip(state.levels, waited.levels, again.levels, kept, strict=True):
        found, long = np.linalg.norm(one.values, axis=1), np.linalg.norm(store.decode(source.values), axis=1)
        np.testing.assert_allclose(np.sort(found)[-2:], np.sort(long)[-2:], rtol=1e-12)
        assert (found > 0).sum() == 2
        np.testing.assert_allclose(store.decode(after.values), store.decode(before.values) + one.values / 4, rtol=1e-12)
        np.testing.assert_allclose(store.decode(after.keys), store.decode(before.keys) + one.keys / 4, rtol=1e-12)
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), state, branch)
    jax.tree.map(
        lambda x, *rows: np.testing.assert_array_equal(x, np.stack(rows)),
        important(both, 2),
        important(state, 2),
        important(branch, 2),
    )
    mixed = merge(memory, state, branch, 0.25)
    for a, b, c in zip(state.levels, branch.levels, mixed.levels, strict=True):
        for rows in ("values", "keys"):
            parts = (store.decode(getattr(each, rows)) for each in (a, b))
            mean = sum(share * part for share, part in zip((0.25, 0.75), parts, strict=True))
            np.testing.assert_allclose(store.decode(getattr(c, rows)), mean, rtol=1e-12)
        np.testing.assert_allclose(c.usage, 0.25 * a.usage + 0.75 * b.usage, rtol=1e-12)
    small = slots(storage="int8")
    start = small.start(params)
    for after in (replay(small, start, important(start, 2), 0.5), merge(small, start, start)):
        assert after.levels[1].keys.codes.dtype == after.levels[1].values.codes.dtype == jnp.int8


def test_long_waits_do_not_cancel():
    memory = slots()
    start = jax.tree.map(jnp.float32, memory.start(weights(memory)))
    for level, slow_slots in zip(memory.levels, idle(memory, start, 200).levels, strict=True):
        np.testing.assert_allclose(slow_slots.values.scale, (1 - level.decay) ** 200, rtol=1e-5)


def test_footprint_is_that_of_the_example():
    report = footprint(SlotMemory())
    assert [row.floats for row in report] == [12_288, 40_960, 147_456]  # CMS §8.3
    assert sum(row.bytes for row in report) == 784 * 1024
    levels = tuple(dataclasses.replace(level, storage="int8") for level in SlotMemory().levels)
    small = footprint(SlotMemory(levels))
    assert sum(row.bytes for row in small) == 196 * 1024
    assert sum(row.extra for row in small) == 2 * 4 * (64 + 128 + 256)  # a scale for each row of values and of keys
    assert [round(row.half_life) for row in report] == [7, 14, 69]  # CMS §5.2


def test_wrong_fields_are_named():
    for fields, text in (
        ({"slots": 0}, r"slots: expected an integer >= 1, got 0"),
        ({"top_k": 5}, r"top_k: expected an integer >= 1 and <= slots=4, got 5"),
        ({"decay": 1.0}, r"decay: expected a number inside \(0, 1\), got 1.0"),
        ({"content": 1.5}, r"content: expected a number in \[0, 1\], got 1.5"),
        ({"storage": "int4"}, r"storage: expected None or one of .* got 'int4'"),
    ):
        with pytest.raises(ValueError, match=text):
            Level(**{"slots": 4, "width": 4, "decay": 0.1} | fields)
    level = Level(4, 4, 0.1)
    for fields, text in (
        ({"levels": ()}, r"levels: expected a tuple of one or more Level"),
        ({"levels": (level, dataclasses.replace(level, decay=0.2))}, r"from fast to slow, got \[0.1, 0.2\]"),
        ({"levels": (dataclasses.replace(level, top_k=2),), "chunk_size": 4}, r"levels\[0\].top_k: expected None"),
        ({"key_dim": 0}, r"key_dim: expected an integer >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=text):
            SlotMemory(**{"levels": (level,)} | fields)
    memory, params = slots(), weights(slots())
    state = memory.start(params)
    with pytest.raises(ValueError, match=r"inputs: expected \[T, D\] with D = 5, not empty, got shape \(13, 4\)"):
        memory.scan(params, state, X[:, :4], EVENTS)
    with pytest.raises(ValueError, match=r"events: expected as many tokens as inputs, 13, got 12"):
        memory.scan(params, state, X, EVENTS[:12])
    with pytest.raises(ValueError, match=r"params: expected \['query', 'mix', 'level0', 'level1'\]"):
        memory.scan({}, state, X, EVENTS)
    with pytest.raises(ValueError, match=r"params: expected those of this memory, .*\(7, 6\).*, got .*\(5, 6\)"):
        slots(slots=7).scan(params, state, X, EVENTS)
    for call, text in (
        (lambda: idle(memory, state, -1), "steps: expected an integer >= 0"),
        (lambda: important(state, 0), "count: expected an integer >= 1"),
        (lambda: replay(memory, state, (), 1.0), "kept: expected an entry for each of 2 levels, got 0"),
        (lambda: merge(memory, state, state, 2.0), r"share: expected a number in \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=text):
            call()


def test_explain_says_what_runs_a_level(capsys):
    nj.explain(slots(chunk=16))
    assert capsys.readouterr().out.count("retention(): elementwise-linear") == 2
    nj.explain(slots(chunk=1))
    assert capsys.readouterr().out.splitlines()[1] == "  token by token: each address asks the keys as they are"


@pytest.mark.parametrize("storage", ["int8", "bfloat16"])
def test_a_saved_state_goes_on_and_branches(storage, tmp_path):
    memory = slots(0.6, storage=storage)
    params = jax.tree.map(jnp.float32, weights(memory))
    step = jax.jit(memory.step)
    _, state = step(params, memory.start(params), jnp.float32(X[0]), jnp.float32(EVENTS[0]))
    save_state(tmp_path / "slots", state)
    loaded = load_state(tmp_path / "slots", jax.eval_shape(memory.start, params))
    one, other = (step(params, loaded, jnp.float32(X[1]), jnp.float32(event)) for event in EVENTS[1:3])
    again = step(params, state, jnp.float32(X[1]), jnp.float32(EVENTS[1]))
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert jnp.any(one[1].levels[1].values.codes != other[1].levels[1].values.codes)
