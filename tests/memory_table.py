"""The cases over which the laws of memories run: all rules of the table and stock chains, with rotating settings."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rule_table import RULES

import nested_jax as nj
from nested_jax.scan.plan import Plan

DIM = 4

NETWORKS = {
    "linear": nj.networks.Linear(),
    "mlp": nj.networks.MLP(depth=2, expansion=2),
    "gated": nj.networks.GatedMLP(expansion=1, activation=jax.nn.silu),
    "deep": nj.networks.MLP(depth=3, expansion=1, activation=jnp.tanh, norm=True, bias=True),
}

STOCK = {
    "optax.sgd nesterov": optax.sgd(0.05, momentum=0.9, nesterov=True),
    "optax decayed trace": optax.chain(optax.add_decayed_weights(0.1), optax.trace(0.8), optax.scale(-0.05)),
    "optax.ema": optax.chain(optax.ema(0.8), optax.scale(-0.1)),
    "optax schedule": optax.sgd(optax.linear_schedule(0.1, 0.0, 12), momentum=0.5),
    "optax.adam": optax.adam(0.02),
    "clip then momentum": nj.chain(optax.clip(0.05), optax.trace(0.8), optax.scale(-0.1)),
}

SETTINGS: tuple[dict[str, Any], ...] = (
    {"chunk_size": 4, "read": "after", "tokens": 10},
    {"chunk_size": 3, "read": "before", "window": 3, "tokens": 9},
    {"chunk_size": 5, "read": "start", "step_per": "chunk", "tokens": 12, "window": 2},
    {"chunk_size": 16, "read": "after", "window": 2, "tokens": 7},
    {"chunk_size": 4, "read": "before", "retain_first": True, "tokens": 8, "reset": True},
    {"chunk_size": 1, "read": "after", "tokens": 6},
    {"chunk_size": 7, "read": "start", "tokens": 14, "reset": True},
)


class Case(NamedTuple):
    """A memory under test, and how long its sequence is."""

    name: str
    memory: nj.Memory
    tokens: int
    reset: bool
    channels: bool = False

    def data(self, seed: int = 0) -> "Data":
        """What it reads; with `channels` every gate of its rule has a value per channel."""
        found = data(self.memory, self.tokens, seed)
        if not self.channels:
            return found
        scales = np.random.default_rng(seed + 1).uniform(0.3, 1.0, (self.tokens, DIM))
        wide = {name: gate[:, None] * scales for name, gate in found.gates.items() if name != "window"}
        return found._replace(gates=found.gates | jax.tree.map(jnp.asarray, wide))

    def plan(self, implementation: str | None = None) -> Plan:
        """How it will be run."""
        memory = self.memory if implementation is None else using(self.memory, implementation)
        return memory.plan(DIM, list(memory.gates(shapes(memory))) if self.channels else [])


def case(name: str, rule: optax.GradientTransformation, matrices: bool, network: str, setting: dict[str, Any]) -> Case:
    """One case; a rule for matrices gets a network without vectors."""
    network = "mlp" if matrices and network == "deep" else network
    options = {k: v for k, v in setting.items() if k not in ("tokens", "reset")}
    memory = nj.Memory(network=NETWORKS[network], rule=rule, **options)
    label = " ".join([name, network, *(f"{k}={v}" for k, v in setting.items())])
    return Case(label, memory, setting["tokens"], setting.get("reset", False))


def rule_cases(settings_per_rule: int) -> list[Case]:
    """Every rule of the table with gates at call time, and every stock chain, in some settings each."""
    named = [(r.name, r.gated(), r.matrices) for r in RULES]
    named += [(name, rule, False) for name, rule in STOCK.items()]
    cases = []
    for i, (name, rule, matrices) in enumerate(named):
        for j in range(i, i + settings_per_rule):
            network = list(NETWORKS)[(i + j // len(SETTINGS)) % len(NETWORKS)]
            cases.append(case(name, rule, matrices, network, SETTINGS[j % len(SETTINGS)]))
    return cases


def titans_cases(chunks: tuple[int, ...]) -> list[Case]:
    """Titans on every network, over chunk lengths from 1 to the whole sequence."""
    reads = ("after", "before", "start")
    found = []
    for i, network in enumerate(NETWORKS):
        for j, chunk in enumerate(chunks):
            setting = {"chunk_size": chunk, "read": reads[(i + j) % 3], "tokens": 18}
            found.append(case("titans", nj.rules.titans(), False, network, setting))
    return found


def quick_cases() -> list[Case]:
    """One case for every kind of rule: linear, over stages, sequential, erasing, mirrored, by the clock, stock."""
    kinds = ("retention", "newton_schulz", "gated_gradient_descent", "titans", "m3 deep", "hope")
    kinds += ("delta_gradient_descent", "moneta", "optax.adam", "running_mean")
    found = [c for c in rule_cases(1) if c.name.startswith(kinds)]
    found = [c for c in found if c.memory.step_per == "token" or c.name.startswith("retention")]
    return found + titans_cases((7,))[1:2]


def online_cases() -> list[Case]:
    """Exact online gradients on a linear network: both orders of decay, all reads, with and without resets."""
    named = [("titans", nj.rules.titans()), ("gated delta rule", nj.rules.gated_gradient_descent())]
    named += [("delta rule", nj.rules.gradient_descent()), *STOCK.items()]
    found = []
    for i, (name, rule) in enumerate(named):
        setting = {"chunk_size": 1, "read": ("before", "after", "start")[i % 3], "retain_first": i % 2 == 1}
        found.append(case(name, rule, False, "linear", setting | {"tokens": 11, "reset": i % 2 == 0}))
    return found


def channel_cases() -> list[Case]:
    """Gates with a value per channel: along the outputs, along the inputs and along vectors."""
    network = nj.networks.MLP(depth=2, expansion=2, norm=True)
    scaled = nj.chain(nj.rules.scale_by_learning_rate(), nj.rules.newton_schulz("cubic"), nj.rules.retention())
    settings = (
        ("linear", nj.rules.titans(), {"chunk_size": 4, "read": "after", "tokens": 10}),
        ("mlp", nj.rules.titans(), {"chunk_size": 5, "read": "before", "window": 3, "tokens": 12, "reset": True}),
        ("mlp", nj.rules.gated_gradient_descent(), {"chunk_size": 7, "retain_first": True, "tokens": 9}),
        ("norm", nj.rules.omega(), {"chunk_size": 16, "read": "after", "window": 2, "tokens": 18, "reset": True}),
        ("linear", nj.rules.atlas(), {"chunk_size": 4, "read": "before", "window": 2, "tokens": 7}),
        ("linear", nj.rules.titans(), {"chunk_size": 1, "tokens": 5}),
        ("linear", scaled, {"chunk_size": 4, "tokens": 6}),
    )
    found = []
    for name, rule, setting in settings:
        one = case(f"channels {name}", rule, False, "linear" if name == "norm" else name, setting)
        memory = dataclasses.replace(one.memory, network=network) if name == "norm" else one.memory
        found.append(one._replace(memory=memory, channels=True))
    return found


def erasing_cases() -> list[Case]:
    """Delta gradient descent on every kind of network, alone, with decay, with a momentum behind it."""
    delta = nj.rules.delta_gradient_descent()
    one_layer = nj.chain(optax.masked(delta, lambda tree: {name: name == "w1" for name in tree}), optax.scale(0.5))
    with_momentum = nj.chain(nj.rules.delta_gradient_descent(), nj.rules.momentum(), nj.rules.retention())
    settings = (
        ("mlp", nj.rules.hope(), {"chunk_size": 4, "read": "after", "tokens": 10, "reset": True}),
        ("linear", with_momentum, {"chunk_size": 1, "read": "after", "tokens": 9, "reset": True}),
        ("deep", with_momentum, {"chunk_size": 5, "read": "before", "tokens": 11}),
        ("gated", nj.rules.delta_gradient_descent(), {"chunk_size": 16, "read": "start", "tokens": 18}),
        ("linear", nj.rules.hope(), {"chunk_size": 7, "read": "after", "tokens": 7}),
        ("linear", nj.rules.hope(form="explicit"), {"chunk_size": 1, "read": "after", "tokens": 7}),
        ("mlp", one_layer, {"chunk_size": 4, "read": "before", "tokens": 6}),
    )
    return [case("erasing", rule, False, network, setting) for network, rule, setting in settings]


def low_rank_cases() -> list[Case]:
    """Newton-Schulz of windows, with nothing before it that remembers."""
    tail = (nj.rules.scale_by_learning_rate(), nj.rules.retention())
    settings = (
        (
            "linear",
            nj.chain(nj.rules.newton_schulz(steps=2), *tail),
            {"chunk_size": 5, "window": 2, "tokens": 12, "reset": True},
        ),
        ("mlp", nj.chain(nj.rules.newton_schulz(), *tail), {"chunk_size": 5, "window": 2, "tokens": 12, "reset": True}),
        ("gated", nj.chain(optax.scale(0.5), nj.rules.newton_schulz("cubic"), *tail), {"chunk_size": 4, "tokens": 7}),
        (
            "linear",
            nj.chain(nj.rules.newton_schulz("polar_express"), nj.rules.momentum(), *tail),
            {"chunk_size": 16, "window": 2, "read": "before", "tokens": 18},
        ),
    )
    return [case("low rank", rule, True, network, setting) for network, rule, setting in settings]


class Data(NamedTuple):
    """Inputs of a scan."""

    keys: jax.Array
    values: jax.Array
    queries: jax.Array
    gates: dict[str, jax.Array]


def data(memory: nj.Memory, tokens: int, seed: int = 0) -> Data:
    """Unit keys and queries, values of size one half, gates at which every memory here is stable."""
    rng = np.random.default_rng(seed)
    keys, queries, values = rng.normal(size=(3, tokens, DIM))
    keys, queries = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (keys, queries))
    uniform = rng.uniform(size=(3, tokens))
    gates = {"learning_rate": 0.2 * uniform[0], "momentum": 0.8 * uniform[1], "decay": 0.3 * uniform[2]}
    gates |= {"slow_momentum": 1 - gates["momentum"], "second_moment": 1 - gates["decay"]}
    used = {name: gates[name] for name in nj.gates(memory.rule, shapes(memory))}
    if memory.window > 1:
        used["window"] = rng.uniform(size=(tokens, memory.window))
    return jax.tree.map(jnp.asarray, Data(keys, 0.5 * values, queries, used))


def shapes(memory: nj.Memory):
    """The shapes of a memory's weights."""
    return jax.eval_shape(lambda key: memory.init(key, DIM), jax.random.key(0))


def resets(case: Case) -> jax.Array | None:
    """A document beginning at the second chunk, where the case has resets."""
    chunks = -(-case.tokens // case.memory.chunk_size)
    return (jnp.arange(chunks) == 1) if case.reset else None


def weights(memory: nj.Memory, seed: int = 1) -> dict[str, jax.Array]:
    """Weights away from zero, of about the size of the initial ones; on a simplex for rules that keep them there."""
    rng = np.random.default_rng(seed)
    found = {name: jnp.asarray(rng.normal(size=w.shape) / w.shape[0] ** 0.5) for name, w in shapes(memory).items()}
    simplex = any(name in repr(memory.rule) for name in ("softmax_map", "sigmoid_map"))
    return {name: jax.nn.softmax(w, axis=None) for name, w in found.items()} if simplex else found


def using(memory: nj.Memory, implementation: str) -> nj.Memory:
    """The same memory by another implementation."""
    return dataclasses.replace(memory, implementation=implementation)
