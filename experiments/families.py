"""Every family of the papers' tables at every size, trained alike.

    python -m nested_jax describe --config=experiments/families.py:atlas@340m
    python -m nested_jax train --config=experiments/families.py:titans-mag
    python -m nested_jax train --config=experiments/families.py:titans-mac@170m --config.data.path=FOLDER

Variants are families (`nested_jax.models.FAMILIES`), each at a size: `tiny` (for tests), `small` (the default: 190k
parameters, a minute on a CPU), `20m` (bytes on one GPU: minutes for attention, hours for Hope, never run yet), `170m`,
`340m`, `400m`, `760m` and `1.3b`, with the papers' hyperparameters (`nested_jax.train.comparison.training`). Differs
from the papers at their sizes: bytes instead of tokens; bring a text.
"""

from nested_jax.models import FAMILIES
from nested_jax.train.comparison import Row, compare
from nested_jax.train.experiment import Experiment

ROWS = {name: Row(name, name) for name in FAMILIES}


def get_config(arg: str = "") -> Experiment:
    """The experiment of a family at a size; see the file's docstring."""
    return compare(ROWS, arg)
