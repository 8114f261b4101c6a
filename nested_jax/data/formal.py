"""Formal languages: six sets of strings with a question about every prefix, as Nested Learning's table 5 uses them.

The languages, their generators and the targets are those of satwik77/Transformer-Formal-Languages (Bhattamishra et al.,
2020); the two bins and the score of whole sequences those of IDSIA/fwp-formal-lang (Irie et al., 2023).
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

import numpy as np

from nested_jax.data.examples import Examples, examples

Strings = Iterator[bytes]

_PATIENCE = 100_000
_TRAIN, _VALIDATION, _BIN0, _BIN1 = range(4)


class _Language(NamedTuple):
    """A language; its strings are bytes whose values are 1 + the index of the letter.

    Attributes:
      letters: one character each.
      classes: targets are below it.
      distinct: whether a set holds a string once, so that sets of one window share none.
      step: lengths of strings are multiples of it.
      repeats: how often the number that the window bounds goes into the length of a string.
      strings: generator, lowest and highest number of the window → strings without end.
      targets: symbols [N, T], zeros behind the end → targets [N, T].
    """

    letters: str
    classes: int
    distinct: bool
    step: int
    repeats: int
    strings: Callable[[np.random.Generator, int, int], Strings]
    targets: Callable[[np.ndarray], np.ndarray]

    def longest(self, high: int) -> int:
        return high // self.step * self.step * self.repeats


def _parity_strings(rng: np.random.Generator, low: int, high: int) -> Strings:
    mean = (low + high) // 2
    while True:
        lengths = np.minimum(rng.geometric(1 / (1 + mean), 1024) - 1, high)
        letters = rng.integers(1, 3, (1024, high), np.uint8)
        for length, row in zip(lengths.tolist(), letters, strict=True):
            string = row[:length].tobytes()
            if length >= low:
                string += b"\2" * (string.count(b"\2") % 2)
                if len(string) <= high:
                    yield string


def _repeated_strings(rng: np.random.Generator, low: int, high: int, unit: bytes) -> Strings:
    while True:
        for bound in rng.integers(low, high + 1, 1024).tolist():
            string = unit * (bound // len(unit))
            if len(string) >= low:
                yield string


def _counter_strings(rng: np.random.Generator, low: int, high: int, letters: int) -> Strings:
    while True:
        for count in rng.integers(low, high + 1, 1024).tolist():
            yield b"".join(bytes([1 + letter]) * count for letter in range(letters))


def _shuffle_strings(rng: np.random.Generator, low: int, high: int) -> Strings:
    numbers = itertools.chain.from_iterable(rng.random(4096).tolist() for _ in itertools.repeat(None))

    def grow(outside: int) -> bytes:
        if outside >= high:
            return b""
        number = next(numbers)
        if number < 0.5:
            pair = b"\1\2" if number < 0.25 else b"\3\4"
            found = pair[:1] + grow(outside + 2) + pair[1:]
        elif number < 0.75:
            found = grow(outside) + grow(outside)
        else:
            return b""
        return found if len(found) <= high else b""

    while True:
        string = grow(0)
        if len(string) >= low:
            yield string


def _parity_targets(symbols: np.ndarray) -> np.ndarray:
    return np.cumsum(symbols == 2, axis=1) % 2 == 0


def _repeated_targets(symbols: np.ndarray, unit: int) -> np.ndarray:
    return np.broadcast_to(np.arange(1, symbols.shape[1] + 1) % unit == 0, symbols.shape)


def _counter_targets(symbols: np.ndarray, letters: int) -> np.ndarray:
    following = np.pad(symbols[:, 1:], ((0, 0), (0, 1)))
    either, end = letters + 1, letters + 2
    return np.where(symbols == 1, either, np.where(following == 0, end, following))


def _shuffle_targets(symbols: np.ndarray) -> np.ndarray:
    def can_close(opening: int) -> np.ndarray:
        return np.cumsum((symbols == opening).astype(int) - (symbols == opening + 1), axis=1) > 0

    return can_close(1) + 2 * can_close(3)


def _repeated(letters: str, unit: bytes) -> _Language:
    strings = functools.partial(_repeated_strings, unit=unit)
    targets = functools.partial(_repeated_targets, unit=len(unit))
    return _Language(letters, 2, False, len(unit), 1, strings, targets)


def _counter(letters: str) -> _Language:
    count = len(letters)
    strings = functools.partial(_counter_strings, letters=count)
    targets = functools.partial(_counter_targets, letters=count)
    return _Language(letters, count + 3, False, 1, count, strings, targets)


LANGUAGES = {
    "parity": _Language("01", 2, True, 1, 1, _parity_strings, _parity_targets),
    "aa": _repeated("a", b"\1\1"),
    "abab": _repeated("ab", b"\1\2\1\2"),
    "anbn": _counter("ab"),
    "anbncn": _counter("abc"),
    "shuffle-2": _Language("()[]", 4, True, 2, 1, _shuffle_strings, _shuffle_targets),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FormalLanguage:
    """Strings of a language, and at every place of a string what its prefix up to there tells.

    | language | strings | target |
    |---|---|---|
    | `parity` | 0s and 1s, an even number of 1s | 1 if the prefix is such a string, else 0 |
    | `aa` | (aa)* | 1 if the prefix is in the language, else 0 |
    | `abab` | (abab)* | the same |
    | `anbn`, `anbncn` | n times each letter | the letter that follows: its symbol, "a or b" after an a; T at the end |
    | `shuffle-2` | two kinds of brackets | which may be closed: 1 for round ones, 2 for square ones, their sum |

    A letter's symbol is 1 + its index in `letters`; behind a string are zeros. Every place of a string is trained and
    scored, and the score is that of whole strings. "a or b" and T are the two classes after the last letter. The source
    asks for two bits per bracket; one class of four is our choice, and a string is right under the same condition.

    How strings are drawn. `parity`: after each symbol the string ends with probability 1 / (1 + the middle of the
    window), or at the window's end; an odd one gets another 1. `aa`, `abab`: the longest member within a uniform bound.
    `anbn`, `anbncn`: n is uniform. `shuffle-2`: S → (S), [S], SS or nothing with probabilities 1/4, 1/4, 1/4, 1/4, of
    which the source makes nested brackets only.

    Sets of `parity` and `shuffle-2` hold a string once, and training, validation and `bin0` share none: the two tests
    are the end of one list of distinct strings that begins with `train_examples` others, and training leaves them out.
    The other languages have a few dozen strings per window, so training repeats them; a test is a set of draws with
    each string once, and what is in `validation` and `bin0` is in the training set as well.

    Attributes:
      language: a name of the table.
      train_examples: strings to train on.
      validation_examples: strings of `validation`, drawn where they may repeat.
      test_examples: strings of each bin, drawn where they may repeat.
      window: lowest and highest length, or n of `anbn` and `anbncn`, of training, validation and `bin0`. `bin1` has
        those above, up to twice the highest.

    Raises:
      ValueError: if the language is unknown, a number below 1, the window empty, or there are too few strings in it.

    Example:
      >>> task = FormalLanguage(language="anbn", train_examples=3, window=(2, 4))
      >>> found = task.train(0)
      >>> found.inputs[0].tolist(), found.targets[0].tolist()
      ([1, 1, 1, 1, 2, 2, 2, 2], [3, 3, 3, 3, 2, 2, 2, 4])

    References:
      Irie et al., "Practical Computational Power of Linear Transformers", 2023; Bhattamishra et al., "On the Ability
      and Limitations of Transformers to Recognize Formal Languages", 2020; Nested Learning, table 5.
    """

    language: str = "parity"
    train_examples: int = 10_000
    validation_examples: int = 1_000
    test_examples: int = 2_000
    window: tuple[int, int] = (2, 50)

    def __post_init__(self) -> None:
        if self.language not in LANGUAGES:
            raise ValueError(f"language: expected one of {', '.join(LANGUAGES)}, got {self.language!r}")
        for name in ("train_examples", "validation_examples", "test_examples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        low, high = self.window
        if not 1 <= low <= high or LANGUAGES[self.language].longest(high) < low:
            raise ValueError(
                f"window: expected a lowest number of at least 1, no more than the highest, and a string of "
                f"{self.language} between them, got {self.window}"
            )

    @property
    def letters(self) -> str:
        """The letter of each symbol, from symbol 1 on."""
        return LANGUAGES[self.language].letters

    @property
    def vocab_size(self) -> int:
        """Symbols of inputs with the padding, or of targets where those are more."""
        return max(len(self.letters) + 1, LANGUAGES[self.language].classes)

    def train(self, seed: int) -> Examples:
        """The training set, [train_examples, the longest string of the window]."""
        held_out = set(self._held_out[0] + self._held_out[1]) if LANGUAGES[self.language].distinct else ()
        return self._examples(self._draw([_TRAIN, seed], self.window, self.train_examples, held_out), self.window)

    def tests(self) -> dict[str, Examples]:
        """`validation` and `bin0` of the lengths of training, `bin1` of those above."""
        beyond = (self.window[1] + 1, 2 * self.window[1])
        validation, bin0 = self._held_out
        bin1 = _once(self._draw([_BIN1, 0], beyond, self.test_examples, ()))
        return {
            "validation": self._examples(validation, self.window),
            "bin0": self._examples(bin0, self.window),
            "bin1": self._examples(bin1, beyond),
        }

    @functools.cached_property
    def _held_out(self) -> tuple[list[bytes], list[bytes]]:
        """Strings of `validation` and `bin0`."""
        if not LANGUAGES[self.language].distinct:
            validation = self._draw([_VALIDATION, 0], self.window, self.validation_examples, ())
            return _once(validation), _once(self._draw([_BIN0, 0], self.window, self.test_examples, ()))
        total = self.train_examples + self.validation_examples + self.test_examples
        found = self._draw([_VALIDATION, 0], self.window, total, ())[self.train_examples :]
        return found[: self.validation_examples], found[self.validation_examples :]

    def _draw(self, seed: list[int], window: tuple[int, int], count: int, left_out: Collection[bytes]) -> list[bytes]:
        language = LANGUAGES[self.language]
        strings = language.strings(np.random.default_rng(seed), *window)
        if not language.distinct:
            return list(itertools.islice(strings, count))
        found: dict[bytes, None] = {}
        rejected = 0
        while len(found) < count:
            string = next(strings)
            if string in found or string in left_out:
                rejected += 1
                if rejected == _PATIENCE:
                    raise ValueError(
                        f"window: expected room for {count} strings of {self.language} that training and tests do not "
                        f"share, found {len(found)} in {window}"
                    )
            else:
                found[string] = None
                rejected = 0
        return list(found)

    def _examples(self, strings: list[bytes], window: tuple[int, int]) -> Examples:
        language = LANGUAGES[self.language]
        longest = language.longest(window[1])
        padded = b"".join(string.ljust(longest, b"\0") for string in strings)
        symbols = np.frombuffer(padded, np.uint8).reshape(len(strings), longest)
        inside = symbols > 0
        return examples(symbols, np.where(inside, language.targets(symbols), 0), inside)


def _once(strings: list[bytes]) -> list[bytes]:
    return list(dict.fromkeys(strings))
