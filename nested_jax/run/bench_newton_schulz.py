"""`bench newton_schulz`: the implementations of Newton-Schulz against each other and against optax's.

    python -m nested_jax bench newton_schulz

All candidates of a case run once per round in one process; medians over the rounds, ratios formed round by round.
Forward+backward is the gradient of sum(sin(y)) with respect to the matrices. The last case is a window of c gradients
read by one query per matrix, the momentum formed and orthogonalised against `low_rank_orthogonalize`.
"""

import argparse
import functools
import platform
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from optax import contrib
from optax.contrib import _muon  # the function that it exports takes momentum too

from nested_jax.kernels import low_rank_orthogonalize, orthogonalize
from nested_jax.kernels.implementations import KERNELS
from nested_jax.kernels.newton_schulz import MUON
from nested_jax.run.text_table import text_table
from nested_jax.run.timing import Compiled, Measured, interleave, ratio

Candidates = dict[str, Callable[..., jax.Array]]
HEADINGS = ("case", "pass", "implementation", "ms", "× first", "range", "compile s")


def optax_orthogonalize(x: jax.Array) -> jax.Array:
    """What `optax.contrib.scale_by_muon` does to its momentum, for matrices [N, m, n] as one parameter."""
    numbers = contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    coefficients = jnp.asarray(MUON[0])
    return _muon.orthogonalize_via_newton_schulz(x, coefficients, 5, eps=1e-7, dimension_numbers=numbers)


def square(kernels: bool) -> Candidates:
    """What may orthogonalise batches of square matrices."""
    candidates: Candidates = {"xla": functools.partial(orthogonalize, implementation="xla")}
    if kernels:
        kernel = dict(zip(("tpu", "gpu"), KERNELS, strict=True))[jax.default_backend()]
        candidates[kernel] = functools.partial(orthogonalize, implementation=kernel)
    return {**candidates, "optax": optax_orthogonalize}


def window() -> Candidates:
    """A query [N, d] applied to the orthogonalised sum of c outer products, the rows of [N, c, d] and [N, c, d]."""

    def full(left: jax.Array, right: jax.Array, query: jax.Array) -> jax.Array:
        return (query[:, None] @ orthogonalize(left.mT @ right))[:, 0]

    def low_rank(left: jax.Array, right: jax.Array, query: jax.Array) -> jax.Array:
        return (((query[:, None] @ left.mT) @ low_rank_orthogonalize(left, right)) @ right)[:, 0]

    return {"full": full, "low rank": low_rank}


def measure(candidates: Candidates, shapes: Sequence[tuple[int, ...]], dtype, rounds: int) -> dict:
    """(implementation, pass) -> times, on normal numbers of these shapes."""
    keys = jax.random.split(jax.random.key(0), len(shapes))
    arguments = [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]
    calls = {}
    for name, function in candidates.items():
        loss = lambda *x, function=function: jnp.sum(jnp.sin(function(*x).astype(jnp.float32)))
        calls[name, "forward"] = Compiled(function, arguments)
        calls[name, "forward+backward"] = Compiled(jax.grad(loss, argnums=tuple(range(len(shapes)))), arguments)
    return interleave(calls, rounds)


def rows(title: str, measured: dict[tuple[str, str], Measured]) -> list[list[str]]:
    """One row per (implementation, pass), with the time over that of the first implementation."""
    (first, _), *_ = measured
    found = []
    for (name, what), result in measured.items():
        middle, least, greatest = ratio(result, measured[first, what])
        found.append(
            [
                title,
                what,
                name,
                f"{1e3 * result.median:.2f}",
                f"{middle:.2f}",
                f"{least:.2f}-{greatest:.2f}",
                f"{result.compile_seconds:.1f}",
            ]
        )
    return sorted(found, key=lambda row: row[1])


def table(scale: int, rounds: int) -> str:
    """The cases of this backend, their matrices smaller by a factor `scale`."""
    found = []

    def case(title: str, candidates: Candidates, *shapes: tuple[int, ...], dtype=jnp.float32) -> None:
        shapes = tuple(tuple(max(1, size // scale) for size in shape) for shape in shapes)
        text = f"{title} {'×'.join(map(str, shapes[0]))} {jnp.dtype(dtype).name}"
        begin = time.perf_counter()
        found.extend(rows(text, measure(candidates, shapes, dtype, rounds)))
        print(f"{text}: {time.perf_counter() - begin:.0f} s", flush=True)

    for shape in ((512, 64, 64), (128, 128, 128)):
        case("square", square(kernels=False), shape)
    if jax.default_backend() in ("tpu", "gpu"):
        for shape in ((4096, 64, 64), (1024, 128, 128)):
            case("square", square(kernels=True), shape, dtype=jnp.bfloat16)
    long = {name: functools.partial(orthogonalize, implementation=name) for name in ("xla", "gram")}
    for shape in ((512, 16, 64), (512, 32, 128), (1, 512, 2048)):
        case("wide", long, shape)
    case("window", window(), (512, 16, 64), (512, 16, 64), (512, 64))
    return f"\n{text_table(HEADINGS, found)}"


def main(arguments: Sequence[str] = ()) -> None:
    """Runs the benchmark and prints its table."""
    parser = argparse.ArgumentParser(prog="nested-jax bench newton_schulz", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, metavar="N")
    parser.add_argument("--scale", type=int, default=1, metavar="N", help="divide all sizes by N")
    options = parser.parse_args(arguments)
    device = jax.devices()[0].device_kind
    print(f"jax {jax.__version__} on {device}, {platform.machine()}, Python {platform.python_version()}")
    print(f"five steps, muon, medians of {options.rounds} interleaved rounds")
    print(table(options.scale, options.rounds))
