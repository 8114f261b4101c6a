"""Titans, table 1: language modelling and common-sense reasoning at 340M, 400M and 760M (arXiv 2501.00663).

    python -m nested_jax sweep experiments/titans/table1.py:340m --seeds=0
    python -m nested_jax table experiments/titans/table1.py:340m
    python -m nested_jax train --config=experiments/titans/table1.py:lmm@340m --config.data.path=TEXT

Variants are rows, each at a size: `lmm@340m` and `lmm@400m` (15B tokens), `lmm@760m` (30B), `lmm` and `lmm@small` (190k
parameters on the sources of the standard library, byte by byte, minutes on a CPU), `lmm@tiny` (for tests). The paper's
sizes need accelerators, FineWeb-Edu (`--config.data.path`, Parquet as it comes) and a tokenizer of 32,000 tokens (the
paper's is Llama 2's; `--config.data.tokenizer=tokenizer.json`), in the sweep's command line, too. The paper prints
neither hardware nor hours. Mamba, Mamba2, HGRN2, Samba and Gated DeltaNet-H2 have no model here and are published
numbers only.

With `--config.zero_shot=FOLDER` a run (and a sweep) ends with the columns, zero-shot over benchmarks in local JSON
lines; what is missing there is said before training, with what each file should hold and where it comes from. Of a run
that is done, `python -m nested_jax eval --config=experiments/titans/table1.py:lmm@340m --zero-shot=FOLDER` gives them.

Published numbers are as printed. Three averages are not the mean of the eight accuracies: Gated DeltaNet-H2 at 400M
(47.69, mean 47.80), Titans (LMM) at 400M (47.83, mean 47.87) and TTT at 760M (47.32, mean 49.37, which later papers
repeat). The SIQA of Titans (MAL) at 760M, 30.98, looks like a misprint, but its average agrees with it.

Differs from the paper at its own sizes: the learning rates are those of Atlas table 7 (the text of Titans says 4e-4),
for 400M those of 340M; blocks, widths and heads are from that table, too, and the width of the feed-forward layers is
such that all rows of a size have the same number of parameters. Gradients are clipped to norm 1 and learning rates warm
up for a fifteenth of the steps (1B of 15B tokens), as Gated DeltaNet's, whose training the paper follows. Which TTT it
is, is not printed: here TTT-MLP. GLA has one decay per head here and one per channel in its paper.
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
    "lmm@340m": (26.18, 29.97, 34.98, 64.73, 39.61, 51.85, 55.60, 28.14, 34.52, 59.99, 46.17),
    "mac@340m": (25.43, 28.13, 36.00, 65.32, 40.35, 51.21, 58.17, 29.00, 38.63, 60.18, 47.36),
    "mag@340m": (25.07, 28.72, 36.71, 64.88, 40.56, 52.49, 57.72, 28.16, 39.75, 60.01, 47.54),
    "mal@340m": (24.69, 28.80, 35.74, 64.97, 39.44, 51.97, 56.58, 28.21, 38.14, 57.32, 46.55),
    "transformer++@400m": (30.63, 37.37, 29.64, 64.27, 37.72, 51.53, 54.95, 27.36, 38.07, 61.59, 45.64),
    "retnet@400m": (29.92, 46.83, 29.16, 65.23, 36.97, 51.85, 56.01, 27.55, 37.30, 59.66, 45.47),
    "HGRN2@400m": (32.33, 47.14, 26.12, 64.52, 35.45, 52.24, 55.97, 25.51, 37.35, 59.02, 44.52),
    "gla@400m": (27.96, 36.66, 27.86, 65.94, 37.41, 49.56, 56.01, 26.36, 38.94, 59.84, 45.24),
    "Mamba@400m": (29.22, 39.88, 29.82, 65.72, 37.93, 50.11, 58.37, 26.70, 37.76, 61.13, 45.94),
    "Mamba2@400m": (26.34, 33.19, 32.03, 65.77, 39.73, 52.48, 59.00, 27.64, 37.92, 60.72, 46.91),
    "deltanet@400m": (27.69, 44.04, 29.96, 64.52, 37.03, 50.82, 56.77, 27.13, 38.22, 60.09, 45.57),
    "ttt@400m": (26.11, 31.52, 33.25, 65.70, 39.11, 51.68, 58.04, 28.99, 38.26, 59.87, 46.86),
    "gated-deltanet@400m": (25.47, 29.24, 34.40, 65.94, 40.46, 51.46, 59.80, 28.58, 37.43, 60.03, 47.26),
    "Samba*@400m": (25.32, 29.47, 36.86, 66.09, 39.24, 51.45, 60.12, 27.20, 38.68, 58.22, 47.23),
    "Gated DeltaNet-H2*@400m": (24.19, 28.09, 36.77, 66.43, 40.79, 52.17, 59.55, 29.09, 39.04, 58.56, 47.69),
    "lmm@400m": (25.03, 28.99, 35.21, 65.85, 40.91, 52.19, 59.97, 29.20, 38.74, 60.85, 47.83),
    "mac@400m": (25.61, 27.73, 36.92, 66.39, 41.18, 52.80, 60.24, 29.69, 40.07, 61.93, 48.65),
    "mag@400m": (23.59, 27.81, 37.24, 66.80, 40.92, 53.21, 60.01, 29.45, 39.91, 61.28, 48.60),
    "mal@400m": (23.93, 27.89, 36.84, 66.29, 40.74, 52.26, 59.85, 29.71, 38.92, 58.40, 47.87),
    "transformer++@760m": (25.21, 27.64, 35.78, 66.92, 42.19, 51.95, 60.38, 32.46, 39.51, 60.37, 48.69),
    "retnet@760m": (26.08, 24.45, 34.51, 67.19, 41.63, 52.09, 63.17, 32.78, 38.36, 57.92, 48.46),
    "Mamba@760m": (28.12, 23.96, 32.80, 66.04, 39.15, 52.38, 61.49, 30.34, 37.96, 57.62, 47.22),
    "Mamba2@760m": (22.94, 28.37, 33.54, 67.90, 42.71, 49.77, 63.48, 31.09, 40.06, 58.15, 48.34),
    "deltanet@760m": (24.37, 24.60, 37.06, 66.93, 41.98, 50.65, 64.87, 31.39, 39.88, 59.02, 48.97),
    "ttt@760m": (24.17, 23.51, 34.74, 67.25, 43.92, 50.99, 64.53, 33.81, 40.16, 59.58, 47.32),
    "gated-deltanet@760m": (21.18, 22.09, 35.54, 68.01, 44.95, 50.73, 66.87, 33.09, 39.21, 59.14, 49.69),
    "Samba*@760m": (20.63, 22.71, 39.72, 69.19, 47.35, 52.01, 66.92, 33.20, 38.98, 61.24, 51.08),
    "Gated DeltaNet-H2*@760m": (19.88, 20.83, 39.18, 68.95, 48.22, 52.57, 67.01, 35.49, 39.39, 61.11, 51.49),
    "lmm@760m": (20.04, 21.96, 37.40, 69.28, 48.46, 52.27, 66.31, 35.84, 40.13, 62.76, 51.56),
    "mac@760m": (19.93, 20.12, 39.62, 70.46, 49.01, 53.18, 67.86, 36.01, 41.87, 62.05, 52.51),
    "mag@760m": (18.61, 19.86, 40.98, 70.25, 48.94, 52.89, 68.23, 36.19, 40.38, 62.11, 52.50),
    "mal@760m": (19.07, 20.33, 40.05, 69.99, 48.82, 53.02, 67.54, 35.65, 30.98, 61.72, 50.97),
}

RESULT = zero_shot_table("Titans, arXiv 2501.00663, table 1 (15B tokens at 340M and 400M, 30B at 760M)", NUMBERS)

ROWS = {
    "transformer++": Row("Transformer++", "transformer++"),
    "retnet": Row("RetNet", "retnet"),
    "gla": Row("GLA", "gated-linear-attention"),
    "deltanet": Row("DeltaNet", "deltanet"),
    "ttt": Row("TTT", "ttt-mlp"),
    "gated-deltanet": Row("Gated DeltaNet", "gated-deltanet"),
    "lmm": Row("Titans (LMM)", "titans-lmm"),
    "mac": Row("Titans (MAC)*", "titans-mac"),
    "mag": Row("Titans (MAG)*", "titans-mag"),
    "mal": Row("Titans (MAL)*", "titans-mal"),
}


def get_config(arg: str = "") -> Experiment:
    """The experiment of a row at a size; see the file's docstring."""
    return compare(ROWS, arg)
