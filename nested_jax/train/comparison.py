"""A paper's table as experiments: one row is one model, all rows are trained alike, published numbers stand beside."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nested_jax.data import TextConfig
from nested_jax.memory import Memory
from nested_jax.models import SIZES, MemoryConfig, ModelConfig, family
from nested_jax.train.experiment import Experiment
from nested_jax.train.optimizer import Group, OptimizerConfig

BATCH_TOKENS = 524_288
PEAKS = {"170m": 3e-3, "340m": 1.5e-3, "400m": 1.5e-3, "760m": 1.25e-3, "1.3b": 7e-4}
TOKENS = {"170m": 15e9, "340m": 15e9, "400m": 15e9, "760m": 30e9, "1.3b": 100e9}


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a paper printed.

    Attributes:
      source: paper, table, size and tokens.
      metric: what the numbers are.
      values: row → number.
      base: the row that the others are compared with.
      bases: row → another row that it is compared with here.
    """

    source: str
    metric: str
    values: Mapping[str, float]
    base: str
    bases: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A model of a table.

    Attributes:
      title: what the paper calls it.
      family: one of `nested_jax.models.FAMILIES`.
      change: from the family's configuration to the fields that differ from it; None where none do.
    """

    title: str
    family: str
    change: Callable[[ModelConfig], Mapping[str, Any]] | None = None

    def model(self, size: str) -> ModelConfig:
        """The model, with as many parameters as the size says."""
        config = family(self.family, size)
        return config if self.change is None else family(self.family, size, **self.change(config))


def changed_memory(config: ModelConfig, **fields: Any) -> dict[str, MemoryConfig]:
    """The change of a row that replaces fields of `nested_jax.Memory`."""
    memory = config.memory.memory
    if not isinstance(memory, Memory):
        raise ValueError(f"config: expected a model with an nj.Memory, got {type(memory).__name__}")
    memory = replace(memory, **fields)
    return {"memory": replace(config.memory, memory=memory)}


def row_and_size(rows: Mapping[str, Row], arg: str) -> tuple[str, str]:
    """Reads the variant of an experiment file: `ROW`, `ROW@SIZE`, `SIZE`, or nothing.

    Args:
      rows: row name → `Row`.
      arg: what stands behind the file's name. Without a row it is the first; without a size it is "small".

    Returns:
      A row and one of `nested_jax.models.SIZES`.

    Raises:
      ValueError: for an unknown row or size; the nearest one is suggested.

    Example:
      >>> rows = {"lmm": Row("LMM", "titans-lmm"), "mag": Row("+Attn (MAG)", "titans-mag")}
      >>> row_and_size(rows, "mag@tiny"), row_and_size(rows, "tiny"), row_and_size(rows, "mag")
      (('mag', 'tiny'), ('lmm', 'tiny'), ('mag', 'small'))
    """
    row, at, size = arg.partition("@")
    if not at and row in SIZES:
        row, size = "", row
    row, size = row or next(iter(rows)), size or "small"
    for what, given, known in (("row", row, rows), ("size", size, SIZES)):
        if given not in known:
            near = difflib.get_close_matches(given, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{what} must be one of {', '.join(known)}, got {given!r}{hint}")
    return row, size


def compare(rows: Mapping[str, Row], arg: str) -> Experiment:
    """The experiment of a row, by `row_and_size` and `training`; to be returned by a file's `get_config`."""
    row, size = row_and_size(rows, arg)
    return training(rows[row].model(size), size)


def training(model: ModelConfig, size: str) -> Experiment:
    """How every model of a size is trained: seconds for tests, a minute on a CPU, or as in the papers.

    AdamW, cosine, gradients clipped to norm 1, weight decay 0.1 on matrices. The papers' sizes have batches of half a
    million tokens in sequences of 4,096 and the peak learning rates and tokens of Atlas table 7 (its text says 4e-4
    for all); they need accelerators and a text of that many tokens (`--config.data.path`).

    Args:
      model: what is trained.
      size: one of `nested_jax.models.SIZES`, which is the budget's name, too.
    """
    if size == "tiny":
        steps, data = 20, TextConfig(sequence_length=32, batch_size=4, max_bytes=200_000)
    elif size == "small":
        steps, data = 300, TextConfig(sequence_length=256, batch_size=4, max_bytes=8_000_000)
    else:
        data = TextConfig(sequence_length=4096, batch_size=BATCH_TOKENS // 4096)
        steps = round(TOKENS[size] / BATCH_TOKENS)
        model = replace(model, dtype="bfloat16", remat=True)
    return Experiment(
        model=model,
        data=data,
        optimizer=OptimizerConfig(
            learning_rate=PEAKS.get(size, 4e-3),
            warmup=steps // 15,
            weight_decay=0.1,
            groups=(
                Group(
                    parameters="embedding|scale|bias|convolve|gates|initial|persistent|coefficients",
                    rule="optax.adam",
                    arguments={"b1": 0.9, "b2": 0.95},
                    learning_rate=PEAKS.get(size, 4e-3),
                ),
            ),
        ),
        steps=steps,
        log_every=max(steps // 10, 1),
        eval_every=0,
        final_bytes={"tiny": 4000, "small": 200_000}.get(size),
        checkpoint_every=max(steps // 4, 1) if size in ("tiny", "small") else 500,
        keep=1,
    )
