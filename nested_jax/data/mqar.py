"""Multi-query associative recall (MQAR): pairs of keys and values, then the keys again, each to be answered.

The task and both recipes are those of HazyResearch/zoology (Arora et al., "Zoology", 2023): the one of the paper's
figure 2, and the mixture that the repository calls the original one. They differ in more than lengths, so that a score
says which one it is of.
"""

import dataclasses

import numpy as np

from nested_jax.data.examples import Examples, examples

_FIGURE_2 = {64: 4, 128: 8, 256: 16, 512: 64}
_TRAIN, _VALIDATION, _TEST = range(3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MQAR:
    """Sequences `k1 v1 k2 v2 ...`, then each key once more, at a random even place, where its value is the target.

    Keys are distinct symbols of the lower half of the vocabulary without 0, values distinct ones of the upper half,
    fresh in every sequence. Of the even places after the pairs, the i-th is a key's with a weight of i^(power - 1):
    most keys come soon. The other places are 0 or random symbols. Only the places of keys after the pairs are trained
    and scored. The source's score is the mean over them in a sequence, then over sequences: `example_accuracy`.

    Attributes:
      vocab_size: symbols, more than `length`.
      length: symbols per sequence, an even number.
      pairs: keys and values per sequence.
      train_examples: sequences to train on.
      validation_examples: sequences of `validation`. The source has none and chooses settings on its test.
      test_examples: sequences of `test`.
      power: positive; 1 is uniform.
      passes: how often the pairs are shown.
      random_non_queries: whether places without a key hold symbols drawn from the whole vocabulary, else 0.

    Raises:
      ValueError: if a number is out of its range or the pairs and keys do not fit.

    Example:
      >>> task = MQAR(vocab_size=20, length=8, pairs=2, train_examples=1)
      >>> found = task.train(0)
      >>> found.inputs[0].tolist(), found.targets[0][found.scored[0]].tolist()
      ([8, 15, 6, 12, 6, 0, 8, 0], [12, 15])
    """

    vocab_size: int = 8_192
    length: int = 64
    pairs: int = 4
    train_examples: int = 100_000
    validation_examples: int = 1_000
    test_examples: int = 3_000
    power: float = 0.01
    passes: int = 1
    random_non_queries: bool = False

    def __post_init__(self) -> None:
        for name in ("pairs", "passes", "train_examples", "validation_examples", "test_examples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.power <= 0:
            raise ValueError(f"power: expected a positive number, got {self.power}")
        needed = 2 * self.pairs * (self.passes + 1)
        if self.length % 2 or self.length < needed:
            raise ValueError(f"length: expected an even number of at least {needed}, got {self.length}")
        if self.vocab_size <= self.length:
            raise ValueError(f"vocab_size: expected more than length = {self.length}, got {self.vocab_size}")

    def train(self, seed: int) -> Examples:
        """The training set, [train_examples, length]."""
        return self._draw([_TRAIN, seed], self.train_examples)

    def tests(self) -> dict[str, Examples]:
        """`validation` and `test`, drawn like the training set."""
        return {
            "validation": self._draw([_VALIDATION, 0], self.validation_examples),
            "test": self._draw([_TEST, 0], self.test_examples),
        }

    def _draw(self, seed: list[int], count: int) -> Examples:
        rng = np.random.default_rng(seed)
        half = self.vocab_size // 2
        keys = distinct(rng, 1, half, (count, self.pairs))
        values = distinct(rng, half, self.vocab_size, (count, self.pairs))
        context = 2 * self.pairs * self.passes
        slots = (self.length - context) // 2
        # The smallest of exponential variables with these rates: Gumbel-top-k, in order, so sampling one after another.
        rates = np.arange(1, slots + 1) ** (self.power - 1)
        gaps = np.argsort(rng.standard_exponential((count, slots)) / rates, axis=1)[:, : self.pairs]
        places = context + 2 * gaps

        inputs = np.zeros((count, self.length), np.int32)
        targets = np.zeros_like(inputs)
        scored = np.zeros(inputs.shape, bool)
        inputs[:, :context] = np.tile(np.stack([keys, values], axis=2).reshape(count, -1), self.passes)
        np.put_along_axis(inputs, places, keys, axis=1)
        np.put_along_axis(targets, places, values, axis=1)
        np.put_along_axis(scored, places, True, axis=1)
        if self.random_non_queries:
            inputs = np.where(inputs == 0, rng.integers(0, self.vocab_size, inputs.shape, np.int32), inputs)
        return examples(inputs, targets, scored)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MQARMixture:
    """MQAR trained on sequences of several lengths and numbers of pairs at once, and tested on each of several.

    Training sequences shorter than the longest are followed by zeros, which are neither trained nor scored: they cost
    time but change nothing in a causal model. The parts stand one behind another; the source, too, mixes them.

    Attributes:
      trained: (length, pairs, sequences) of each part of the training set.
      tested: (length, pairs) of each test.
      vocab_size: as in `MQAR`, as are the other settings.
      validation_examples: sequences of `validation` for each part of the training set.
      test_examples: sequences of each test.
      power: positive; 1 is uniform.
      random_non_queries: whether places without a key hold random symbols, else 0.

    Raises:
      ValueError: as `MQAR`.

    Example:
      >>> task = MQARMixture(trained=((8, 2, 3), (16, 4, 2)), tested=((16, 2),), vocab_size=20)
      >>> task.train(0).inputs.shape, list(task.tests())
      ((5, 16), ['validation', '16x2'])
    """

    trained: tuple[tuple[int, int, int], ...]
    tested: tuple[tuple[int, int], ...]
    vocab_size: int = 8_192
    validation_examples: int = 200
    test_examples: int = 1_000
    power: float = 0.01
    random_non_queries: bool = True

    def __post_init__(self) -> None:
        for name in ("trained", "tested"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected at least one part, got none")
        for length, pairs, count in self.trained:
            self._part(length, pairs, count)
        for length, pairs in self.tested:
            self._part(length, pairs, 1)

    def train(self, seed: int) -> Examples:
        """The training set, [sequences of all parts, the longest length trained]."""
        parts = [self._part(length, pairs, count) for length, pairs, count in self.trained]
        return _joined([part._draw([_TRAIN, seed, i], part.train_examples) for i, part in enumerate(parts)])

    def tests(self) -> dict[str, Examples]:
        """`validation`, joined like the training set, then a set per length and pairs, named like "64x4"."""
        parts = [self._part(length, pairs, count) for length, pairs, count in self.trained]
        found = [part._draw([_VALIDATION, i], part.validation_examples) for i, part in enumerate(parts)]
        tests = {f"{length}x{pairs}": self._part(length, pairs, 1) for length, pairs in self.tested}
        drawn = {name: part._draw([_TEST, i], part.test_examples) for i, (name, part) in enumerate(tests.items())}
        return {"validation": _joined(found), **drawn}

    def _part(self, length: int, pairs: int, count: int) -> MQAR:
        return MQAR(
            vocab_size=self.vocab_size,
            length=length,
            pairs=pairs,
            train_examples=count,
            validation_examples=self.validation_examples,
            test_examples=self.test_examples,
            power=self.power,
            random_non_queries=self.random_non_queries,
        )


def zoology_figure2(length: int) -> MQAR:
    """The task of Zoology's figure 2: 100,000 sequences of one length to train on, no random symbols.

    Args:
      length: 64, 128, 256 or 512 with 4, 8, 16 or 64 pairs. The last one is commented out in the repository.

    Raises:
      ValueError: for another length.

    Example:
      >>> zoology_figure2(128).pairs
      8
    """
    if length not in _FIGURE_2:
        raise ValueError(f"length: expected one of {list(_FIGURE_2)}, got {length}")
    return MQAR(length=length, pairs=_FIGURE_2[length])


def original() -> MQARMixture:
    """The mixture of zoology's current "original MQAR" configuration, with random symbols.

    Example:
      >>> original().tested
      ((64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256))
    """
    return MQARMixture(
        trained=((64, 4, 100_000), (128, 8, 20_000), (256, 16, 20_000), (256, 32, 20_000), (256, 64, 20_000)),
        tested=((64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256)),
    )


def distinct(rng: np.random.Generator, low: int, high: int, shape: tuple[int, ...]) -> np.ndarray:
    """Symbols of [low, high), drawn one after another without those drawn before.

    Args:
      rng: where the draws come from.
      low: lowest symbol.
      high: one more than the highest.
      shape: [..., K] with K ≤ high - low.

    Returns:
      int64 `shape`, distinct along the last axis: draws repeated until none equals one to its left.

    Example:
      >>> np.sort(distinct(np.random.default_rng(0), 5, 8, (2, 3))).tolist()
      [[5, 6, 7], [5, 6, 7]]
    """
    found = rng.integers(low, high, (int(np.prod(shape[:-1])), shape[-1]))
    rows = np.arange(len(found))
    while len(rows):
        order = np.argsort(found[rows], axis=1, kind="stable")
        in_order = np.take_along_axis(found[rows], order, axis=1)
        again, column = np.nonzero(in_order[:, 1:] == in_order[:, :-1])
        found[rows[again], order[again, column + 1]] = rng.integers(low, high, len(again))
        rows = rows[np.unique(again)]
    return found.reshape(shape)


def _joined(parts: list[Examples]) -> Examples:
    longest = max(part.inputs.shape[1] for part in parts)
    padded = [[np.pad(x, ((0, 0), (0, longest - x.shape[1]))) for x in part] for part in parts]
    inputs, targets, trained, scored = (np.concatenate(column) for column in zip(*padded, strict=True))
    return examples(inputs, targets, trained, scored)
