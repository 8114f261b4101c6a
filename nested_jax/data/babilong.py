"""Stories of bAbI scattered over a long text: BABILong.

    instruction, worked examples, form of the answer
    <context> ... sentences of a book ... Mary moved to the bathroom. ... sentences of a book ... </context>
    Question: Where is Mary?

Definition: booydar/babilong (Kuratov et al. 2024, arXiv 2406.10149). The scorer is `evals.answers.babilong_match`; the
number of the leaderboard is the mean over qa1-qa5.
"""

import dataclasses
import os
from collections.abc import Iterator

import numpy as np

from nested_jax.data.babi import Story, read_folder, stories
from nested_jax.data.haystacks import largest, read_background, sentences
from nested_jax.data.questions import Question
from nested_jax.data.tokenizers import Tokenizer

_BOOKS = (
    "a text to hide facts in: a text file or a folder of them. BABILong uses the test books of PG19 (a folder of "
    "*.txt, deepmind-gutenberg/test; on Hugging Face deepmind/pg19): give them for its own task. Other prose works "
    "too, but then numbers are not BABILong's"
)
_PLACE = (
    "Facts about people and the rooms they walk through are scattered over a text that has nothing to do with them."
)
_PROMPTS = {
    "qa1": (
        f"{_PLACE} Someone who was in several rooms is in the last of them. Answer from these facts alone.",
        "<example>\nEmma went to the terrace. Oscar moved to the library. Emma moved to the cellar. Where is Emma?\n"
        "Answer: Emma is in the cellar.\n</example>",
        "Give the answer in the form: 'person' is in the 'room'. Write nothing else.",
    ),
    "qa2": (
        f"{_PLACE} They also pick up things and put them down. A thing that somebody carries is where that person is, "
        "and stays where it was put down. Answer from these facts alone.",
        "<example>\nEmma went to the terrace. Emma took the lamp. Emma moved to the cellar. Where is the lamp?\n"
        "Answer: The lamp is in the cellar.\n</example>",
        "Give the answer in the form: The 'thing' is in the 'room'. Write nothing else.",
    ),
    "qa3": (
        f"{_PLACE} They also pick up things and put them down. A thing that somebody carries is where that person is, "
        "and stays where it was put down. Say where a thing was just before it came to a room. Answer from these facts "
        "alone.",
        "<example>\nEmma went to the terrace. Emma took the lamp. Emma moved to the cellar. Emma went to the library. "
        "Where was the lamp before the library?\nAnswer: Before the library the lamp was in the cellar.\n</example>",
        "Give the answer in the form: Before the 'room' the 'thing' was in the 'room'. Write nothing else.",
    ),
    "qa4": (
        "Facts about where rooms lie are scattered over a text that has nothing to do with them. Answer from these "
        "facts alone.",
        "<example>\nThe terrace is north of the cellar. The library is south of the cellar. What is the cellar north "
        "of?\nAnswer: library\n</example>",
        "Answer with one word, the room. Write nothing else.",
    ),
    "qa5": (
        "Facts about people who give things to each other are scattered over a text that has nothing to do with them. "
        "The question is about the last gift that fits it. Answer from these facts alone.",
        "<example>\nEmma took the lamp. Emma handed the lamp to Oscar. Oscar went to the cellar. Who received the "
        "lamp?\nAnswer: Oscar\n</example>",
        "Answer with one word, a person or a thing. Write nothing else.",
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Babilong:
    """Which stories, how long the text is, and what surrounds it.

    Differs from BABILong: sentences are joined by a space (there token by token, without one) and found by a regular
    expression (there by NLTK); the instructions are our own, unless `prompt` is given; the text is cut by characters.

    Attributes:
      task: "qa1" ... "qa5".
      length: tokens of prompt and text together, 0 for the facts alone; BABILong has 0, 1000, 2000, 4000, ...
      reserve: of them kept for the prompt; the text has `length - reserve` tokens (BABILong: 300, GPT-2 tokens).
      background: path, or text with line breaks in it (see `haystacks.read_background`). A question begins at a random
        sentence of it and reads on from the first one when it ends.
      shortest: tokens of a sentence of the background, at least; shorter ones are left out.
      babi_dir: folder of the published stories (`babi.read_folder`); None generates them: "babi_gen".
      split: of the published stories, "train" or "test"; the script in BABILong's repository reads "train".
      prompt: instruction, examples and form of the answer; None for ours of the task, three empty texts for none.
    """

    task: str = "qa1"
    length: int = 4000
    reserve: int = 300
    background: str | os.PathLike[str] | None = None
    shortest: int = 10
    babi_dir: str | None = None
    split: str = "test"
    prompt: tuple[str, str, str] | None = None

    def validate(self) -> None:
        """Raise `ValueError` if a field is out of range."""
        if self.task not in _PROMPTS:
            raise ValueError(f"task: expected one of {', '.join(_PROMPTS)}, got {self.task!r}")
        if self.reserve < 0 or not (self.length == 0 or self.length > self.reserve):
            raise ValueError(
                f"length: expected 0 or more than reserve >= 0, got length = {self.length}, reserve = {self.reserve}"
            )
        if self.shortest < 1:
            raise ValueError(f"shortest: expected at least 1, got {self.shortest}")

    def questions(self, tokenizer: Tokenizer, count: int = 100, seed: int = 42) -> list[Question]:
        """Draw questions, each about another story.

        A fact comes before each of as many places, drawn with replacement among those between, before and behind the
        sentences of the background; facts keep their order. Stories whose facts and question are more than an eighth of
        the tokens, or whose facts do not fit, are left out.

        Args:
          tokenizer: counts tokens of sentences and of the text.
          count: how many, at least 1 (BABILong: 100 or 1000).
          seed: 0 or more; of stories, their order, places and background.

        Returns:
          Questions with one answer and `about`: task, length, source ("babi_gen" or "babi"), facts (how many), tokens
          (of the text: `length - reserve`, or the largest below it that whole characters reach) and support (where the
          facts from which the answer follows begin, percent of the text's characters).

        Raises:
          ValueError: if a field is out of range, a path is missing, or there are not enough stories or sentences.

        Example:
          >>> from nested_jax.data.tokenizers import Bytes
          >>> book = "The rain fell on the hill.\\nNobody saw the long road."
          >>> config = Babilong(length=430, background=book, prompt=("", "", ""))
          >>> question = config.questions(Bytes(), 1)[0]
          >>> question.prompt[-26:], question.answers, question.about["tokens"]
          ('Question: Where is Sandra?', ('hallway',), 130)
        """
        self.validate()
        if count < 1 or seed < 0:
            raise ValueError(f"count and seed: expected at least 1 and 0, got {count} and {seed}")
        target = self.length - self.reserve if self.length else 0
        book, estimate = self._book(tokenizer, target) if target else ([], 0)
        found, tries = [], 0
        for tries, story in enumerate(self._stories(seed)):
            if not target or len(story.facts) < target // 8:
                placed = _place(np.random.default_rng([seed, tries, 1]), story.facts, book, tokenizer, target, estimate)
                if placed is not None:
                    found.append(self._question(story, *placed))
            if len(found) == count:
                return found
            if tries > 1000 * (len(found) + 1):
                break
        raise ValueError(
            f"count: expected at most {len(found)}, all of {tries + 1} stories that fit {target} tokens; got {count}"
        )

    def _book(self, tokenizer: Tokenizer, target: int) -> tuple[list[str], int]:
        """Sentences of the background, and about how many of them fill the text."""
        text = sentences(read_background(self.background, _BOOKS))
        sizes = [len(tokenizer.encode(sentence)) for sentence in text]
        book = [sentence for sentence, size in zip(text, sizes, strict=True) if size >= self.shortest]
        if not book:
            raise ValueError(f"background: expected a sentence of at least {self.shortest} tokens, got none")
        return book, target * len(book) // sum(size for size in sizes if size >= self.shortest)

    def _stories(self, seed: int) -> Iterator[Story]:
        if self.babi_dir is None:
            return stories(self.task, seed)
        found = read_folder(self.babi_dir, self.task, self.split)
        return (found[i] for i in np.random.default_rng([seed, 2]).permutation(len(found)))

    def _question(self, story: Story, context: str, starts: list[int], tokens: int) -> Question:
        instruction, examples, form = _PROMPTS[self.task] if self.prompt is None else self.prompt
        prompt = (
            f"{instruction}\n\n{examples}\n\n{form}\n\n<context>\n{context}\n</context>\n\nQuestion: {story.question}"
        )
        about = {
            "task": self.task,
            "length": self.length,
            "source": "babi_gen" if self.babi_dir is None else "babi",
            "facts": len(story.facts),
            "tokens": tokens,
            "support": tuple(round(100 * starts[i] / len(context), 1) for i in story.support),
        }
        return Question(prompt.strip(), (story.answer,), about)


def _place(
    rng: np.random.Generator, facts: tuple[str, ...], book: list[str], tokenizer: Tokenizer, target: int, estimate: int
) -> tuple[str, list[int], int] | None:
    """Facts between the sentences of a book: the text, where each fact begins, and how many tokens it has."""
    parts = np.sort(rng.random(len(facts)))
    first = int(rng.integers(len(book))) if book else 0

    def compose(count: int, cut: int | None = None) -> tuple[str, list[int]]:
        pieces = [book[(first + i) % len(book)] for i in range(count)]
        if cut is not None:
            pieces[-1] = pieces[-1][:cut]
        places = [int(part * (count + 1)) + i for i, part in enumerate(parts)]
        for place, fact in zip(places, facts, strict=True):
            pieces.insert(place, fact)
        lengths = np.cumsum([0, *(len(piece) + 1 for piece in pieces)])
        return " ".join(pieces), [int(lengths[place]) for place in places]

    def tokens(count: int, cut: int | None = None) -> int:
        return len(tokenizer.encode(compose(count, cut)[0]))

    if not target:
        return *compose(0), tokens(0)
    count = largest(lambda count: tokens(count) <= target, estimate)
    if count < 0:
        return None
    cut = largest(lambda cut: tokens(count + 1, cut) <= target, len(book[(first + count) % len(book)]) // 2)
    where = (count, None) if cut < 0 else (count + 1, cut)
    return *compose(*where), tokens(*where)
