"""TNT, table 1: time to a training loss, of Titans at five chunk lengths and of TNT's first stage (arXiv 2511.07343).

    python experiments/tnt/table1.py

Published (150M parameters, hours to a training loss of 3.20 nats on a TPU v5):

===================  =====  =====  ====  ====  =====
memory               C = 8  16     32    64    128
===================  =====  =====  ====  ====  =====
Titans, chunks of C  19.48  10.79  6.45  4.18  3.71
TNT, local chunks C  2.54   1.65   1.22  1.12  1.16
===================  =====  =====  ====  ====  =====

Here: byte models of two blocks on the standard library's sources, contexts of 2,048; TNT with a global memory of chunks
of 512 and one local memory in shards of 512. All have the same width, data and learning rate. A model trains until the
mean loss of its last 20 steps is below the goal. Time is that number of steps times the median time of a step, and
steps are timed against each other, every model once per round, when all have trained; compiling does not count.

Measured with the defaults (goal 2.0 nats per byte, seed 0, 7 rounds; one core of an AMD EPYC virtual machine while the
other one trained, jax 0.10.2, 2026-11-23):

=============================  =====  ======  ======  ======  =======
measured                       C = 8  C = 16  C = 32  C = 64  C = 128
=============================  =====  ======  ======  ======  =======
Titans: steps                  247    204     204     204     245
ms per step                    415    396     300     276     333
seconds to the goal            103    81      61      56      82
times faster than the slowest  1.2    1.5     2.0     2.2     1.5
TNT: steps                     248    248     255     254     254
ms per step                    496    402     425     370     401
seconds to the goal            123    100     108     94      102
times faster than the slowest  1.0    1.2     1.1     1.3     1.2
=============================  =====  ======  ======  ======  =======

What TNT is for does not show here. On a TPU, which waits for one chunk after the other, chunks of 8 cost Titans five
times its best and seventeen times TNT's; on one core a step with chunks of 8 takes at most
1.5 times the best, and TNT's steps take longer than Titans' and are up to a quarter more.
"""

import argparse
import itertools
import json
import math
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

import nested_jax as nj
from nested_jax.data import TextConfig, batches, load_text
from nested_jax.models import LanguageModel, MemoryConfig, ModelConfig
from nested_jax.run import host
from nested_jax.run.text_table import text_table
from nested_jax.run.timing import Compiled, interleave
from nested_jax.train.optimizer import OptimizerConfig, make_optimizer
from nested_jax.train.step import initial_state, make_step

CHUNKS = (8, 16, 32, 64, 128)
LENGTH, LARGE, MEAN = 2048, 512, 20
OPTIMIZER = OptimizerConfig(learning_rate=4e-3, warmup=20, schedule="constant")


def titans(chunk: int, read: str = "after") -> nj.Memory:
    return nj.Memory(nj.networks.MLP(expansion=2), rule=nj.rules.titans(), chunk_size=chunk, read=read)


def tnt(chunk: int) -> nj.memory.TNT:
    """The paper's first stage; its global memory is read at the start of a chunk."""
    return nj.memory.TNT(titans(LARGE, read="start"), (titans(chunk),), LARGE)


MEMORIES = {"Titans": titans, "TNT": tnt}


class Training:
    """One model on its way to the goal."""

    def __init__(self, name: str, chunk: int, seed: int):
        memory = MemoryConfig(memory=MEMORIES[name](chunk), heads=2)
        model = LanguageModel(ModelConfig(dim=64, layers=2, memory=memory))
        rule = make_optimizer(OPTIMIZER, 1)
        self.step = make_step(model, rule, OPTIMIZER, 1)
        self.start = initial_state(model, rule, seed)

    def steps(self, text: np.ndarray, data: TextConfig, goal: float, limit: int) -> int | None:
        """Steps until the mean loss of the last ones is below the goal, in nats; None if it is not in time."""
        state, losses, step = self.start, [], jax.jit(self.step)
        for batch in itertools.islice(batches(text, data), limit):
            state, metrics = step(state, {"tokens": jnp.asarray(batch["tokens"])})
            losses.append(float(metrics["loss"]))
            if len(losses) >= MEAN and statistics.fmean(losses[-MEAN:]) < goal:
                return len(losses)
        return None

    def timed(self, batch: int) -> Compiled:
        """A step, compiled for timing."""
        return Compiled(self.step, (self.start, {"tokens": jnp.zeros((batch, LENGTH + 1), jnp.int32)}))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--goal", type=float, default=2.0, help="nats per byte")
    parser.add_argument("--limit", type=int, default=400, help="steps after which a model is given up")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7, help="of timing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chunks", default=",".join(map(str, CHUNKS)))
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/tnt.json"))
    options = parser.parse_args(arguments)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    done = json.loads(options.output.read_text()) if options.output.exists() else {}
    data = TextConfig(sequence_length=LENGTH, batch_size=options.batch, seed=options.seed, max_bytes=8_000_000)
    text, chunks = load_text(data).train, [int(chunk) for chunk in options.chunks.split(",")]
    needed: dict[tuple[str, int], float] = {}
    timed: dict[tuple[str, int], Compiled] = {}
    for name, chunk in itertools.product(MEMORIES, chunks):
        one, began = Training(name, chunk, options.seed), time.perf_counter()
        key = f"{name} {chunk} {options.batch} {options.seed} {options.goal} {options.limit}"
        if key not in done:
            done[key] = one.steps(text, data, options.goal, options.limit)
            options.output.write_text(json.dumps(done))
            print(f"{name}, C = {chunk}: {done[key]} steps, {time.perf_counter() - began:.0f} s", flush=True)
        needed[name, chunk] = math.nan if done[key] is None else done[key]
        timed[name, chunk] = one.timed(options.batch)
    each = {place: one.median for place, one in interleave(timed, options.rounds).items()}
    whole = {place: needed[place] * each[place] for place in each}
    slowest = max((value for value in whole.values() if not math.isnan(value)), default=math.nan)
    rows = []
    for name in MEMORIES:
        places = [(name, chunk) for chunk in chunks]
        rows.append([f"{name}: steps", *(_cell(needed[place], ".0f") for place in places)])
        rows.append(["ms per step", *(_cell(1e3 * each[place], ".0f") for place in places)])
        rows.append(["seconds to the goal", *(_cell(whole[place], ".0f") for place in places)])
        rows.append(["times faster than the slowest", *(_cell(slowest / whole[place], ".1f") for place in places)])
    print(f"goal {options.goal} nats, batches of {options.batch} x {LENGTH}, seed {options.seed}, {host.cores()} cores")
    print(text_table(["", *(f"C = {chunk}" for chunk in chunks)], rows))


def _cell(value: float, form: str) -> str:
    return "–" if math.isnan(value) else format(value, form)


if __name__ == "__main__":
    main()
