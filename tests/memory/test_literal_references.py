"""Law 9: memories against the papers' equations, written out as loops in NumPy, in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nested_jax as nj

pytestmark = pytest.mark.usefixtures("x64")

T, D, C = 11, 5, 4
RNG = np.random.default_rng(0)
K, Q = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in RNG.normal(size=(2, T, D)))
V = RNG.normal(size=(T, D))
W0 = RNG.normal(size=(D, D))
THETA, ETA, ALPHA = RNG.uniform(size=(3, T)) * np.array([[0.3], [0.9], [0.3]])


def outputs(memory: nj.Memory, weights, gates) -> np.ndarray:
    state = memory.start(jax.tree.map(jnp.asarray, weights))
    y, _ = jax.jit(memory.scan)(state, *map(jnp.asarray, (K, V, Q)), jax.tree.map(jnp.asarray, gates))
    return np.asarray(y)


def agree(found: np.ndarray, expected) -> None:
    assert np.allclose(found, np.stack(expected), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, C])
def test_titans_equations_13_and_14_linear(chunk):
    """M_t = (1 − α_t) M_{t−1} + S_t,  S_t = η_t S_{t−1} − θ_t ∇ℓ, the gradient at the chunk's first weights."""
    memory = nj.Memory(network=nj.networks.Linear(), rule=nj.rules.titans(), chunk_size=chunk)
    M, S, expected = W0, np.zeros_like(W0), []
    for t in range(T):
        if t % chunk == 0:
            frozen = M
        S = ETA[t] * S - THETA[t] * np.outer(K[t], K[t] @ frozen - V[t])
        M = (1 - ALPHA[t]) * M + S
        expected.append(Q[t] @ M)
    agree(outputs(memory, {"w": W0}, {"learning_rate": THETA, "momentum": ETA, "decay": ALPHA}), expected)


@pytest.mark.parametrize("chunk", [1, C])
def test_titans_equations_13_and_14_two_layers(chunk):
    """The same with M(x) = x + tanh(x W1) W2 and its gradient by hand."""
    hidden = 2 * D
    W1, W2 = RNG.normal(size=(D, hidden)) / 2, RNG.normal(size=(hidden, D)) / 2
    network = nj.networks.MLP(depth=2, expansion=2, activation=jnp.tanh)
    memory = nj.Memory(network=network, rule=nj.rules.titans(), chunk_size=chunk)
    weights = {"w1": W1, "w2": W2}
    S1, S2, expected = np.zeros_like(W1), np.zeros_like(W2), []
    for t in range(T):
        if t % chunk == 0:
            F1, F2 = W1, W2
        h = np.tanh(K[t] @ F1)
        error = K[t] + h @ F2 - V[t]
        S1 = ETA[t] * S1 - THETA[t] * np.outer(K[t], (F2 @ error) * (1 - h**2))
        S2 = ETA[t] * S2 - THETA[t] * np.outer(h, error)
        W1, W2 = (1 - ALPHA[t]) * W1 + S1, (1 - ALPHA[t]) * W2 + S2
        expected.append(Q[t] + np.tanh(Q[t] @ W1) @ W2)
    agree(outputs(memory, weights, {"learning_rate": THETA, "momentum": ETA, "decay": ALPHA}), expected)


def test_ttt_linear_dual_form():
    """Z = Q W_0 − η mask(Q K^T) (K W_0 − V) inside every mini-batch (TTT §2.4; the 2 of its loss is in η)."""
    memory = nj.Memory(network=nj.networks.Linear(), rule=nj.rules.gradient_descent(0.3), chunk_size=C)
    W, expected = W0, []
    for first in range(0, T, C):
        k, v, q = (x[first : first + C] for x in (K, V, Q))
        error = k @ W - v
        expected.append(q @ W - 0.3 * np.tril(q @ k.T) @ error)
        W = W - 0.3 * k.T @ error
    agree(outputs(memory, {"w": W0}, {}), np.concatenate(expected))


@pytest.mark.parametrize("implementation", ["scan", "delta"])
def test_deltanet_is_gradient_descent(implementation):
    """S_t = S_{t−1} (I − β k k^T) + β v k^T (columns; ours are its transpose)."""
    memory = nj.Memory(
        network=nj.networks.Linear(), rule=nj.rules.gradient_descent(), chunk_size=1, implementation=implementation
    )
    S, expected = W0.T, []
    for t in range(T):
        S = S @ (np.eye(D) - THETA[t] * np.outer(K[t], K[t])) + THETA[t] * np.outer(V[t], K[t])
        expected.append(S @ Q[t])
    agree(outputs(memory, {"w": W0}, {"learning_rate": THETA}), expected)


def test_titans_without_decay_and_momentum_is_deltanet():
    zero = np.zeros(T)
    titans = nj.Memory(network=nj.networks.Linear(), rule=nj.rules.titans(), chunk_size=1)
    delta = nj.Memory(network=nj.networks.Linear(), rule=nj.rules.gradient_descent(), chunk_size=1)
    gates = {"learning_rate": THETA, "momentum": zero, "decay": zero}
    agree(outputs(titans, {"w": W0}, gates), outputs(delta, {"w": W0}, {"learning_rate": THETA}))


@pytest.mark.parametrize("implementation", ["scan", "delta"])
def test_gated_deltanet_decays_before_it_measures_the_error(implementation):
    """S_t = S_{t−1} (α (I − β k k^T)) + β v k^T (Gated DeltaNet eq 10); Titans with decay is another rule."""
    rule, gates = nj.rules.gated_gradient_descent(), {"learning_rate": THETA, "decay": ALPHA}
    memory = nj.Memory(
        network=nj.networks.Linear(), rule=rule, chunk_size=1, retain_first=True, implementation=implementation
    )
    S, expected = W0.T, []
    for t in range(T):
        S = (1 - ALPHA[t]) * S @ (np.eye(D) - THETA[t] * np.outer(K[t], K[t])) + THETA[t] * np.outer(V[t], K[t])
        expected.append(S @ Q[t])
    agree(outputs(memory, {"w": W0}, gates), expected)
    undecayed = nj.Memory(network=nj.networks.Linear(), rule=rule, chunk_size=1)
    assert not np.allclose(outputs(undecayed, {"w": W0}, gates), np.stack(expected), atol=1e-3)


@pytest.mark.parametrize(("chunk", "implementation"), [(1, "scan"), (1, "delta"), (C, "dual")])
def test_a_dot_product_objective_is_linear_attention(chunk, implementation):
    """y_t = Σ_{i≤t} v_i (k_i · q_t)."""
    memory = nj.Memory(
        network=nj.networks.Linear(),
        objective=nj.objectives.dot_product,
        rule=nj.rules.gradient_descent(1.0),
        chunk_size=chunk,
        implementation=implementation,
    )
    agree(outputs(memory, {"w": np.zeros((D, D))}, {}), np.tril(Q @ K.T) @ V)


def test_a_dot_product_objective_with_decay_is_gated_linear_attention():
    """W_t = (1 − α_t) W_{t−1} + k_t v_t^T (Atlas eq 19)."""
    memory = nj.Memory(
        network=nj.networks.Linear(),
        objective=nj.objectives.dot_product,
        rule=nj.rules.gated_gradient_descent(1.0),
        chunk_size=C,
    )
    W, expected = np.zeros((D, D)), []
    for t in range(T):
        W = (1 - ALPHA[t]) * W + np.outer(K[t], V[t])
        expected.append(Q[t] @ W)
    agree(outputs(memory, {"w": np.zeros((D, D))}, {"decay": ALPHA}), expected)


def test_omega_equation_16():
    """M_t = Π a M_t' − Σ_n (Π_{l>n} a_l) η_n Σ_{i=n−c+1..n} γ_i^(n) ∇ℓ(M_t'; k_i, v_i), for every chunk."""
    window = 3
    gamma = RNG.uniform(size=(T, window))
    rule = nj.rules.gated_gradient_descent()
    memory = nj.Memory(network=nj.networks.Linear(), rule=rule, chunk_size=C, window=window)
    a, M, expected = 1 - ALPHA, W0, []
    for first in range(0, T, C):
        frozen = M
        gradients = [np.outer(K[i], K[i] @ frozen - V[i]) for i in range(T)]
        for t in range(first, min(first + C, T)):
            M = np.prod(a[first : t + 1]) * frozen
            for n in range(first, t + 1):
                inner = sum(gamma[n, j] * gradients[n - j] for j in range(window) if n - j >= 0)
                M = M - np.prod(a[n + 1 : t + 1]) * THETA[n] * inner
            expected.append(Q[t] @ M)
    agree(outputs(memory, {"w": W0}, {"learning_rate": THETA, "decay": ALPHA, "window": gamma}), expected)


def newton_schulz(S: np.ndarray) -> np.ndarray:
    """Muon's quintic, five times."""
    X = S / (np.linalg.norm(S) + 1e-7)
    for _ in range(5):
        A = X @ X.T
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X


@pytest.mark.parametrize("implementation", ["scan", "dual", "materialize"])
def test_atlas_equations_32_and_33(implementation):
    """S_t = η_t S_{t−1} + ∇ Σ_window γ ℓ;  M_t = (1 − α_t) M_{t−1} − θ_t NewtonSchulz(S_t)."""
    window = 2
    gamma = RNG.uniform(size=(T, window))
    memory = nj.Memory(
        network=nj.networks.Linear(), rule=nj.rules.atlas(), chunk_size=C, window=window, implementation=implementation
    )
    M, S, expected = W0, np.zeros_like(W0), []
    for t in range(T):
        if t % C == 0:
            frozen = M
        inner = [gamma[t, j] * np.outer(K[t - j], K[t - j] @ frozen - V[t - j]) for j in range(window) if t >= j]
        S = ETA[t] * S + sum(inner)
        M = (1 - ALPHA[t]) * M - THETA[t] * newton_schulz(S)
        expected.append(Q[t] @ M)
    gates = {"learning_rate": THETA, "momentum": ETA, "decay": ALPHA, "window": gamma}
    found = outputs(memory, {"w": W0}, gates)
    agree(found, expected)


def test_adam_is_textbook_adam():
    memory = nj.Memory(network=nj.networks.Linear(), rule=optax.adam(0.05), chunk_size=1)
    W, m, v, expected = W0, 0.0, 0.0, []
    for t in range(T):
        g = np.outer(K[t], K[t] @ W - V[t])
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        W = W - 0.05 * (m / (1 - 0.9 ** (t + 1))) / (np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8)
        expected.append(Q[t] @ W)
    found = outputs(memory, {"w": W0}, {})
    assert np.allclose(found, np.stack(expected), rtol=1e-6, atol=1e-7)


def test_momentum_is_an_exponential_average_of_the_gradients():
    """S_t = Σ_i η^(t−i) g_i: with the dot product the gradients are −k v^T, whatever the weights."""
    memory = nj.Memory(
        network=nj.networks.Linear(),
        objective=nj.objectives.dot_product,
        rule=nj.chain(nj.rules.momentum(0.8), nj.rules.scale_by_learning_rate(1.0)),
        chunk_size=C,
    )
    S = [-sum(0.8 ** (t - i) * np.outer(K[i], V[i]) for i in range(t + 1)) for t in range(T)]
    agree(outputs(memory, {"w": np.zeros((D, D))}, {}), [Q[t] @ -sum(S[: t + 1]) for t in range(T)])


def test_step_per_chunk_takes_one_step_of_the_weighted_sum():
    """LaCT's update: G = Σ θ_t g_t at the chunk's start, one step with averaged gates, reads at the chunk's start."""
    memory = nj.Memory(
        network=nj.networks.Linear(), rule=nj.rules.titans(), chunk_size=C, step_per="chunk", read="start"
    )
    M, S, expected = W0, np.zeros_like(W0), []
    for first in range(0, T, C):
        span = range(first, min(first + C, T))
        expected += [Q[t] @ M for t in span]
        G = sum(THETA[t] * np.outer(K[t], K[t] @ M - V[t]) for t in span)
        S = np.mean(ETA[span]) * S - G
        M = (1 - np.mean(ALPHA[span])) * M + S
    agree(outputs(memory, {"w": W0}, {"learning_rate": THETA, "momentum": ETA, "decay": ALPHA}), expected)
