"""MAD: six small tasks for the mixing of sequences, with the settings of the whole benchmark.

The tasks and settings are those of athms/mad-lab (Poli et al., "Mechanistic Design and Scaling of Hybrid
Architectures", 2024), drawn here by another generator: equal in distribution, not bit for bit.
"""

import dataclasses
from typing import Any

import numpy as np

from nested_jax.data.examples import Examples, examples
from nested_jax.data.mqar import distinct

_TRAIN, _VALIDATION, _TEST, _FACTS = range(4)

_BLOCK = 1_024
_SPECIAL = {"fuzzy-in-context-recall": 1, "selective-copying": 2, "compression": 1, "memorization": 1}

_RECALL: dict[str, Any] = {"vocab_size": 16, "length": 128, "train_examples": 12_800}
BASELINE: dict[str, dict[str, Any]] = {
    "in-context-recall": _RECALL,
    "fuzzy-in-context-recall": {**_RECALL, "key_motif": 3, "value_motif": 3},
    "noisy-in-context-recall": {**_RECALL, "vocab_size": 32, "noise_vocab_size": 16, "noise": 0.2},
    "selective-copying": {"vocab_size": 16, "length": 256, "train_examples": 12_800, "copies": 16},
    "compression": {"vocab_size": 16, "length": 32, "train_examples": 12_800},
    "memorization": {"vocab_size": 256, "length": 32, "train_examples": 256},
}

_SIZES = (32, 64, 128)
_LENGTHS = (256, 512, 1024)
_FEWER = (6_400, 3_200, 1_600, 800)
VARIED: dict[str, dict[str, tuple[Any, ...]]] = {
    "in-context-recall": {"vocab_size": _SIZES, "length": _LENGTHS, "train_examples": _FEWER},
    "fuzzy-in-context-recall": {"vocab_size": _SIZES, "length": _LENGTHS, "train_examples": _FEWER},
    "noisy-in-context-recall": {
        "vocab_size": (48, 80, 144),
        "length": _LENGTHS,
        "train_examples": _FEWER,
        "noise": (0.4, 0.6, 0.8),
    },
    "selective-copying": {
        "vocab_size": _SIZES,
        "length": (512, 1024),
        "train_examples": _FEWER,
        "copies": (32, 64, 96),
    },
    "compression": {"vocab_size": _SIZES, "length": (64, 128, 256), "train_examples": _FEWER},
    "memorization": {"vocab_size": (512, 1_024, 2_048, 4_096, 8_192)},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MAD:
    """One of MAD's tasks at one setting.

    - `in-context-recall`: pairs of a key and its value, keys of the lower half of the vocabulary, values of the upper;
      a key has one value within a sequence. The last pair is one shown before. Every next symbol is trained; scored are
      the places of keys seen before, whose next symbol is the value. T = length - 1.
    - `noisy-in-context-recall`: some pairs are two noise symbols, from the end of the vocabulary. T = length - 1.
    - `fuzzy-in-context-recall`: keys and values are words of up to `key_motif` and `value_motif` distinct symbols; in
      tests, keys have exactly `key_motif`. Filled up from the left with the last symbol. Scored are the symbols of
      values of keys seen before. T = length.
    - `selective-copying`: `copies` symbols with blanks (symbol V - 2) strewn before them, then V - 1, then a blank per
      symbol, where they are to be said in order. T = length.
    - `compression`: random symbols, then V - 1; the target is the input itself, everywhere. The source encodes a
      sequence into the last place alone and decodes from there: a model that answers at each place from all it has read
      has nothing to do. T = length.
    - `memorization`: keys, each followed by V - 1, where the key's value is to be said; the values are the same in all
      sequences, training and tests. T = length.

    The last three train the places that they score. The source's score is `macro_accuracy` over the scored places. Its
    copying places blanks with a generator that its seed does not reach, so its data cannot be drawn again; here they
    come from the seed. Where the source lets a last pair of fuzzy recall not be shown before (the pair's first place is
    drawn so late that the sequence ends first), it is drawn early enough, and noisy recall never is all noise: our
    choice.

    Attributes:
      task: a key of `BASELINE`.
      vocab_size: symbols, the special ones and noise included.
      length: of the sequence as the task counts it; T is given above.
      train_examples: sequences to train on.
      validation_examples: sequences of `validation`. The source has none and chooses settings on its test.
      test_examples: sequences of `test`.
      noise_vocab_size: symbols of noise, of noisy recall alone.
      noise: probability that a pair is noise, in [0, 1), of noisy recall alone.
      copies: symbols to copy, of copying alone; 2 · copies + 1 < length.
      key_motif: most symbols of a key, more than 1 in fuzzy recall alone.
      value_motif: most symbols of a value, more than 1 in fuzzy recall alone.

    Raises:
      ValueError: if the task is unknown, a number is out of its range or set for a task without it.

    Example:
      >>> found = MAD(task="in-context-recall", vocab_size=4, length=8, train_examples=1).train(0)
      >>> found.inputs[0].tolist(), found.targets[0][found.scored[0]].tolist()
      ([1, 3, 0, 3, 0, 3, 1], [3, 3])
    """

    task: str = "in-context-recall"
    vocab_size: int = 16
    length: int = 128
    train_examples: int = 12_800
    validation_examples: int = 1_280
    test_examples: int = 1_280
    noise_vocab_size: int = 0
    noise: float = 0.0
    copies: int = 0
    key_motif: int = 1
    value_motif: int = 1

    def __post_init__(self) -> None:
        if self.task not in BASELINE:
            raise ValueError(f"task: expected one of {', '.join(BASELINE)}, got {self.task!r}")
        for name in ("train_examples", "validation_examples", "test_examples", "key_motif", "value_motif"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("noise_vocab_size", "noise", "copies", "key_motif", "value_motif"):
            if name not in BASELINE[self.task] and getattr(self, name) != getattr(MAD, name):
                raise ValueError(f"{name}: expected {getattr(MAD, name)} for {self.task}, got {getattr(self, name)}")
        if not 0 <= self.noise < 1 or self.noise_vocab_size < 0 or (self.noise > 0) != (self.noise_vocab_size > 0):
            raise ValueError(
                "noise: expected a probability below 1, and above 0 just where noise_vocab_size is, got "
                f"{self.noise} and noise_vocab_size={self.noise_vocab_size}"
            )
        if self.task == "selective-copying" and not 1 <= self.copies < (self.length - 1) / 2:
            raise ValueError(f"copies: expected 1 or more, 2 * copies + 1 < length = {self.length}, got {self.copies}")
        even = self.task in ("in-context-recall", "noisy-in-context-recall", "memorization")
        least = 3 * (self.key_motif + self.value_motif) if self.task == "fuzzy-in-context-recall" else 4
        if self.length < least or (even and self.length % 2):
            raise ValueError(
                f"length: expected {'an even number of ' if even else ''}at least {least}, got {self.length}"
            )
        least = max(2 * self.key_motif, 2 * self.value_motif - 1) + self.noise_vocab_size + _SPECIAL.get(self.task, 0)
        if self.vocab_size < least:
            raise ValueError(f"vocab_size: expected at least {least} for {self.task}, got {self.vocab_size}")

    def train(self, seed: int) -> Examples:
        """The training set, [train_examples, T]."""
        return self._draw([_TRAIN, seed], self.train_examples, True)

    def tests(self) -> dict[str, Examples]:
        """`validation` and `test`, of one distribution."""
        return {
            "validation": self._draw([_VALIDATION, 0], self.validation_examples, False),
            "test": self._draw([_TEST, 0], self.test_examples, False),
        }

    def _draw(self, seed: list[int], count: int, training: bool) -> Examples:
        rng = np.random.default_rng(seed)
        if self.task == "fuzzy-in-context-recall":
            return self._fuzzy_recall(rng, count, training)
        if self.task == "selective-copying":
            return self._copying(rng, count)
        if self.task == "compression":
            return self._compression(rng, count)
        if self.task == "memorization":
            return self._memorization(rng, count)
        return self._recall(rng, count)

    def _recall(self, rng: np.random.Generator, count: int) -> Examples:
        symbols = self.vocab_size - self.noise_vocab_size
        names, pairs = symbols // 2, self.length // 2 - 1
        rows = np.arange(count)
        value_of = rng.integers(names, symbols, (count, names))
        keys = rng.integers(0, names, (count, pairs))
        noisy = rng.random((count, pairs)) < self.noise
        noisy[rows, rng.integers(0, pairs, count)] = False

        first = np.full((count, names), pairs)
        for pair in range(pairs - 1, -1, -1):
            shown = rows[~noisy[:, pair]]
            first[shown, keys[shown, pair]] = pair
        seen = ~noisy & (np.take_along_axis(first, keys, axis=1) < np.arange(pairs))
        probe = np.argmax(np.where(first < pairs, rng.random(first.shape), -1.0), axis=1)[:, None]

        every_key = np.concatenate([keys, probe], axis=1)
        sequence = np.stack([every_key, np.take_along_axis(value_of, every_key, axis=1)], axis=2)
        if self.noise_vocab_size:
            noise = rng.integers(symbols, self.vocab_size, (count, pairs, 2))
            sequence[:, :-1] = np.where(noisy[:, :, None], noise, sequence[:, :-1])
        answers = np.zeros(sequence.shape, bool)
        answers[:, :, 1] = np.pad(seen, ((0, 0), (0, 1)), constant_values=True)
        return _next_symbols(sequence.reshape(count, -1), answers.reshape(count, -1))

    def _fuzzy_recall(self, rng: np.random.Generator, count: int, training: bool) -> Examples:
        blocks = [min(_BLOCK, count - begin) for begin in range(0, count, _BLOCK)]
        drawn = [self._fuzzy_block(rng, rows, training) for rows in blocks]
        sequence, answers = (np.concatenate(part) for part in zip(*drawn, strict=True))
        return _next_symbols(sequence, answers)

    def _fuzzy_block(self, rng: np.random.Generator, rows: int, training: bool) -> tuple[np.ndarray, np.ndarray]:
        """Sequences [rows, length + 1] and which of their symbols are answers."""
        symbols, longest = self.vocab_size - 1, self.key_motif + self.value_motif
        names = symbols // 2
        shortest_key = 1 if training else self.key_motif
        pairs = -(-self.length // (shortest_key + 1))

        # Pair 0 is the last one of the sequence, the others are in order; more than fit.
        shape = (rows, 1 + pairs)
        keys = distinct(rng, 0, names, (*shape, self.key_motif))
        values = distinct(rng, names, symbols, (*shape, self.value_motif))
        key_sizes = rng.integers(shortest_key, self.key_motif + 1, shape)
        value_sizes = rng.integers(1, self.value_motif + 1, shape)

        # A key's value is that of the first pair that has it, pair 0 before all others.
        inside = np.arange(self.key_motif) < key_sizes[:, :, None]
        code = np.where(inside, keys + 1, 0) @ (names + 1) ** np.arange(self.key_motif)
        code += (names + 1) ** self.key_motif * np.arange(rows)[:, None]
        _, first, which = np.unique(code, return_index=True, return_inverse=True)
        first = first[which.reshape(shape)]
        values, value_sizes = values.reshape(-1, self.value_motif)[first], value_sizes.reshape(-1)[first]
        sizes = key_sizes + value_sizes

        # Pair 0 is put in at a random place, unless its key came before.
        stop = self.length - sizes[:, :1] - longest
        latest = np.minimum(self.length - 2 * sizes[:, :1], stop - longest + 1)
        place = np.arange(pairs)
        turn = np.sum(_starts(sizes[:, 1:]) < np.floor(rng.random((rows, 1)) * latest), axis=1, keepdims=True)
        came = np.any((first[:, 1:] == first[:, :1]) & (place < turn), axis=1, keepdims=True)
        order = np.where(came | (place < turn), place + 1, np.where(place == turn, 0, place))
        kept = _starts(np.take_along_axis(sizes, order, axis=1)) < stop

        in_order = np.take_along_axis(first, order, axis=1)
        seen = np.ones(in_order.size, bool)
        seen[np.unique(in_order, return_index=True)[1]] = False
        kept, seen = (np.pad(part, ((0, 0), (0, 1)), constant_values=True) for part in (kept, seen.reshape(rows, -1)))
        order = np.pad(order, ((0, 0), (0, 1)))[:, :, None]

        words = np.take_along_axis(np.concatenate([keys, values], axis=2), order, axis=1)
        written = np.concatenate([inside, np.arange(self.value_motif) < value_sizes[:, :, None]], axis=2)
        written = np.take_along_axis(written, order, axis=1) & kept[:, :, None]
        answers = np.broadcast_to(seen[:, :, None] & (np.arange(longest) >= self.key_motif), words.shape)

        filled = np.arange(self.length + 1) >= self.length + 1 - written.sum(axis=(1, 2))[:, None]
        sequence, scored = np.full(filled.shape, symbols), np.zeros(filled.shape, bool)
        sequence[filled], scored[filled] = words[written], answers[written]
        return sequence, scored

    def _copying(self, rng: np.random.Generator, count: int) -> Examples:
        blank, start = self.vocab_size - 2, self.vocab_size - 1
        words = rng.integers(0, blank, (count, self.copies))
        blanks = self.length - 2 * self.copies - 1
        before = rng.integers(0, self.copies, (count, blanks)) + self.copies * np.arange(count)[:, None]
        gaps = np.bincount(before.reshape(-1), minlength=count * self.copies).reshape(count, self.copies)
        inputs = np.full((count, self.length), blank)
        np.put_along_axis(inputs, np.cumsum(gaps, axis=1) + np.arange(self.copies), words, axis=1)
        inputs[:, self.copies + blanks] = start
        targets, scored = np.zeros_like(inputs), np.zeros(inputs.shape, bool)
        targets[:, -self.copies :], scored[:, -self.copies :] = words, True
        return examples(inputs, targets, scored)

    def _compression(self, rng: np.random.Generator, count: int) -> Examples:
        inputs = rng.integers(0, self.vocab_size - 1, (count, self.length))
        inputs[:, -1] = self.vocab_size - 1
        return examples(inputs, inputs, np.ones(inputs.shape, bool))

    def _memorization(self, rng: np.random.Generator, count: int) -> Examples:
        symbols = self.vocab_size - 1
        names = symbols // 2
        value_of = names + np.random.default_rng([_FACTS, 0]).permutation(symbols - names)[:names]
        keys = rng.integers(0, names, (count, self.length // 2))
        inputs = np.stack([keys, np.full_like(keys, symbols)], axis=2).reshape(count, -1)
        targets = np.stack([np.zeros_like(keys), value_of[keys]], axis=2).reshape(count, -1)
        return examples(inputs, targets, inputs == symbols)


def baseline(task: str) -> MAD:
    """A task at the benchmark's baseline setting.

    Args:
      task: a key of `BASELINE`.

    Raises:
      ValueError: for another task.

    Example:
      >>> baseline("selective-copying").length
      256
    """
    if task not in BASELINE:
        raise ValueError(f"task: expected one of {', '.join(BASELINE)}, got {task!r}")
    return MAD(task=task, **BASELINE[task])


def settings(task: str) -> tuple[MAD, ...]:
    """All settings of a task: its baseline, then one of `VARIED` changed at a time; 66 over the six tasks.

    A task's score in the benchmark is the mean over these of the best accuracy over learning rates 1e-4, 5e-4, 1e-3 and
    weight decays 0, 0.1.

    Args:
      task: a key of `BASELINE`.

    Raises:
      ValueError: for another task.

    Example:
      >>> len(settings("memorization")), sum(len(settings(task)) for task in BASELINE)
      (6, 66)
    """
    first = baseline(task)
    changes = [{name: value} for name, values in VARIED[task].items() for value in values]
    return (first, *(dataclasses.replace(first, **change) for change in changes))


def _next_symbols(sequence: np.ndarray, answers: np.ndarray) -> Examples:
    """Predict every symbol after the first; score those in `answers`."""
    return examples(sequence[:, :-1], sequence[:, 1:], np.ones(sequence[:, 1:].shape, bool), answers[:, 1:])


def _starts(sizes: np.ndarray) -> np.ndarray:
    """Where pairs begin that stand one behind another, [rows, pairs]."""
    return np.cumsum(sizes, axis=1) - sizes
