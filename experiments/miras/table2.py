"""MIRAS, table 2: language modelling and common-sense reasoning at 340M, 760M and 1.3B (arXiv 2504.13173).

    python -m nested_jax sweep experiments/miras/table2.py:340m --seeds=0
    python -m nested_jax table experiments/miras/table2.py:340m
    python -m nested_jax train --config=experiments/miras/table2.py:moneta@340m --config.data.path=TEXT

Variants are rows, each at a size: `moneta@340m` (15B tokens), `moneta@760m` (30B), `moneta@1.3b` (100B), `moneta` and
`moneta@small` (190k parameters on the sources of the standard library, byte by byte, minutes on a CPU), `moneta@tiny`
(for tests). The paper's sizes need accelerators, FineWeb-Edu (`--config.data.path`) and a tokenizer of 32,000 tokens
(`--config.data.tokenizer=tokenizer.json`), in the sweep's command line, too. The paper prints neither hardware nor
hours. Mamba, Mamba2, Samba and Gated DeltaNet-H2 have no model here and are published numbers only.

With `--config.zero_shot=FOLDER` a run ends with the columns, see `experiments/titans/table1.py`.

Published numbers are as printed; the table has no averages. Its baselines are those of Titans table 1 at 340M and 760M
and of Gated DeltaNet (arXiv 2412.06464, table 3) at 1.3B.

Differs from the paper at its own sizes: the optimizer, of which the paper prints peak learning rates only (its table 5,
those of Atlas table 7), is AdamW as for all tables here; the width of the feed-forward layers is such that all rows of
a size have the same number of parameters. Moneta and Memora map their accumulators to weights at the ends of chunks, as
the paper says, and are read there, too; Memora's softmax is over one axis of each matrix and its gates are per token
(our choices). Which TTT it is, is not printed: here TTT-MLP. GLA has one decay per head here and one per channel in its
paper.
"""

from nested_jax.train.comparison import Row, compare
from nested_jax.train.experiment import Experiment
from nested_jax.train.protocols import zero_shot_table

NUMBERS = {
    "transformer++@340m": (31.52, 41.08, 30.76, 62.98, 34.76, 50.53, 45.21, 24.05, 36.81, 58.24),
    "retnet@340m": (32.50, 49.73, 28.24, 62.61, 34.15, 50.91, 44.27, 23.62, 36.79, 59.72),
    "gla@340m": (28.51, 43.02, 28.73, 64.05, 35.96, 50.00, 54.19, 24.29, 37.13, 58.39),
    "Mamba@340m": (30.83, 40.21, 29.94, 63.79, 35.88, 49.82, 49.24, 24.56, 35.41, 60.07),
    "deltanet@340m": (28.65, 47.30, 28.43, 63.52, 35.95, 49.63, 52.68, 25.37, 37.96, 58.79),
    "ttt@340m": (27.44, 34.19, 30.06, 63.97, 35.71, 50.08, 53.01, 26.11, 37.32, 59.83),
    "gated-deltanet@340m": (27.01, 30.94, 34.11, 63.08, 38.12, 51.60, 55.28, 26.77, 34.89, 59.54),
    "moneta@340m": (26.19, 29.31, 35.70, 63.99, 39.23, 52.04, 55.96, 27.15, 37.29, 60.22),
    "yaad@340m": (26.61, 29.11, 34.09, 64.93, 39.86, 51.12, 54.75, 28.64, 33.82, 60.29),
    "memora@340m": (27.16, 30.44, 33.68, 65.21, 39.17, 51.23, 53.40, 27.99, 34.1, 59.29),
    "transformer++@760m": (25.21, 27.64, 35.78, 66.92, 42.19, 51.95, 60.38, 32.46, 39.51, 60.37),
    "retnet@760m": (26.08, 24.45, 34.51, 67.19, 41.63, 52.09, 63.17, 32.78, 38.36, 57.92),
    "Mamba2@760m": (22.94, 28.37, 33.54, 67.90, 42.71, 49.77, 63.48, 31.09, 40.06, 58.15),
    "deltanet@760m": (24.37, 24.60, 37.06, 66.93, 41.98, 50.65, 64.87, 31.39, 39.88, 59.02),
    "ttt@760m": (24.17, 23.51, 34.74, 67.25, 43.92, 50.99, 64.53, 33.81, 40.16, 59.58),
    "gated-deltanet@760m": (21.18, 22.09, 35.54, 68.01, 44.95, 50.73, 66.87, 33.09, 39.21, 59.14),
    "Samba*@760m": (20.63, 22.71, 39.72, 69.19, 47.35, 52.01, 66.92, 33.20, 38.98, 61.24),
    "Gated DeltaNet-H2*@760m": (19.88, 20.83, 39.18, 68.95, 48.22, 52.57, 67.01, 35.49, 39.39, 61.11),
    "moneta@760m": (21.18, 21.94, 38.02, 69.55, 49.16, 53.01, 67.47, 36.09, 40.53, 63.18),
    "yaad@760m": (20.99, 21.57, 37.85, 69.14, 50.02, 53.93, 67.78, 36.27, 41.01, 63.34),
    "memora@760m": (22.28, 22.31, 38.19, 67.82, 49.30, 53.28, 63.57, 36.15, 40.94, 62.96),
    "moneta-h@760m": (18.72, 20.13, 40.59, 70.84, 50.13, 54.17, 67.64, 36.79, 40.87, 62.43),
    "yaad-h@760m": (18.59, 19.80, 40.22, 69.51, 50.48, 53.69, 68.04, 36.55, 40.28, 61.94),
    "memora-h@760m": (18.24, 20.55, 39.91, 69.06, 49.84, 52.88, 66.90, 36.12, 40.99, 61.75),
    "transformer++@1.3b": (18.53, 18.32, 42.60, 70.02, 50.23, 53.51, 68.83, 35.10, 40.66, 57.09),
    "retnet@1.3b": (19.08, 17.27, 40.52, 70.07, 49.16, 54.14, 67.34, 33.78, 40.78, 60.39),
    "Mamba2@1.3b": (16.56, 12.56, 45.66, 71.87, 55.67, 55.24, 72.47, 37.88, 40.20, 60.13),
    "deltanet@1.3b": (17.71, 16.88, 42.46, 70.72, 50.93, 53.35, 68.47, 35.66, 40.22, 55.29),
    "gated-deltanet@1.3b": (16.42, 12.17, 46.65, 72.25, 55.76, 57.45, 71.21, 38.39, 40.63, 60.24),
    "Samba*@1.3b": (16.13, 13.29, 44.94, 70.94, 53.42, 55.56, 68.81, 36.17, 39.96, 62.11),
    "Gated DeltaNet-H2*@1.3b": (15.91, 12.55, 48.76, 72.19, 56.88, 57.77, 71.33, 39.07, 41.91, 61.55),
    "moneta@1.3b": (15.52, 11.47, 47.88, 73.16, 56.14, 59.09, 72.53, 40.32, 41.91, 61.18),
    "yaad@1.3b": (15.18, 11.89, 47.23, 72.81, 56.46, 59.02, 72.14, 40.05, 40.73, 61.86),
    "memora@1.3b": (15.90, 12.04, 48.67, 73.10, 55.99, 57.36, 71.55, 37.92, 40.19, 61.34),
}

RESULT = zero_shot_table(
    "MIRAS, arXiv 2504.13173, table 2 (15B tokens at 340M, 30B at 760M, 100B at 1.3B)", NUMBERS, average=False
)

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
    "moneta-h": Row("Moneta-H*", "moneta-h"),
    "yaad-h": Row("Yaad-H*", "yaad-h"),
    "memora-h": Row("Memora-H*", "memora-h"),
}


def get_config(arg: str = "") -> Experiment:
    """The experiment of a row at a size; see the file's docstring."""
    return compare(ROWS, arg)
