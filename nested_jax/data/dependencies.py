"""Which value does a variable hold, and from where: generated programs, and RULER's variable tracking.

    v7 = 4                      root
    v2 = 9
    v5 = (v7 + v2) % 10         depth 1
    v1 = (v5 + v7) % 10         depth 2
    # What is the value of v1?  7

There is no public definition of dependency tracing; programs and numbers on them are our own. The nearest public task,
variable tracking with four hops (NVIDIA/RULER), is here as a cross-check. Real code is in `code_dependencies`. Scorers:
`evals.answers.exact_match`, for variable tracking `string_match_all`; report by depth and distance.
"""

import dataclasses
import itertools
import string
from typing import Literal

import numpy as np

from nested_jax.data.haystacks import NOISE, largest
from nested_jax.data.questions import Question
from nested_jax.data.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Programs:
    """Straight-line programs in Python, each with one question. Everything in it is our choice.

    Every line assigns to a new variable. A chain begins at its root, which holds a constant, and has `depth` more
    lines, each of which reads the one before it. The other lines are distractors, drawn in the same way: a constant
    with probability 1/2, else a line that reads any earlier variable.

    Attributes:
      depth: assignments between the root and the variable that is asked about, at least 0.
      distractors: other lines, at least 0.
      distance: lines between that of the root and the question, in depth..depth + distractors; None draws it uniformly.
      answer: "value": a line adds the variable before it to an earlier constant, and the question is for the value.
        "root": a line copies the variable before it, and the question is for the root's name.
      modulus: values are in range(modulus), at least 2.
    """

    depth: int = 2
    distractors: int = 8
    distance: int | None = None
    answer: Literal["value", "root"] = "value"
    modulus: int = 10

    def validate(self) -> None:
        """Raise `ValueError` if a field is out of range."""
        for name, least in (("depth", 0), ("distractors", 0), ("modulus", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if self.answer not in ("value", "root"):
            raise ValueError(f"answer: expected 'value' or 'root', got {self.answer!r}")
        if self.distance is not None and not self.depth <= self.distance <= self.depth + self.distractors:
            raise ValueError(
                f"distance: expected None or {self.depth}..{self.depth + self.distractors}, got {self.distance}"
            )

    def questions(self, count: int = 500, seed: int = 0) -> list[Question]:
        """Draw programs.

        Args:
          count: how many, at least 1.
          seed: 0 or more.

        Returns:
          Questions with one answer; `about` holds depth, distance, distractors, answer and modulus. A prompt is itself
          a program: the question is a comment.

        Raises:
          ValueError: if a field is out of range.

        Example:
          >>> question = Programs(depth=1, distractors=2).questions(1)[0]
          >>> print(question.prompt)
          v3 = 0
          v2 = 8
          v1 = (v2 + v2) % 10
          v0 = (v3 + v2) % 10
          # What is the value of v0?
          >>> question.answers
          ('8',)
        """
        self.validate()
        if count < 1 or seed < 0:
            raise ValueError(f"count and seed: expected at least 1 and 0, got {count} and {seed}")
        return [self._question(np.random.default_rng([seed, number])) for number in range(count)]

    def _question(self, rng: np.random.Generator) -> Question:
        distance = self.distance
        if distance is None:
            distance = self.depth + int(rng.integers(self.distractors + 1))
        total = self.depth + 1 + self.distractors
        root = total - 1 - distance
        steps = root + 1 + np.sort(rng.permutation(distance)[: self.depth])
        chain = [root, *(int(step) for step in steps)]
        before = dict(zip(chain[1:], chain, strict=False))
        names = [f"v{number}" for number in rng.permutation(total)]
        lines: list[str] = []
        values: list[int] = []
        constants: list[int] = []
        for line in range(total):
            source = before.get(line)
            if source is None and line != root and line and rng.integers(2):
                source = int(rng.integers(line))
            if source is None:
                values.append(int(rng.integers(self.modulus)))
                constants.append(line)
                text = str(values[line])
            elif self.answer == "root":
                values.append(values[source])
                text = names[source]
            else:
                other = constants[int(rng.integers(len(constants)))]
                values.append((values[source] + values[other]) % self.modulus)
                text = f"({names[source]} + {names[other]}) % {self.modulus}"
            lines.append(f"{names[line]} = {text}")
        asked = names[chain[-1]]
        question, answer = f"# What is the value of {asked}?", str(values[chain[-1]])
        if self.answer == "root":
            question, answer = f"# Which variable was {asked} copied from in the end?", names[root]
        about = {
            "depth": self.depth,
            "distance": distance,
            "distractors": self.distractors,
            "answer": self.answer,
            "modulus": self.modulus,
        }
        return Question("\n".join([*lines, question]), (answer,), about)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariableTracking:
    """RULER's variable tracking: assignments `VAR A = 12345`, `VAR B = VAR A`, hidden in noise.

    Differs from RULER: names are all different, every question takes the largest haystack that fits, and no space ends
    the prompt.

    Attributes:
      length: tokens of the prompt and of the budget for the answer, by the model's own tokenizer.
      chains: chains of assignments; the question is about the first.
      hops: assignments of a chain after its first one.
      answer_budget: tokens left for the answer.
      example: a short worked example with other names comes first, as in RULER (its size is our choice).
    """

    length: int = 4096
    chains: int = 1
    hops: int = 4
    answer_budget: int = 30
    example: bool = True

    def validate(self) -> None:
        """Raise `ValueError` if a field is out of range."""
        for name, least in (("chains", 1), ("hops", 0), ("answer_budget", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")

    def questions(self, tokenizer: Tokenizer, count: int = 500, seed: int = 42) -> list[Question]:
        """Draw questions; the first ones do not depend on how many there are.

        Args:
          tokenizer: counts the tokens of a prompt.
          count: how many, at least 1.
          seed: 0 or more.

        Returns:
          Questions whose prompt ends with the beginning of the answer, the hops + 1 names of the first chain as
          answers, and `about`: task, length, chains, depth (hops) and distance (lines between the first assignment of
          the chain and the end of the text).

        Raises:
          ValueError: if a field is out of range or `length` is too short.

        Example:
          >>> from nested_jax.data.tokenizers import Bytes
          >>> question = VariableTracking(length=1500, hops=1, example=False).questions(Bytes(), 1)[0]
          >>> question.prompt[-21:], question.answers
          ('alue 39909, they are:', ('CURLL', 'WCSFC'))
        """
        self.validate()
        if count < 1 or seed < 0:
            raise ValueError(f"count and seed: expected at least 1 and 0, got {count} and {seed}")
        found, size = [], 1
        for number in range(count):
            question, size = self._question(np.random.default_rng([seed, number]), tokenizer, size)
            found.append(question)
        return found

    def _question(self, rng: np.random.Generator, tokenizer: Tokenizer, size: int) -> tuple[Question, int]:
        example = ""
        if self.example:
            names = _names(rng, 1, self.hops + 1, letters=3)
            places = [rng.random(self.hops + 1)]
            example = f"{_tracking(names, ['12345'], places, self.hops + 2)[0]} {' '.join(names[0])}\n"
        names = _names(rng, self.chains, self.hops + 1, letters=5)
        values = [str(value) for value in 10_000 + rng.permutation(90_000)[: self.chains]]
        places = list(rng.random((self.chains, self.hops + 1)))

        def prompt(size: int) -> str:
            return example + _tracking(names, values, places, size)[0]

        def tokens(size: int) -> int:
            return len(tokenizer.encode(prompt(size))) + self.answer_budget

        size = largest(lambda size: tokens(size) <= self.length, size)
        if size < 1:
            raise ValueError(f"length: expected at least {tokens(1)} tokens, got {self.length}")
        about = {
            "task": "variable_tracking",
            "length": self.length,
            "chains": self.chains,
            "depth": self.hops,
            "distance": _tracking(names, values, places, size)[1],
        }
        return Question(prompt(size), tuple(names[0]), about), size


def variable_tracking(length: int = 4096) -> VariableTracking:
    """RULER's preset: one chain, four hops."""
    return VariableTracking(length=length, chains=1, hops=4)


def _names(rng: np.random.Generator, chains: int, count: int, letters: int) -> list[list[str]]:
    found: dict[str, None] = {}
    while len(found) < chains * count:
        found["".join(string.ascii_uppercase[i] for i in rng.integers(26, size=letters))] = None
    names = list(found)
    return [names[i : i + count] for i in range(0, chains * count, count)]


def _tracking(names: list[list[str]], values: list[str], places: list[np.ndarray], size: int) -> tuple[str, int]:
    """The prompt with `size` lines of noise, and how many lines stand behind the first assignment."""
    lines: list[tuple[float, str]] = []
    for chain, value, chosen in zip(names, values, places, strict=True):
        texts = [f"VAR {chain[0]} = {value}"]
        texts += [f"VAR {new} = VAR {old}" for old, new in itertools.pairwise(chain)]
        cuts = np.sort((chosen * (size + 1)).astype(int))
        lines += [(int(cut) - 0.5, text) for cut, text in zip(cuts, texts, strict=True)]
    lines += [(line, NOISE) for line in range(size)]
    ordered = [text for _, text in sorted(lines, key=lambda pair: pair[0])]
    context = "\n".join(ordered)
    prompt = (
        "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
        f"{context}\nQuestion: Find all variables that are assigned the value {values[0]} in the text above. Answer: "
        f"According to the chain(s) of variable assignment in the text above, {len(names[0])} variables are assigned "
        f"the value {values[0]}, they are:"
    )
    return prompt, len(ordered) - 1 - ordered.index(f"VAR {names[0][0]} = {values[0]}")
