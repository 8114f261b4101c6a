"""What a deep memory needs to look up what it has read: strong writes.

    python -m nested_jax sweep experiments/titans/recall.py --seeds=0,1,2
    python -m nested_jax table experiments/titans/recall.py
    python -m nested_jax train --config=experiments/titans/recall.py:direct

Variants are rows, each with a budget: `direct` and `direct@small` (minutes on a CPU), `direct@tiny` (for tests). The
task is multi-query associative recall in little (`nested_jax.data.mqar`): 4 pairs in 32 symbols, of 64. Two blocks of
width 64 with hardly a feed-forward layer. There is no published number.

A memory layer's learning rate is bounded by one over its chunk, so that equal keys in a chunk never move a linear
memory beyond its target (`nested_jax.models.gates`). A linear memory that starts with zeros answers with what was
written and nothing else; however little that is, the norm behind it makes up for the length. A deep one adds it to what
its initial weights answer, and with a residual to the query, so weak writes should cost it more; how much of what is
measured comes of that was not taken apart.

Measured 2026-11-26 (one core of an AMD EPYC virtual machine that other runs shared, 1.5 to 8 minutes a run; the runs
are in `experiments/titans/recall.jsonl`, the table in `experiments/RESULTS.md`): with chunks of 16 the LMM finds 28, 72
and 77 % of the values in 1,500 steps, with chunks of 4 98 to 100 %, as a linear memory in chunks of 16 and DeltaNet do
(three seeds each). The rates of chunks of 4 do it in chunks of 16 too (94 and 99 % with the residual, 99.6 and 99.8
without; two seeds), but then nothing keeps runs of equal keys from diverging. Leaving the residual out is no help where
writes are weak (50 and 76 %).
"""

import dataclasses

import nested_jax as nj
from nested_jax.data.mqar import MQAR
from nested_jax.models import MemoryConfig, ModelConfig
from nested_jax.train.comparison import Published, Row, Sweep, changed_memory, linear_memory, variant
from nested_jax.train.experiment import Experiment
from nested_jax.train.protocols import on_mqar

RESULT = Published(
    source="no published numbers (accuracy in %)",
    columns={"recall": "recall"},
    values={},
    measured={"recall": "test/example"},
    unit=100,
)
SWEEP = Sweep(select="validation/example")
DIRECT = nj.networks.MLP(residual=False)


def short(config: ModelConfig) -> dict[str, MemoryConfig]:
    return changed_memory(config, chunk_size=4)


def fast(config: ModelConfig) -> dict[str, MemoryConfig]:
    return {"memory": dataclasses.replace(config.memory, max_learning_rate=0.25)}


def direct(config: ModelConfig) -> dict[str, MemoryConfig]:
    return changed_memory(config, network=DIRECT)


def short_direct(config: ModelConfig) -> dict[str, MemoryConfig]:
    return changed_memory(config, network=DIRECT, chunk_size=4)


def fast_direct(config: ModelConfig) -> dict[str, MemoryConfig]:
    return {"memory": dataclasses.replace(direct(config)["memory"], max_learning_rate=0.25)}


ROWS = {
    "lmm": Row("LMM, chunks of 16", "titans-lmm"),
    "direct": Row("without the residual", "titans-lmm", direct),
    "short": Row("chunks of 4", "titans-lmm", short),
    "fast": Row("chunks of 16 at the rates of 4", "titans-lmm", fast),
    "short-direct": Row("chunks of 4, without the residual", "titans-lmm", short_direct),
    "fast-direct": Row("chunks of 16 at the rates of 4, without the residual", "titans-lmm", fast_direct),
    "linear": Row("linear memory, chunks of 16", "titans-lmm", linear_memory),
    "deltanet": Row("DeltaNet", "deltanet"),
}


def get_config(arg: str = "") -> Experiment:
    """The experiment of a row with a budget; see the file's docstring."""
    row, _, size = variant(ROWS, arg)
    task = MQAR(vocab_size=64, length=32, validation_examples=500, test_examples=1_000)
    return on_mqar(ROWS[row], size, task, steps=1_500, batch_size=32)
