"""Atlas, table 3: single needles in haystacks of 2K to 16K tokens, S-NIAH of RULER (arXiv 2505.23735).

    python -m nested_jax sweep experiments/atlas/table3.py:760m --seeds=0
    python -m nested_jax table experiments/atlas/table3.py:760m
    python -m nested_jax train --config=experiments/atlas/table3.py:atlas@760m --config.data.path=TEXT \\
        --config.questions.path=ESSAYS

Variants are rows, each at a size: `atlas@760m` or any other size (the paper does not print which, nor hardware and
hours), `atlas` and `atlas@small` (190k parameters on the sources of the standard library, byte by byte, minutes on a
CPU), `atlas@tiny` (for tests). The paper's sizes need accelerators, FineWeb (`--config.data.path`) and a tokenizer of
32,000 tokens (`--config.data.tokenizer=tokenizer.json`), in the sweep's command line, too.

A run of a paper's size ends with the columns: 500 questions each by `nested_jax.data.niah`, 128 tokens written
greedily, right if the value is in them. The essays are a file or folder,
`--config.questions.path=PaulGrahamEssays.json` for RULER's; without it a run says, before it trains, where they come
from. A model of "small" has read no prose and finds nothing: it is asked nothing, and its rows have no score
(`experiments/synthetic/needles.py` trains small models to find needles).

PK is pass-key (a number in one repeated line, `single_1`), N a number in essays (`single_2`), W a word or a uuid in
essays: RULER, which the paper names, has no task of words, and the paper does not say which. Here it is uuids
(`single_3`).

Differs from the paper at its own sizes: as `experiments/atlas/table2.py`. Samba and Gated DeltaNet-H2 have no model
here and are published numbers only.
"""

from nested_jax.train.comparison import Published, Row, compare
from nested_jax.train.experiment import Experiment
from nested_jax.train.protocols import needles

LENGTHS = {"pk": (2, 4, 8, 16), "n": (2, 4, 8, 16), "w": (2, 4, 8)}
COLUMNS = {
    f"{task}/{1024 * length}": f"S-NIAH-{task.upper()} {length}K" for task in LENGTHS for length in LENGTHS[task]
}
ASKED = needles(COLUMNS)

NUMBERS = {
    "ttt": (98.4, 98.8, 98.0, 88.4, 60.2, 36.6, 10.2, 4.4, 78.8, 28.0, 4.4),
    "deltanet": (96.8, 98.8, 98.6, 71.4, 47.2, 15.4, 12.8, 5.4, 46.2, 20.0, 1.6),
    "lmm": (99.8, 98.4, 98.2, 96.2, 100.0, 99.8, 93.4, 80.2, 90.4, 89.4, 85.8),
    "atlas": (100.0, 99.2, 98.0, 97.0, 100.0, 100.0, 93.0, 84.0, 93.2, 90.6, 86.2),
    "Samba*": (98.8, 98.0, 97.4, 97.2, 98.8, 98.6, 96.2, 95.6, 96.8, 90.0, 84.0),
    "Gated DeltaNet-H2*": (99.2, 97.8, 97.4, 98.4, 98.0, 97.8, 96.2, 95.8, 97.4, 96.8, 88.4),
    "mag": (100.0, 100.0, 99.4, 98.6, 100.0, 99.2, 97.4, 97.0, 99.4, 98.2, 92.4),
    "mal": (99.8, 99.6, 98.4, 96.8, 99.8, 98.0, 97.2, 96.8, 98.0, 98.4, 92.6),
    "deep-transformer": (100.0, 100.0, 98.2, 97.8, 100.0, 98.8, 97.8, 94.0, 95.8, 92.2, 88.4),
    "dot": (100.0, 100.0, 99.6, 98.6, 100.0, 100.0, 97.8, 96.8, 99.0, 98.4, 93.2),
}

RESULT = Published(
    source="Atlas, arXiv 2505.23735, table 3 (size not printed)",
    columns=COLUMNS,
    values={row: dict(zip(COLUMNS, numbers, strict=True)) for row, numbers in NUMBERS.items()},
    measured={column: column for column in ASKED},
)

ROWS = {
    "ttt": Row("TTT", "ttt-mlp"),
    "deltanet": Row("DeltaNet", "deltanet"),
    "lmm": Row("Titans (LMM)", "titans-lmm"),
    "atlas": Row("Atlas", "atlas"),
    "mag": Row("Atlas (MAG)*", "atlas-mag"),
    "mal": Row("Atlas (MAL)*", "atlas-mal"),
    "deep-transformer": Row("DeepTransformers", "deep-transformer"),
    "dot": Row("Dot", "dot"),
}


def get_config(arg: str = "") -> Experiment:
    """The experiment of a row at a size; see the file's docstring."""
    return compare(ROWS, arg, ASKED)
