"""`bench throughput`: tokens per second and MFU of a training step on an accelerator, for families of models.

    python -m nested_jax bench throughput
    python -m nested_jax bench throughput --families=titans-lmm,hope --size=20m

One step after the other on one batch of random tokens, in bfloat16, layers recomputed in the backward pass and, where
they repeat, as one loop; seconds are the mean of the steps, at most ten, that begin within ten seconds, after two that
do not count. MFU is 6 · parameters · tokens/s over the device's peak of bfloat16 products (`nested_jax.run.chips`), as
in PaLM, appendix B, without the term of attention: what a memory computes beyond its parameters counts for nothing.
Memory is what the compiled step asks for. Where JAX sees CPUs only, nothing is run.
"""

import argparse
import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nested_jax.data import TextConfig
from nested_jax.models.families import FAMILIES, SIZES, family
from nested_jax.run.chips import CHIPS
from nested_jax.run.text_table import markdown
from nested_jax.run.timing import asked_bytes
from nested_jax.train.experiment import Experiment
from nested_jax.train.optimizer import make_optimizer
from nested_jax.train.problems import open_model
from nested_jax.train.sharding import make_mesh
from nested_jax.train.step import initial_state, make_step

ROWS, TOKENS, CALLS, SECONDS = 8, 2048, 10, 10.0
DEFAULT = ("transformer++", "gated-deltanet", "deltanet", "titans-lmm", "titans-mag", "omeganet", "lact")
KINDS = {
    "H200": "h200",
    "H100": "h100",
    "A100": "a100",
    "v5 lite": "v5e",
    "v6 lite": "v6e",
    "v5": "v5p",
    "TPU7x": "tpu7x",
}


class Speed(NamedTuple):
    """What a family reached.

    Attributes:
      family: its name.
      device: as it calls itself.
      parameters: of the model.
      rate: tokens per second; None where it failed.
      failure: why, in a line.
      memory: bytes that the compiled step asks for, parameters and optimizer included; None where unknown.
      compile_seconds: of the step.
    """

    family: str
    device: str
    parameters: int
    rate: float | None
    failure: str = ""
    memory: int | None = None
    compile_seconds: float = 0.0


def peak(device: str) -> float | None:
    """FLOP/s of bfloat16 products of a JAX device, None if it is not known.

    Args:
      device: its `device_kind`.

    Example:
      >>> peak("NVIDIA H100 80GB HBM3") / 1e12, peak("TPU v5 lite") / 1e12, peak("Tesla T4")
      (989.0, 197.0, None)
    """
    found = next((name for part, name in KINDS.items() if part in device), None)
    return CHIPS[found].flops["bfloat16"] / CHIPS[found].devices if found else None


def mfu(speed: Speed) -> float | None:
    """The share of the peak, None where rate or peak is unknown.

    Example:
      >>> round(mfu(Speed("lstm", "NVIDIA H100 80GB HBM3", 170_000_000, 1e5)), 3)
      0.103
    """
    most = peak(speed.device)
    return None if speed.rate is None or most is None else 6 * speed.parameters * speed.rate / most


def measure(
    name: str, size: str, rows: int = ROWS, tokens: int = TOKENS, calls: int = CALLS, within: float = SECONDS
) -> Speed:
    """Trains on one batch of random tokens; a family that fails says why.

    Args:
      name: of the family.
      size: of it.
      rows: of the batch.
      tokens: of a row.
      calls: steps that count, at most.
      within: seconds after which none begins.
    """
    model = family(name, size, dtype="bfloat16", remat=True)
    if model.layers % model.pattern == 0:
        model = replace(model, stacked=True)
    experiment = Experiment(model=model, data=TextConfig(sequence_length=tokens, batch_size=rows), steps=100)
    module, optimizer = open_model(experiment), make_optimizer(experiment.optimizer, experiment.steps)
    device, parameters, memory, compiling = jax.devices()[0].device_kind, 0, None, 0.0
    try:
        with jax.set_mesh(make_mesh(experiment.mesh)):
            state = jax.jit(lambda: initial_state(module, optimizer, 0))()
            parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
            batch = {"tokens": jax.random.randint(jax.random.key(1), (rows, tokens + 1), 0, model.vocab_size)}
            step = make_step(module, optimizer, experiment.optimizer, experiment.steps)
            begin = time.perf_counter()
            compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
            compiling = time.perf_counter() - begin
            _, memory = asked_bytes(compiled)
            for _ in range(2):
                state, metrics = compiled(state, batch)
            loss, done, begin = float(metrics["loss"]), 0, time.perf_counter()
            while done < calls and (not done or time.perf_counter() - begin < within):
                state, metrics = compiled(state, batch)
                loss, done = float(metrics["loss"]), done + 1
            jax.block_until_ready(state)
            seconds = time.perf_counter() - begin
    except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
        failure = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
        return Speed(name, device, parameters, None, failure, memory, compiling)
    failure = "" if jnp.isfinite(loss) else "the loss is not finite"
    return Speed(name, device, parameters, rows * tokens * done / seconds, failure, memory, compiling)


def lines(speeds: Sequence[Speed], size: str) -> str:
    """A table in Markdown of at least one family."""
    headings = ["family", "parameters", "tokens/s", "MFU", "GiB", "compiled in", "remarks"]
    about = f"One {speeds[0].device}, {ROWS} × {TOKENS} tokens of a step, bfloat16, size {size}"
    return f"{about}\n\n{markdown(headings, [_row(one) for one in speeds])}"


def _row(one: Speed) -> list[str]:
    share = mfu(one)
    return [
        one.family,
        f"{one.parameters:,}",
        "–" if one.rate is None else f"{one.rate:,.0f}",
        "–" if share is None else f"{share:.1%}",
        "–" if one.memory is None else f"{one.memory / 2**30:.1f}",
        f"{one.compile_seconds:.0f} s",
        one.failure,
    ]


def arguments_of(arguments: Sequence[str]) -> argparse.Namespace:
    """The benchmark's options.

    Raises:
      ValueError: for a family or size that does not exist.
    """
    parser = argparse.ArgumentParser(prog="nested-jax bench throughput", description=__doc__.split("\n")[0])
    parser.add_argument("--families", default=",".join(DEFAULT), metavar="A,B", help="(%(default)s)")
    parser.add_argument("--size", default="170m", help=f"of the families: {', '.join(SIZES)} (%(default)s)")
    options = parser.parse_args(arguments)
    options.families = options.families.split(",")
    for name in options.families:
        if name not in FAMILIES:
            raise ValueError(f"--families takes names among {', '.join(FAMILIES)}; got {name!r}")
    if options.size not in SIZES:
        raise ValueError(f"--size takes one of {', '.join(SIZES)}; got {options.size!r}")
    return options


def main(arguments: Sequence[str] = ()) -> None:
    """Measures one family after the other, and prints a line of each and a table."""
    options = arguments_of(arguments)
    if jax.default_backend() == "cpu":
        print(f"tokens/s and MFU at {options.size}: not run, there is no accelerator here")
        return
    print(f"jax {jax.__version__}, Python {platform.python_version()}", flush=True)
    speeds = []
    for name in options.families:
        speeds.append(measure(name, options.size))
        print("  ".join(filter(None, _row(speeds[-1]))), flush=True)
    print(f"\n{lines(speeds, options.size)}")
