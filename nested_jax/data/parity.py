"""Parity over long ranges: the smallest task that asks a memory to track a state, trained on short strings only."""

import dataclasses

import numpy as np

from nested_jax.data.examples import Examples, examples

_TRAIN, _VALIDATION, _LONG, _LENGTHS = range(4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParityTracking:
    """Random bits, and at every place whether the number of ones so far is odd.

    A bit's symbol is 1 + the bit, zeros are behind a string; targets are 0 (even) and 1 (odd). Every place of a string
    is trained. The source trains on 5,120,000 strings, each seen once in 20,000 batches of 256, and tests on 8,192.

    Attributes:
      trained: shortest and longest string to train on; lengths are uniform between them.
      tested: shortest and longest string of the tests of longer ones.
      train_examples: strings to train on; 100,000 is our choice.
      validation_examples: strings of `validation`.
      test_examples: strings of each other test.

    Raises:
      ValueError: if a range is empty or begins below 1, no place is beyond training, or a number is below 1.

    Example:
      >>> found = ParityTracking(train_examples=1, trained=(4, 4), tested=(4, 8)).train(0)
      >>> found.inputs.tolist(), found.targets.tolist()
      ([[1, 2, 2, 2]], [[0, 1, 0, 1]])

    References:
      Grazzi et al., "Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues", arXiv 2411.12537, and its
      repository automl/unlocking_state_tracking.
    """

    trained: tuple[int, int] = (3, 40)
    tested: tuple[int, int] = (40, 256)
    train_examples: int = 100_000
    validation_examples: int = 1_024
    test_examples: int = 8_192

    def __post_init__(self) -> None:
        for name in ("trained", "tested"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise ValueError(f"{name}: expected 1 <= shortest <= longest, got {(low, high)}")
        if self.tested[1] <= self.trained[1]:
            raise ValueError(f"tested: expected strings longer than {self.trained[1]}, got {self.tested}")
        for name in ("train_examples", "validation_examples", "test_examples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")

    @property
    def vocab_size(self) -> int:
        """Padding and two bits."""
        return 3

    def train(self, seed: int) -> Examples:
        """The training set, [train_examples, the longest length trained]."""
        return _strings([_TRAIN, seed], self.train_examples, self.trained)

    def tests(self) -> dict[str, Examples]:
        """Sets that differ in length and in the places scored.

        Returns:
          `validation`: strings of the lengths of training, every place. Three views of the same strings of the longest
          length tested: `within`, the places that training reaches; `beyond`, those behind; `last`, the last one.
          `lengths`: strings of uniform lengths in `tested`, as in the source, the last place of each.
        """
        longest = self.tested[1]
        long = _strings([_LONG, 0], self.test_examples, (longest, longest))
        places = np.broadcast_to(np.arange(1, longest + 1), long.inputs.shape)
        spread = _strings([_LENGTHS, 0], self.test_examples, self.tested)
        last = np.arange(1, longest + 1) == spread.scored.sum(axis=1)[:, None]
        return {
            "validation": _strings([_VALIDATION, 0], self.validation_examples, self.trained),
            "within": long._replace(scored=places <= self.trained[1]),
            "beyond": long._replace(scored=places > self.trained[1]),
            "last": long._replace(scored=places == longest),
            "lengths": spread._replace(scored=last),
        }


def _strings(seed: list[int], count: int, window: tuple[int, int]) -> Examples:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(window[0], window[1] + 1, count)
    bits = rng.integers(0, 2, (count, window[1]), np.uint8)
    inside = np.arange(window[1]) < lengths[:, None]
    return examples(np.where(inside, bits + 1, 0), np.where(inside, np.cumsum(bits, axis=1) % 2, 0), inside)
