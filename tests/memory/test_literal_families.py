"""Law 9 for the families with deep memories: their networks, objectives and rules as loops in NumPy, from the papers.

The memories are those of `nj.models.family`, in shorter chunks. Gradients are by hand, at the weights of the chunk's
start, and a factor 2 or 3 of the printed losses is in the learning rate.
"""

import dataclasses

import jax
import numpy as np
import pytest

import nested_jax as nj
from nested_jax.models import family

pytestmark = pytest.mark.usefixtures("x64")

T, D, C, WINDOW = 12, 5, 4, 3
RNG = np.random.default_rng(0)
K, Q = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in RNG.normal(size=(2, T, D)))
V = RNG.normal(size=(T, D))
THETA, ETA, ALPHA = RNG.uniform(size=(3, T)) * np.array([[0.3], [0.9], [0.3]])
GAMMA = RNG.uniform(size=(T, WINDOW))
CHANNELS = RNG.uniform(0.3, 1.0, size=(T, D))


def memory_of(name: str) -> nj.Memory:
    """A family's memory with chunks of C tokens and, where it has one, a window that reaches into the chunk before."""
    memory = family(name).memory.memory
    return dataclasses.replace(memory, chunk_size=C, window=min(memory.window, WINDOW), implementation="dual")


def weights_of(memory: nj.Memory, dim_k: int = D) -> dict[str, np.ndarray]:
    shapes = jax.eval_shape(lambda key: memory.init(key, (dim_k, D)), jax.random.key(0))
    draw = np.random.default_rng(1)
    return {name: draw.normal(size=w.shape) / w.shape[0] ** 0.5 for name, w in shapes.items()}


@pytest.fixture(params=["parallel", pytest.param("step", marks=pytest.mark.slow)])
def agree(request):
    """Checks what the memory answers, the sequence read at once or token by token."""

    def check(memory: nj.Memory, weights, gates, expected, keys=K, queries=Q) -> None:
        def parallel(weights, *tokens):
            return memory.scan(memory.start(weights), *tokens)[0]

        def stepwise(weights, *tokens):
            return jax.lax.scan(lambda state, token: memory.step(state, *token)[::-1], memory.start(weights), tokens)[1]

        run = parallel if request.param == "parallel" else stepwise
        found = jax.jit(run)(weights, keys, V, queries, gates)
        np.testing.assert_allclose(found, np.stack(expected), rtol=1e-10, atol=1e-11)

    return check


def gelu(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The GELU by its tanh, and its derivative."""
    root = np.sqrt(2 / np.pi)
    inner = np.tanh(root * (x + 0.044715 * x**3))
    return 0.5 * x * (1 + inner), 0.5 * (1 + inner) + 0.5 * x * (1 - inner**2) * root * (1 + 3 * 0.044715 * x**2)


def layer_norm(x: np.ndarray) -> tuple[np.ndarray, float]:
    """x without its mean over its deviation, and the deviation."""
    deviation = np.sqrt(np.var(x) + 1e-6)
    return (x - np.mean(x)) / deviation, deviation


def answer(W, x: np.ndarray) -> np.ndarray:
    """M(x) = x + LN(σ(x W1) W2), LN only where W has its gain, x + only where the widths are equal."""
    y = gelu(x @ W["w1"])[0] @ W["w2"] if "w2" in W else x @ W["w1"]
    y = W["gain"] * layer_norm(y)[0] if "gain" in W else y
    return x + y if x.shape == y.shape else y


def gradient(W, x: np.ndarray, error: np.ndarray) -> dict[str, np.ndarray]:
    """∇ of a loss whose derivative by M(x) is the error."""
    found = {}
    hidden, slope = gelu(x @ W["w1"]) if "w2" in W else (None, None)
    if "gain" in W:
        normed, deviation = layer_norm(x @ W["w1"] if hidden is None else hidden @ W["w2"])
        found["gain"] = error * normed
        error = W["gain"] * error
        error = (error - np.mean(error) - normed * np.mean(error * normed)) / deviation
    if hidden is None:
        return found | {"w1": np.outer(x, error)}
    return found | {"w2": np.outer(hidden, error), "w1": np.outer(x, (W["w2"] @ error) * slope)}


def window_gradient(W, t: int, keys: np.ndarray, error) -> dict[str, np.ndarray]:
    """∇ Σ_{i = t−c+1..t} γ_i^(t) ℓ(M; k_i, v_i) at W, the error of token i being error(M(k_i), v_i)."""
    terms = [
        {name: GAMMA[t, j] * g for name, g in gradient(W, keys[i], error(answer(W, keys[i]), V[i])).items()}
        for j, i in enumerate(range(t, max(t - WINDOW, -1), -1))
    ]
    return {name: sum(term[name] for term in terms) for name in W}


def channelwise(gate: np.ndarray) -> dict[str, np.ndarray]:
    """A gate [D] at each weight: a row of the first layer, a column of the last."""
    return {"w1": gate[:, None], "w2": gate[None], "gain": gate}


def features(x: np.ndarray) -> np.ndarray:
    """φ(x) = (1, x, x ⊗ x / √2!), every product once (Atlas eqs 22-23, truncated)."""
    pairs = [x[i] * x[j] * (1 if i == j else np.sqrt(2)) for i in range(len(x)) for j in range(i, len(x))]
    return np.concatenate([[1.0], x, np.array(pairs) / np.sqrt(2)])


def featured() -> tuple[np.ndarray, np.ndarray]:
    """Features of keys and queries of three numbers."""
    return tuple(np.stack([features(x[:3]) for x in xs]) for xs in (K, Q))


def test_moneta_equations_24_and_25(agree):
    """A_t = (1 − α_t) A_{t−1} − η_t ∇ℓ_3(W; k_t, v_t);  W = sign(A) |A|^3 / ‖A‖_4^2 at the ends of chunks."""
    memory = memory_of("moneta")

    def weights(A):
        return {name: np.sign(a) * np.abs(a) ** 3 / np.sum(a**4) ** 0.5 for name, a in A.items()}

    A = weights_of(memory)
    start, expected, decay, rate = weights(A), [], ALPHA[:, None] * CHANNELS, THETA[:, None] * CHANNELS[::-1]
    for t in range(T):
        if t % C == 0:
            W = weights(A)
        error = answer(W, K[t]) - V[t]
        g = gradient(W, K[t], error * np.sqrt(error**2 + 1e-6))  # |e|^3 / 3, |e| being smooth at 0
        forget, eta = channelwise(decay[t]), channelwise(rate[t])
        A = {name: (1 - forget[name]) * a - eta[name] * g[name] for name, a in A.items()}
        expected.append(answer(W, Q[t]))
    agree(memory, start, {"learning_rate": rate, "decay": decay}, expected)


def test_yaad_equation_26(agree):
    """W_t = (1 − α_t) W_{t−1} − η_t (∇ℓ_2 where ‖M(k_t) − v_t‖ ≤ δ_t, δ_t ∇ℓ_1 elsewhere)."""
    memory = memory_of("yaad")
    W = start = weights_of(memory)
    decay, rate, delta = (gate[:, None] * CHANNELS for gate in (ALPHA, THETA, np.full(T, 4.0)))
    expected, inside = [], []
    for t in range(T):
        if t % C == 0:
            frozen = W
        error = answer(frozen, K[t]) - V[t]
        inside.append(np.linalg.norm(error) <= delta[t])
        g = gradient(frozen, K[t], np.where(inside[t], error, delta[t] * np.sign(error)))
        forget, eta = channelwise(decay[t]), channelwise(rate[t])
        W = {name: (1 - forget[name]) * w - eta[name] * g[name] for name, w in W.items()}
        expected.append(answer(W, Q[t]))
    assert 0.2 < np.mean(inside) < 0.8
    agree(memory, start, {"learning_rate": rate, "decay": decay, "delta": delta}, expected)


def test_memora_equation_27(agree):
    """W_t = Softmax((1 − α_t) log W_{t−1} − η_t ∇ℓ_2), over the inputs of each unit; a chunk reads its first weights.

    The softmax is taken at every token as printed; the memory takes it at the ends of chunks, which is the same.
    """
    memory = memory_of("memora")

    def softmax(A):
        return {name: np.exp(a) / np.sum(np.exp(a), axis=0, keepdims=True) for name, a in A.items()}

    W = start = softmax(weights_of(memory))
    expected = []
    for t in range(T):
        if t % C == 0:
            frozen = W
        g = gradient(frozen, K[t], answer(frozen, K[t]) - V[t])
        W = softmax({name: (1 - ALPHA[t]) * np.log(w) - THETA[t] * g[name] for name, w in W.items()})
        expected.append(answer(frozen, Q[t]))
    agree(memory, start, {"learning_rate": THETA, "decay": ALPHA}, expected)


@pytest.mark.parametrize("name", ["ttt-mlp", pytest.param("ttt-linear", marks=pytest.mark.slow)])
def test_ttt_in_mini_batches(agree, name):
    """W_t = W_{t'} − Σ_{s ≤ t in the mini-batch} η_s ∇ℓ(W_{t'}; x_s);  z_t = f(q_t; W_t), f(x) = x + LN(f_res(x))."""
    memory = memory_of(name)
    W, expected = weights_of(memory), []
    start = W
    for first in range(0, T, C):
        batch = range(first, min(first + C, T))
        steps = {s: gradient(W, K[s], answer(W, K[s]) - V[s]) for s in batch}
        now = [{n: w - sum(THETA[s] * steps[s][n] for s in range(first, t + 1)) for n, w in W.items()} for t in batch]
        expected += [answer(W_t, Q[t]) for t, W_t in zip(batch, now, strict=True)]
        W = now[-1]
    agree(memory, start, {"learning_rate": THETA}, expected)


def newton_schulz(S: np.ndarray) -> np.ndarray:
    """Muon's quintic, five times."""
    X = S / (np.linalg.norm(S) + 1e-7)
    for _ in range(5):
        A = X @ X.T
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X


@pytest.mark.parametrize("name", ["atlas", pytest.param("omeganet", marks=pytest.mark.slow)])
def test_atlas_equations_32_and_33_on_a_deep_memory(agree, name):
    """M_t = (1 − α_t) M_{t−1} − η_t NewtonSchulz(S_t),  S_t = θ_t S_{t−1} + ∇ Σ_{i > t−c} γ_i^(t) ‖M(φ(k_i)) − v_i‖².

    OmegaNet is the same without Newton-Schulz (eq 10, with momentum). Windows reach into the chunk before, the
    gradients being at the weights of this one's start.
    """
    memory, orthogonalise = memory_of(name), newton_schulz if name == "atlas" else np.asarray
    keys, queries = featured()
    M = start = weights_of(memory, keys.shape[1])
    S, expected = {n: 0.0 for n in M}, []
    for t in range(T):
        if t % C == 0:
            frozen = M
        g = window_gradient(frozen, t, keys, lambda y, v: y - v)
        S = {n: ETA[t] * s + g[n] for n, s in S.items()}
        M = {n: (1 - ALPHA[t]) * m - THETA[t] * orthogonalise(S[n]) for n, m in M.items()}
        expected.append(answer(M, queries[t]))
    gates = {"learning_rate": THETA, "momentum": ETA, "decay": ALPHA, "window": GAMMA}
    agree(memory, start, gates, expected, keys, queries)


def test_dla_equation_19(agree):
    """M_t = (1 − α_t) M_{t−1} + η_t ∇⟨M(k_t), v_t⟩, M a network."""
    memory = memory_of("dla")
    M = start = weights_of(memory)
    expected = []
    for t in range(T):
        if t % C == 0:
            frozen = M
        g = gradient(frozen, K[t], V[t])
        M = {n: (1 - ALPHA[t]) * m + THETA[t] * g[n] for n, m in M.items()}
        expected.append(answer(M, Q[t]))
    agree(memory, start, {"learning_rate": THETA, "decay": ALPHA}, expected)


def test_swla_equation_20(agree):
    """M_t = (1 − α_t) M_{t−1} + η_t Σ_{i = t−c+1..t} γ_i^(t) k_i v_i^T."""
    memory = memory_of("swla")
    M, expected = np.zeros((D, D)), []
    for t in range(T):
        written = [GAMMA[t, j] * np.outer(K[t - j], V[t - j]) for j in range(WINDOW) if t >= j]
        M = (1 - ALPHA[t]) * M + THETA[t] * sum(written)
        expected.append(Q[t] @ M)
    gates = {"learning_rate": THETA, "decay": ALPHA, "window": GAMMA}
    agree(memory, {"w": np.zeros((D, D))}, gates, expected)


@pytest.mark.parametrize("name", ["dot", pytest.param("deep-transformer", marks=pytest.mark.slow)])
def test_deep_transformers_and_dot_equations_25_and_27(agree, name):
    """M_t = M_{t−1} + η_t ∇⟨M(φ(k_t)), v_t⟩, and M_t = M_{t−1} − η_t ∇ Σ_{i = t−c+1..t} γ_i^(t) ‖M(φ(k_i)) − v_i‖²."""
    memory = memory_of(name)
    keys, queries = featured()
    M = start = weights_of(memory, keys.shape[1])
    expected = []
    for t in range(T):
        if t % C == 0:
            frozen = M
        if name == "dot":
            g = window_gradient(frozen, t, keys, lambda y, v: y - v)
        else:
            g = gradient(frozen, keys[t], -V[t])
        M = {n: m - THETA[t] * g[n] for n, m in M.items()}
        expected.append(answer(M, queries[t]))
    gates = {"learning_rate": THETA} | ({"window": GAMMA} if name == "dot" else {})
    agree(memory, start, gates, expected, keys, queries)


def test_the_features_are_those_of_the_truncated_exponential():
    """φ(q) · φ(k) = 1 + q·k + (q·k)² / 2, and the library's are the same."""
    keys, queries = featured()
    inner = np.sum(K[:, :3] * Q[:, :3], axis=-1)
    np.testing.assert_allclose(np.sum(keys * queries, axis=-1), 1 + inner + inner**2 / 2, rtol=1e-12)
    np.testing.assert_allclose(jax.jit(family("dot").memory.features)(K[:, :3]), keys, rtol=1e-12)
