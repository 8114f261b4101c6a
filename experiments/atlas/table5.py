"""Atlas, table 5: recall in context, on SWDE, NQ, DROP, FDA, SQuAD and TQA (arXiv 2505.23735).

    python -m nested_jax sweep experiments/atlas/table5.py:760m --seeds=0
    python -m nested_jax table experiments/atlas/table5.py:760m
    python -m nested_jax train --config=experiments/atlas/table5.py:atlas@760m --config.data.path=TEXT \\
        --config.questions.path=FOLDER

Variants are rows, each at a size: `atlas@760m` or any other size (the paper does not print which, nor hardware and
hours), `atlas` and `atlas@small` (190k parameters on the sources of the standard library, byte by byte, minutes on a
CPU), `atlas@tiny` (for tests). The paper's sizes need accelerators, FineWeb (`--config.data.path`) and a tokenizer of
32,000 tokens (`--config.data.tokenizer=tokenizer.json`), in the sweep's command line, too.

A run of a paper's size ends with the columns, the cloze forms of the six sets (Arora et al., arXiv 2402.18668 and
2407.05483; `nested_jax.data.recall_sets`): up to 48 tokens written greedily, to a line's end, right if a value is in
them, whatever the case. The sets are JSON lines in a folder, `--config.questions.path=FOLDER`; without it a run says,
before it trains, what they hold and where they come from. A model of "small" is asked nothing, and its rows have
no score.

Published numbers are as printed; averages are the means of the six.

Differs from the paper at its own sizes: how long documents may be is not printed (here as long as they are, NQ's cut to
2,048 tokens; attention of 4,096 tokens loses what is before them); else as `experiments/atlas/table2.py`. Which Titans
it is, is not printed: here LMM.
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
    "average": "Avg",
}
ASKED = {column: RecallSet(name=column) for column in COLUMNS if column != "average"}

NUMBERS = {
    "transformer++": (84.9, 23.0, 28.4, 72.5, 48.1, 64.4, 53.55),
    "gated-deltanet": (63.2, 19.1, 26.7, 33.4, 39.6, 59.7, 40.28),
    "titans": (65.1, 20.7, 27.2, 37.3, 42.6, 61.0, 42.31),
    "omeganet": (67.4, 21.1, 27.2, 39.0, 43.2, 60.9, 43.13),
    "atlas": (66.8, 21.9, 27.4, 40.7, 44.1, 61.3, 43.70),
}

RESULT = Published(
    source="Atlas, arXiv 2505.23735, table 5 (size not printed)",
    columns=COLUMNS,
    values={row: dict(zip(COLUMNS, numbers, strict=True)) for row, numbers in NUMBERS.items()},
    measured={column: column for column in ASKED} | {"average": "questions/average"},
)

ROWS = {
    "transformer++": Row("Transformer", "transformer++"),
    "gated-deltanet": Row("Gated DeltaNet", "gated-deltanet"),
    "titans": Row("Titans", "titans-lmm"),
    "omeganet": Row("OmegaNet", "omeganet"),
    "atlas": Row("Atlas", "atlas"),
}


def get_config(arg: str = "") -> Experiment:
    """The experiment of a row at a size; see the file's docstring."""
    return compare(ROWS, arg, ASKED)
