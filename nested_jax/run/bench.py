"""`bench NAME`: a table of benchmarks, each a module with `main(arguments)`, imported when it is asked for."""

import importlib
from collections.abc import Sequence

BENCHMARKS = {
    "scan": "nested_jax.run.bench_scan",
    "rules": "nested_jax.run.bench_rules",
    "models": "nested_jax.run.bench_models",
    "slots": "nested_jax.run.bench_slots",
    "scaling": "nested_jax.run.bench_scaling",
    "throughput": "nested_jax.run.bench_throughput",
    "newton_schulz": "nested_jax.run.bench_newton_schulz",
}


def bench(arguments: Sequence[str]) -> None:
    """Runs a benchmark with the arguments after its name.

    Raises:
      ValueError: if there is no such benchmark.
    """
    names = ", ".join(BENCHMARKS)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: nested-jax bench NAME [options]\n\nNAME is one of: {names}")
        return
    name, *rest = arguments
    if name not in BENCHMARKS:
        raise ValueError(f"bench takes one of: {names}; got {name!r}")
    importlib.import_module(BENCHMARKS[name]).main(rest)
