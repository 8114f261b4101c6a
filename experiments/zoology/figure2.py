"""Zoology, figure 2: multi-query associative recall, how wide a model must be to look up what it has read.

    python -m nested_jax sweep experiments/zoology/figure2.py --parts=64,128 --seeds=0,1,2
    python -m nested_jax table experiments/zoology/figure2.py
    python -m nested_jax train --config=experiments/zoology/figure2.py:deltanet/64

(Arora et al. 2023, arXiv 2312.04927; the recipe of HazyResearch/zoology's `iclr24_zoology_figure2`.) Variants are
`ROW/LENGTH@BUDGET`: `deltanet/64` and `deltanet/64@small` (half an hour on a core, `titans/64` 80 minutes), `@tiny`
(for tests). Sequences of 64, 128, 256 and 512 symbols hold 4, 8, 16 and 64 pairs, of 8,192 symbols; the accuracy is the
mean over the questions of a sequence, then over sequences. Two blocks without feed-forward layers, of
width 64 at "small", or of 128 at a length with `-d128` behind it: `deltanet/64-d128`.

Measured (2026-11-26, seed 0, one core of an AMD EPYC virtual machine; `experiments/zoology/figure2.jsonl`), 64
symbols: attention, linear attention, DeltaNet and Gated DeltaNet 99.8 to 99.9 %, Titans LMM 98.4 %. 128 symbols:
attention 99.9 %, linear attention 99.6, DeltaNet 99.1, Gated DeltaNet 97.7, Titans LMM 98.2 (on an H100, jax 0.11.2).
Titans' row has chunks of 4 tokens and no residual in its memory; with the family's chunks of 16 it had 27 % of 64
symbols, little more than one of the four values that were read: its writes were too weak, see
`experiments/titans/recall.py`. Times cannot be compared: other runs shared the core and the GPU, and one was stopped
for ten minutes.

Of width 128 (2026-11-27, seed 0, one core; `--config.microbatches=32` makes DeltaNet 1.8 and Titans 1.9 times as fast
there), 64 symbols: attention 99.2 %, linear attention 99.98, DeltaNet and Gated DeltaNet 100. Titans LMM learned it,
too, and stopped at step 1,622, its loss not a number from one step to the next: 0.01 nats at step 1,200; at step 1,600
the inner loss of its second memory was 31 before and 740 after its steps, 0.8 and 0.2 in the first. Half the learning
rates (`--config.model.memory.max_learning_rate=0.125`) do not mend it: that run stopped at step 1,356. There it was
looked into, at step 1,350: most of a sequence is zeros, whose keys are equal, so that the four gradients of a chunk add
up, and a head of the second memory, whose rates for them had risen to the upper end (0.122), answered with 6 at place
14 of one sequence and with 10^9 at place 59. What it answers is normalised, so that the loss did not show it until it
overflowed.

The figure prints no numbers: attention solves all of it at every width. Differs from the recipe: every row has a short
convolution where its family has one (attention has none, and rotary positions in the place of learned ones), 4,000
steps of 64 sequences in the place of 64 epochs in batches of 128 to 512, no dropout, one learning rate.
"""

from dataclasses import replace

import nested_jax as nj
from nested_jax.data.mqar import zoology_figure2
from nested_jax.models import MemoryConfig, ModelConfig
from nested_jax.train.comparison import Published, Row, Sweep, changed_memory, variant
from nested_jax.train.experiment import Experiment
from nested_jax.train.protocols import on_mqar

PARTS = {
    f"{length}{suffix}": f"{length} symbols, {zoology_figure2(length).pairs} pairs, width {width}"
    for suffix, width in (("", 64), ("-d128", 128))
    for length in (64, 128, 256, 512)
}
RESULT = Published(
    source="Zoology, arXiv 2312.04927, figure 2, prints no numbers (accuracy in %)",
    columns=PARTS,
    values={},
    measured={part: f"{part}:test/example" for part in PARTS},
    unit=100,
)
SWEEP = Sweep(
    select="validation/example",
    differs={"small": "4,000 steps of 64 sequences, one learning rate; see the experiment's docstring"},
)


def strong_writes(config: ModelConfig) -> dict[str, MemoryConfig]:
    """Chunks of 4 tokens, whose learning rates reach a quarter, and no residual."""
    return changed_memory(config, network=nj.networks.MLP(residual=False), chunk_size=4)


ROWS = {
    "attention": Row("Attention", "transformer++"),
    "linear-attention": Row("Linear attention", "linear-attention"),
    "deltanet": Row("DeltaNet", "deltanet"),
    "gated-deltanet": Row("Gated DeltaNet", "gated-deltanet"),
    "titans": Row("Titans LMM", "titans-lmm", strong_writes),
}


def get_config(arg: str = "") -> Experiment:
    """The experiment of a row at a length with a budget; see the file's docstring."""
    row, part, size = variant(ROWS, arg, PARTS)
    length, _, width = part.partition("-d")
    task = replace(zoology_figure2(int(length)), train_examples=100_000, validation_examples=500, test_examples=1_000)
    fields = {"dim": int(width)} if width else {}
    return on_mqar(ROWS[row], size, task, steps=4_000, batch_size=64, **fields)
