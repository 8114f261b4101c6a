"""Atlas, table 8: language modelling and common-sense reasoning at 340M (arXiv 2505.23735).

    python -m nested_jax sweep experiments/atlas/table8.py:340m --seeds=0
    python -m nested_jax table experiments/atlas/table8.py:340m
    python -m nested_jax train --config=experiments/atlas/table8.py:atlas@340m --config.data.path=TEXT

Variants are rows, each at a size: `atlas@340m` (15B tokens), `atlas` and `atlas@small` (190k parameters on the sources
of the standard library, byte by byte, minutes on a CPU), `atlas@tiny` (for tests). The paper's sizes need accelerators,
FineWeb (`--config.data.path`) and a tokenizer of 32,000 tokens (`--config.data.tokenizer=tokenizer.json`), in the
sweep's command line, too. The paper prints neither hardware nor hours. Mamba and SWDT, which the text does not define,
have no model here and are published numbers only.

With `--config.zero_shot=FOLDER` a run ends with the columns, see `experiments/titans/table1.py`.

Published numbers are as printed; the baselines are those of Titans table 1 and MIRAS table 2. One average is not the
mean of the eight accuracies: DLA (44.76, mean 44.66).

Differs from the paper at its own size: as `experiments/atlas/table2.py`; GLA has one decay per head here and one per
channel in its paper.
"""

from nested_jax.train.comparison import Row, compare
from nested_jax.train.experiment import Experiment
from nested_jax.train.protocols import zero_shot_table

NUMBERS = {
    "transformer++@340m": (31.52, 41.08, 30.76, 62.98, 34.76, 50.53, 45.21, 24.05, 36.81, 58.24, 42.92),
    "retnet@340m": (32.50, 49.73, 28.24, 62.61, 34.15, 50.91, 44.27, 23.62, 36.79, 59.72, 42.54),
    "gla@340m": (28.51, 43.02, 28.73, 64.05, 35.96, 50.00, 54.19, 24.29, 37.13, 58.39, 44.09),
    "Mamba@340m": (30.83, 40.21, 29.94, 63.79, 35.88, 49.82, 49.24, 24.56, 35.41, 60.07, 43.59),
    "deltanet@340m": (28.65, 47.30, 28.43, 63.52, 35.95, 49.63, 52.68, 25.37, 37.96, 58.79, 44.04),
    "ttt@340m": (27.44, 34.19, 30.06, 63.97, 35.71, 50.08, 53.01, 26.11, 37.32, 59.83, 44.51),
    "gated-deltanet@340m": (27.01, 30.94, 34.11, 63.08, 38.12, 51.60, 55.28, 26.77, 34.89, 59.54, 45.42),
    "dla@340m": (27.93, 35.09, 30.8, 62.9, 36.2, 50.4, 53.5, 26.7, 37.1, 59.7, 44.76),
    "SWDT@340m": (26.98, 33.95, 32.4, 63.1, 38.2, 50.9, 54.9, 25.9, 37.5, 59.6, 45.31),
    "omeganet@340m": (26.03, 28.76, 35.6, 65.3, 39.7, 52.0, 56.1, 28.6, 37.7, 60.4, 46.93),
    "atlas@340m": (25.88, 28.54, 36.1, 64.9, 40.1, 52.7, 56.4, 28.8, 38.1, 61.2, 47.28),
    "moneta@340m": (26.19, 29.31, 35.70, 63.99, 39.23, 52.04, 55.96, 27.15, 37.29, 60.22, 46.44),
    "yaad@340m": (26.61, 29.11, 34.09, 64.93, 39.86, 51.12, 54.75, 28.64, 33.82, 60.29, 45.93),
    "memora@340m": (27.16, 30.44, 33.68, 65.21, 39.17, 51.23, 53.40, 27.99, 34.1, 59.29, 45.51),
}

RESULT = zero_shot_table("Atlas, arXiv 2505.23735, table 8 (340M parameters, 15B tokens)", NUMBERS)

ROWS = {
    "transformer++": Row("Transformer++", "transformer++"),
    "retnet": Row("RetNet", "retnet"),
    "gla": Row("GLA", "gated-linear-attention"),
    "deltanet": Row("DeltaNet", "deltanet"),
    "ttt": Row("TTT", "ttt-mlp"),
    "gated-deltanet": Row("Gated DeltaNet", "gated-deltanet"),
    "moneta": Row("Moneta", "moneta"),
    "yaad": Row("Yaad", "yaad"),
    "memora": Row("Memora", "memora"),
    "dla": Row("DLA", "dla"),
    "omeganet": Row("OmegaNet", "omeganet"),
    "atlas": Row("Atlas", "atlas"),
}


def get_config(arg: str = "") -> Experiment:
    """The experiment of a row at a size; see the file's docstring."""
    return compare(ROWS, arg)
