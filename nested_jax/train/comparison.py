"""A paper's table as experiments: one row is one model, all rows are trained alike, published numbers stand beside."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nested_jax.data import TextConfig
from nested_jax.evals.questions import Asked, QuestionsConfig
from nested_jax.memory import Memory, networks
from nested_jax.models import SIZES, AttentionConfig, MemoryConfig, ModelConfig, Size, family
from nested_jax.train.experiment import Experiment
from nested_jax.train.optimizer import Group, OptimizerConfig

BATCH_TOKENS = 524_288
PEAKS = {"20m": 3e-3, "170m": 3e-3, "340m": 1.5e-3, "400m": 1.5e-3, "760m": 1.25e-3, "1.3b": 7e-4}
BUDGETS = ("tiny", "small", "20m")
"""Sizes that are not the papers': seconds for tests, minutes on a CPU, and one GPU."""
TOKENS = {"170m": 15e9, "340m": 15e9, "400m": 15e9, "760m": 30e9, "1.3b": 100e9}


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a paper printed.

    Attributes:
      source: paper, table, size and tokens.
      columns: column → what its numbers are.
      values: row, or `ROW@SIZE` where a table has several sizes → column → number.
      measured: column → the metric of a run that it is compared with, `set/score`, behind `PART:` where a row has parts
        that are trained apart. Columns without one are not measured.
      means: column → the columns that it is the mean of; of ours, where all were run, the mean of the medians.
      unit: a run's metrics times this are in the unit of the table.
      base: in an ablation, the row that the others are compared with: changes of the first column with changes of our
        loss. Further columns stand beside.
      bases: in an ablation, row → another row that it is compared with here.
    """

    source: str
    columns: Mapping[str, str]
    values: Mapping[str, Mapping[str, float]]
    measured: Mapping[str, str] = field(default_factory=dict)
    means: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unit: float = 1.0
    base: str | None = None
    bases: Mapping[str, str] = field(default_factory=dict)

    def of(self, row: str, size: str) -> Mapping[str, float]:
        """The numbers of a row at a size; those of the row where it has one size only; none if none were printed."""
        return self.values.get(f"{row}@{size}", self.values.get(row, {}))


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """How the rows of a table are run.

    Attributes:
      seeds: of parameters and data.
      grid: field of the config → values that are tried, as on a command line; every combination is a run of each seed.
      select: metric by which a combination is chosen, on data that is no test: the one with the greatest median over
        the seeds; with a "-" before it the least.
      select_published: the metric of the published protocol, where that one chooses by test data; several joined by "+"
        are added. The table then shows both.
      differs: size → in which the runs differ from the paper, in words.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    grid: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    select: str = "-bits_per_byte"
    select_published: str | None = None
    differs: Mapping[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> tuple[dict[str, str], ...]:
        """Every combination of the grid; one without settings where there is none.

        Example:
          >>> Sweep(grid={"optimizer.learning_rate": ("1e-3", "3e-3")}).settings
          ({'optimizer.learning_rate': '1e-3'}, {'optimizer.learning_rate': '3e-3'})
        """
        return tuple(dict(zip(self.grid, chosen, strict=True)) for chosen in itertools.product(*self.grid.values()))


UNTUNED = Sweep(
    differs=dict.fromkeys(
        ("small", "20m"),
        "size, budget, text and metric (bits per byte of held-out files, not perplexity); no row's learning rate is "
        "tuned; see the file's docstring",
    )
)
"""Of tables whose rows are all trained by `compare`, at one learning rate."""


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

    def model(self, size: str | Size, **fields: Any) -> ModelConfig:
        """The model, with as many parameters as the size says; `fields` are replaced before the row's own are."""
        config = family(self.family, size, **fields)
        return config if self.change is None else family(self.family, size, **fields, **self.change(config))


def changed_memory(config: ModelConfig, **fields: Any) -> dict[str, MemoryConfig]:
    """The change of a row that replaces fields of `nested_jax.Memory`."""
    memory = config.memory.memory
    if not isinstance(memory, Memory):
        raise ValueError(f"config: expected a model with an nj.Memory, got {type(memory).__name__}")
    memory = replace(memory, **fields)
    return {"memory": replace(config.memory, memory=memory)}


def linear_memory(config: ModelConfig) -> dict[str, MemoryConfig]:
    """The change of a row whose memories are a matrix."""
    return changed_memory(config, network=networks.Linear())


def without_convolution(config: ModelConfig) -> dict[str, MemoryConfig]:
    """The change of a row whose memory layers have no convolutions."""
    return {"memory": replace(config.memory, conv=0)}


def without_positions(config: ModelConfig) -> dict[str, AttentionConfig]:
    """The change of a row whose attention knows no positions."""
    return {"attention": replace(config.attention, rope_base=None)}


def variant(rows: Mapping[str, Row], arg: str, parts: Collection[str] = ("",)) -> tuple[str, str, str]:
    """Reads the variant of an experiment file: `ROW/PART@SIZE`, of which each may be missing.

    Args:
      rows: row name → `Row`.
      arg: what stands behind the file's name. Without a row or a part it is the first; without a size "small".
      parts: what a row is trained on, one run each; ("",) where a row is one run.

    Returns:
      A row, a part and one of `nested_jax.models.SIZES`.

    Raises:
      ValueError: for an unknown row, part or size; the nearest one is suggested.

    Example:
      >>> rows = {"lmm": Row("LMM", "titans-lmm"), "mag": Row("+Attn (MAG)", "titans-mag")}
      >>> variant(rows, "mag@tiny"), variant(rows, "tiny"), variant(rows, "mag/b", ("a", "b"))
      (('mag', '', 'tiny'), ('lmm', '', 'tiny'), ('mag', 'b', 'small'))
    """
    head, at, size = arg.partition("@")
    if not at and head in SIZES:
        head, size = "", head
    row, _, part = head.partition("/")
    row, part, size = row or next(iter(rows)), part or next(iter(parts)), size or "small"
    for what, given, known in (("row", row, rows), ("part", part, parts), ("size", size, SIZES)):
        if given not in known:
            near = difflib.get_close_matches(given, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{what} must be one of {', '.join(known)}, got {given!r}{hint}")
    return row, part, size


def compare(rows: Mapping[str, Row], arg: str, asked: Mapping[str, Asked] | None = None) -> Experiment:
    """The experiment of a row, by `variant` and `training`; to be returned by a file's `get_config`.

    Args:
      rows: of the table.
      arg: `ROW@SIZE`.
      asked: column → benchmark that fills it; asked at the papers' sizes alone, others have not read enough.
    """
    row, _, size = variant(rows, arg)
    questions = QuestionsConfig(asked=() if size in BUDGETS else tuple((asked or {}).items()))
    return replace(training(rows[row].model(size), size), questions=questions)


def shortened(experiment: Experiment) -> Experiment:
    """Two sequences of 128 a step and half of the validation text, for memories that are slow on a CPU."""
    assert isinstance(experiment.data, TextConfig)
    data = replace(experiment.data, sequence_length=128, batch_size=2)
    return replace(experiment, data=data, final_bytes=100_000)


def training(model: ModelConfig, size: str) -> Experiment:
    """How every model of a size is trained: seconds for tests, a minute on a CPU, one GPU, or as in the papers.

    AdamW, cosine, gradients clipped to norm 1, weight decay 0.1 on matrices. The papers' sizes have batches of half a
    million tokens in sequences of 4,096 and the peak learning rates and tokens of Atlas table 7 (its text says 4e-4
    for all); they need accelerators and a text of that many tokens (`--config.data.path`). "20m" reads 164 million
    bytes in sequences of 1,024, our choice for one GPU; of a text that has fewer, some more than once. For one H100
    `python -m nested_jax plan` predicts 3 minutes of Transformer++, 21 of Titans LMM and 4 hours of Hope (2026-11-26;
    never run there).

    Args:
      model: what is trained.
      size: one of `nested_jax.models.SIZES`, which is the budget's name, too.
    """
    short = size in ("tiny", "small")
    if size == "tiny":
        steps, data = 20, TextConfig(sequence_length=32, batch_size=4, max_bytes=200_000)
    elif size == "small":
        steps, data = 300, TextConfig(sequence_length=256, batch_size=4, max_bytes=8_000_000)
    elif size == "20m":
        steps, data = 5_000, TextConfig(sequence_length=1024, batch_size=32)
    else:
        data = TextConfig(sequence_length=4096, batch_size=BATCH_TOKENS // 4096)
        steps = round(TOKENS[size] / BATCH_TOKENS)
    if not short:
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
        log_every=max(steps // 10, 1) if short else 50,
        eval_every=0 if short else 1_000,
        final_bytes={"tiny": 4000, "small": 200_000, "20m": 2_000_000}.get(size),
        checkpoint_every=max(steps // 4, 1) if short else 500,
        keep=1,
    )
