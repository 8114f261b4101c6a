"""Needles in a haystack: values under keys, hidden in a long text and asked for at its end (RULER).

    Some special magic numbers are hidden within the following text. ...
    ... One of the special magic numbers for quiet-harbour is: 2783461. ...
    What are all the special magic numbers for quiet-harbour mentioned in the provided text?

Definitions: NVIDIA/RULER (Hsieh et al. 2024, arXiv 2404.06654). The scorer is `evals.answers.string_match_all`. Titans,
MIRAS and ATLAS call `single_1` PK and `single_2` N; none of them prints what their W is: `single_2(value="words")` or
`single_3()`, whose values are uuids. Say which one a number is of.
"""

import dataclasses
import os
import uuid
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from nested_jax.data.haystacks import NOISE, largest, read_background, sentences
from nested_jax.data.questions import Question
from nested_jax.data.tokenizers import Tokenizer
from nested_jax.data.word_lists import ADJECTIVES, NOUNS, Words

Kind = Literal["words", "numbers", "uuids"]

_ESSAYS = (
    "the path of an essay haystack: a text file or a folder of them. RULER hides its needles in Paul Graham's essays, "
    "which its script scripts/data/synthetic/json/download_paulgraham_essay.py downloads to PaulGrahamEssays.json "
    "({\"text\": ...}): give that file for RULER's own task. Other prose works too, but then numbers are not RULER's"
)
_DEPTHS = tuple(int(depth) for depth in np.round(np.linspace(0, 100, 40)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needles:
    """What is hidden, where, and how long the text is.

    Differs from RULER: keys are of our own words unless `words` are given (`load_words`); sentences are found by a
    regular expression; needles outside essays may stand side by side; keys and values of one question are all
    different; every question takes the largest haystack that fits.

    Attributes:
      name: of the task, for people.
      length: tokens of the prompt and of the budget for the answer, by the model's own tokenizer.
      haystack: "noise", one line of five short sentences again and again; "essay", the sentences of `background`;
        "needle", needles with other keys.
      key: what keys are: words are `adjective-noun`, numbers have 7 digits, uuids are random ones (version 4).
      value: what values are.
      keys: keys with needles, at least `queries`.
      values: values of each key, a needle each.
      queries: keys that are asked for.
      answer_budget: tokens left for the answer.
      background: path, or text with line breaks in it, of the essay haystack (see `haystacks.read_background`).
      anywhere: the essay begins at a random word of the background (our choice, for training); RULER always begins at
        its first. It is read on from its first word when it ends.
      depth: percent of the haystack before the needle that is asked for, if only one is; None draws it: from 40 values
        in 0..100 in essays, anywhere else.
      words: adjectives and nouns.
    """

    name: str = "niah"
    length: int = 4096
    haystack: Literal["noise", "essay", "needle"] = "noise"
    key: Kind = "words"
    value: Kind = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1
    answer_budget: int = 128
    background: str | os.PathLike[str] | None = None
    anywhere: bool = False
    depth: float | None = None
    words: Words = (ADJECTIVES, NOUNS)

    def validate(self) -> None:
        """Raise `ValueError` if a field is out of range."""
        for name in ("keys", "values", "queries"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name, allowed in (("haystack", ("noise", "essay", "needle")), ("key", _DRAWS), ("value", _DRAWS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.queries > self.keys:
            raise ValueError(f"queries: expected at most keys = {self.keys}, got {self.queries}")
        if self.haystack == "essay" and self.keys * self.values > len(_DEPTHS):
            raise ValueError(f"keys: expected keys * values <= {len(_DEPTHS)} in essays, got {self.keys * self.values}")
        if self.answer_budget < 0:
            raise ValueError(f"answer_budget: expected at least 0, got {self.answer_budget}")
        pairs = len(set(self.words[0])) * len(set(self.words[1]))
        needed = max(self.keys * (self.key == "words"), self.keys * self.values * (self.value == "words"))
        needed += self.haystack == "needle"
        if pairs < needed:
            raise ValueError(f"words: expected at least {needed} pairs of an adjective and a noun, got {pairs}")
        if self.depth is not None and not (0 <= self.depth <= 100 and self.queries * self.values == 1):
            raise ValueError(
                f"depth: expected None, or a number in [0, 100] where one needle is asked for, got {self.depth} with "
                f"queries = {self.queries} and values = {self.values}"
            )

    def questions(self, tokenizer: Tokenizer, count: int = 500, seed: int = 42) -> list[Question]:
        """Draw questions; the first ones do not depend on how many there are.

        Args:
          tokenizer: counts the tokens of a prompt.
          count: how many, at least 1 (RULER: 500).
          seed: 0 or more (RULER: 42; its draws are others).

        Returns:
          Questions whose prompt ends with the beginning of the answer (as in RULER), all values that are asked for as
          answers, and `about`: task, length, haystack, key, value, needles (keys * values), depth (percent; None if
          several needles are asked for) and depths (of those asked for).

        Raises:
          ValueError: if a field is out of range, the essay haystack is missing, or `length` is too short.

        Example:
          >>> from nested_jax.data.tokenizers import Bytes
          >>> question = single_1(length=1000).questions(Bytes(), 1)[0]
          >>> question.prompt[-30:], question.answers, question.about["depth"]
          ('tioned in the provided text is', ('6891143',), 100.0)
        """
        self.validate()
        if count < 1 or seed < 0:
            raise ValueError(f"count and seed: expected at least 1 and 0, got {count} and {seed}")
        essay = read_background(self.background, _ESSAYS).split() if self.haystack == "essay" else []
        found, size = [], 1
        for number in range(count):
            question, size = self._question(np.random.default_rng([seed, number]), tokenizer, essay, size)
            found.append(question)
        return found

    def _question(
        self, rng: np.random.Generator, tokenizer: Tokenizer, essay: list[str], size: int
    ) -> tuple[Question, int]:
        keys = _distinct(rng, self.key, self.words, self.keys)
        values = _distinct(rng, self.value, self.words, self.keys * self.values)
        asked = sorted(int(key) for key in rng.permutation(self.keys)[: self.queries])
        pairs = [(key, values[key * self.values + place]) for key in range(self.keys) for place in range(self.values)]
        order = rng.permutation(len(pairs))
        needles = [_needle(self.value, keys[pairs[i][0]], pairs[i][1]) for i in order]
        wanted = [place for place, i in enumerate(order) if pairs[i][0] in asked]
        lines = self._lines(rng, essay, set(keys))
        parts = self._parts(rng, wanted)

        def compose(size: int) -> tuple[str, list[float]]:
            units = lines(size)
            count = len(units)
            cuts = [int(part * count) if on_grid else int(part * (count + 1)) for part, on_grid in parts]
            for cut, needle in sorted(zip(cuts, needles, strict=True), key=lambda pair: -pair[0]):
                units.insert(cut, needle)
            context = (" " if self.haystack == "essay" else "\n").join(units)
            depths = [round(100 * (parts[i][0] if parts[i][1] else cuts[i] / max(count, 1)), 1) for i in wanted]
            return self._prompt(context, [keys[key] for key in asked]), depths

        def tokens(size: int) -> int:
            return len(tokenizer.encode(compose(size)[0])) + self.answer_budget

        size = largest(lambda size: tokens(size) <= self.length, size)
        if size < 1:
            raise ValueError(f"length: expected at least {tokens(1)} tokens for {self.name}, got {self.length}")
        prompt, depths = compose(size)
        about = {
            "task": self.name,
            "length": self.length,
            "haystack": self.haystack,
            "key": self.key,
            "value": self.value,
            "needles": len(needles),
            "depth": depths[0] if len(depths) == 1 else None,
            "depths": tuple(depths),
        }
        answers = tuple(value for key, value in pairs if key in asked)
        return Question(prompt, answers, about), size

    def _lines(self, rng: np.random.Generator, essay: list[str], taken: set[str]) -> Callable[[int], list[str]]:
        """The haystack as a function of its size, in words of an essay or in lines."""
        if self.haystack == "noise":
            return lambda size: [NOISE] * size
        if self.haystack == "needle":
            others: list[str] = []

            def needles(size: int) -> list[str]:
                while len(others) < size:
                    key = _draw(rng, self.key, self.words)
                    if key not in taken:
                        others.append(_needle(self.value, key, _draw(rng, self.value, self.words)))
                return others[:size]

            return needles
        start = int(rng.integers(len(essay))) if self.anywhere else 0

        def read(size: int) -> list[str]:
            repeated = essay * ((start + size) // len(essay) + 1)
            return sentences(" ".join(repeated[start : start + size]))

        return read

    def _parts(self, rng: np.random.Generator, wanted: list[int]) -> list[tuple[float, bool]]:
        """Part of the haystack before each needle, and whether it is one of given depths (else uniform)."""
        count = self.keys * self.values
        if self.haystack == "essay":
            parts = [(_DEPTHS[i] / 100, True) for i in sorted(rng.permutation(len(_DEPTHS))[:count])]
        else:
            parts = [(float(part), False) for part in rng.random(count)]
        if self.depth is not None:
            parts[wanted[0]] = (self.depth / 100, True)
        return parts

    def _prompt(self, context: str, asked: list[str]) -> str:
        one = len(asked) * self.values == 1
        some, kind, be, all_ = ("A", self.value[:-1], "is", "is") if one else ("Some", self.value, "are", "are all")
        query = asked[0] if len(asked) == 1 else f"{', '.join(asked[:-1])}, and {asked[-1]}"
        return (
            f"{some} special magic {kind} {be} hidden within the following text. Make sure to memorize it. I will quiz "
            f"you about the {kind} afterwards.\n{context}\nWhat {all_} the special magic {kind} for {query} mentioned "
            f"in the provided text? The special magic {kind} for {query} mentioned in the provided text {be}"
        )


def single_1(**settings: Any) -> Needles:
    """S-NIAH-1, "PK": one number in noise."""
    return _task("single_1", {}, settings)


def single_2(**settings: Any) -> Needles:
    """S-NIAH-2, "N": one number in essays."""
    return _task("single_2", {"haystack": "essay"}, settings)


def single_3(**settings: Any) -> Needles:
    """S-NIAH-3: one uuid in essays."""
    return _task("single_3", {"haystack": "essay", "value": "uuids"}, settings)


def multi_key_1(**settings: Any) -> Needles:
    """Four keys in essays, one is asked for."""
    return _task("multi_key_1", {"haystack": "essay", "keys": 4}, settings)


def multi_key_2(**settings: Any) -> Needles:
    """One number among other needles."""
    return _task("multi_key_2", {"haystack": "needle"}, settings)


def multi_key_3(**settings: Any) -> Needles:
    """One uuid under a uuid among other needles."""
    return _task("multi_key_3", {"haystack": "needle", "key": "uuids", "value": "uuids"}, settings)


def multi_value(**settings: Any) -> Needles:
    """Four numbers under one key, in essays."""
    return _task("multi_value", {"haystack": "essay", "values": 4}, settings)


def multi_query(**settings: Any) -> Needles:
    """Four keys with a number each, in essays, all asked for."""
    return _task("multi_query", {"haystack": "essay", "keys": 4, "queries": 4}, settings)


def _task(name: str, preset: dict[str, Any], settings: dict[str, Any]) -> Needles:
    fields: dict[str, Any] = {"name": name, **preset, **settings}
    return Needles(**fields)


def _needle(kind: str, key: str, value: str) -> str:
    return f"One of the special magic {kind} for {key} is: {value}."


_DRAWS: dict[str, Callable[[np.random.Generator, Words], str]] = {
    "words": lambda rng, words: "-".join(part[int(rng.integers(len(part)))] for part in words),
    "numbers": lambda rng, words: str(rng.integers(10**6, 10**7)),
    "uuids": lambda rng, words: str(uuid.UUID(bytes=rng.bytes(16), version=4)),
}


def _draw(rng: np.random.Generator, kind: str, words: Words) -> str:
    return _DRAWS[kind](rng, words)


def _distinct(rng: np.random.Generator, kind: str, words: Words, count: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[_draw(rng, kind, words)] = None
    return list(found)
