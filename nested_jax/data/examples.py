"""Tasks: sequences with something to say at some of their places, a training set and several sets to test on."""

import dataclasses
import functools
import hashlib
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np


class Examples(NamedTuple):
    """Sequences of one length, and what is asked about them.

    A model reads `inputs` and says something at every place; the loss is the mean over the places in `trained`, the
    score counts those in `scored`. What an answer may depend on is up to its own place.

    Attributes:
      inputs: int32 [N, T], symbols; anything behind the end of a shorter sequence.
      targets: int32 [N, T], the answer at each place; anything where it is neither trained nor scored.
      trained: bool [N, T].
      scored: bool [N, T].
    """

    inputs: np.ndarray
    targets: np.ndarray
    trained: np.ndarray
    scored: np.ndarray

    def take(self, rows: Any) -> "Examples":
        """Some of the sequences: `rows` is an index or a slice of N."""
        return Examples(*(part[rows] for part in self))

    def digest(self) -> str:
        """A hash of everything in it, 16 hexadecimal digits.

        Example:
          >>> examples([[1, 2]], [[2, 0]], [[True, False]]).digest()
          'ae281ec9633406ed'
        """
        parts = (np.ascontiguousarray(part).tobytes() for part in self)
        return hashlib.sha256(repr(self.inputs.shape).encode() + b"".join(parts)).hexdigest()[:16]


def examples(inputs: Any, targets: Any, trained: Any, scored: Any = None) -> Examples:
    """Examples from anything NumPy takes, checked.

    Args:
      inputs: integers [N, T].
      targets: integers [N, T].
      trained: booleans [N, T].
      scored: booleans [N, T]; None for `trained`.

    Raises:
      ValueError: for other shapes, or if nothing is scored in some sequence.
    """
    trained = np.asarray(trained, bool)
    scored = trained if scored is None else np.asarray(scored, bool)
    found = Examples(np.asarray(inputs, np.int32), np.asarray(targets, np.int32), trained, scored)
    shapes = [part.shape for part in found]
    if found.inputs.ndim != 2 or len(set(shapes)) != 1:
        raise ValueError(f"examples: expected four arrays of one shape [N, T], got {shapes}")
    if not found.scored.any(axis=1).all():
        raise ValueError("scored: expected at least one place in every sequence, got a sequence without")
    return found


class Task(Hashable, Protocol):
    """A benchmark as data: a frozen dataclass of its settings, whose methods draw examples from a seed.

    The same settings and seed give the same examples, bit for bit. Tests do not depend on the seed of training.
    """

    @property
    def vocab_size(self) -> int:
        """Symbols of inputs, and of targets."""
        ...

    def train(self, seed: int) -> Examples:
        """The training set."""
        ...

    def tests(self) -> Mapping[str, Examples]:
        """Name → a set that is never trained on. The first is the one to choose settings by, "validation"."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """A task as the data of an experiment.

    Attributes:
      task: what is learned.
      batch_size: sequences per batch, over all processes.
      seed: of the training set and of the order in which it is read.
    """

    task: Task
    batch_size: int = 64
    seed: int = 0

    def examples(self) -> Examples:
        """The training set, drawn once."""
        return _drawn(self.task, self.seed)

    @property
    def sequence_length(self) -> int:
        """Places of a training sequence."""
        return self.examples().inputs.shape[1]

    def validate(self) -> None:
        """Raise `ValueError` if a field is out of range."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {self.batch_size}")
        if self.seed < 0:
            raise ValueError(f"seed: expected 0 or more, got {self.seed}")


@functools.lru_cache(maxsize=2)
def _drawn(task: Task, seed: int) -> Examples:
    return task.train(seed)
