"""`bench scan`: the dual form against the token-by-token scan and materialised weights, and against a public peer.

    python -m nested_jax bench scan
    python -m nested_jax bench scan --peers       # needs the extra: pip install -e '.[peers]'

All candidates run once per round in one process; medians over the rounds, ratios formed round by round.
Forward+backward is the gradient of sum(sin(y)) with respect to weights, keys, values, queries and gates.
"""

import argparse
import platform
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

import nested_jax as nj
from nested_jax.run import host
from nested_jax.run.text_table import text_table
from nested_jax.run.timing import Compiled, Measured, interleave, ratio
from nested_jax.scan import stages
from nested_jax.scan.operations import Network
from nested_jax.scan.state import Carry

IMPLEMENTATIONS = ("dual", "scan", "materialize")


def inputs(heads: int, tokens: int, dim: int, seed: int = 0) -> dict[str, jax.Array | dict[str, jax.Array]]:
    """Random keys and queries of norm 1, values and gates as a trained layer has them: [heads, T, D] and [heads, T]."""
    k, q, v, lr, m, d = jax.random.split(jax.random.key(seed), 6)
    unit = lambda key: _unit(jax.random.normal(key, (heads, tokens, dim)))
    noise = lambda key: jax.random.normal(key, (heads, tokens))
    gates = {
        "learning_rate": 0.2 * jax.nn.sigmoid(noise(lr) - 3),
        "momentum": jax.nn.sigmoid(noise(m) + 1),
        "decay": jax.nn.sigmoid(noise(d) - 4),
    }
    return {
        "keys": unit(k),
        "queries": unit(q),
        "values": 0.5 * jax.random.normal(v, (heads, tokens, dim)),
        "gates": gates,
    }


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def layer(memory: nj.Memory) -> Callable:
    """The memory over a batch of heads, all starting from the same weights."""

    def forward(params, data):
        run = lambda k, v, q, g: memory.scan(memory.start(params), k, v, q, g)[0]
        return jax.vmap(run)(data["keys"], data["values"], data["queries"], data["gates"])

    return forward


def gradient(function: Callable) -> Callable:
    """Forward and backward: the gradient with respect to all arguments."""
    return jax.grad(lambda *arguments: jnp.sum(jnp.sin(function(*arguments))), argnums=(0, 1))


def response(memory: nj.Memory) -> Callable:
    """The part of the dual form that depends on gates alone: systems and their roll-out."""

    def forward(params, data):
        def run(gates):
            state = memory.start(params)
            count = gates["decay"].shape[0] // memory.chunk_size
            gates = {name: gate.reshape(count, memory.chunk_size) for name, gate in gates.items()}
            plan = memory.plan(data["keys"].shape[-1])
            carry = Carry(state.weights, state.rule_state, None)
            flags = jnp.zeros(count, bool)
            prepared, _ = stages.prepare(
                plan, carry.weights, carry.rule_state, carry.rule_state, gates, flags, memory.chunk_size, True
            )
            return jnp.concatenate([x.reshape(-1) for x in jax.tree.leaves(prepared[-1].responses)])

        return jax.vmap(run)(data["gates"])

    return forward


def measure(network: Network, options: argparse.Namespace) -> dict[tuple[str, str], Measured]:
    """(implementation, pass) -> times, for one network."""
    data = inputs(options.batch * options.heads, options.tokens, options.dim)
    calls = {}
    for name in IMPLEMENTATIONS:
        memory = nj.Memory(network=network, chunk_size=options.chunk, implementation=name)
        arguments = (memory.init(jax.random.key(1), options.dim), data)
        calls[name, "forward"] = Compiled(layer(memory), arguments)
        calls[name, "forward+backward"] = Compiled(gradient(layer(memory)), arguments)
        if name == "dual":
            calls["response", "forward"] = Compiled(response(memory), arguments)
            calls["response", "forward+backward"] = Compiled(gradient(response(memory)), arguments)
    return interleave(calls, options.rounds)


def rows(title: str, measured: dict[tuple[str, str], Measured], base: str = "dual") -> list[list[str]]:
    """One row per (implementation, pass), with the time over that of `base`."""
    found = []
    for (name, what), result in measured.items():
        middle, least, greatest = ratio(result, measured[base, what])
        found.append(
            [
                title,
                what,
                name,
                f"{1e3 * result.median:.1f}",
                f"{middle:.2f}",
                f"{least:.2f}-{greatest:.2f}",
                f"{result.compile_seconds:.1f}",
                f"{result.temporary_bytes / 2**20:.0f}" if result.temporary_bytes is not None else "–",
            ]
        )
    return sorted(found, key=lambda row: row[1])


HEADINGS = ("memory", "pass", "implementation", "ms", "× dual", "range", "compile s", "temp MiB")


def arguments_of(arguments: Sequence[str]) -> argparse.Namespace:
    """The benchmark's options."""
    parser = argparse.ArgumentParser(prog="nested-jax bench scan", description=__doc__.split("\n")[0])
    for name, default in (("batch", 2), ("heads", 4), ("tokens", 2048), ("dim", 64), ("chunk", 64), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N")
    parser.add_argument("--memory", choices=("linear", "MLP", "both"), default="both", help="which networks (both)")
    parser.add_argument("--peers", action="store_true", help="time titans-pytorch beside our layer of the same sizes")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] = ()) -> None:
    """Runs the benchmark and prints its tables."""
    options = arguments_of(arguments)
    if options.peers:
        host.cpu_devices(host.cores())
        host.keep_freed_memory()
    device = jax.devices()[0].device_kind
    print(f"jax {jax.__version__} on {device}, {platform.machine()}, Python {platform.python_version()}")
    if options.peers:
        from nested_jax.run import bench_peers

        print(bench_peers.table(options.rounds))
        return
    size = f"B{options.batch} H{options.heads} T{options.tokens} d{options.dim} C{options.chunk} f32"
    networks = {"linear": nj.networks.Linear(), "MLP": nj.networks.MLP(depth=2, expansion=2)}
    networks = {name: network for name, network in networks.items() if options.memory in (name, "both")}
    found = [row for title, network in networks.items() for row in rows(title, measure(network, options))]
    print(f"{size}, titans(), medians of {options.rounds} interleaved rounds\n")
    print(text_table(HEADINGS, found))
