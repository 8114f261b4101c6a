"""MIRAS, table 3: single needles in haystacks of 1K to 8K tokens, S-NIAH of RULER (arXiv 2504.13173).

    python -m nested_jax sweep experiments/miras/table3.py:340m --seeds=0
    python -m nested_jax table experiments/miras/table3.py:340m
    python -m nested_jax train --config=experiments/miras/table3.py:moneta@340m --config.data.path=TEXT \\
        --config.questions.path=ESSAYS

Variants are rows, each at a size: `moneta@340m` or any other size (the paper does not print which, nor hardware and
hours), `moneta` and `moneta@small` (190k parameters on the sources of the standard library, byte by byte, minutes on a
CPU), `moneta@tiny` (for tests). The paper's sizes need accelerators, FineWeb-Edu (`--config.data.path`) and a tokenizer
of 32,000 tokens (`--config.data.tokenizer=tokenizer.json`), in the sweep's command line, too.

A run of a paper's size ends with the columns: 500 questions each by `nested_jax.data.niah`, 128 tokens written
greedily, right if the value is in them. The essays are a file or folder,
`--config.questions.path=PaulGrahamEssays.json` for RULER's; without it a run says, before it trains, where they come
from. A model of "small" has read no prose and finds nothing: it is asked nothing, and its rows have no score
(`experiments/synthetic/needles.py` trains small models to find needles).

PK is pass-key (a number in one repeated line, `single_1`), N a number in essays (`single_2`), W a word or a uuid in
essays: RULER, which the paper names, has no task of words, and the paper does not say which. Here it is uuids
(`single_3`).

Published numbers are as printed. The averages of the paper's own rows are not the means of their nine numbers: Moneta
93.5 (mean 93.3), Yaad 92.9 (mean 92.5), Memora 92.1 (mean 92.5).

It is likely: the baselines are near those of S-NIAH-3 in table 2 of Gated DeltaNet (arXiv 2412.06464; DeltaNet 85.2,
46.2 and 20.0 here, 85.2, 47.0 and 22.4 there).

Differs from the paper at its own sizes: as `experiments/miras/table2.py`. Mamba2 has no model here and is published
numbers only.
"""

from nested_jax.train.comparison import Published, Row, compare
from nested_jax.train.experiment import Experiment
from nested_jax.train.protocols import needles

LENGTHS = {"pk": (2, 4, 8), "n": (2, 4, 8), "w": (1, 2, 4)}
COLUMNS = {
    f"{task}/{1024 * length}": f"S-NIAH-{task.upper()} {length}K" for task in LENGTHS for length in LENGTHS[task]
} | {"average": "Avg"}
ASKED = needles(COLUMNS)

NUMBERS = {
    "Mamba2": (98.6, 61.4, 31.0, 98.4, 55.8, 14.2, 62.2, 42.2, 4.2, 52.0),
    "deltanet": (96.8, 98.8, 98.6, 47.2, 15.4, 12.8, 85.2, 46.2, 20.0, 57.9),
    "gated-deltanet": (89.8, 91.4, 90.0, 99.2, 91.8, 26.4, 86.4, 82.6, 24.4, 75.8),
    "ttt": (98.4, 98.8, 98.0, 60.2, 36.6, 10.2, 85.8, 78.8, 28.0, 66.1),
    "moneta": (99.4, 98.8, 98.8, 99.4, 99.4, 92.8, 92.2, 88.2, 70.8, 93.5),
    "yaad": (99.2, 98.6, 94.4, 99.8, 98.6, 93.2, 91.8, 89.6, 67.4, 92.9),
    "memora": (99.2, 98.8, 92.6, 98.4, 99.2, 93.2, 92.4, 88.2, 70.4, 92.1),
}

RESULT = Published(
    source="MIRAS, arXiv 2504.13173, table 3 (size not printed)",
    columns=COLUMNS,
    values={row: dict(zip(COLUMNS, numbers, strict=True)) for row, numbers in NUMBERS.items()},
    measured={column: column for column in ASKED} | {"average": "questions/average"},
)

ROWS = {
    "deltanet": Row("DeltaNet", "deltanet"),
    "gated-deltanet": Row("Gated DeltaNet", "gated-deltanet"),
    "ttt": Row("TTT", "ttt-mlp"),
    "moneta": Row("Moneta", "moneta"),
    "yaad": Row("Yaad", "yaad"),
    "memora": Row("Memora", "memora"),
}


def get_config(arg: str = "") -> Experiment:
    """The experiment of a row at a size; see the file's docstring."""
    return compare(ROWS, arg, ASKED)
