"""Chains of random strings, shuffled: where does one lead after some hops (Hash-Hop).

    jRkQwXbT = YVvLpOaE
    YVvLpOaE = 'ZmDnHcUs'
    ...
    COMPLETION: ... jRkQwXbT = 'ZmDnHcUs'

Definition: magicproduct/hash-hop (Magic 2024). The scorer is `evals.answers.hash_hop_match`. There is no published
number at small scale.
"""

import dataclasses
import itertools
import math
import string

import numpy as np

from nested_jax.data.questions import Question

_LETTERS = np.array(list(string.ascii_letters))


@dataclasses.dataclass(frozen=True, kw_only=True)
class HashHop:
    """How long the text is, how long the chains are.

    The public code has two quirks. It throws its shuffled queries away and asks in the order of creation: so does this,
    since strings are drawn independently and lines are shuffled, and the order says nothing. It draws from two global
    generators, `random` and `numpy.random`: this draws from one of its own. Its strings may repeat; here all differ.

    Attributes:
      characters: of the text, about: it has ceil(characters / ((2 * hash_length + 3) * hops)) chains, as the public
        formula says, though a line has at least one character more than that.
      hops: lines of a chain, at least 1.
      queries: asked of one text, each a question of its own.
      hash_length: letters of a string.
      chain_of_thought: the answer names every string on the way, not the last one only.
    """

    characters: int = 12_000
    hops: int = 2
    queries: int = 5
    hash_length: int = 16
    chain_of_thought: bool = False

    @property
    def chains(self) -> int:
        """Chains of one text."""
        return math.ceil(self.characters / ((2 * self.hash_length + 3) * self.hops))

    def validate(self) -> None:
        """Raise `ValueError` if a field is out of range."""
        for name in ("characters", "hops", "queries", "hash_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.queries > self.chains:
            raise ValueError(f"queries: expected at most one for each of {self.chains} chains, got {self.queries}")
        if 4 * self.chains * (self.hops + 1) > len(_LETTERS) ** self.hash_length:
            raise ValueError(
                f"hash_length: expected strings enough for {self.chains * (self.hops + 1)} different ones, "
                f"got {self.hash_length}"
            )

    def questions(self, count: int = 100, seed: int = 0) -> list[Question]:
        """Draw questions, `queries` about each text.

        Args:
          count: of texts, at least 1.
          seed: 0 or more.

        Returns:
          count * queries questions. A prompt ends with the string that is asked for and ` =`; the answer is `'last'`,
          or `'second = third = last'` with a chain of thought. `about`: hops, characters (as configured), chains,
          chain_of_thought, text (its number) and distance (lines between the first line of the chain and the end).

        Raises:
          ValueError: if a field is out of range.

        Example:
          >>> question = HashHop(characters=40, hash_length=4, queries=1).questions(1)[0]
          >>> print(question.prompt[:51])
          GCDW = 'oQIa'
          AFYL = GCDW
          qcda = 'jQHV'
          SHAo = qcda
          >>> question.prompt[-6:], question.answers
          ('SHAo =', ("'jQHV'",))
        """
        self.validate()
        if count < 1 or seed < 0:
            raise ValueError(f"count and seed: expected at least 1 and 0, got {count} and {seed}")
        return [question for text in range(count) for question in self._text(seed, text)]

    def _text(self, seed: int, text: int) -> list[Question]:
        rng = np.random.default_rng([seed, text])
        chains = self._chains(rng)
        lines = [
            f"{name} = '{target}'" if hop == self.hops - 1 else f"{name} = {target}"
            for chain in chains
            for hop, (name, target) in enumerate(itertools.pairwise(chain))
        ]
        order = rng.permutation(len(lines))
        shuffled = "\n".join(lines[i] for i in order)
        places = np.argsort(order)
        found = []
        for chain, names in enumerate(chains[: self.queries]):
            answer = " = ".join(names[1:]) if self.chain_of_thought else names[-1]
            about = {
                "hops": self.hops,
                "characters": self.characters,
                "chains": len(chains),
                "chain_of_thought": self.chain_of_thought,
                "text": text,
                "distance": len(lines) - 1 - int(places[chain * self.hops]),
            }
            head = f"COMPLETION:\nHops={self.hops}\n\nCoT={self.chain_of_thought}\n\n{names[0]} ="
            found.append(Question(f"{shuffled}\n{head}", (f"'{answer}'",), about))
        return found

    def _chains(self, rng: np.random.Generator) -> list[list[str]]:
        wanted = self.chains * (self.hops + 1)
        found: dict[str, None] = {}
        while len(found) < wanted:
            letters = _LETTERS[rng.integers(len(_LETTERS), size=(wanted - len(found), self.hash_length))]
            found.update(dict.fromkeys(map("".join, letters)))
        names = list(found)
        return [names[i : i + self.hops + 1] for i in range(0, wanted, self.hops + 1)]
