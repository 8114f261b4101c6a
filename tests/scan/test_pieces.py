"""Linear memories over a split sequence equal the whole ones; what is not linear is not taken for it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import nested_jax as nj
from nested_jax.memory import across
from nested_jax.scan import pieces

LINEAR, DOT, RULES = nj.networks.Linear(), nj.objectives.dot_product, nj.rules
ROWS, TOKENS, DIM_K, DIM_V, MEMBERS = 2, 24, 4, 3, 4

MEMORIES = {
    "gated delta": nj.Memory(LINEAR, rule=RULES.gated_gradient_descent(), chunk_size=1, retain_first=True),
    "titans window": nj.Memory(LINEAR, rule=RULES.titans(), chunk_size=3, window=5),
    "linear attention": nj.Memory(LINEAR, DOT, RULES.gated_gradient_descent(1.0), chunk_size=3),
}
MORE = {
    "delta": nj.Memory(LINEAR, rule=RULES.gradient_descent(), chunk_size=1),
    "titans online": nj.Memory(LINEAR, rule=RULES.titans(), chunk_size=1, read="before"),
    "delta gradient descent": nj.Memory(LINEAR, rule=RULES.delta_gradient_descent(), chunk_size=1),
    "erasing chunks": nj.Memory(LINEAR, rule=RULES.hope(), chunk_size=3, read="start"),
    "retain first": nj.Memory(LINEAR, rule=RULES.titans(), chunk_size=3, read="start", retain_first=True),
    "momentum of linear attention": nj.Memory(LINEAR, DOT, RULES.titans(), chunk_size=2),
    "per chunk": nj.Memory(LINEAR, rule=RULES.titans(), chunk_size=2, step_per="chunk", read="start", window=3),
    "scan": nj.Memory(LINEAR, rule=RULES.titans(), chunk_size=3, implementation="scan"),
    "materialize": nj.Memory(LINEAR, rule=RULES.titans(), chunk_size=3, implementation="materialize"),
    "stock": nj.Memory(LINEAR, rule=optax.sgd(0.05, momentum=0.9, nesterov=True), chunk_size=6),
}


def mesh():
    return jax.make_mesh((MEMBERS,), ("sequence",), axis_types=(AxisType.Auto,))


def data(memory: nj.Memory, dtype=jnp.float64, dims=(DIM_K, DIM_V)):
    """Initial weights, keys, values, queries, gates and resets; the last piece has none of these."""
    rng = np.random.default_rng(0)
    keys, values, queries = (rng.normal(size=(ROWS, TOKENS, dim)) / 2 for dim in (dims[0], dims[1], dims[0]))
    weights = {"w": rng.normal(size=(ROWS, *dims))}
    free = [name for name, constant in memory.gates({"w": weights["w"][0]}).items() if constant is None]
    gates = {name: rng.uniform(0.05, 0.4, (ROWS, TOKENS)) for name in free}
    if memory.window > 1:
        gates["window"] = rng.uniform(0.5, 1.0, (ROWS, TOKENS, memory.window))
    reset = rng.uniform(size=(ROWS, TOKENS // memory.chunk_size)) < 0.25
    reset[:, -TOKENS // memory.chunk_size // MEMBERS :] = False
    return *jax.tree.map(lambda x: jnp.asarray(x, dtype), (weights, keys, values, queries, gates)), jnp.asarray(reset)


def whole(memory: nj.Memory):
    def run(weights, keys, values, queries, gates, reset):
        return jax.vmap(memory.scan)(jax.vmap(memory.start)(weights), keys, values, queries, gates, reset)

    return run


def split(memory: nj.Memory):
    def run(weights, *arguments):
        time = P(None, "sequence")
        piece = lambda *given: across.scan_across(memory, "sequence", *given)
        places = P(), time, time, time, time, time
        sharded = jax.shard_map(piece, mesh=mesh(), in_specs=places, out_specs=(time, P()), check_vma=False)
        return sharded(jax.vmap(memory.start)(weights), *arguments)

    return run


def everything(run, arguments):
    """Outputs, final state and gradients of a loss that reads all of them."""

    def loss(*floats):
        y, state = run(*floats, arguments[-1])
        if state.window is not None:  # places that no token fills may hold anything
            live = (
                jnp.arange(state.window.keys.shape[1])[None] >= state.window.keys.shape[1] - state.window.seen[:, None]
            )
            keep = lambda x: jnp.where(live[..., None], x, 0)
            window = state.window._replace(keys=keep(state.window.keys), values=keep(state.window.values))
            state = nj.MemoryState(state.weights, state.rule_state, state.initial, window, state.open)
        floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
        return jnp.sum(jnp.sin(y)) + sum(jnp.sum(jnp.cos(x)) for x in floats), (y, state)

    return jax.jit(jax.value_and_grad(loss, range(5), has_aux=True))(*arguments[:-1])


def agree(memory: nj.Memory, dtype, tolerance: float):
    arguments = data(memory, dtype)
    expected, found = (everything(run(memory), arguments) for run in (whole, split))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), expected, found)


@pytest.mark.parametrize("name", MEMORIES)
def test_pieces_equal_the_whole(name, x64):
    assert across.form(MEMORIES[name], (DIM_K, DIM_V)).kind == "affine"
    agree(MEMORIES[name], jnp.float64, 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_pieces_of_more_memories_equal_the_whole(name, x64):
    assert across.form(MORE[name], (DIM_K, DIM_V)).kind == "affine"
    agree(MORE[name], jnp.float64, 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MEMORIES, *MORE])
def test_pieces_equal_the_whole_in_single_precision(name):
    agree((MEMORIES | MORE)[name], jnp.float32, 1e-5)


@pytest.mark.parametrize(
    ("memory", "words"),
    [
        (nj.Memory(nj.networks.MLP()), "other weights than one matrix"),
        (nj.Memory(LINEAR, nj.objectives.lp(3)), "not linear in prediction and value"),
        (nj.Memory(LINEAR, nj.objectives.huber()), "gates of its own"),
        (nj.Memory(LINEAR, rule=RULES.atlas(), window=2), "not linear: `reshape`"),
        (nj.Memory(LINEAR, rule=RULES.adam(0.1)), "not linear: `mul`"),
        (nj.Memory(LINEAR, rule=optax.adam(0.1)), "not linear"),
        (nj.Memory(LINEAR, rule=RULES.memora(axis=0)), "a map of an accumulator"),
        (nj.Memory(LINEAR, rule=optax.chain(optax.ema(0.8), optax.scale(-0.1))), "has a clock"),
        (nj.Memory(LINEAR, rule=optax.trace(0.9, accumulator_dtype=jnp.bfloat16)), "`convert_element_type`"),
        (nj.Memory(LINEAR, rule=RULES.titans(), chunk_size=1, window=2), "token by token"),
        (nj.Memory(LINEAR, rule=RULES.adam(0.1), step_per="chunk", read="start"), "not linear"),
    ],
)
def test_what_is_not_known_to_be_affine_is_not_called_so(memory, words):
    found = across.form(memory, (8, 8))
    assert found.kind == "ring"
    assert words in found.reason, found.reason


def test_gates_per_channel_are_not_called_affine():
    memory = nj.Memory(LINEAR, rule=RULES.titans(), chunk_size=4)
    assert across.form(memory, 8).kind == "affine"
    assert "per channel" in across.form(memory, 8, ["decay"]).reason


@pytest.mark.parametrize(("states", "dim_k", "dim_v", "wide"), [(2, 3, 4, True), (1, 2, 5, True), (3, 4, 2, False)])
def test_a_map_is_found_from_what_it_does(states, dim_k, dim_v, wide):
    rng = np.random.default_rng(0)
    size = states * dim_k if wide else states
    linear, constant = rng.normal(size=(size, size)), rng.normal(size=(states, dim_k, dim_v))
    true = pieces.Map(jnp.float32(linear), jnp.float32(constant))
    found = pieces.piece_map(true, true.constant, wide)
    np.testing.assert_allclose(found.linear, true.linear, atol=1e-6)
    np.testing.assert_allclose(found.constant, true.constant, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "floats"),
    [
        ("delta", DIM_K * (DIM_K + DIM_V)),
        ("linear attention", 1 + DIM_K * DIM_V),
    ],
)
def test_one_all_gather_of_the_map(name, floats):
    memory = (MEMORIES | MORE)[name]
    arguments = data(memory, jnp.float32)
    text = jax.jit(split(memory)).lower(*arguments).compile().as_text()
    collectives = re.findall(
        r"= (\S+) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(", text
    )
    assert [kind for _, kind in collectives] == ["all-gather"]
    (shape,) = [re.match(r"f32\[([\d,]+)\]", shape)[1] for shape, _ in collectives]
    assert np.prod([int(n) for n in shape.split(",")]) == MEMBERS * ROWS * floats


def test_a_mesh_changes_no_plan():
    """Where there is one, jax writes into gradients where they lie: no operation on them."""
    online = nj.Memory(LINEAR, rule=RULES.titans(), chunk_size=1)
    found = []

    def inside(x):
        found.append((online.plan(8).implementation, across.form(online, 8).kind))
        return x

    with jax.set_mesh(mesh()):
        inside(0)
        jax.eval_shape(jax.shard_map(inside, in_specs=P("sequence"), out_specs=P("sequence")), jnp.zeros(MEMBERS))
    assert found == [("delta", "affine")] * 2


def test_what_fits():
    memory = nj.Memory(LINEAR, rule=RULES.titans(), chunk_size=4, window=6)
    assert across.fits(memory, 32, 4)
    assert not across.fits(memory, 30, 4)
    assert not across.fits(memory, 24, 4)
    assert not across.fits(memory, 16, 4)
