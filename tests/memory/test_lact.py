"""LaCT: Algorithm 1 of the paper, its three gradients written out, in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nested_jax as nj

T, D, HIDDEN, CHUNK = 11, 4, 8, 4
RNG = np.random.default_rng(0)
K, V, Q = RNG.normal(size=(3, T, D))
ETA, BETA = RNG.uniform(size=(2, T)) * np.array([[0.3], [0.9]])
W1, W3, W2 = RNG.normal(size=(D, HIDDEN)), RNG.normal(size=(D, HIDDEN)), RNG.normal(size=(HIDDEN, D))


def silu(x):
    return x / (1 + np.exp(-x))


def silu_back(outer, x):
    sigmoid = 1 / (1 + np.exp(-x))
    return outer * sigmoid * (1 + x * (1 - sigmoid))


def newton_schulz(g, a=3.4445, b=-4.7750, c=2.0315):
    x = g / (np.linalg.norm(g) + 1e-7)
    for _ in range(5):
        A = x @ x.T
        x = a * x + (b * A + c * A @ A) @ x
    return x


@pytest.mark.parametrize(
    "variant", ["muon", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gradient_descent", "momentum"))]
)
def test_algorithm_1(variant, x64):
    """Apply, then update, chunk by chunk; a last short chunk, too."""
    network = nj.networks.GatedMLP(expansion=2, activation=jax.nn.silu, residual=False)
    rule = nj.rules.lact(variant=variant)
    memory = nj.Memory(
        network,
        nj.objectives.dot_product,
        rule,
        chunk_size=CHUNK,
        step_per="chunk",
        read="start",
        implementation="dual",
    )
    gates = {"learning_rate": ETA, "momentum": BETA}
    gates = {name: jnp.asarray(gates[name]) for name in nj.gates(rule)}
    state = memory.start(jax.tree.map(jnp.asarray, {"w1": W1, "w2": W3, "w3": W2}))
    y, after = jax.jit(memory.scan)(state, *map(jnp.asarray, (K, V, Q)), gates)
    w1, w2, w3 = W1, W2, W3
    norms = [np.linalg.norm(w, axis=0, keepdims=True) for w in (w1, w2, w3)]
    M, expected = [0.0, 0.0, 0.0], []
    for first in range(0, T, CHUNK):
        k, v, q, eta, beta = (x[first : first + CHUNK] for x in (K, V, Q, ETA, BETA))
        expected.append((silu(q @ w1) * (q @ w3)) @ w2)
        rate = eta[:, None]
        hidden, dhidden = silu(k @ w1) * (k @ w3), v @ w2.T
        g1 = -(k * rate).T @ silu_back(dhidden * (k @ w3), k @ w1)
        g2 = -hidden.T @ (v * rate)
        g3 = -(k * rate).T @ (dhidden * silu(k @ w1))
        kept = 0.0 if variant == "gradient_descent" else beta.mean()
        M = [kept * m + g for m, g in zip(M, (g1, g2, g3), strict=True)]
        steps = [newton_schulz(m) if variant == "muon" else m for m in M]
        moved = [w - step for w, step in zip((w1, w2, w3), steps, strict=True)]
        w1, w2, w3 = (w / np.linalg.norm(w, axis=0) * n for w, n in zip(moved, norms, strict=True))
    np.testing.assert_allclose(y, np.concatenate(expected), rtol=1e-10, atol=1e-10)
    for name, w in (("w1", w1), ("w2", w3), ("w3", w2)):
        np.testing.assert_allclose(after.weights[name], w, rtol=1e-10, atol=1e-10)


def test_keep_norms_leaves_zeros_and_vectors_and_has_derivatives(x64):
    rule = nj.rules.keep_norms()
    weights = {"w": jnp.array([[3.0, 0.0], [4.0, 0.0]]), "b": jnp.array([1.0, 2.0])}

    def stepped(scale):
        step, _ = rule.update(jax.tree.map(lambda w: scale * jnp.ones_like(w), weights), rule.init(weights), weights)
        return jax.tree.map(jnp.add, weights, step)

    after = stepped(1.0)
    np.testing.assert_allclose(jnp.linalg.norm(after["w"], axis=0), [5.0, 0.0], rtol=1e-14)
    np.testing.assert_array_equal(after["b"], [2.0, 3.0])
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.jacobian(stepped)(0.0)))


def test_bad_input_is_named():
    weights = jnp.ones((2, 2))
    for build, words in (
        (lambda: nj.rules.lact(variant="adam"), "variant must be one of .*'muon'.*, got 'adam'"),
        (lambda: nj.rules.lact(0.1, 0.9, variant="gradient_descent"), "momentum must be None .* got 0.9"),
        (lambda: nj.rules.keep_norms().update(weights, None), "keep_norms needs params"),
    ):
        with pytest.raises(ValueError, match=words):
            build()
