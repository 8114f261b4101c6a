"""Slots in a small language model, beside Titans' LMM with the same parameters and as many bytes of state.

    python -m nested_jax sweep --config=experiments/slots/language.py --seeds=0,1,2
    python -m nested_jax table --config=experiments/slots/language.py
    python -m nested_jax train --config=experiments/slots/language.py:hybrid

Variants are rows, each at a size: `content` and `content@small` (190k parameters on the sources of the standard
library, byte by byte, minutes on a CPU), `content@tiny` (for tests). At "small" a block of slots carries 133 kB for a
sequence, as the LMM's does; at other sizes it carries what the family has. All rows of a size have the same number of
parameters to within 3 %, by the width of their feed-forward layers, and the same tokens in the same order. There is no
published number: the specification of the slots has no experiments.

Measured 2026-11-25 with the first command (one core of an AMD EPYC virtual machine, the other one busy; jax 0.10.2; 300
steps of 1,024 bytes, seeds 0-2, a minute a run; bits per byte on 199,936 validation bytes; the runs are in
`experiments/slots/language.jsonl`):

==============================  =========  =====================
row                             bits/byte  change (range), %
==============================  =========  =====================
LMM                             2.713
slots by content                3.187      16.4 (15.3 to 18.2)
slots by content and least use  3.182      16.6 (16.5 to 17.3)
slots by least use              3.189      16.3 (15.4 to 17.6)
hybrid, the slowest level alone 3.446      27.1 (23.0 to 27.3)
==============================  =========  =====================

So at equal parameters and state the slots are behind, however they are addressed, and three levels are better than the
slowest alone with all the bytes. A block of slots has no convolutions; the LMM without its own has 3.386 at this budget
(`experiments/titans/table5.py`).
"""

import dataclasses
from collections.abc import Callable

from nested_jax.memory.slots import SlotMemory
from nested_jax.models import ModelConfig
from nested_jax.train.comparison import Published, Row, compare
from nested_jax.train.experiment import Experiment

RESULT = Published(source="no published numbers", columns={"perplexity": "perplexity"}, values={}, base="lmm")
SLOTS = {64: (58, 116, 232), 32: (4, 8, 16)}  # by the model's width, those of "small" and "tiny"


def slots(content: float, levels: slice = slice(None)) -> Callable[[ModelConfig], dict[str, SlotMemory]]:
    """The family's slots with another share of content in addresses, of some levels or all."""

    def change(config: ModelConfig) -> dict[str, SlotMemory]:
        counts = SLOTS.get(config.dim, [level.slots for level in config.slots.levels])
        changed = [
            dataclasses.replace(level, slots=count, content=content)
            for level, count in zip(config.slots.levels, counts, strict=True)
        ]
        kept = changed[levels]
        if len(kept) == 1:  # all the bytes for one level
            per_slot = [level.width + 2 * config.slots.key_dim + 2 for level in changed]
            total = sum(level.slots * size for level, size in zip(changed, per_slot, strict=True))
            kept = [dataclasses.replace(kept[0], slots=total // per_slot[changed.index(kept[0])])]
        return {"slots": dataclasses.replace(config.slots, levels=tuple(kept))}

    return change


ROWS = {
    "lmm": Row("LMM", "titans-lmm"),
    "content": Row("slots by content", "slots", slots(1.0)),
    "hybrid": Row("slots by content and least use", "slots", slots(0.5)),
    "lru": Row("slots by least use", "slots", slots(0.0)),
    "slow": Row("hybrid, the slowest level alone", "slots", slots(0.5, slice(2, 3))),
}


def get_config(arg: str = "") -> Experiment:
    """The experiment of a row at a size; see the file's docstring."""
    return compare(ROWS, arg)
