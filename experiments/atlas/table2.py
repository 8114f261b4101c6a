"""Atlas, table 2: language modelling and common-sense reasoning at 760M and 1.3B (arXiv 2505.23735).

    python -m nested_jax sweep experiments/atlas/table2.py:760m --seeds=0
    python -m nested_jax table experiments/atlas/table2.py:760m
    python -m nested_jax train --config=experiments/atlas/table2.py:atlas@760m --config.data.path=TEXT

Variants are rows, each at a size: `atlas@760m` (30B tokens), `atlas@1.3b` (100B), `atlas` and `atlas@small` (190k
parameters on the sources of the standard library, byte by byte, minutes on a CPU), `atlas@tiny` (for tests). The
paper's sizes need accelerators, FineWeb (`--config.data.path`) and a tokenizer of 32,000 tokens
(`--config.data.tokenizer=tokenizer.json`), in the sweep's command line, too. The paper prints neither hardware nor
hours. Mamba2, Samba, Gated DeltaNet-H2 and SWDT, which the text does not define, have no model here and are published
numbers only. 340M is `experiments/atlas/table8.py`.

With `--config.zero_shot=FOLDER` a run ends with the columns, see `experiments/titans/table1.py`.

Published numbers are as printed; the baselines are those of Titans, MIRAS and, at 1.3B, Gated DeltaNet. Four averages
are not the mean of the eight accuracies: TTT at 760M (47.32, mean 49.38, as in Titans), SWDT at 760M (50.1, mean
50.16), Memora at 1.3B (55.87, mean 55.76) and Gated DeltaNet-H2 at 1.3B (56.18, mean 56.13: its SIQA is 41.2 here and
41.91 where it comes from).

Differs from the paper at its own sizes: the learning rates are those of the paper's table 7 (its text says 4e-4); the
width of the feed-forward layers is such that all rows of a size have the same number of parameters. Not printed, and
our choice: windows of 16 tokens, chunks of 64, polynomial features of degree 2 of keys with 16 features. Which TTT it
is, is not printed: here TTT-MLP. The paper's tokenizer is T5's.
"""

from nested_jax.train.comparison import Row, compare
from nested_jax.train.experiment import Experiment
from nested_jax.train.protocols import zero_shot_table

NUMBERS = {
    "transformer++@760m": (25.21, 27.64, 35.8, 66.9, 42.2, 51.9, 60.4, 32.5, 39.5, 60.4, 48.69),
    "deep-transformer@760m": (20.32, 20.67, 36.9, 68.4, 49.8, 52.8, 65.7, 34.9, 40.2, 61.8, 51.31),
    "dot@760m": (19.96, 20.15, 39.0, 69.1, 50.7, 53.1, 66.2, 37.0, 40.3, 63.7, 52.39),
    "retnet@760m": (26.08, 24.45, 34.5, 67.2, 41.6, 52.1, 63.2, 32.8, 38.4, 57.9, 48.46),
    "deltanet@760m": (24.37, 24.60, 37.1, 66.9, 42.0, 50.7, 64.9, 31.4, 39.9, 59.0, 48.97),
    "ttt@760m": (24.17, 23.51, 34.7, 67.3, 43.9, 51.0, 64.5, 33.8, 40.2, 59.6, 47.32),
    "gated-deltanet@760m": (21.18, 22.09, 35.5, 68.0, 44.9, 50.7, 66.9, 33.1, 39.2, 59.1, 49.69),
    "Samba*@760m": (20.63, 22.71, 39.7, 69.2, 47.4, 52.0, 66.9, 33.2, 39.0, 61.2, 51.08),
    "Gated DeltaNet-H2*@760m": (19.88, 20.83, 39.2, 69.0, 48.2, 52.6, 67.0, 35.5, 39.4, 61.1, 51.49),
    "lmm@760m": (20.04, 21.96, 37.4, 69.3, 48.5, 52.3, 66.3, 35.8, 40.1, 62.8, 51.56),
    "memora@760m": (22.28, 22.31, 38.2, 67.8, 49.3, 53.3, 63.6, 36.1, 40.9, 63.0, 51.52),
    "SWDT@760m": (19.89, 21.52, 36.2, 68.3, 45.2, 53.0, 65.4, 34.2, 39.5, 59.5, 50.1),
    "dla@760m": (23.12, 22.09, 36.1, 68.0, 47.9, 52.7, 65.8, 34.6, 39.1, 59.6, 50.46),
    "omeganet@760m": (19.16, 20.14, 38.7, 69.8, 50.0, 53.3, 67.8, 36.8, 39.6, 64.4, 52.56),
    "atlas@760m": (18.92, 21.01, 39.1, 69.7, 50.2, 53.5, 67.5, 37.1, 40.7, 64.3, 52.77),
    "atlas++@760m": (19.04, 20.03, 39.7, 69.7, 51.1, 53.2, 68.2, 37.4, 40.9, 64.4, 53.09),
    "mag@760m": (18.62, 21.18, 40.0, 70.3, 50.5, 53.0, 68.1, 36.5, 41.2, 65.0, 53.08),
    "mal@760m": (19.07, 21.46, 38.8, 69.2, 50.5, 53.6, 67.3, 36.1, 41.0, 64.5, 52.63),
    "transformer++@1.3b": (18.53, 18.32, 42.6, 70.0, 50.2, 53.5, 68.8, 35.1, 40.7, 57.1, 52.25),
    "deep-transformer@1.3b": (15.67, 12.63, 49.4, 72.6, 57.0, 58.8, 71.1, 37.5, 41.6, 61.5, 56.19),
    "dot@1.3b": (15.28, 11.96, 50.1, 73.3, 57.5, 60.4, 72.2, 41.2, 42.7, 61.4, 57.35),
    "retnet@1.3b": (19.08, 17.27, 40.5, 70.1, 49.2, 54.1, 67.3, 33.8, 40.8, 60.4, 52.02),
    "Mamba2@1.3b": (16.56, 12.56, 45.7, 71.9, 55.7, 55.2, 72.5, 37.9, 40.2, 60.1, 54.89),
    "deltanet@1.3b": (17.71, 16.88, 42.5, 70.7, 50.9, 53.3, 68.5, 35.7, 40.2, 55.3, 52.14),
    "gated-deltanet@1.3b": (16.42, 12.17, 46.6, 72.2, 55.8, 57.4, 71.2, 38.4, 40.6, 60.2, 55.32),
    "Samba*@1.3b": (16.13, 13.29, 44.9, 70.9, 53.4, 55.6, 68.8, 36.2, 40.0, 62.1, 54.00),
    "Gated DeltaNet-H2*@1.3b": (15.91, 12.55, 48.8, 72.2, 56.9, 57.8, 71.4, 39.1, 41.2, 61.6, 56.18),
    "lmm@1.3b": (15.60, 11.41, 49.1, 73.1, 56.3, 59.8, 72.4, 40.8, 42.1, 61.0, 56.82),
    "memora@1.3b": (15.90, 12.04, 48.7, 73.1, 56.0, 57.4, 71.5, 37.9, 40.2, 61.3, 55.87),
    "omeganet@1.3b": (14.91, 11.26, 49.7, 73.4, 57.6, 59.7, 72.6, 40.3, 42.4, 62.1, 57.23),
    "atlas@1.3b": (14.97, 10.98, 50.1, 73.9, 57.3, 60.2, 72.8, 41.0, 42.9, 62.8, 57.62),
    "atlas++@1.3b": (14.40, 10.72, 50.8, 73.5, 59.4, 61.1, 71.3, 43.7, 42.5, 61.9, 58.03),
}

RESULT = zero_shot_table("Atlas, arXiv 2505.23735, table 2 (30B tokens at 760M, 100B at 1.3B)", NUMBERS)

ROWS = {
    "transformer++": Row("Transformer++", "transformer++"),
    "deep-transformer": Row("DeepTransformers", "deep-transformer"),
    "dot": Row("Dot", "dot"),
    "retnet": Row("RetNet", "retnet"),
    "deltanet": Row("DeltaNet", "deltanet"),
    "ttt": Row("TTT", "ttt-mlp"),
    "gated-deltanet": Row("Gated DeltaNet", "gated-deltanet"),
    "lmm": Row("Titans (LMM)", "titans-lmm"),
    "memora": Row("Memora", "memora"),
    "dla": Row("DLA", "dla"),
    "omeganet": Row("OmegaNet", "omeganet"),
    "atlas": Row("Atlas", "atlas"),
    "atlas++": Row("Atlas++", "atlas++"),
    "mag": Row("Atlas (MAG)*", "atlas-mag"),
    "mal": Row("Atlas (MAL)*", "atlas-mal"),
}


def get_config(arg: str = "") -> Experiment:
    """The experiment of a row at a size; see the file's docstring."""
    return compare(ROWS, arg)
