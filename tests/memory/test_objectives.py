"""Objectives against the printed gradients, and the gates that some of them read."""

import dataclasses

import jax
import jax.numpy as jnp
import memory_table as table
import numpy as np
import pytest

import nested_jax as nj

ERROR = jnp.array([[0.5, -3.0, 0.1, 2.0]])


def slope(objective, error=ERROR, **gates):
    return jax.grad(lambda e: jnp.sum(objective(e, jnp.zeros_like(e), **gates)))(error)


def close(one, two, tolerance=1e-12):
    np.testing.assert_allclose(one, two, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, 4])
def test_lp_is_equation_11(p, x64):
    error = jnp.float64(ERROR)
    close(slope(nj.objectives.lp(p, eps=1e-12), error), jnp.sign(error) * jnp.abs(error) ** (p - 1), 1e-5)
    assert jnp.isfinite(slope(nj.objectives.lp(p), 0 * error)).all()


def test_huber_of_coordinates_is_equation_14(x64):
    close(slope(nj.objectives.huber(1.0, "coordinate")), jnp.clip(ERROR, -1, 1))


@pytest.mark.parametrize("delta", [1.0, 10.0])
def test_huber_of_the_norm_is_equation_15(delta, x64):
    norm = jnp.linalg.norm(ERROR)
    close(slope(nj.objectives.huber(delta, "norm")), ERROR * jnp.minimum(1.0, delta / norm))


@pytest.mark.parametrize("delta", [1.0, 10.0])
def test_the_mixture_is_equation_16(delta, x64):
    inside = jnp.linalg.norm(ERROR) <= delta
    close(slope(nj.objectives.huber(delta)), ERROR if inside else delta * jnp.sign(ERROR))


def test_robust_is_the_worst_shift_of_equation_17(x64):
    error = jnp.float64(ERROR)
    close(slope(nj.objectives.robust(0.5), error), error * (1 + 0.5 / jnp.linalg.norm(error)))
    shifts = np.random.default_rng(0).normal(size=(2000, 4))
    shifts *= 0.5 / np.linalg.norm(shifts, axis=1, keepdims=True)
    worst = np.max(np.sum((np.asarray(error) + shifts) ** 2, 1)) / 2
    bound = float(nj.objectives.robust(0.5)(error, 0 * error)[0]) + 0.5 * 0.5**2
    assert 0.99 * bound < worst <= bound
    assert jnp.isfinite(slope(nj.objectives.robust(0.5), 0 * error)).all()


@pytest.mark.slow
@pytest.mark.parametrize("window", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_gate_of_the_objective_belongs_to_its_token(window, x64):
    """Also in a window, where a past token keeps its own."""
    memory = nj.Memory(
        nj.networks.Linear(),
        nj.objectives.huber(kind="norm"),
        nj.rules.gradient_descent(0.1),
        chunk_size=4,
        window=window,
    )
    data, weights = table.data(memory, 10), table.weights(memory)
    deltas = jnp.asarray(np.random.default_rng(5).uniform(0.1, 1.0, size=10))
    y, after = memory.scan(memory.start(weights), *data[:3], {**data.gates, "delta": deltas})

    w, start = weights["w"], weights["w"]
    for t in range(10):
        start = w if t % 4 == 0 else start
        for age in range(min(window, t + 1)):
            error = data.keys[t - age] @ start - data.values[t - age]
            share = data.gates["window"][t, age] if window > 1 else 1.0
            shrink = jnp.minimum(1.0, deltas[t - age] / jnp.linalg.norm(error))
            w = w - data.gates["learning_rate"][t] * share * shrink * jnp.outer(data.keys[t - age], error)
        close(y[t], data.queries[t] @ w, 1e-10)

    state = memory.start(weights)
    for t in range(10):
        gates = {name: gate[t] for name, gate in {**data.gates, "delta": deltas}.items()}
        answer, state = memory.step(state, data.keys[t], data.values[t], data.queries[t], gates)
        close(answer, y[t], 1e-10)
    assert memory.plan(4).implementation == "dual"
    assert jax.tree.structure(state) == jax.tree.structure(after)


@pytest.mark.parametrize("count", [3, 4])
def test_packed_gates_of_tokens_and_of_features_are_told_apart(count):
    """Also where there are as many tokens as features."""
    objective, values = nj.objectives.huber(), jnp.zeros((count, 4))
    of_token, wide = jnp.arange(1.0, count + 1), jnp.arange(1.0, 4 * count + 1).reshape(count, 4)
    found = nj.objectives.pack(objective, values, {"delta": of_token})[:, 4:]
    np.testing.assert_array_equal(found, np.repeat(of_token[:, None], 4, 1))
    np.testing.assert_array_equal(nj.objectives.pack(objective, values, {"delta": wide})[:, 4:], wide)
    np.testing.assert_array_equal(nj.objectives.pack(objective, values[0], {"delta": of_token[1]})[4:], np.full(4, 2.0))
    np.testing.assert_array_equal(nj.objectives.pack(objective, values[0], {"delta": wide[0]})[4:], wide[0])
    np.testing.assert_array_equal(
        nj.objectives.pack(nj.objectives.huber(0.5), values, {})[:, 4:], np.full(wide.shape, 0.5)
    )
    for shape in ((count, 1), (count, 5), (count + 1,), ()):
        with pytest.raises(ValueError, match=r"gates\['delta'\]: expected shape \(.,\), or \(., 4\) for a value"):
            nj.objectives.pack(objective, values, {"delta": jnp.ones(shape)})


def test_a_bound_per_feature():
    """Each feature by its own; where only one number makes sense, their mean."""
    wide = jnp.array([[1.0, 0.25, 9.0, 0.5]])
    close(slope(nj.objectives.huber(kind="coordinate"), delta=wide), jnp.clip(ERROR, -wide, wide))
    norm = jnp.linalg.norm(ERROR)
    close(slope(nj.objectives.huber(), delta=wide), jnp.where(norm <= wide, ERROR, wide * jnp.sign(ERROR)))
    for build in (lambda delta: nj.objectives.huber(delta, "norm"), nj.objectives.robust):
        close(slope(build(None), delta=wide), slope(build(10.75 / 4)), 1e-6)


def test_an_online_linear_memory_with_such_an_objective_is_scanned(x64):
    """Its error is not affine; asking why does not need a value of the gate."""
    memory = nj.Memory(
        nj.networks.Linear(), nj.objectives.huber(kind="norm"), nj.rules.gradient_descent(), chunk_size=1
    )
    assert memory.plan(4).implementation == "scan"
    assert "its objective reads gates" in memory.plan(4).reason
    data, weights = table.data(memory, 5), table.weights(memory)
    deltas = jnp.linspace(0.1, 1.0, 5)
    y, _ = memory.scan(memory.start(weights), *data[:3], {**data.gates, "delta": deltas})
    state = memory.start(weights)
    for t in range(5):
        gates = {"learning_rate": data.gates["learning_rate"][t], "delta": deltas[t]}
        answer, state = memory.step(state, data.keys[t], data.values[t], data.queries[t], gates)
        close(answer, y[t])


@pytest.mark.slow
def test_a_layer_records_the_loss_of_such_an_objective():
    memory = nj.Memory(nj.networks.Linear(), nj.objectives.huber(), nj.rules.yaad(), chunk_size=4)
    layer = nj.models.memory_layer.MemoryLayer(nj.models.MemoryConfig(memory=memory, heads=2, conv=0), 8)
    x = jax.random.normal(jax.random.key(0), (1, 8, 8))
    params = {"params": layer.init(jax.random.key(1), x)["params"]}
    _, found = layer.apply(params, x, mutable=["diagnostics"])
    assert jnp.isfinite(found["diagnostics"]["inner_loss"]).all()
    assert float(found["diagnostics"]["delta"]) == pytest.approx(0.5)


def test_gates_of_objectives_are_checked():
    memory = nj.Memory(nj.networks.Linear(), nj.objectives.huber(), nj.rules.gradient_descent(0.1), chunk_size=2)
    state, x = memory.start(memory.init(jax.random.key(0), 4)), jnp.ones((2, 4))
    assert memory.gates() == {"learning_rate": 0.1, "delta": None}
    with pytest.raises(ValueError, match=r"expected a value for \['delta'\]"):
        memory.scan(state, x, x, x)
    with pytest.raises(ValueError, match="did you mean 'delta'"):
        memory.scan(state, x, x, x, {"detla": jnp.ones(2)})
    constant = dataclasses.replace(memory, objective=nj.objectives.huber(0.5))
    given = memory.scan(state, x, x, x, {"delta": jnp.full(2, 0.5)})[0]
    assert jnp.array_equal(constant.scan(state, x, x, x)[0], given)


@pytest.mark.parametrize("build", [lambda: nj.objectives.lp(0.5), lambda: nj.objectives.lp(1, eps=0.0)])
def test_lp_out_of_range(build):
    with pytest.raises(ValueError, match="must be"):
        build()


def test_huber_and_robust_out_of_range():
    with pytest.raises(ValueError, match="delta must be above 0"):
        nj.objectives.huber(0.0)
    with pytest.raises(ValueError, match="kind must be one of"):
        nj.objectives.huber(1.0, "norms")
    with pytest.raises(ValueError, match="delta must be at least 0"):
        nj.objectives.robust(-1.0)
