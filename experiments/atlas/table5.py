"""Atlas, table 5: recall in context, on SWDE, NQ, DROP, FDA, SQuAD and TQA (arXiv 2505.23735).

    python -m nested_jax sweep experiments/atlas/table5.py:760m --seeds=0
    python -m nested_jax table experiments/atlas/table5.py:760m
    python -m nested_jax train --config=experiments/atlas/table5.py:atlas@760m --config.data.path=TEXT

Variants are rows, each at a size: `atlas@760m` or any other size (the paper does not print which, nor hardware and
hours), `atlas` and `atlas@small` (190k parameters on the sources of the standard library, byte by byte, minutes on a
CPU), `atlas@tiny` (for tests). The paper's sizes need accelerators, FineWeb (`--config.data.path`) and a tokenizer of
32,000 tokens (`--config.data.tokenizer=tokenizer.json`), in the sweep's command line, too.

A run trains a language model and reports bits per byte. Its recall would be scored on the cloze forms of the six sets
(Arora et al., arXiv 2402.18668), which do not come with this library, by `nested_jax.evals.question_answering`:
greedily, up to a line's end, right if the value is in the output, whatever the case. Until then a row counts as not
run.

Published numbers are as printed; averages are the means of the six.

Differs from the paper at its own sizes: as `experiments/atlas/table2.py`. Which Titans it is, is not printed: here LMM.
"""

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
    return compare(ROWS, arg)
