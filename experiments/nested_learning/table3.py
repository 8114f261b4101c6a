"""Nested Learning, table 3: recall in context, on SWDE, NQ, DROP, FDA, SQuAD and TQA (arXiv 2512.24695).

    python -m nested_jax sweep experiments/nested_learning/table3.py:760m --seeds=0
    python -m nested_jax table experiments/nested_learning/table3.py:760m
    python -m nested_jax train --config=experiments/nested_learning/table3.py:hope@760m --config.data.path=TEXT \\
        --config.questions.path=FOLDER

Variants are rows, each at a size: `hope@760m` or any other size (the paper does not print which, nor hardware and
hours), `hope` and `hope@small` (190k parameters on the sources of the standard library, byte by byte, minutes on a
CPU), `hope@tiny` (for tests). The paper's sizes need accelerators, FineWeb-Edu mixed with long documents, of which the
paper says no more, (`--config.data.path`) and a tokenizer of 32,000 tokens (`--config.data.tokenizer=tokenizer.json`),
in the sweep's command line, too.

A run of a paper's size ends with the columns, the cloze forms of the six sets (Arora et al., arXiv 2402.18668 and
2407.05483; `nested_jax.data.recall_sets`): up to 48 tokens written greedily, to a line's end, right if a value is in
them, whatever the case. The sets are JSON lines in a folder, `--config.questions.path=FOLDER`; without it a run says,
before it trains, what they hold and where they come from. A model of "small" is asked nothing, and its rows have
no score.

Differs from the paper at its own sizes: how long documents may be is not printed (here as long as they are, NQ's cut to
2,048 tokens; attention of 4,096 tokens loses what is before them); else as `experiments/nested_learning/table2.py`,
whose set-up the paper uses here, too. RWKV-7 and Comba have no model here and are published numbers only.
"""

from nested_jax.data.recall_sets import RecallSet
from nested_jax.train.comparison import Published, Row, compare
from nested_jax.train.experiment import Experiment

COLUMNS = {
    "swde": "SWDE",
    "nq": "NQ",
    "drop": "DROP",
    "fda": "FDA",
    "squad": "SQuAD",
    "tqa": "TQA",
}
ASKED = {column: RecallSet(name=column) for column in COLUMNS}

NUMBERS = {
    "transformer++": (71.4, 22.0, 23.9, 67.3, 39.4, 59.1),
    "RWKV-7": (52.3, 17.8, 21.7, 32.8, 28.5, 56.2),
    "Comba": (53.9, 19.1, 21.9, 35.5, 30.2, 56.4),
    "titans": (60.8, 20.3, 22.0, 37.6, 31.8, 57.5),
    "hope": (65.9, 21.2, 22.8, 41.9, 33.0, 57.7),
}

RESULT = Published(
    source="Nested Learning, arXiv 2512.24695, table 3 (size not printed)",
    columns=COLUMNS,
    values={row: dict(zip(COLUMNS, numbers, strict=True)) for row, numbers in NUMBERS.items()},
    measured={column: column for column in ASKED},
)

ROWS = {
    "transformer++": Row("Transformer", "transformer++"),
    "titans": Row("Titans", "titans-lmm"),
    "hope": Row("Hope", "hope"),
}


def get_config(arg: str = "") -> Experiment:
    """The experiment of a row at a size; see the file's docstring."""
    return compare(ROWS, arg, ASKED)
