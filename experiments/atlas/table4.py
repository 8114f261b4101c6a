"""Atlas, table 4: MAD's small tasks for the mixing of sequences (arXiv 2505.23735).

    python -m nested_jax sweep experiments/atlas/table4.py
    python -m nested_jax table experiments/atlas/table4.py
    python -m nested_jax train --config=experiments/atlas/table4.py:omeganet/compression

Variants are `ROW/TASK@BUDGET` as in `experiments/nested_learning/table4.py`, which says what is measured and in what it
differs: the accuracy at the *baseline* setting of a task, and no score of MAD. Neither the sizes nor the settings of
the paper are printed.

Measured so far (`sweep ... --config.optimizer.learning_rate=5e-4 --config.optimizer.weight_decay=0.0`, one setting of
six; 2026-11-26, "small", seed 0, one core of an AMD EPYC virtual machine that other runs shared;
`experiments/atlas/table4.jsonl`), attention, Gated DeltaNet, Titans and OmegaNet: memorization 60, 94, 100 and 100 %;
selective copying 23, 80, 62 and 37; recall from noise 31, 100, 100 and 98; compression 25, 27, 28 and 28; fuzzy recall
7, 8, 8 and 8. That is a twentieth of the benchmark's steps, with batches of 16 to 128 sequences in the place of 128. A
cell of OmegaNet took 16 to 56 minutes. Of Atlas only memorization was run, on an H100 with jax 0.11.2: 100 %, at 15,000
to 34,000 tokens a second while other programs shared the GPU (its record counts six minutes in which it was stopped).
It orthogonalises matrices per token and head: 510 billion operations in matrix products for a gradient
(`nested_jax.run.jaxpr_flops`), nine in ten of them Newton-Schulz's, and an update took 36 seconds of a core's time
(recall from noise, `--config.microbatches=8`, three updates, 2026-11-27): ten hours a cell. With Newton-Schulz in the
Gram form and `--config.microbatches=32` it takes 21 seconds (15 updates, a core of its own, the same day): six hours.
The other four want a GPU.
"""

from nested_jax.train.comparison import Published, Row, without_positions
from nested_jax.train.experiment import Experiment
from nested_jax.train.protocols import MAD_COLUMNS, MAD_MEASURED, MAD_SWEEP, mad

PARTS = MAD_COLUMNS
NUMBERS = {
    "transformer": (49.4, 100, 48.2, 95.9, 83.8, 75.46),
    "gated-deltanet": (44.8, 100, 32.5, 96.2, 81.7, 71.04),
    "titans": (49.6, 100, 49.7, 99.4, 83.5, 76.44),
    "omeganet": (50.9, 100, 54.2, 99.6, 90.2, 78.98),
    "atlas": (51.6, 100, 54.9, 99.6, 91.4, 79.50),
}
COLUMNS = {**MAD_COLUMNS, "average": "Avg"}
RESULT = Published(
    source="Atlas, arXiv 2505.23735, table 4 (accuracy in %)",
    columns=COLUMNS,
    values={row: dict(zip(COLUMNS, numbers, strict=True)) for row, numbers in NUMBERS.items()},
    measured=MAD_MEASURED,
    means={"average": tuple(MAD_COLUMNS)},
    unit=100,
)
SWEEP = MAD_SWEEP


ROWS = {
    "transformer": Row("Transformer", "transformer++", without_positions),
    "gated-deltanet": Row("Gated DeltaNet", "gated-deltanet"),
    "titans": Row("Titans", "titans-lmm"),
    "omeganet": Row("OmegaNet", "omeganet"),
    "atlas": Row("Atlas", "atlas"),
}


def get_config(arg: str = "") -> Experiment:
    """The experiment of a row on a task with a budget; see the file's docstring."""
    return mad(ROWS, arg)
