"""Nested Learning, table 4: MAD's small tasks for the mixing of sequences (arXiv 2512.24695).

    python -m nested_jax sweep experiments/nested_learning/table4.py
    python -m nested_jax sweep experiments/nested_learning/table4.py --config.optimizer.learning_rate=5e-4 \\
        --config.optimizer.weight_decay=0.0
    python -m nested_jax table experiments/nested_learning/table4.py
    python -m nested_jax train --config=experiments/nested_learning/table4.py:hope/compression

Variants are `ROW/TASK@BUDGET`: `titans/compression` and `titans/compression@small` (1,000 steps of 4,096 symbols; on a
core that other runs shared 4 to 6 minutes of attention, 18 to 43 of Titans, 78 to 85 of Hope; on a shared H100
Hope learned 50,000 symbols a second), `@tiny` (for tests), `@170m` for the benchmark's 200 epochs (20,000 steps;
the model is the same, of width 128).

What was measured of Titans and attention is in `experiments/atlas/table4.py`: these are the same runs. Hope (2026-11-26
and 27, seed 0): memorization 100 % (one H100, jax 0.11.2), compression 26.8 %, recall from noise 98.6, fuzzy recall
7.5, selective copying 34.3 (one core of an AMD EPYC virtual machine). On a CPU it is read in parts of four sequences
(`--config.microbatches=32` for compression, 8 for the recalls, 4 for copying), whose memories' weights fit the caches:
two runs side by side on a core each, compression went at 550 symbols a second at once, 700 in 8 parts, 1,040 in 32, 930
in 128.

What is measured is `nested_jax.train.protocols.mad`: the accuracy, a mean over classes, at the benchmark's *baseline*
setting of a task. A score of MAD is a mean over settings of growing difficulty, so these are no scores and no
reproduction. Neither the sizes nor the settings of the paper are printed, and the ICR that it prints is taken for the
noisy one, as in Atlas (arXiv 2505.23735, table 4). Its tables of five columns are not those of six columns that other
papers print.

RWKV-7 and Comba have no model here. "Hope" is our family, but for its makers' chunks, which are the memory's, 4 tokens
(our choice: an eighth of them would be one token, and a step takes twice as long).
"""

from dataclasses import replace

from nested_jax.memory import SelfModifying
from nested_jax.models import MemoryConfig, ModelConfig
from nested_jax.train.comparison import Published, Row, without_positions
from nested_jax.train.experiment import Experiment
from nested_jax.train.protocols import MAD_COLUMNS, MAD_MEASURED, MAD_SWEEP, mad

PARTS = MAD_COLUMNS
NUMBERS = {
    "transformer": (49.4, 100, 47.9, 96.2, 83.7),
    "RWKV-7": (45.1, 100, 32.8, 95.6, 82.2),
    "Comba": (46.3, 100, 32.8, 96.4, 82.9),
    "titans": (49.8, 100, 50.0, 99.4, 83.4),
    "hope": (51.2, 100, 52.1, 99.7, 85.2),
}
RESULT = Published(
    source="Nested Learning, arXiv 2512.24695, table 4 (accuracy in %)",
    columns=MAD_COLUMNS,
    values={row: dict(zip(MAD_COLUMNS, numbers, strict=True)) for row, numbers in NUMBERS.items()},
    measured=MAD_MEASURED,
    unit=100,
)
SWEEP = MAD_SWEEP


def equal_chunks(config: ModelConfig) -> dict[str, MemoryConfig]:
    """Memories that make keys, values and gates learn in the chunks of the memory that is read, not in shorter ones."""
    memory = config.memory.memory
    assert isinstance(memory, SelfModifying)
    generators = replace(memory.generators, chunk_size=memory.chunk_size)
    return {"memory": replace(config.memory, memory=replace(memory, generators=generators))}


ROWS = {
    "transformer": Row("Transformer", "transformer++", without_positions),
    "titans": Row("Titans", "titans-lmm"),
    "hope": Row("Hope", "hope", equal_chunks),
}


def get_config(arg: str = "") -> Experiment:
    """The experiment of a row on a task with a budget; see the file's docstring."""
    return mad(ROWS, arg)
