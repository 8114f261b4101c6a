"""Titans, table 2: single needles in haystacks of 2K to 16K tokens, S-NIAH of RULER (arXiv 2501.00663).

    python -m nested_jax sweep experiments/titans/table2.py:400m --seeds=0
    python -m nested_jax table experiments/titans/table2.py:400m
    python -m nested_jax train --config=experiments/titans/table2.py:lmm@400m --config.data.path=TEXT \\
        --config.questions.path=ESSAYS

Variants are rows, each at a size: `lmm@400m` or any other size (the paper does not print which, nor hardware and
hours), `lmm` and `lmm@small` (190k parameters on the sources of the standard library, byte by byte, minutes on a CPU),
`lmm@tiny` (for tests). The paper's sizes need accelerators, FineWeb-Edu (`--config.data.path`) and a tokenizer of
32,000 tokens (`--config.data.tokenizer=tokenizer.json`), in the sweep's command line, too.

A run of a paper's size ends with the columns: 500 questions each by `nested_jax.data.niah`, 128 tokens written
greedily, right if the value is in them. The essays are a file or folder,
`--config.questions.path=PaulGrahamEssays.json` for RULER's; without it a run says, before it trains, where they come
from. A model of "small" has read no prose and finds nothing: it is asked nothing, and its rows have no score
(`experiments/synthetic/needles.py` trains small models to find needles).

PK is pass-key (a number in one repeated line, `single_1`), N a number in essays (`single_2`), W a word or a uuid in
essays: RULER, which the paper names, has no task of words, and the paper does not say which. Here it is uuids
(`single_3`).

Differs from the paper at its own sizes: as `experiments/titans/table1.py`; contexts of 4,096 tokens in training, as the
paper says of its language models. The mean of LMM's twelve numbers is the long-context accuracy of table 5, 92.68.
Mamba2 has no model here and is published numbers only.
"""

from nested_jax.train.comparison import Published, Row, compare
from nested_jax.train.experiment import Experiment
from nested_jax.train.protocols import needles

COLUMNS = {
    f"{task}/{1024 * length}": f"S-NIAH-{task.upper()} {length}K"
    for task in ("pk", "n", "w")
    for length in (2, 4, 8, 16)
}
ASKED = needles(COLUMNS)

NUMBERS = {
    "ttt": (98.4, 98.8, 98.0, 88.4, 60.2, 36.6, 10.2, 4.4, 78.8, 28.0, 4.4, 0.0),
    "Mamba2": (98.6, 61.4, 31.0, 5.4, 98.4, 55.8, 14.2, 0.0, 42.2, 4.2, 0.0, 0.0),
    "deltanet": (96.8, 98.8, 98.6, 71.4, 47.2, 15.4, 12.8, 5.4, 46.2, 20.0, 1.6, 0.0),
    "lmm": (99.8, 98.4, 98.2, 96.2, 100.0, 99.8, 93.4, 80.2, 90.4, 89.4, 85.8, 80.6),
    "mac": (99.2, 98.8, 99.0, 98.4, 99.6, 98.2, 97.6, 97.4, 98.2, 98.2, 95.6, 95.2),
    "mag": (99.4, 98.0, 97.4, 97.4, 99.2, 98.8, 97.2, 98.6, 98.0, 98.0, 90.2, 88.2),
    "mal": (98.8, 98.6, 98.8, 97.8, 99.8, 98.1, 96.8, 96.4, 98.0, 97.4, 92.0, 90.4),
}

RESULT = Published(
    source="Titans, arXiv 2501.00663, table 2 (size not printed)",
    columns=COLUMNS,
    values={row: dict(zip(COLUMNS, numbers, strict=True)) for row, numbers in NUMBERS.items()},
    measured={column: column for column in ASKED},
)

ROWS = {
    "ttt": Row("TTT", "ttt-mlp"),
    "deltanet": Row("DeltaNet", "deltanet"),
    "lmm": Row("Titans (LMM)", "titans-lmm"),
    "mac": Row("Titans (MAC)", "titans-mac"),
    "mag": Row("Titans (MAG)", "titans-mag"),
    "mal": Row("Titans (MAL)", "titans-mal"),
}


def get_config(arg: str = "") -> Experiment:
    """The experiment of a row at a size; see the file's docstring."""
    return compare(ROWS, arg, ASKED)
