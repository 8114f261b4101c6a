"""MIRAS, table 4: what the parts of Yaad are worth (arXiv 2504.13173).

    python -m nested_jax sweep experiments/miras/table4.py:340m --seeds=0
    python -m nested_jax table experiments/miras/table4.py:340m
    python -m nested_jax train --config=experiments/miras/table4.py:no-retention@340m --config.data.path=TEXT

Variants are rows, each at a size: `yaad@340m` or any other size, `yaad` and `yaad@small` (190k parameters on the
sources of the standard library, byte by byte, minutes on a CPU), `yaad@tiny` (for tests). The paper's sizes need
accelerators, FineWeb-Edu (`--config.data.path`) and a tokenizer of 32,000 tokens
(`--config.data.tokenizer=tokenizer.json`), in the sweep's command line, too. The paper prints neither hardware nor
hours.

Which size the paper's rows have is not printed, and Yaad's 53.98 is at no size the mean of its accuracies in table 2
(45.94 at 340M, 52.42 at 760M, 56.29 at 1.3B). As the numbers are accuracies, the table compares scores and not losses.

With `--config.zero_shot=FOLDER` a run ends with the accuracies, see `experiments/titans/table1.py`; without it, it
reports bits per byte, and a row has no score.

Differs from the paper: as `experiments/miras/table2.py`. A δ that does not depend on the input is 0.5, where the gate
starts (our choice; the paper says no value). "w/o l2" is the l1 error at all its sizes, without δ; "w/o l1" is the l2
error without δ.
"""

import dataclasses

import nested_jax as nj
from nested_jax.models import MemoryConfig, ModelConfig
from nested_jax.train.comparison import Published, Row, changed_memory, compare, linear_memory
from nested_jax.train.experiment import Experiment

RESULT = Published(
    source="MIRAS, arXiv 2504.13173, table 4 (size not printed)",
    columns={"average": "Avg. LM"},
    values={
        "yaad": {"average": 53.98},
        "no-retention": {"average": 50.63},
        "fixed-delta": {"average": 52.19},
        "no-l2": {"average": 52.86},
        "no-l1": {"average": 53.04},
        "linear": {"average": 51.57},
    },
    measured={"average": "average"},
)


def no_retention(config: ModelConfig) -> dict[str, MemoryConfig]:
    return changed_memory(config, rule=nj.rules.yaad(decay=0.0))


def fixed_delta(config: ModelConfig) -> dict[str, MemoryConfig]:
    return {"memory": dataclasses.replace(config.memory, fixed=("delta",))}


def no_l2(config: ModelConfig) -> dict[str, MemoryConfig]:
    return changed_memory(config, objective=nj.objectives.lp(1))


def no_l1(config: ModelConfig) -> dict[str, MemoryConfig]:
    return changed_memory(config, objective=nj.objectives.l2)


ROWS = {
    "yaad": Row("Yaad", "yaad"),
    "no-retention": Row("w/o retention gate", "yaad", no_retention),
    "fixed-delta": Row("w/o input-dependent δ", "yaad", fixed_delta),
    "no-l2": Row("w/o l2", "yaad", no_l2),
    "no-l1": Row("w/o l1", "yaad", no_l1),
    "linear": Row("Linear memory", "yaad", linear_memory),
}


def get_config(arg: str = "") -> Experiment:
    """The experiment of a row at a size; see the file's docstring."""
    return compare(ROWS, arg)
