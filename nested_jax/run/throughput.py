"""Tokens per second and MFU of a training step on the first device of an accelerator, in a process of its own.

`python -m nested_jax.run.throughput SIZE FAMILY ...` writes a line of JSON per family to its standard output, and none
where JAX sees CPUs only. MFU is 6 · parameters · tokens/s over the device's peak of bfloat16 products
(`nested_jax.run.chips`), as in PaLM, appendix B, without the term of attention.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nested_jax.data import TextConfig
from nested_jax.models.families import SIZES, family
from nested_jax.run.chips import CHIPS
from nested_jax.run.text_table import markdown
from nested_jax.train.experiment import Experiment
from nested_jax.train.optimizer import make_optimizer
from nested_jax.train.problems import open_model
from nested_jax.train.sharding import make_mesh
from nested_jax.train.step import initial_state, make_step

ROWS, TOKENS, CALLS = 8, 2048, 10
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
    """

    family: str
    device: str
    parameters: int
    rate: float | None
    failure: str = ""


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


def measure(name: str, size: str, rows: int = ROWS, tokens: int = TOKENS, calls: int = CALLS) -> Speed:
    """Trains on one batch of random tokens, in bfloat16 with blocks recomputed; a family that fails says why.

    Args:
      name: of the family.
      size: of it.
      rows: of the batch.
      tokens: of a row.
      calls: steps that count, after two that do not.
    """
    model = family(name, size, dtype="bfloat16", remat=True)
    data = TextConfig(sequence_length=tokens, batch_size=rows)
    experiment = Experiment(model=model, data=data, steps=100)
    module, optimizer = open_model(experiment), make_optimizer(experiment.optimizer, experiment.steps)
    device, parameters = jax.devices()[0].device_kind, 0
    try:
        with jax.set_mesh(make_mesh(experiment.mesh)):
            state = jax.jit(lambda: initial_state(module, optimizer, 0))()
            parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
            batch = {"tokens": jax.random.randint(jax.random.key(1), (rows, tokens + 1), 0, model.vocab_size)}
            step = jax.jit(make_step(module, optimizer, experiment.optimizer, experiment.steps), donate_argnums=0)
            for _ in range(2):
                state, metrics = step(state, batch)
            jax.block_until_ready(state)
            begin = time.perf_counter()
            for _ in range(calls):
                state, metrics = step(state, batch)
            loss = float(metrics["loss"])
            jax.block_until_ready(state)
            seconds = time.perf_counter() - begin
    except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
        return Speed(name, device, parameters, None, f"{type(error).__name__}: {str(error).splitlines()[0][:120]}")
    failure = "" if jnp.isfinite(loss) else "the loss is not finite"
    return Speed(name, device, parameters, rows * tokens * calls / seconds, failure)


def everywhere(families: Sequence[str], size: str) -> list[Speed]:
    """Measures in another process, so that this one may take the CPU for devices; empty without an accelerator."""
    command = [sys.executable, "-m", "nested_jax.run.throughput", size, *families]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [Speed(*json.loads(line)) for line in done.stdout.splitlines() if line.startswith("[")]


def lines(speeds: Sequence[Speed], size: str) -> str:
    """A table in Markdown, or that there was no accelerator."""
    if not speeds:
        return f"tokens/s and MFU at {size}: not run, there is no accelerator here"
    rows = []
    for one in speeds:
        share, rate = mfu(one), "–" if one.rate is None else f"{one.rate:,.0f}"
        rows.append([one.family, f"{one.parameters:,}", rate, "–" if share is None else f"{share:.1%}", one.failure])
    about = f"One {speeds[0].device}, {ROWS} × {TOKENS} tokens of a step, bfloat16, size {size}"
    return f"{about}\n\n{markdown(['family', 'parameters', 'tokens/s', 'MFU', 'remarks'], rows)}"


def main(arguments: Sequence[str]) -> None:
    """Prints a line per family."""
    size, *families = arguments
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}; got {size!r}")
    if jax.default_backend() == "cpu":
        return
    for name in families:
        print(json.dumps(measure(name, size)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
