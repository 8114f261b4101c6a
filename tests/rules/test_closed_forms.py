"""Rules against their textbook formulas, and the claims that optimizers are memories against numerical minimisers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nested_jax as nj
from nested_jax import rules
from nested_jax.kernels import orthogonalize
from nested_jax.rules._adaptive import inverse_root

STEPS = 100


def stream(count=STEPS, shape=(3, 4), seed=0):
    return list(np.random.default_rng(seed).normal(size=(count, *shape)))


def outputs(rule, gradients, weights=None, **gates):
    """What a rule makes of gradients one after the other, at weights that follow it."""
    weights = jnp.zeros_like(jnp.asarray(gradients[0])) if weights is None else weights
    state, found = rule.init(weights), []
    for gradient in gradients:
        update, state = rule.update(jnp.asarray(gradient), state, weights, **gates)
        weights = weights + update
        found.append(update)
    return found, weights


def close(one, two, tolerance=1e-12):
    np.testing.assert_allclose(one, two, rtol=tolerance, atol=tolerance)


def minimise(loss, start):
    """The minimiser of a strongly convex quadratic by one Newton step in f64."""
    flat, shape = start.ravel(), start.shape
    wrapped = lambda x: loss(x.reshape(shape))
    found = flat - jnp.linalg.solve(jax.hessian(wrapped)(flat), jax.grad(wrapped)(flat))
    assert jnp.max(jnp.abs(jax.grad(wrapped)(found))) < 1e-10
    return found.reshape(shape)


def test_the_average_is_the_proximal_step_of_a_dot_product_memory(x64):
    """M = argmin −⟨M, g⟩ + ½‖M‖² + c/2 ‖M − M_before‖² with c = η / (1 − η)."""
    eta, mean = 0.8, jnp.zeros([3, 4])
    found, _ = outputs(rules.average(eta), stream(5))
    for gradient, expected in zip(stream(5), found, strict=True):

        def loss(m, gradient=gradient, before=mean):
            proximity = 0.5 * eta / (1 - eta) * jnp.sum((m - before) ** 2)
            return -jnp.sum(m * gradient) + 0.5 * jnp.sum(m**2) + proximity

        mean = minimise(loss, mean)
        close(mean, expected)


def test_the_regression_memory_of_gradients_is_preconditioned_not_an_average(x64):
    """Σ_i ‖m ⊙ g_i − P‖² + λ‖m‖² has the minimiser P Σg / (Σg² + λ): momentum over a second moment."""
    gradients, target, penalty = jnp.asarray(stream(7)), 2.0, 0.5
    loss = lambda m: jnp.sum((m[None] * gradients - target) ** 2) + penalty * jnp.sum(m**2)
    found = minimise(loss, jnp.zeros([3, 4]))
    close(found, target * jnp.sum(gradients, 0) / (jnp.sum(gradients**2, 0) + penalty), 1e-10)
    averaged, _ = outputs(rules.average(0.8), stream(7))
    assert jnp.max(jnp.abs(found / averaged[-1] - (found / averaged[-1])[0, 0])) > 0.1


def test_adagrad_with_summed_momentum_is_that_memory_with_the_target_of_its_own_size(x64):
    """With P = √Σg² and no penalty: Σg / √Σg²."""
    found, _ = outputs(rules.adagrad(1.0, 1.0, eps=0.0), stream(20))
    total, squares = np.sum(stream(20), axis=0), np.sum(np.square(stream(20)), axis=0)
    close(found[-1], -total / np.sqrt(squares))


@pytest.mark.parametrize("debias", [True, False])
def test_adam_is_optax_adam(debias):
    ours, _ = outputs(rules.adam(0.1, 0.9, 0.999, debias=debias), np.float32(stream()))
    stock = optax.scale_by_adam(0.9, 0.999)
    if debias:
        theirs, _ = outputs(optax.chain(stock, optax.scale(-0.1)), np.float32(stream()))
    else:
        mean, square, theirs = 0.0, 0.0, []
        for g in stream():
            mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
            theirs.append(-0.1 * mean / (np.sqrt(square) + 1e-8))
    close(jnp.stack(ours), jnp.stack(theirs), 1e-6)


def test_adagrad_is_optax_rss():
    ours, _ = outputs(rules.adagrad(0.1, 0.0, eps=1e-7), np.float32(stream()))
    theirs, _ = outputs(
        optax.chain(optax.scale_by_rss(initial_accumulator_value=0.0, eps=1e-7), optax.scale(-0.1)),
        np.float32(stream()),
    )
    close(jnp.stack(ours), jnp.stack(theirs), 1e-6)


def test_outer_product_adagrad_divides_by_the_matrix_root(x64):
    found, _ = outputs(rules.adagrad(1.0, 0.5, eps=1e-3, outer_product=True), stream(9))
    moment, square = np.zeros([3, 4]), np.zeros([4, 4])
    for g in stream(9):
        moment, square = 0.5 * moment + g, square + g.T @ g
    values, vectors = np.linalg.eigh(square + 1e-3 * np.eye(4))
    close(found[-1], -moment @ (vectors / np.sqrt(values)) @ vectors.T, 1e-10)


@pytest.mark.slow
def test_the_matrix_root_has_derivatives_where_eigenvalues_coincide(x64):
    direction = jnp.array([[0.3, 1.0], [1.0, -0.7]])
    root = lambda t: inverse_root(4.0 * jnp.eye(2) + t * direction)
    first, second = jax.jacfwd(root), jax.jacfwd(jax.jacrev(root))
    close(first(0.0), -direction / 16)
    close(second(0.0), 3 / 4 * direction @ direction / 32)
    close(first(0.5), (root(0.5 + 1e-5) - root(0.5 - 1e-5)) / 2e-5, 1e-8)


def literal_m3(gradients, form, betas, alpha, period, rate, eps):
    """Algorithm 1 of Nested Learning, line by line; "ema" weighs past and new by β and 1 − β."""
    b1, b2, b3 = betas
    shape = gradients[0].shape
    m1, m2, v, o2, block = np.zeros([5, *shape])
    found = []
    for t, g in enumerate(gradients):
        if t and t % period == 0:
            m2 = m2 + b3 * block if form == "additive" else b3 * m2 + (1 - b3) * block
            o2, block = np.asarray(orthogonalize(jnp.asarray(m2))), np.zeros(shape)
        block = block + g
        m1 = m1 + b1 * g if form == "additive" else b1 * m1 + (1 - b1) * g
        v = v + b2 * g * g if form == "additive" else b2 * v + (1 - b2) * g * g
        total = 1.0 if form == "additive" else 1 - b2 ** (t + 1)
        o1 = np.asarray(orthogonalize(jnp.asarray(m1)))
        found.append(-rate * (o1 + alpha * o2) / np.sqrt(v / total + eps))
    return found


@pytest.mark.parametrize("form", ["additive", "ema"])
def test_m3_is_algorithm_1(form, x64):
    rule = rules.m3(0.1, 0.9, 0.8, 0.99, form=form, slow_weight=0.3, period=4, eps=1e-6)
    found, _ = outputs(rule, stream(11))
    expected = literal_m3(stream(11), form, (0.9, 0.99, 0.8), 0.3, 4, 0.1, 1e-6)
    close(jnp.stack(found), np.stack(expected), 1e-10)


def test_m3_gives_vectors_to_adam(x64):
    vectors = stream(9, (5,))
    found, _ = outputs(rules.m3(0.1, 0.9, 0.8, 0.99, eps=1e-8), vectors)
    close(jnp.stack(found), jnp.stack(outputs(rules.adam(0.1, 0.9, 0.99), vectors)[0]))


def test_running_mean_is_the_mean_of_a_mini_batch_so_far(x64):
    """W_t = W_0 + (1/i) Σ g, i the place in the mini-batch: the public TTT code's convention."""
    found, _ = outputs(rules.running_mean(3), stream(8))
    given, moved = np.stack(stream(8)), 0
    for t in range(8):
        begin = t - t % 3
        moved = moved + np.asarray(found[t])
        whole = sum(np.mean(given[first : first + 3], axis=0) for first in range(0, begin, 3))
        np.testing.assert_allclose(moved, whole + np.mean(given[begin : t + 1], axis=0), rtol=1e-12)


def test_every_with_hold_gives_out_the_last_step_for_a_whole_period(x64):
    found, _ = outputs(rules.every(3, optax.identity(), hold=True), stream(8))
    first, second = sum(stream(8)[:3]), sum(stream(8)[3:6])
    close(jnp.stack(found), np.stack([0 * first] * 3 + [first] * 3 + [second] * 2))


def test_delta_momentum_without_erasing_is_momentum(x64):
    plain = rules.chain(rules.scale_by_learning_rate(0.3), rules.momentum(0.8))
    found, _ = outputs(rules.delta_momentum(0.3, 0.8, erase=0.0), stream(9))
    close(jnp.stack(found), jnp.stack(outputs(plain, stream(9))[0]))


def test_delta_momentum_takes_the_proximal_step_for_gradients_of_rank_one(x64):
    gradient = jnp.outer(*map(jnp.asarray, (stream(1, (3,))[0], stream(1, (4,), 1)[0])))
    before = jnp.asarray(stream(1, seed=2)[0])
    state = rules.MomentumState(before)
    found, _ = rules.delta_momentum(0.7, 1.0).update(gradient, state)

    def loss(s):
        return 0.5 * jnp.sum((gradient.T @ s + jnp.eye(4)) ** 2) + 0.5 / 0.7 * jnp.sum((s - before) ** 2)

    close(found, minimise(loss, before), 1e-10)


def test_delta_momentum_is_bounded_where_the_printed_form_is_not(x64):
    gradients = [10 * g for g in stream(50)]
    derived, _ = outputs(rules.delta_momentum(1.0, 1.0), gradients)
    literal, _ = outputs(rules.delta_momentum(1.0, 1.0, form="literal"), gradients)
    assert jnp.max(jnp.abs(jnp.stack(derived))) < 10
    assert jnp.max(jnp.abs(jnp.stack(literal))) > 1e50


def test_literal_delta_momentum_is_equation_49(x64):
    found, _ = outputs(rules.delta_momentum(0.3, 0.9, form="literal"), [0.1 * g for g in stream(9)])
    m = np.zeros([4, 3])
    for g in (0.1 * g.T for g in stream(9)):
        m = m @ (0.9 * np.eye(3) - g.T @ g) - 0.3 * g
    close(found[-1], m.T)


class Zero(nj.networks.Linear):
    """A linear network that starts at zero."""

    def init(self, key, dim_k, dim_v):
        return jax.tree.map(jnp.zeros_like, super().init(key, dim_k, dim_v))


def test_linear_deep_momentum_with_identity_features_is_the_average(x64):
    memory = nj.Memory(
        network=Zero(),
        objective=nj.objectives.dot_product,
        rule=rules.gated_gradient_descent(0.2, 0.2),
        chunk_size=8,
        step_per="chunk",
        read="start",
    )
    rule = rules.deep_momentum(memory, keys=lambda g: jnp.eye(g.shape[0], dtype=g.dtype), values=lambda g: g)
    found, _ = outputs(rule, stream(9))
    close(jnp.stack(found), jnp.stack(outputs(rules.average(0.8), stream(9))[0]), 1e-6)


def test_a_window_sums_the_last_updates(x64):
    found, _ = outputs(rules.window(3, weights=[1.0, 0.5, 0.25]), stream(6))
    close(found[-1], stream(6)[-1] + 0.5 * stream(6)[-2] + 0.25 * stream(6)[-3])
    close(found[0], stream(6)[0])


def test_preconditioned_and_hebbian_momentum_are_equations_46_and_12(x64):
    twice = optax.stateless(lambda g, _: g @ jnp.diag(jnp.arange(4.0)))
    found, _ = outputs(rules.preconditioned_momentum(twice, 0.1, 0.9), stream(5))
    hebbian, _ = outputs(rules.hebbian_momentum(twice, 0.1), stream(5))
    m, h = np.zeros([3, 4]), np.zeros([3, 4])
    for g in stream(5):
        m, h = 0.9 * m - 0.1 * g @ np.diag(np.arange(4.0)), h - 0.1 * g @ np.diag(np.arange(4.0))
    close(found[-1], m)
    close(hebbian[-1], h)


@pytest.mark.parametrize("size", [1.0, 0.3, 4.0])
def test_delta_gradient_descent_solves_its_proximal_problem(size, x64):
    weights = jnp.asarray(stream(1)[0])
    x, delta = jnp.asarray(stream(1, (3,), 1)[0]), jnp.asarray(stream(1, (4,), 2)[0])
    x = size * x / jnp.linalg.norm(x)
    rule = rules.delta_gradient_descent(0.7)
    gradient = jnp.outer(x, delta)
    step, _ = rule.update(gradient, rule.init(weights), weights, inputs=x)

    def loss(w):
        return 0.5 * jnp.sum((x @ w + delta) ** 2) + 0.5 / 0.7 * jnp.sum((w - weights) ** 2)

    close(weights + step, minimise(loss, weights), 1e-10)
    if size == 1.0:
        alone, _ = rule.update(gradient, rule.init(weights), weights)
        close(alone, step)


def test_explicit_delta_gradient_descent_turns_answers_around(x64):
    """W (I − θ x x^T) − θ x δ^T as printed (Nested Learning 88): an answer times 1 − θ, of another sign beyond 1."""
    weights, x = jnp.asarray(stream(1)[0]), jnp.array([0.6, 0.0, 0.8])
    rule = rules.delta_gradient_descent(1.5, form="explicit")
    step, _ = rule.update(jnp.zeros([3, 4]), rule.init(weights), weights, inputs=x)
    close(x @ (weights + step), -0.5 * x @ weights)
    with pytest.raises(ValueError, match=r"form must be one of .* got 'implicit'"):
        rules.hope(form="implicit")


def test_delta_gradient_descent_over_a_batch_uses_means(x64):
    weights, inputs, errors = jnp.asarray(stream(1)[0]), *map(jnp.stack, (stream(6, (3,), 1), stream(6, (4,), 2)))
    rule, gradient = rules.delta_gradient_descent(0.7), inputs.T @ errors / 6
    step, _ = rule.update({"w": gradient}, rule.init(weights), {"w": weights}, inputs={"w": inputs})
    rate = 0.7 / (1 + 0.7 * np.mean(np.sum(inputs**2, 1)))
    close(step["w"], -rate * (inputs.T @ inputs @ weights / 6 + gradient))
    with pytest.raises(ValueError, match=r"inputs must be \[d_in\] or \[N, d_in\] with d_in = 3"):
        rule.update(gradient, rule.init(weights), weights, inputs=jnp.ones(4))


@pytest.mark.parametrize("q", [2, 2.5, 4])
def test_q_norm_weights_minimise_the_dual_norm(q, x64):
    dual, accumulator = q / (q - 1), jnp.asarray(stream(1)[0])
    weights = rules.q_norm_map(q).forward(accumulator)
    loss = lambda w: -jnp.sum(accumulator * w) + 0.5 * jnp.sum(jnp.abs(w) ** dual) ** (2 / dual)
    close(jax.grad(loss)(weights), jnp.zeros([3, 4]), 1e-10)


MAPS = {
    "softmax": rules.softmax_map(),
    "softmax of columns": rules.softmax_map(2.0, axis=0),
    "q 4": rules.q_norm_map(4),
    "q 2.5": rules.q_norm_map(2.5),
    "q 4 literal": rules.q_norm_map(4, literal=True),
    "soft threshold": rules.soft_threshold_map(0.2),
    "sigmoid": rules.sigmoid_map(),
}


@pytest.mark.parametrize("name", MAPS)
def test_maps_and_their_inverses(name, x64):
    map = MAPS[name]
    weights = map.forward(jnp.asarray(stream(1)[0]))
    close(map.forward(map.inverse(weights)), weights, 1e-10)
    close(map.forward(map.settled(map.inverse(weights))), weights, 1e-10)


@pytest.mark.slow
def test_moneta_with_p_and_q_of_two_is_l2(x64):
    keys, values = (jnp.stack(stream(9, (3,), seed)) for seed in (0, 1))
    found = []
    for rule, objective in (
        (rules.moneta(0.1, 0.05, q=2), nj.objectives.lp(2)),
        (rules.gated_gradient_descent(0.1, 0.05), nj.objectives.l2),
    ):
        memory = nj.Memory(nj.networks.Linear(), objective, rule, chunk_size=4)
        state = memory.start(jax.tree.map(jnp.float64, memory.init(jax.random.key(0), 3)))
        found.append(memory.scan(state, keys, values, keys)[0])
    close(*found)


def test_yaad_without_a_bound_is_l2(x64):
    keys, values = (jnp.stack(stream(9, (3,), seed)) for seed in (0, 1))
    found = []
    for objective in (nj.objectives.huber(1e9), nj.objectives.l2, nj.objectives.huber(0.1)):
        memory = nj.Memory(nj.networks.Linear(), objective, rules.yaad(0.1, 0.05), chunk_size=4)
        state = memory.start(jax.tree.map(jnp.float64, memory.init(jax.random.key(0), 3)))
        found.append(jax.jit(memory.scan)(state, keys, values, keys)[0])
    close(found[0], found[1])
    assert jnp.max(jnp.abs(found[2] - found[1])) > 1e-3


def test_memora_is_equation_27_and_stays_on_the_simplex(x64):
    start = jax.nn.softmax(jnp.asarray(stream(1)[0]), axis=None)
    decay = jnp.array([0.1, 0.2, 0.3, 0.4])
    _, found = outputs(rules.memora(0.3), stream(20), start, decay=decay)
    weights = np.asarray(start)
    for g in stream(20):
        logits = (1 - np.asarray(decay)) * np.log(weights) - 0.3 * g
        weights = np.exp(logits) / np.sum(np.exp(logits))
    close(found, weights, 1e-10)
    assert float(jnp.sum(found)) == pytest.approx(1.0, abs=1e-12)
    assert jnp.min(found) > 0


def test_the_local_elastic_net_is_equation_22(x64):
    start = jnp.asarray(stream(1)[0])
    rule = rules.chain(rules.gated_gradient_descent(0.3, 0.1), rules.proximal(rules.soft_threshold_map(0.05)))
    _, found = outputs(rule, stream(20), start)
    weights = np.asarray(start)
    for g in stream(20):
        z = 0.9 * weights - 0.3 * g
        weights = np.sign(z) * np.maximum(0, np.abs(z) - 0.05)
    close(found, weights)
    assert jnp.sum(found == 0) > 0


def test_continuum_levels_step_by_their_periods(x64):
    weights = {"quick": jnp.zeros(2), "slow": jnp.zeros(2)}
    levels = {"quick": rules.gradient_descent(1.0), "slow": rules.every(3, rules.gradient_descent(1.0))}
    rule = optax.partition(levels, {"quick": "quick", "slow": "slow"})
    state, seen = rule.init(weights), []
    for _ in range(4):
        updates, state = rule.update(jax.tree.map(jnp.ones_like, weights), state, weights)
        seen.append((float(updates["quick"][0]), float(updates["slow"][0])))
    assert seen == [(-1.0, 0.0), (-1.0, 0.0), (-1.0, -3.0), (-1.0, 0.0)]
