"""`bench rules`: the exact gated delta rule in the delta form, and three memories in their fast forms, against scans.

    python -m nested_jax bench rules

"scan" is `implementation="scan"`, which keeps the state every 64 tokens for the backward pass. The two textbook scans
are W ← a W; W ← W + b kᵀ(v − k W); y = q W in a `jax.lax.scan` by hand: plain, and checkpointed every 64 tokens. The
memories of the second table have an MLP of twice the width, chunks of 64 and a quarter of the tokens. All candidates
run once per round in one process; medians over the rounds, ratios formed round by round. Forward+backward is
the gradient of sum(sin(y)) with respect to weights, keys, values, queries and gates.
"""

import argparse
import dataclasses
import platform
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

import nested_jax as nj
from nested_jax.run.bench_scan import gradient, inputs, layer, rows
from nested_jax.run.text_table import text_table
from nested_jax.run.timing import Compiled, Measured, interleave
from nested_jax.scan.triangular import unit_lower_inverse

IMPLEMENTATIONS = ("delta", "scan")
CORRELATIONS = (0.0, 0.5, 0.9, 1.0)
HEADINGS = ("rule", "pass", "implementation", "ms", "× delta", "range", "compile s", "temp MiB")
WINDOW = 16
FORMS = {
    "delta gradient descent": nj.Memory(nj.networks.MLP(expansion=2), rule=nj.rules.hope()),
    "gates per channel": nj.Memory(nj.networks.MLP(expansion=2)),
    "Newton-Schulz of windows": nj.Memory(
        nj.networks.MLP(expansion=2), rule=nj.rules.atlas(momentum=0.0), window=WINDOW
    ),
}
_GROUP = 64


def gated_delta_rule(implementation: str) -> nj.Memory:
    """Gated DeltaNet's memory: the error is measured after the decay."""
    return nj.Memory(
        network=nj.networks.Linear(),
        rule=nj.rules.gated_gradient_descent(),
        chunk_size=1,
        retain_first=True,
        implementation=implementation,
    )


def data(heads: int, tokens: int, dim: int) -> dict:
    """The inputs of `bench scan` with learning rates all over (0, 1), as an exact rule can bear them."""
    found = inputs(heads, tokens, dim)
    rates = jax.nn.sigmoid(jax.random.normal(jax.random.key(1), (heads, tokens)))
    return found | {"gates": {"learning_rate": rates, "decay": found["gates"]["decay"]}}


def textbook(group: int | None) -> Callable:
    """The rule by hand, all heads in one `jax.lax.scan`; with `group`, checkpointed every so many tokens."""

    def token(W, inputs):
        k, v, q, b, a = inputs
        W = a[:, None, None] * W
        W = W + b[:, None, None] * k[:, :, None] * (v - jnp.einsum("hd,hde->he", k, W))[:, None, :]
        return W, jnp.einsum("hd,hde->he", q, W)

    def tokens(W, inputs):
        return jax.lax.scan(token, W, inputs)

    def forward(params, data):
        gates = data["gates"]
        arrays = (data["keys"], data["values"], data["queries"], gates["learning_rate"], 1 - gates["decay"])
        arrays = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), arrays)
        count, heads = arrays[0].shape[:2]
        W = jnp.broadcast_to(params["w"], (heads, *params["w"].shape))
        if group is None:
            return jnp.swapaxes(tokens(W, arrays)[1], 0, 1)
        grouped = jax.tree.map(lambda x: x.reshape(count // group, group, *x.shape[1:]), arrays)
        _, y = jax.lax.scan(jax.checkpoint(tokens, prevent_cse=False), W, grouped)
        return jnp.swapaxes(y.reshape(count, heads, -1), 0, 1)

    return forward


def form_data(name: str, options: argparse.Namespace) -> dict:
    """The inputs of one of `FORMS`: those of `bench scan` with the gates its rule reads."""
    heads, tokens = options.batch * options.heads, max(1, options.tokens // 4)
    found = inputs(heads, tokens, options.dim)
    wanted = [gate for gate, constant in FORMS[name].gates().items() if constant is None]
    gates = {gate: found["gates"][gate] for gate in wanted}
    if name == "gates per channel":
        scale = jax.random.uniform(jax.random.key(2), (heads, tokens, options.dim))
        gates = {gate: value[..., None] * scale for gate, value in gates.items()}
    return found | {"gates": gates}


def measure_form(name: str, options: argparse.Namespace) -> dict[tuple[str, str], Measured]:
    """(implementation, pass) -> times, for one of `FORMS`."""
    calls = {}
    for implementation in ("auto", "scan"):
        memory = dataclasses.replace(FORMS[name], implementation=implementation)
        arguments = (memory.init(jax.random.key(1), options.dim), form_data(name, options))
        calls[implementation, "forward"] = Compiled(layer(memory), arguments)
        calls[implementation, "forward+backward"] = Compiled(gradient(layer(memory)), arguments)
    return interleave(calls, options.rounds)


def measure(options: argparse.Namespace) -> dict[tuple[str, str], Measured]:
    """(implementation, pass) -> times."""
    functions = {name: layer(gated_delta_rule(name)) for name in IMPLEMENTATIONS}
    functions["textbook scan"] = textbook(None)
    functions["textbook, checkpointed"] = textbook(min(_GROUP, options.tokens))
    weights = gated_delta_rule("delta").init(jax.random.key(1), options.dim)
    arguments = (weights, data(options.batch * options.heads, options.tokens, options.dim))
    calls = {}
    for name, function in functions.items():
        calls[name, "forward"] = Compiled(function, arguments)
        calls[name, "forward+backward"] = Compiled(gradient(function), arguments)
    return interleave(calls, options.rounds)


def inverse_errors(dim: int, size: int = 64) -> list[list[str]]:
    """Per correlation of unit keys: ‖A‖_inf, and the error of float32 inverses of I + A against float64."""
    found = []
    rng = np.random.default_rng(0)
    for correlation in CORRELATIONS:
        keys = np.sqrt(1 - correlation) * rng.normal(size=(size, dim)) + np.sqrt(correlation) * rng.normal(size=dim)
        keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
        lower = np.tril(keys @ keys.T, -1).astype(np.float32)
        expected = np.linalg.inv(np.eye(size) + lower.astype(np.float64))
        errors = [np.abs(x - expected).max() / np.abs(expected).max() for x in (_ladder(lower), _powers(lower))]
        found.append([str(correlation), f"{np.abs(lower).sum(-1).max():.1f}", *(f"{e:.0e}" for e in errors)])
    return found


def _ladder(lower: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(unit_lower_inverse)(lower))


def _powers(lower: np.ndarray) -> np.ndarray:
    """The product of I + (-A)^(2^j), which is what the ladder replaces."""
    inverse, power = np.eye(len(lower), dtype=lower.dtype) - lower, lower @ lower
    for _ in range((len(lower) - 1).bit_length() - 1):
        inverse, power = inverse + inverse @ power, power @ power
    return inverse


def arguments_of(arguments: Sequence[str]) -> argparse.Namespace:
    """The benchmark's options."""
    parser = argparse.ArgumentParser(prog="nested-jax bench rules", description=__doc__.split("\n")[0])
    for name, default in (("batch", 2), ("heads", 4), ("tokens", 2048), ("dim", 64), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N")
    options = parser.parse_args(arguments)
    if options.tokens % min(_GROUP, options.tokens):
        parser.error(f"--tokens: expected at most {_GROUP} or a multiple of it, got {options.tokens}")
    return options


def main(arguments: Sequence[str] = ()) -> None:
    """Runs the benchmark and prints its tables."""
    options = arguments_of(arguments)
    device = jax.devices()[0].device_kind
    print(f"jax {jax.__version__} on {device}, {platform.machine()}, Python {platform.python_version()}")
    size = f"B{options.batch} H{options.heads} T{options.tokens} d{options.dim} f32"
    print(f"{size}, gated delta rule, medians of {options.rounds} interleaved rounds\n")
    print(text_table(HEADINGS, rows("gated delta", measure(options), base="delta")))
    found = [row for name in FORMS for row in rows(name, measure_form(name, options), base="auto")]
    print(f"\nMLP memories, chunks of 64, T{max(1, options.tokens // 4)}; windows of {WINDOW}\n")
    print(text_table([heading.replace("delta", "auto") for heading in HEADINGS], found))
    print("\nInverse of I + A, 64 tokens, f32: relative error against f64\n")
    print(text_table(("correlation", "‖A‖", "ladder", "powers of A"), inverse_errors(options.dim)))
