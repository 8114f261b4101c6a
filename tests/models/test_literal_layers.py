"""Law 9 for layers: one sequence, token by token, from the papers' equations, in NumPy and in double precision.

The references share the parameters of the layers and nothing else. What they do where papers are silent is in
`experiments/ALIGNMENT.md`: RMSNorm, SiLU, the form of the gates, positions, and causality inside MAC's segments.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nested_jax as nj
from nested_jax.models import AttentionConfig, MemoryConfig, MemoryLayer, family
from nested_jax.models.hybrids import LargeChunk, MemoryAsContext, MemoryAsGate, MemoryAsLayer

pytestmark = pytest.mark.usefixtures("x64")

B, T, DIM, HEADS, CHUNK, OMEGA = 2, 12, 8, 2, 2, 3
SEGMENT, WINDOW, PERSISTENT = 2 * CHUNK, 5, 2
HEAD_DIM = DIM // HEADS
X = np.random.default_rng(0).normal(size=(B, T, DIM))

TITANS = MemoryConfig(
    memory=nj.Memory(nj.networks.MLP(expansion=2, activation=jnp.tanh), rule=nj.rules.titans(), chunk_size=CHUNK),
    heads=HEADS,
)
LOCAL = AttentionConfig(heads=HEADS, window=WINDOW, persistent=PERSISTENT)


@pytest.fixture(params=["parallel", pytest.param("step", marks=pytest.mark.slow)])
def agree(request):
    """Checks what a layer answers, sequences read at once or token by token, against a reference of one sequence."""

    def check(layer, reference) -> None:
        shapes = jax.eval_shape(layer.init, jax.random.key(0), jnp.asarray(X))
        draw = np.random.default_rng(1)
        variables = jax.tree.map(lambda x: 0.6 * draw.normal(size=x.shape), shapes)
        params = variables["params"]
        params |= {name: np.abs(w) for name, w in params.items() if name == "coefficients"}
        if request.param == "parallel":
            found, _ = jax.jit(layer.apply)(variables, X)
        else:
            step = lambda state, x: layer.apply(variables, x, state, method="step")[::-1]
            start = layer.apply(variables, B, method="start")
            found = jnp.moveaxis(jax.jit(lambda *xs: jax.lax.scan(step, *xs)[1])(start, jnp.moveaxis(X, 1, 0)), 0, 1)
        expected = np.stack([reference(params, x) for x in X])
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-11)

    return check


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def unit(x):
    return x / np.sqrt(np.sum(x**2) + 1e-6)


def rms_norm(p, x):
    return p["scale"] * x / np.sqrt(np.mean(x**2) + 1e-6)


def heads(x):
    return np.split(x, HEADS)


class Titans:
    """A head's memory: M_t = (1 − α_t) M_{t−1} + S_t, S_t = η_t S_{t−1} − θ_t ∇ℓ (Titans eqs 13-14), in chunks."""

    def __init__(self, initial):
        self.M, self.S, self.t = initial, [0.0, 0.0], 0

    def recall(self, q, M=None):
        """M(q) = q + σ(q W1) W2."""
        W1, W2 = self.M if M is None else M
        return q + np.tanh(q @ W1) @ W2

    def write(self, k, v, z):
        if self.t % CHUNK == 0:
            self.frozen = self.M
        eta, alpha = sigmoid(z[1]), sigmoid(z[2])
        theta = (1 - eta) / CHUNK * sigmoid(z[0])
        error, (W1, W2) = self.recall(k, self.frozen) - v, self.frozen
        hidden = np.tanh(k @ W1)
        gradient = np.outer(k, (W2 @ error) * (1 - hidden**2)), np.outer(hidden, error)
        self.S = [eta * S - theta * g for S, g in zip(self.S, gradient, strict=True)]
        self.M = [(1 - alpha) * M + S for M, S in zip(self.M, self.S, strict=True)]
        self.t += 1


class GatedDelta:
    """S_t = S_{t−1} (α_t (I − β_t k_t k_t^T)) + β_t v_t k_t^T,  o_t = S_t q_t (Gated DeltaNet eq 10)."""

    def __init__(self, initial):
        self.S = initial[0].T

    def recall(self, q):
        return self.S @ q

    def write(self, k, v, z):
        beta, alpha = sigmoid(z[0]), 1 - sigmoid(z[1])
        self.S = self.S @ (alpha * (np.eye(HEAD_DIM) - beta * np.outer(k, k))) + beta * np.outer(v, k)


class Omega:
    """M_t = (1 − α_t) M_{t−1} − θ_t S_t, S_t = η_t S_{t−1} + ∇ Σ_{i > t−c} γ_i^(t) ℓ, linear (Atlas eqs 10, 33)."""

    def __init__(self, initial):
        self.M, self.S, self.seen = initial[0], 0.0, []

    def recall(self, q):
        return q @ self.M

    def write(self, k, v, z):
        if len(self.seen) % CHUNK == 0:
            self.frozen = self.M
        self.seen.append((k, v))
        window = self.seen[: -OMEGA - 1 : -1]
        eta, alpha, gamma = sigmoid(z[0]), sigmoid(z[2]), sigmoid(z[3:])
        theta = (1 - eta) / (CHUNK * OMEGA * (1 + 1 + 1 / 2)) * sigmoid(z[1])
        self.S = eta * self.S + sum(
            g * np.outer(k, k @ self.frozen - v) for g, (k, v) in zip(gamma, window, strict=False)
        )
        self.M = (1 - alpha) * self.M - theta * self.S


class Yaad:
    """W_t = (1 − α_t) W_{t−1} − η_t (∇ℓ_2 where ‖W k_t − v_t‖ ≤ δ_t, else δ_t ∇ℓ_1), per channel (MIRAS eq 26)."""

    def __init__(self, initial):
        self.W, self.t = initial[0], 0

    def recall(self, q):
        return q @ self.W

    def write(self, k, v, z):
        if self.t % CHUNK == 0:
            self.frozen = self.W
        theta, alpha, delta = (sigmoid(part) for part in np.split(z, 3))
        error = k @ self.frozen - v
        error = np.where(np.linalg.norm(error) <= delta, error, delta * np.sign(error))
        self.W = (1 - alpha) * self.W - theta / CHUNK * np.outer(k, error)
        self.t += 1


class LaCT:
    """W ← norm(W − Σ_i η_i ∇ −⟨f(k_i), v_i⟩) at a chunk's end, f = SwiGLU (LaCT §3, the variant without momentum)."""

    def __init__(self, initial):
        self.W, self.pending = initial, []
        self.norms = [np.linalg.norm(w, axis=0) for w in initial]

    def recall(self, q):
        if len(self.pending) > CHUNK:  # a chunk is written after all its tokens were answered
            self.W, self.pending = self.updated(), self.pending[-1:]
        W1, W3, W2 = self.W
        return (silu(q @ W1) * (q @ W3)) @ W2

    def updated(self):
        W1, W3, W2 = self.W
        gradients = [0.0, 0.0, 0.0]
        for k, v, eta in self.pending[:CHUNK]:
            a, b = k @ W1, k @ W3
            back = eta * (W2 @ v)
            slope = sigmoid(a) * (1 + a * (1 - sigmoid(a)))
            parts = np.outer(k, back * b * slope), np.outer(k, back * silu(a)), np.outer(silu(a) * b, eta * v)
            gradients = [g - part for g, part in zip(gradients, parts, strict=True)]
        moved = [w - g for w, g in zip(self.W, gradients, strict=True)]
        return [w / np.linalg.norm(w, axis=0) * norm for w, norm in zip(moved, self.norms, strict=True)]

    def write(self, k, v, z):
        self.pending.append((k, v, sigmoid(z[0]) / CHUNK))


class Memory:
    """A memory layer reading one token after the other (Titans §4.4): it writes, then reads."""

    def __init__(self, p, kind=Titans, features=lambda x: x):
        self.p, self.past, self.features = p, [], features
        self.heads = [kind([w[h] for _, w in sorted(p["initial"].items())]) for h in range(HEADS)]

    def project(self, name):
        """Linear, a convolution over the last four tokens where there is one, SiLU."""
        if f"convolve_{name}" not in self.p:
            return heads(silu(self.past[-1] @ self.p[name]["kernel"]))
        kernel = self.p[f"convolve_{name}"]["kernel"]
        last = [x @ self.p[name]["kernel"] for x in self.past[: -len(kernel) - 1 : -1]]
        return heads(silu(sum(weight * x for weight, x in zip(kernel, last, strict=False))))

    def __call__(self, x):
        self.past.append(x)
        reduced = x @ self.p["gates"]["reduce"]["kernel"] if "reduce" in self.p["gates"] else x
        gates = np.einsum("d,dhg->hg", reduced, self.p["gates"]["dense"]["kernel"]) + self.p["gates"]["dense"]["bias"]
        read = []
        for memory, q, k, v, z in zip(self.heads, *map(self.project, ("query", "key", "value")), gates, strict=True):
            memory.write(self.features(unit(k)), v / np.sqrt(HEAD_DIM), z)
            read.append(rms_norm(self.p["norm"], memory.recall(self.features(unit(q)))))
        return self.emit(np.concatenate(read) * silu(x @ self.p["gate"]["kernel"]))

    def emit(self, gated):
        return gated @ self.p["output"]["kernel"]


def rotate(x, place):
    """RoPE: features i and i + D/2 are a complex number, turned by place · 10000^(−2i/D)."""
    half = len(x) // 2
    turned = (x[:half] + 1j * x[half:]) * np.exp(1j * place * 10000.0 ** (-np.arange(half) / half))
    return np.concatenate([turned.real, turned.imag])


def attention(p, x, place, seen):
    """A token at its place attends to the persistent tokens, which have no place, and to (token, place) pairs."""
    read = np.zeros(DIM)
    for h in range(HEADS):
        query, key, value = (p[name]["kernel"][:, h] for name in ("query", "key", "value"))
        scores = [(x @ query) @ (s @ key) for s in p["persistent"]]
        scores += [rotate(x @ query, place) @ rotate(s @ key, at) for s, at in seen]
        weights = np.exp(np.array(scores) / np.sqrt(HEAD_DIM))
        values = np.stack([*p["persistent"], *(s for s, _ in seen)]) @ value
        read += (weights / np.sum(weights)) @ values @ p["output"]["kernel"][h]
    return read


def gate(p, y, m):
    """y ⊗ m: norm(y) ⊙ sigmoid(norm(m))."""
    return rms_norm(p["read_norm"], y) * sigmoid(rms_norm(p["gate_norm"], m))


def local(p, x):
    """Attention of every token to itself and the WINDOW − 1 before it."""
    return [attention(p, x[t], t, [(x[s], s) for s in range(max(0, t - WINDOW + 1), t + 1)]) for t in range(len(x))]


def test_gated_deltanet_layer(agree):
    """Linear, convolution, SiLU, q and k of length 1; eq 10; output norm, gate and projection (GDN §3)."""

    def reference(p, x):
        memory = Memory(p, GatedDelta)
        return [memory(token) for token in x]

    config = family("gated-deltanet").memory
    assert config.heads == HEADS
    agree(MemoryLayer(config, DIM, jnp.float64), reference)


@pytest.mark.slow
def test_polynomial_features_and_window_gates(agree):
    """φ(x) = (√a_0, √a_1 x, √a_2 x ⊗ x), every product once (Atlas eqs 4-5); a gate for every place of the window."""

    def reference(p, x):
        a0, a1, a2 = np.sqrt(p["coefficients"])

        def features(x):
            pairs = [x[i] * x[j] * (1 if i == j else np.sqrt(2)) for i in range(len(x)) for j in range(i, len(x))]
            return np.concatenate([[a0], a1 * x, a2 * np.array(pairs)])

        memory = Memory(p, Omega, features)
        return [memory(token) for token in x]

    omega = nj.Memory(nj.networks.Linear(), rule=nj.rules.omega(), chunk_size=CHUNK, window=OMEGA)
    config = MemoryConfig(memory=omega, heads=HEADS, features=nj.features.Polynomial(2), key_dim=3)
    agree(MemoryLayer(config, DIM, jnp.float64), reference)


@pytest.mark.slow
def test_gates_per_channel_of_low_rank(agree):
    """(x A) W + b for learning rate, decay and δ, each [D] for every head (MIRAS §5.3)."""

    def reference(p, x):
        memory = Memory(p, Yaad)
        return [memory(token) for token in x]

    yaad = nj.Memory(nj.networks.Linear(), nj.objectives.huber(), nj.rules.yaad(), chunk_size=CHUNK)
    agree(MemoryLayer(MemoryConfig(memory=yaad, heads=HEADS, gate_rank=3), DIM, jnp.float64), reference)


def test_memory_as_context_equations_21_to_25(agree):
    """h = M*(S W_Q), S~ = [p ‖ h ‖ S], y = Attn(S~), M' = M(y), o = y ⊗ M'(y), over three segments of two chunks.

    Token t of a segment attends to the h_j with j ≤ t and is gated by the memory that has learned y up to t.
    """

    def reference(p, x):
        memory, outputs = Memory(p["memory"]), []
        for first in range(0, T, SEGMENT):
            before, context = [head.M for head in memory.heads], []
            segment = x[first : first + SEGMENT]
            for t, s in enumerate(segment):
                queries = heads(silu(s @ p["retrieve_query"]["kernel"]))
                h = [head.recall(unit(q), M) for head, q, M in zip(memory.heads, queries, before, strict=True)]
                h = np.concatenate([rms_norm(p["retrieve_norm"], answer) for answer in h])
                context.append((h @ p["retrieve_output"]["kernel"], t))
                y = attention(p["attention"], s, t, context + [(segment[j], j) for j in range(t + 1)])
                outputs.append(gate(p["combine"], y, memory(rms_norm(p["write_norm"], y))))
        return outputs

    config = AttentionConfig(heads=HEADS, window=SEGMENT, persistent=PERSISTENT)
    agree(MemoryAsContext(TITANS, config, DIM, jnp.float64), reference)


def test_memory_as_gate_equations_26_to_28(agree):
    """y = SW-Attn*([p ‖ x]), o = y ⊗ M(x); persistent tokens in the attention alone."""

    def reference(p, x):
        memory = Memory(p["memory"])
        return [gate(p["combine"], y, memory(token)) for token, y in zip(x, local(p["attention"], x), strict=True)]

    agree(MemoryAsGate(TITANS, LOCAL, DIM, jnp.float64), reference)


def test_memory_as_layer_equations_29_to_31(agree):
    """y = M(x), o = SW-Attn([p ‖ norm(y)]); persistent tokens in the attention alone."""

    def reference(p, x):
        memory = Memory(p["memory"])
        return local(p["attention"], [rms_norm(p["combine"], memory(token)) for token in x])

    agree(MemoryAsLayer(TITANS, LOCAL, DIM, jnp.float64), reference)


def test_large_chunks_beside_a_window(agree):
    """o = (gated f_W(q) + SW-Attn(s q + b, s' k + b', v)) W_o: one q, k, v for both (LaCT §4)."""

    def reference(p, x):
        memory, outputs, rows = Memory(p["memory"], LaCT), [], []
        memory.emit = lambda gated: gated
        for t, token in enumerate(x):
            remembered = memory(token)
            q, k, v = (token @ p["memory"][name]["kernel"] for name in ("query", "key", "value"))
            q = q * p["query_affine"]["scale"] + p["query_affine"]["bias"]
            k = k * p["key_affine"]["scale"] + p["key_affine"]["bias"]
            rows.append((heads(k), heads(v), t))
            seen, read = rows[-WINDOW:], []
            for h, query in enumerate(heads(q)):
                scores = [rotate(query, t) @ rotate(key[h], at) for key, _, at in seen]
                weights = np.exp(np.array(scores) / np.sqrt(HEAD_DIM))
                read.append(weights / np.sum(weights) @ np.stack([value[h] for _, value, _ in seen]))
            outputs.append((remembered + np.concatenate(read)) @ p["memory"]["output"]["kernel"])
        return outputs

    network = nj.networks.GatedMLP(expansion=1, activation=jax.nn.silu, residual=False)
    rule, options = nj.rules.lact(variant="gradient_descent"), {"step_per": "chunk", "read": "start"}
    memory = nj.Memory(network, nj.objectives.dot_product, rule, chunk_size=CHUNK, **options)
    config = AttentionConfig(heads=HEADS, window=WINDOW)
    agree(LargeChunk(MemoryConfig(memory=memory, heads=HEADS, conv=0), config, DIM, jnp.float64), reference)
