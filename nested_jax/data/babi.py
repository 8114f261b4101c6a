"""Stories with a question about them: a generator of the tasks qa1-qa5 in the world of bAbI, and a reader of its files.

    1 Mary moved to the bathroom.
    2 John went to the hallway.
    3 Where is Mary? 	bathroom	1

People go from place to place, take, drop and give things; what is asked follows from what was said. The world and the
five tasks are those of facebookarchive/bAbI-tasks (Weston et al. 2015, arXiv 1502.05698); the public generator does not
make the published files either, so `stories` are called babi_gen and numbers on them are our own.
"""

import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
THINGS = ("apple", "football", "milk")
PEOPLE = ("Daniel", "John", "Mary", "Sandra")
GIVERS = ("Bill", "Fred", "Jeff", "Mary")
LABELS = {**dict.fromkeys(("qa1", "qa2", "qa3", "qa4"), PLACES), "qa5": GIVERS + THINGS}

_FILES = {
    "qa1": "qa1_single-supporting-fact",
    "qa2": "qa2_two-supporting-facts",
    "qa3": "qa3_three-supporting-facts",
    "qa4": "qa4_two-arg-relations",
    "qa5": "qa5_three-arg-relations",
}
_GO = ("went to the", "journeyed to the", "travelled to the", "moved to the", "went back to the")
_TAKE = ("grabbed the", "took the", "got the", "picked up the")
_DROP = ("dropped the", "put down the", "left the", "discarded the")
_GIVE = ("gave the", "handed the", "passed the")
_OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}


class Story(NamedTuple):
    """What was said, and one question about it.

    Attributes:
      facts: sentences in their order.
      question: ends with a question mark.
      answer: one word.
      support: indices of the facts from which the answer follows.
    """

    facts: tuple[str, ...]
    question: str
    answer: str
    support: tuple[int, ...]


def stories(task: str, seed: int) -> Iterator[Story]:
    """Stories of one task without end.

    A story goes on for five questions (qa4: one); each is a `Story` with all facts before it. qa1: where someone is,
    two moves between questions. qa2: where a thing is. qa3: where a thing was before the place where it is last known
    to be. qa4: two relations between three places, asked about the middle one. qa5: who gave what to whom, asked about
    the last gift. In qa2 and qa3 a question comes with probability 1/2 from the third fact on after the last one, in
    qa5 with the first gift from there on. Ours: people and things start at random unknown places, an action is drawn by
    its kind, then uniformly among those possible, and things are asked about only where the facts say where they are.

    Args:
      task: "qa1" ... "qa5".
      seed: 0 or more.

    Raises:
      ValueError: for another task.

    Example:
      >>> story = next(stories("qa4", seed=1))
      >>> story.facts
      ('The garden is west of the bathroom.', 'The garden is east of the kitchen.')
      >>> story.question, story.answer
      ('What is west of the garden?', 'kitchen')
    """
    makers: dict[str, Callable[[np.random.Generator], Iterator[Story]]] = {
        "qa1": _where_is_someone,
        "qa2": lambda rng: _where_is_something(rng, before=False),
        "qa3": lambda rng: _where_is_something(rng, before=True),
        "qa4": _relations,
        "qa5": _gifts,
    }
    if task not in makers:
        raise ValueError(f"task: expected one of {', '.join(makers)}, got {task!r}")
    rng = np.random.default_rng([seed, int(task[2:])])
    return itertools.chain.from_iterable(makers[task](rng) for _ in itertools.count())


def read(text: str) -> list[Story]:
    """Stories of a file of bAbI, one question each: all facts before it.

    Args:
      text: lines `number sentence` and `number question<tab>answer<tab>supporting lines`; number 1 begins a story.

    Raises:
      ValueError: if a line is none of these.

    Example:
      >>> read("1 Mary moved to the bathroom.\\n2 Where is Mary? \\tbathroom\\t1")
      [Story(facts=('Mary moved to the bathroom.',), question='Where is Mary?', answer='bathroom', support=(0,))]
    """
    found: list[Story] = []
    facts: dict[int, str] = {}
    for place, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        head, _, rest = line.partition(" ")
        question, *fields = rest.split("\t")
        if not head.isdigit() or not rest or len(fields) not in (0, 2):
            raise ValueError(
                f"babi: expected 'number sentence' or 'number question<tab>answer<tab>numbers', got {line!r}"
            )
        if int(head) == 1:
            facts = {}
        if fields:
            places = {number: index for index, number in enumerate(facts)}
            support = tuple(places[int(number)] for number in fields[1].split() if int(number) in places)
            found.append(Story(tuple(facts.values()), question.strip(), fields[0].strip(), support))
        elif int(head) in facts:
            raise ValueError(f"babi: expected line numbers that go up, or 1, got {line!r} in line {place}")
        else:
            facts[int(head)] = question.strip()
    return found


def read_folder(babi_dir: str, task: str, split: str = "test") -> list[Story]:
    """Stories of one of the published files.

    Args:
      babi_dir: holds `qa1_single-supporting-fact_train.txt`, `..._test.txt` and so on.
      task: "qa1" ... "qa5".
      split: "train" or "test".

    Raises:
      ValueError: if the file is missing; the message says where it comes from.
    """
    if task not in _FILES:
        raise ValueError(f"task: expected one of {', '.join(_FILES)}, got {task!r}")
    path = pathlib.Path(babi_dir).expanduser() / f"{_FILES[task]}_{split}.txt"
    if not path.is_file():
        raise ValueError(
            f"babi_dir: expected the folder en-10k of tasks_1-20_v1-2 (the bAbI tasks 1.2; a copy is in the repository "
            f"booydar/babilong as data/tasks_1-20_v1-2.zip), with files such as {path.name}; no such file: {path}"
        )
    return read(path.read_text(encoding="utf-8"))


class _World:
    """People and things, what was said about them, and where a reader knows them to be.

    `known` holds places in order, each with the facts that say so; `taken` the last fact that took or dropped a thing.
    """

    def __init__(self, rng: np.random.Generator, people: tuple[str, ...]):
        self.rng, self.people = rng, people
        self.facts: list[str] = []
        self.place = {name: self.pick(PLACES) for name in people + THINGS}
        self.holder: dict[str, str] = {}
        self.known: dict[str, list[tuple[str, tuple[int, ...]]]] = {name: [] for name in people + THINGS}
        self.taken: dict[str, int] = {}

    def pick(self, options: tuple[str, ...] | list[str]) -> str:
        return options[int(self.rng.integers(len(options)))]

    def there(self) -> str:
        return self.pick(["", " there"])

    def go(self) -> None:
        person = self.pick(self.people)
        place = self.pick([place for place in PLACES if place != self.place[person]])
        self.facts.append(f"{person} {self.pick(_GO)} {place}.")
        self.place[person] = place
        self.known[person].append((place, (len(self.facts) - 1,)))
        for thing, holder in self.holder.items():
            if holder == person:
                self.place[thing] = place
                self._follow(thing, person)

    def take(self) -> bool:
        free = [(p, t) for p in self.people for t in THINGS if t not in self.holder and self.place[p] == self.place[t]]
        if not free:
            return False
        person, thing = free[int(self.rng.integers(len(free)))]
        self.facts.append(f"{person} {self.pick(_TAKE)} {thing}{self.there()}.")
        self.holder[thing], self.taken[thing] = person, len(self.facts) - 1
        self._follow(thing, person)
        return True

    def drop(self) -> bool:
        if not self.holder:
            return False
        thing = self.pick(sorted(self.holder))
        person = self.holder.pop(thing)
        self.facts.append(f"{person} {self.pick(_DROP)} {thing}{self.there()}.")
        self.taken[thing] = len(self.facts) - 1
        self._follow(thing, person)
        return True

    def give(self) -> tuple[str, str, str] | None:
        pairs = [
            (giver, thing, other)
            for thing, giver in sorted(self.holder.items())
            for other in self.people
            if other != giver and self.place[other] == self.place[giver]
        ]
        if not pairs:
            return None
        giver, thing, other = pairs[int(self.rng.integers(len(pairs)))]
        self.facts.append(f"{giver} {self.pick(_GIVE)} {thing} to {other}.")
        self.holder[thing] = other
        return giver, thing, other

    def _follow(self, thing: str, person: str) -> None:
        """The reader learns that a thing is where a person is, if that is known."""
        if not self.known[person]:
            self.known[thing] = []
            return
        place, said = self.known[person][-1]
        if self.known[thing] and self.known[thing][-1][0] == place:
            self.known[thing].pop()
        self.known[thing].append((place, tuple(sorted({self.taken[thing], *said}))))


def _where_is_someone(rng: np.random.Generator) -> Iterator[Story]:
    world = _World(rng, PEOPLE)
    for _ in range(5):
        world.go()
        world.go()
        person = world.pick([person for person in PEOPLE if world.known[person]])
        place, support = world.known[person][-1]
        yield Story(tuple(world.facts), f"Where is {person}?", place, support)


def _where_is_something(rng: np.random.Generator, *, before: bool) -> Iterator[Story]:
    world, asked, since = _World(rng, PEOPLE), 0, 0
    while asked < 5:
        kind = world.pick(["go", "take", "drop"])
        if kind == "go":
            world.go()
        elif not (world.take() if kind == "take" else world.drop()):
            continue
        since += 1
        things = [thing for thing in THINGS if len(world.known[thing]) > before]
        if since < 3 or not things or rng.integers(2):
            continue
        thing = world.pick(things)
        place, support = world.known[thing][-1]
        question = f"Where is the {thing}?"
        if before:
            question = f"Where was the {thing} before the {place}?"
            place, earlier = world.known[thing][-2]
            support = tuple(sorted({*support, *earlier}))
        yield Story(tuple(world.facts), question, place, support)
        asked, since = asked + 1, 0


def _relations(rng: np.random.Generator) -> Iterator[Story]:
    first, middle, last = (PLACES[i] for i in rng.permutation(len(PLACES))[:3])
    way = ("north", "south", "east", "west")[int(rng.integers(4))]

    def say(one: str, other: str) -> str:
        """`one` lies `way` of `other`, said from either side."""
        if rng.integers(2):
            return f"The {one} is {way} of the {other}."
        return f"The {other} is {_OPPOSITE[way]} of the {one}."

    facts = [say(first, middle), say(middle, last)]
    swapped = int(rng.integers(2))
    side = int(rng.integers(2))
    answer, direction = ((first, way), (last, _OPPOSITE[way]))[side]
    question = f"What is {direction} of the {middle}?"
    if rng.integers(2):
        question = f"What is the {middle} {_OPPOSITE[direction]} of?"
    yield Story(tuple(facts[::-1] if swapped else facts), question, answer, (side ^ swapped,))


def _gifts(rng: np.random.Generator) -> Iterator[Story]:
    world, asked, since = _World(rng, GIVERS), 0, 0
    while asked < 5:
        kind, gift = world.pick(["go", "take", "give"]), None
        if kind == "go":
            world.go()
        elif kind == "take":
            if not world.take():
                continue
        else:
            gift = world.give()
            if gift is None:
                continue
        since += 1
        if since < 3 or gift is None:
            continue
        giver, thing, other = gift
        question, answer = (
            (f"What did {giver} give to {other}?", thing),
            (f"Who gave the {thing} to {other}?", giver),
            (f"Who did {giver} give the {thing} to?", other),
            (f"Who gave the {thing}?", giver),
            (f"Who received the {thing}?", other),
        )[int(rng.integers(5))]
        yield Story(tuple(world.facts), question, answer, (len(world.facts) - 1,))
        asked, since = asked + 1, 0
