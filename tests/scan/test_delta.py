"""The delta form: against the token-by-token definition, and which memories it can run."""

import dataclasses
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nested_jax as nj
from nested_jax.scan import affine, delta
from nested_jax.scan.structure import System

LINEAR, L2, DOT = nj.networks.Linear(), nj.objectives.l2, nj.objectives.dot_product
DIM_K, DIM_V = 6, 4

RULES = {
    "delta": nj.rules.gradient_descent(),
    "gated": nj.rules.gated_gradient_descent(),
    "titans": nj.rules.titans(),
    # A schedule that is exact in single precision, in which optax computes it.
    "sgd": optax.chain(optax.add_decayed_weights(0.1), optax.sgd(optax.linear_schedule(1.0, 0.25, 64))),
}


class Data(NamedTuple):
    keys: jax.Array
    values: jax.Array
    queries: jax.Array
    gates: dict[str, jax.Array]


def memory(rule: str = "gated", **options: Any) -> nj.Memory:
    defaults: dict[str, Any] = {"network": LINEAR, "chunk_size": 1, "implementation": "delta"}
    return nj.Memory(rule=RULES[rule], **(defaults | options))


def data(tokens: int, rule: str = "gated", correlation: float = 0.0, ends: bool = False) -> Data:
    """Unit keys of some correlation, learning rates up to 1; with `ends` half of the gates are exactly 0 or 1."""
    rng = np.random.default_rng(tokens)
    common = np.sqrt(correlation) * rng.normal(size=DIM_K)
    keys, queries = np.sqrt(1 - correlation) * rng.normal(size=(2, tokens, DIM_K)) + common
    keys, queries = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (keys, queries))
    gates = {"learning_rate": rng.uniform(size=tokens), "decay": 0.3 * rng.uniform(size=tokens)}
    gates["momentum"] = 0.5 * rng.uniform(size=tokens)
    if ends:
        pick = rng.integers(4, size=(3, tokens))
        gates = {n: np.where(c < 2, c, gate) for (n, gate), c in zip(gates.items(), pick, strict=True)}
    used = {name: gates[name] for name in nj.gates(RULES[rule], {"w": np.zeros((DIM_K, DIM_V))})}
    return jax.tree.map(jnp.asarray, Data(keys, rng.normal(size=(tokens, DIM_V)), queries, used))


def weights(seed: int = 0) -> dict[str, jax.Array]:
    return {"w": jnp.asarray(np.random.default_rng(seed).normal(size=(DIM_K, DIM_V)))}


def using(m: nj.Memory, implementation: str) -> nj.Memory:
    return dataclasses.replace(m, implementation=implementation)


def everything(m: nj.Memory, inputs: Data, reset=None):
    """Outputs, final state and the gradients of a function of both in the weights, all inputs and all gates."""

    def loss(weights, inputs):
        y, state = m.scan(m.start(weights), *inputs, reset)
        carried = [x for x in jax.tree.leaves((state.weights, state.rule_state)) if x.ndim]
        return jnp.sum(jnp.sin(y)) + sum(jnp.sum(jnp.cos(x)) for x in carried), (y, state)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(weights(), inputs)


def assert_same(m: nj.Memory, inputs: Data, reset=None, tolerance: float = 1e-10):
    found, expected = (everything(using(m, name), inputs, reset) for name in ("delta", "scan"))
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        assert jnp.isfinite(b).all(), path
        assert np.allclose(a, b, rtol=tolerance, atol=tolerance), (path, float(jnp.abs(a - b).max()))


def some_resets(tokens: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).uniform(size=tokens) < 0.2).at[tokens // 2].set(True)


CASES = [
    (1, "gated", L2, True, "after", False),
    (5, "gated", L2, False, "before", True),
    (64, "delta", DOT, False, "start", False),
    (130, "titans", L2, True, "after", True),
]
EVERY = list(
    itertools.product((1, 5, 64, 65, 130), RULES, (L2, DOT), (False, True), ("after", "before", "start"), (False, True))
)


def name_of(case) -> str:
    return "-".join(getattr(part, "__name__", str(part)) for part in case)


def agree(tokens, rule, objective, retain_first, read, with_resets):
    m = memory(rule, objective=objective, retain_first=retain_first, read=read)
    assert_same(m, data(tokens, rule), some_resets(tokens) if with_resets else None)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_the_delta_form_is_the_scan(case, x64):
    agree(*case)


@pytest.mark.slow
@pytest.mark.parametrize("case", EVERY, ids=name_of)
def test_the_delta_form_is_the_scan_everywhere(case, x64):
    """Every length, rule, objective, order of decay and read, with and without resets: `pytest -m slow tests/scan`."""
    agree(*case)


def test_gates_at_their_ends_and_correlated_keys(x64):
    """Learning rates and decays of exactly 0 and 1, keys of correlation 0.9: no ratio of masks is ever formed."""
    assert_same(memory(retain_first=True), data(70, correlation=0.9, ends=True))


def test_single_precision():
    """The same in float32; errors relative to the largest entry of each array."""
    m, inputs = memory(retain_first=True), data(30, correlation=0.9, ends=True)
    found, expected = (everything(using(m, name), inputs) for name in ("delta", "scan"))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert float(jnp.abs(a - b).max()) <= 1e-5 * max(1.0, float(jnp.abs(b).max()))


def test_no_output_knows_a_later_token(x64):
    """Across the edge of a block and inside it, exactly."""
    m, inputs = memory(retain_first=True), data(70)
    scan, state = jax.jit(m.scan), memory().start(weights())
    y, _ = scan(state, *inputs)
    for p in (0, 31, 63, 64, 69):
        changed, _ = scan(state, *jax.tree.map(lambda x, p=p: x.at[p].add(0.5), inputs))
        assert np.array_equal(changed[:p], y[:p])
        assert not np.array_equal(changed[p:], y[p:])


@pytest.mark.parametrize("rule", ["titans", "sgd"])
def test_hand_off_then_steps(rule, x64):
    """Cut inside a block, go on token by token from there, clocks and momentum included."""
    m, inputs = memory(rule), data(70, rule)
    y, last = jax.jit(m.scan)(m.start(weights()), *inputs)
    first, state = jax.jit(m.scan)(m.start(weights()), *jax.tree.map(lambda x: x[:66], inputs))
    outputs, step = [first], jax.jit(m.step)
    for t in range(66, 70):
        out, state = step(state, *jax.tree.map(lambda x, t=t: x[t], inputs))
        outputs.append(out[None])
    assert np.allclose(jnp.concatenate(outputs), y, rtol=1e-12, atol=1e-12)
    assert jax.tree.structure(state) == jax.tree.structure(last)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(last), strict=True):
        assert a.dtype == b.dtype
        assert np.allclose(a, b, rtol=1e-12, atol=1e-12)


def test_second_derivatives(x64):
    """Forward over reverse, in the scale of all learning rates."""
    inputs, w = data(5), weights()

    def curvature(name):
        m = memory(implementation=name)

        def loss(scale):
            gates = inputs.gates | {"learning_rate": scale * inputs.gates["learning_rate"]}
            return jnp.sum(jnp.sin(m.scan(m.start(w), *inputs[:3], gates)[0]))

        return jax.jit(jax.jacfwd(jax.grad(loss)))(1.0)

    assert np.allclose(curvature("delta"), curvature("scan"), rtol=1e-10)


@pytest.mark.parametrize("read", ["after", "before"])
@pytest.mark.parametrize("slopes", [True, False])
def test_any_linear_system_with_errors_of_its_own(read, slopes, x64):
    """`online` by itself, on a system of two states with signs and sizes that no rule has, heads by `vmap`."""
    tokens, heads = 11, 3
    rng = np.random.default_rng(0)
    A, B = 0.6 * rng.normal(size=(heads, tokens, 2, 2)), rng.normal(size=(heads, tokens, 2))
    s, k, q = (0.5 * rng.normal(size=(heads, tokens, *d)) for d in ((), (DIM_K,), (DIM_K,)))
    r = rng.normal(size=(heads, tokens, DIM_V))
    starts = rng.normal(size=(heads, 2, DIM_K, DIM_V))
    s = s if slopes else None

    def run(A, B, s, r, k, q, z):
        return delta.online(System(A, B, B, B[:, 0]), s, r, k, q, list(z), read=read)

    y, end = jax.jit(jax.vmap(run))(*jax.tree.map(jnp.asarray, (A, B, s, r, k, q, starts)))
    for h in range(heads):
        z = starts[h]
        for t in range(tokens):
            before = z[0]
            e = (s[h, t] * k[h, t] @ z[0] if slopes else 0.0) + r[h, t]
            z = np.einsum("ij,jkl->ikl", A[h, t], z) + B[h, t][:, None, None] * np.outer(k[h, t], e)
            assert np.allclose(y[h, t], q[h, t] @ (z[0] if read == "after" else before), rtol=1e-10, atol=1e-10)
        assert np.allclose(np.stack([x[h] for x in end]), z, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_heads_and_batch_by_vmap(monkeypatch):
    """Two leading axes over (short) blocks, forward and backward, each row with resets of its own."""
    monkeypatch.setattr(delta, "BLOCK", 8)
    m, rows = memory("delta"), (2, 3)
    stack = lambda x: x[None, None] * jnp.linspace(0.5, 1.0, 6).reshape(*rows, *[1] * x.ndim)
    inputs = jax.tree.map(stack, data(20, "delta"))
    reset = jnp.stack([jnp.arange(20) % (9 + i) == 8 for i in range(6)]).reshape(*rows, 20)

    def one(inputs, reset):
        return jax.grad(lambda x: jnp.sum(jnp.sin(m.scan(m.start(weights()), *x, reset)[0])))(inputs)

    found = jax.jit(jax.vmap(jax.vmap(one)))(inputs, reset)
    expected = jax.jit(one)(*jax.tree.map(lambda x: x[1, 2], (inputs, reset)))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.allclose(a[1, 2], b, rtol=1e-5, atol=1e-5)


def test_a_sequence_without_tokens():
    m = memory()
    y, state = m.scan(m.start(weights()), *data(0))
    assert y.shape == (0, DIM_V)
    assert np.array_equal(state.weights["w"], m.start(weights()).weights["w"])


def read(network, objective, dims=(DIM_V, DIM_V)):
    m = nj.Memory(network=network, objective=objective, rule=RULES["delta"], chunk_size=1)
    shapes = jax.eval_shape(lambda key: m.init(key, dims), jax.random.key(0))
    return affine.read(m, shapes)


@pytest.mark.parametrize(
    ("network", "objective", "slope"),
    [
        (LINEAR, L2, 1.0),
        (LINEAR, DOT, 0.0),
        (LINEAR, lambda p, v: 3 * L2(p, v) + DOT(p, v), 3.0),
        (LINEAR, lambda p, v: jnp.mean(jnp.square(p - v), -1), 0.5),
        (nj.networks.MLP(depth=1, residual=False), L2, 1.0),
        (nj.networks.MLP(depth=1), L2, 1.0),
    ],
)
def test_affine_errors_are_found(network, objective, slope, x64):
    """The slope is read off, and the memory with it (a residual's input too) is that of the scan."""
    assert float(read(network, objective)[0].slope) == slope
    m = nj.Memory(network=network, objective=objective, rule=RULES["gated"], chunk_size=1)
    assert m.plan(DIM_V).implementation == "delta"
    inputs = data(5)
    inputs = inputs._replace(keys=inputs.keys[:, :DIM_V], queries=inputs.queries[:, :DIM_V])
    name = next(iter(m.init(jax.random.key(0), DIM_V)))
    state = m.start({name: weights()["w"][:DIM_V]})
    y, expected = (jax.jit(using(m, i).scan)(state, *inputs)[0] for i in ("delta", "scan"))
    assert np.allclose(y, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("network", "objective", "reason"),
    [
        (nj.networks.MLP(), L2, "other weights than one matrix"),
        (nj.networks.MLP(depth=1, bias=True), L2, "other weights than one matrix"),
        (LINEAR, lambda p, v: jnp.sum(jnp.abs(p - v) ** 3, -1), "is in it"),
        (LINEAR, lambda p, v: jnp.sum(jnp.abs(p - v), -1), "is in it"),
        (LINEAR, lambda p, v: 0.5 * jnp.sum(p - v, -1) ** 2, "`reduce_sum` is in it"),
        (LINEAR, lambda p, v: L2(p, jax.lax.stop_gradient(p) + v), "is in it"),
        (LINEAR, lambda p, v: L2(p[::-1], v), "`rev` is in it"),
        (LINEAR, lambda p, v: jnp.sum(p * p * jnp.arange(4.0)[None], -1), "a slope of its own for every feature"),
        (LINEAR, lambda p, v: jnp.sum(p * p * jnp.arange(8.0).reshape(2, 4), -1), "`mul` is in it"),
    ],
)
def test_other_errors_are_not_called_affine(network, objective, reason):
    affine_error, why = read(network, objective)
    assert affine_error is None
    assert reason in why


@dataclasses.dataclass(frozen=True)
class Shifted(nj.networks.Linear):
    """A network that is not the dense layer on the token itself."""

    def __call__(self, operations, x):
        return operations.dense("w", 2 * x)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"network": Shifted()}, "its network is not one dense layer on the token itself"),
        ({"network": nj.networks.MLP()}, "its network has other weights than one matrix"),
        ({"chunk_size": 4}, "with chunk_size=4 they are taken at the weights of a chunk's start"),
        ({"step_per": "chunk", "read": "start"}, "one step per chunk"),
        ({"window": 2}, "with window=2"),
        ({"rule": nj.rules.atlas()}, "the rule has a map that is not linear"),
        ({"rule": optax.adam(0.1)}, "a rule that can be run over a chunk at once, but .* is sequential"),
    ],
)
def test_a_memory_that_is_not_linear_and_online_says_why(options, reason):
    options = {"network": LINEAR, "chunk_size": 1, "implementation": "delta", "rule": RULES["gated"]} | options
    with pytest.raises(ValueError, match=f"implementation='delta': expected .*{reason}"):
        nj.Memory(**options).plan(DIM_V)
    if options["chunk_size"] == 1 and options.get("step_per") is None:
        assert nj.Memory(**options | {"implementation": "auto"}).plan(DIM_V).implementation == "scan"


def test_gates_per_channel_fall_back_to_the_scan():
    inputs, m = data(5), memory(implementation="auto")
    wide = {name: jnp.broadcast_to(gate[:, None], (5, DIM_V)) for name, gate in inputs.gates.items()}
    state = m.start(weights())
    found, expected = (jax.jit(m.scan)(state, *inputs[:3], gates)[0] for gates in (wide, inputs.gates))
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"implementation='delta': expected .* has a value per channel"):
        using(m, "delta").scan(state, *inputs[:3], wide)


def test_explain_says_it_in_words(capsys):
    nj.explain(memory(implementation="auto"), dim=8)
    text = capsys.readouterr().out
    assert "implementation: delta. Gradients at the current weights, in blocks of tokens" in text
