"""Nested Learning, table 1: needles in haystacks of 4K to 16K tokens, six tasks of RULER (arXiv 2512.24695).

    python -m nested_jax sweep experiments/nested_learning/table1.py:760m --seeds=0
    python -m nested_jax table experiments/nested_learning/table1.py:760m
    python -m nested_jax train --config=experiments/nested_learning/table1.py:hope@760m --config.data.path=TEXT \\
        --config.questions.path=ESSAYS

Variants are rows, each at a size: `hope@760m` or any other size (the paper does not print which, nor hardware and
hours), `hope` and `hope@small` (190k parameters on the sources of the standard library, byte by byte, minutes on a
CPU), `hope@tiny` (for tests). The paper's models learn 50B tokens of FineWeb-Edu mixed with long documents, of which
the paper says no more (`--config.data.path`, `--config.steps=95367`), by a tokenizer of 32,000 tokens
(`--config.data.tokenizer=tokenizer.json`). The length of their contexts is not printed; Memory Caching (arXiv
2602.24281), which repeats rows of the table, says 16K: `--config.data.sequence_length=16384
--config.data.batch_size=32`. All of this goes in the sweep's command line, too.

A run of a paper's size ends with the columns: 500 questions each by `nested_jax.data.niah` (the first half of a
column's name is a function there, the second one its length), 128 tokens written greedily, the share of values that are
in them. The essays are a file or folder, `--config.questions.path=PaulGrahamEssays.json` for RULER's; without it a run
says, before it trains, where they come from. A model of "small" has read no prose and finds nothing: it is asked
nothing, and its rows have no score.

Attention over everything holds 16,384 tokens here, the longest haystack with its answer, in all sizes.

Differs from the paper at its own sizes: the learning rates are those of Atlas table 7 (the paper tunes one for each
model, and does not print it); levels of Hope's continuum memory have periods of 512, 128 and 32 tokens and there is one
that never changes (not printed, our choice). Which Titans it is, is not printed: here LMM. RWKV-7 and Comba have no
model here and are published numbers only.
"""

import dataclasses

from nested_jax.data import niah
from nested_jax.models import AttentionConfig, ModelConfig
from nested_jax.train.comparison import Published, Row, compare
from nested_jax.train.experiment import Experiment
from nested_jax.train.protocols import needles

LENGTHS = (4, 8, 16)
SINGLE = {"single_1": "S-NIAH-1", "single_2": "S-NIAH-2", "single_3": "S-NIAH-3"}
SEVERAL = {"multi_key_1": "MK-NIAH-1", "multi_query": "MQ-NIAH", "multi_value": "MV-NIAH"}
COLUMNS = {
    f"{task}/{1024 * length}": f"{name} {length}K" for task, name in (SINGLE | SEVERAL).items() for length in LENGTHS
}
ASKED = needles(COLUMNS, {task: getattr(niah, task) for task in SINGLE | SEVERAL})

SINGLE_NUMBERS = {
    "transformer++": (88.6, 76.4, 79.8, 100.0, 98.8, 94.2, 78.0, 69.2, 40.8),
    "hope-attention": (100.0, 100.0, 100.0, 100.0, 98.4, 94.4, 76.8, 68.8, 42.4),
    "RWKV-7": (100.0, 100.0, 99.6, 93.8, 44.8, 12.6, 63.8, 13.2, 5.8),
    "Comba": (100.0, 100.0, 99.4, 92.6, 47.2, 13.4, 62.4, 13.8, 7.4),
    "dla": (96.4, 71.2, 44.0, 79.6, 42.6, 28.2, 18.2, 8.8, 4.0),
    "titans": (100.0, 100.0, 100.0, 99.6, 84.6, 75.4, 74.2, 42.8, 21.2),
    "hope": (100.0, 100.0, 100.0, 99.2, 88.4, 78.2, 73.2, 46.2, 24.8),
}

SEVERAL_NUMBERS = {
    "transformer++": (79.4, 83.0, 61.4, 58.9, 48.0, 29.8, 37.5, 34.1, 21.5),
    "hope-attention": (80.2, 84.8, 60.8, 60.4, 47.8, 30.6, 35.2, 34.4, 24.8),
    "RWKV-7": (21.4, 18.8, 9.6, 20.4, 14.8, 8.6, 16.2, 13.4, 6.8),
    "Comba": (21.4, 19.4, 8.2, 21.8, 15.2, 6.4, 16.5, 13.5, 7.2),
    "dla": (27.4, 20.0, 11.8, 26.4, 22.0, 6.4, 25.6, 12.8, 9.6),
    "titans": (26.4, 23.6, 8.2, 22.8, 19.8, 9.4, 24.6, 15.1, 8.2),
    "hope": (29.4, 24.8, 14.8, 31.7, 24.8, 14.2, 31.4, 17.2, 11.4),
}

NUMBERS = {row: SINGLE_NUMBERS[row] + SEVERAL_NUMBERS[row] for row in SINGLE_NUMBERS}

RESULT = Published(
    source="Nested Learning, arXiv 2512.24695, table 1 (size not printed, 50B tokens)",
    columns=COLUMNS,
    values={row: dict(zip(COLUMNS, numbers, strict=True)) for row, numbers in NUMBERS.items()},
    measured={column: column for column in ASKED},
)


def long(config: ModelConfig) -> dict[str, AttentionConfig]:
    return {"attention": dataclasses.replace(config.attention, max_length=1024 * max(LENGTHS))}


ROWS = {
    "transformer++": Row("Transformer", "transformer++", long),
    "hope-attention": Row("Hope-Attention", "hope-attention", long),
    "dla": Row("DLA", "dla"),
    "titans": Row("Titans", "titans-lmm"),
    "hope": Row("Hope", "hope"),
}


def get_config(arg: str = "") -> Experiment:
    """The experiment of a row at a size; see the file's docstring."""
    return compare(ROWS, arg, ASKED)
