"""Stories: a simulator that reads them finds the answers, and facts keep their order in texts of exact length."""

import hashlib
import re

import numpy as np
import pytest

from nested_jax.data.babi import LABELS, PLACES, Story, read, read_folder, stories
from nested_jax.data.babilong import Babilong
from nested_jax.data.haystacks import sentences
from nested_jax.data.tokenizers import Bytes

TASKS = ("qa1", "qa2", "qa3", "qa4", "qa5")
BOOK = "\n".join(
    f"Chapter {n} is about rain on a long grey road. Short {n}. It fell {n} days and nights." for n in range(99)
)
GOLDEN_STORIES = {
    "qa1": "89341017653b0a50",
    "qa2": "7d086ea498d7fd3d",
    "qa3": "df0206223a680d51",
    "qa4": "600e648a1d515358",
    "qa5": "718ffbb5f612cb3f",
}
GOLDEN_QUESTIONS = {
    "qa1": "c87d12f9085218a1",
    "qa2": "071a77da216bb6d1",
    "qa3": "e34a61e446c62b3c",
    "qa4": "7fb6d5cba0cc3ca1",
    "qa5": "98ac96753a8dfc14",
}


class Pieces:
    """A token is a word with the white space before it."""

    name, vocab_size, end = "pieces", 2**31, None

    def encode(self, text):
        return np.arange(len(re.findall(r"\s*\S+|\s+$", text)))


def digest(parts):
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def take(task, count, seed=0):
    found = stories(task, seed)
    return [next(found) for _ in range(count)]


def simulate(facts, question, whole=True):
    """The answer by reading one sentence after another: who is where, who holds what, where each thing has been."""
    where, holder, trail, gifts, beside = {}, {}, {}, [], {}

    def see(thing, place):
        if place is None:
            trail[thing] = []
        elif trail.setdefault(thing, [])[-1:] != [place]:
            trail[thing].append(place)

    for fact in facts:
        words = fact.rstrip(".").replace(" there", "").split()
        person, last = words[0], words[-1]
        if person == "The":
            one, way, other = words[1], words[3], words[-1]
            beside[one, way] = other
            beside[other, {"north": "south", "south": "north", "east": "west", "west": "east"}[way]] = one
        elif "to" in words and words[1] in ("gave", "handed", "passed"):
            thing = words[words.index("to") - 1]
            gifts.append((person, thing, last))
            assert holder[thing] == person
            holder[thing] = last
        elif last in PLACES:
            assert " to the " in fact
            where[person] = last
            for thing, keeper in holder.items():
                if keeper == person:
                    see(thing, last)
        elif re.search(r"grabbed|took|got|picked up", fact):
            assert last not in holder or not whole
            holder[last] = person
            see(last, where.get(person))
        else:
            assert re.search(r"dropped|put down|left|discarded", fact), fact
            assert holder.pop(last, person) == person or not whole
            see(last, where.get(person))
    if found := re.fullmatch(r"Where is (the )?(\w+)\?", question):
        return trail[found[2]][-1] if found[1] else where[found[2]]
    if found := re.fullmatch(r"Where was the (\w+) before the (\w+)\?", question):
        places = trail[found[1]]
        return places[len(places) - 1 - places[::-1].index(found[2]) - 1]
    if found := re.fullmatch(r"What is (\w+) of the (\w+)\?", question):
        return next(one for (one, way), other in beside.items() if (way, other) == (found[1], found[2]))
    if found := re.fullmatch(r"What is the (\w+) (\w+) of\?", question):
        return beside[found[1], found[2]]
    patterns = {
        r"What did (?P<a>\w+) give to (?P<c>\w+)\?": 1,
        r"Who gave the (?P<b>\w+) to (?P<c>\w+)\?": 0,
        r"Who did (?P<a>\w+) give the (?P<b>\w+) to\?": 2,
        r"Who gave the (?P<b>\w+)\?": 0,
        r"Who received the (?P<b>\w+)\?": 2,
    }
    for pattern, place in patterns.items():
        if found := re.fullmatch(pattern, question):
            known = found.groupdict()
            fits = [
                gift
                for gift in gifts
                if all(known.get(name, part) == part for name, part in zip("abc", gift, strict=True))
            ]
            return fits[-1][place]
    raise AssertionError(question)


@pytest.mark.parametrize("task", TASKS)
def test_golden_stories(task):
    found = take(task, 20)
    assert (
        digest([part for story in found for part in (*story.facts, story.question, story.answer)])
        == GOLDEN_STORIES[task]
    )


@pytest.mark.parametrize("task", TASKS)
def test_a_simulator_finds_the_answers(task):
    for story in take(task, 300):
        assert simulate(story.facts, story.question) == story.answer
        assert story.answer in LABELS[task]
        assert story.answer not in story.question


@pytest.mark.parametrize("task", ["qa1", "qa2", "qa3", "qa4"])
def test_the_supporting_facts_are_enough(task):
    for story in take(task, 200):
        assert simulate([story.facts[i] for i in story.support], story.question, whole=False) == story.answer
        assert list(story.support) == sorted(set(story.support))


def test_shapes_of_the_tasks():
    assert [len(story.facts) for story in take("qa1", 5)] == [2, 4, 6, 8, 10]
    assert {len(story.facts) for story in take("qa4", 50)} == {2}
    for task in ("qa2", "qa3", "qa5"):
        lengths = [len(story.facts) for story in take(task, 5)]
        assert np.all(np.diff([0, *lengths]) >= 3)
    assert {len(story.support) for story in take("qa2", 200)} == {2}
    assert {len(story.support) for story in take("qa3", 200)} == {3, 4}
    for task in TASKS:
        counts = {answer: 0 for answer in LABELS[task]}
        for story in take(task, 400):
            counts[story.answer] += 1
        assert min(counts.values()) > 10, counts
    assert take("qa1", 5, seed=1) != take("qa1", 5, seed=2)
    with pytest.raises(ValueError, match="task: expected one of qa1, qa2, qa3, qa4, qa5, got 'qa6'"):
        stories("qa6", 0)


FILE = """1 Mary moved to the bathroom.
2 John went to the hallway.
3 Where is Mary? \tbathroom\t1
4 Daniel went back to the hallway.
5 Where is Daniel? \thallway\t4
1 The office is north of the kitchen.
2 The garden is south of the kitchen.
3 What is north of the kitchen?\toffice\t1
"""


def test_the_format_of_the_published_files(tmp_path):
    facts = ("Mary moved to the bathroom.", "John went to the hallway.", "Daniel went back to the hallway.")
    expected = [
        Story(facts[:2], "Where is Mary?", "bathroom", (0,)),
        Story(facts, "Where is Daniel?", "hallway", (2,)),
        Story(
            ("The office is north of the kitchen.", "The garden is south of the kitchen."),
            "What is north of the kitchen?",
            "office",
            (0,),
        ),
    ]
    assert read(FILE) == expected
    assert all(simulate(story.facts, story.question) == story.answer for story in expected)
    (tmp_path / "qa1_single-supporting-fact_train.txt").write_text(FILE)
    assert read_folder(tmp_path, "qa1", "train") == expected
    questions = Babilong(length=900, background=BOOK, babi_dir=tmp_path, split="train").questions(Bytes(), 3)
    assert sorted(question.answers[0] for question in questions) == ["bathroom", "hallway", "office"]
    assert {question.about["source"] for question in questions} == {"babi"}
    with pytest.raises(ValueError, match=r"count: expected at most 3, all of 3 stories that fit 600 tokens; got 4"):
        Babilong(length=900, background=BOOK, babi_dir=tmp_path, split="train").questions(Bytes(), 4)
    with pytest.raises(ValueError, match=r"babi_dir: expected the folder en-10k .* qa2_two-supporting-facts_test\.txt"):
        Babilong(task="qa2", background=BOOK, babi_dir=tmp_path).questions(Bytes(), 1)
    for text in ("one Mary left.", "1 Mary?\tbathroom", "1", "2 Mary left.\n2 John left."):
        with pytest.raises(ValueError, match="babi: expected"):
            read(text)


@pytest.mark.parametrize("task", TASKS)
def test_golden_questions(task):
    questions = Babilong(task=task, length=1600, background=BOOK).questions(Bytes(), 5)
    assert (
        digest([part for question in questions for part in (question.prompt, *question.answers)])
        == GOLDEN_QUESTIONS[task]
    )
    assert questions == Babilong(task=task, length=1600, background=BOOK).questions(Bytes(), 7)[:5]


def parts(question):
    found = re.fullmatch(r"(.*)<context>\n(.*)\n</context>\n\nQuestion: ([^\n]*\?)", question.prompt, re.DOTALL)
    return found.groups()


FACT = re.compile(r"(?:(?:Daniel|John|Mary|Sandra|Bill|Fred|Jeff) [^.]*|The \w+ is \w+ of the \w+)\.")


@pytest.mark.parametrize("task", TASKS)
def test_facts_are_in_the_text_in_their_order_between_whole_sentences(task):
    known = {(story.facts, story.question): story for story in take(task, 200, seed=42)}
    book = [sentence for sentence in sentences(BOOK) if len(sentence) >= 10]
    for question in Babilong(task=task, length=1600, background=BOOK).questions(Bytes(), 20):
        _, context, asked = parts(question)
        facts = FACT.findall(context)
        assert simulate(facts, asked) == question.answers[0]
        story = known[tuple(facts), asked]
        assert len(facts) == question.about["facts"] <= 1300 // 8
        for place, index in zip(question.about["support"], story.support, strict=True):
            assert context[max(round(place / 100 * len(context)) - 2, 0) :][:9].find(story.facts[index][:5]) >= 0
        rest = " ".join(" ".join(FACT.split(context)).split())
        first = book.index(next(sentence for sentence in book if rest.startswith(sentence)))
        whole = " ".join((book[first:] + book)[: len(book)])
        assert whole.startswith(rest)
        assert "Short" not in rest


@pytest.mark.parametrize("length", [*range(500, 560), 4000, 20_000])
def test_exact_numbers_of_bytes(length):
    for question in Babilong(length=length, background=BOOK).questions(Bytes(), 2):
        assert len(parts(question)[1].encode()) == length - 300 == question.about["tokens"]


def test_numbers_of_other_tokens():
    for length in (340, 401, 1000):
        for question in Babilong(length=length, background=BOOK, shortest=6).questions(Pieces(), 3):
            assert len(Pieces().encode(parts(question)[1])) == length - 300 == question.about["tokens"]


def test_places_are_drawn_with_replacement():
    """Two facts fall into the same one of n + 1 gaps with probability 1 / (n + 1)."""
    config = Babilong(task="qa4", length=550, background="A very plain sentence, I say.\nAnother plain sentence, too.")
    together, gaps, first, last = 0, 0, [], []
    for question in config.questions(Bytes(), 400):
        _, context, _ = parts(question)
        starts = [found.start() for found in FACT.finditer(context)]
        first.append(starts[0] / len(context))
        last.append(context.endswith(FACT.findall(context)[-1]))
        together += FACT.match(context, FACT.match(context, starts[0]).end() + 1) is not None
        gaps += 1 / (1 + len(FACT.sub("", context).split(".")[:-1]) + 1)
    assert abs(together - gaps) < 4 * np.sqrt(gaps)
    assert 0.2 < np.mean(first) < 0.4
    assert min(first) == 0
    assert 0.1 < np.mean(last) < 0.4


def test_stories_with_many_facts_are_left_out():
    for length in (380, 420):
        found = Babilong(task="qa2", length=length, background=BOOK, shortest=6).questions(Pieces(), 30)
        counts = [question.about["facts"] for question in found]
        assert max(counts) + 1 <= (length - 300) // 8
    with pytest.raises(ValueError, match="count: expected at most 0"):
        Babilong(task="qa2", length=302, background=BOOK).questions(Bytes(), 1)


def test_prompts():
    question = Babilong(task="qa1", length=0).questions(Bytes(), 1)[0]
    instruction, context, asked = parts(question)
    assert instruction.endswith("Write nothing else.\n\n")
    assert re.fullmatch(r"[^\n]*\n\n<example>\n.*\n</example>\n\n[^\n]*\n\n", instruction, re.DOTALL)
    assert simulate(sentences(context), asked) == question.answers[0]
    bare = Babilong(task="qa1", length=0, prompt=("", "", "")).questions(Bytes(), 1)[0]
    assert bare.prompt == f"<context>\n{context}\n</context>\n\nQuestion: {asked}"
    other = Babilong(task="qa1", length=0, prompt=("Do", "so", "now")).questions(Bytes(), 1)[0]
    assert other.prompt == f"Do\n\nso\n\nnow\n\n{bare.prompt}"


@pytest.mark.parametrize("task", TASKS)
def test_the_worked_examples_are_right(task):
    instruction, _, _ = parts(Babilong(task=task, length=0).questions(Bytes(), 1)[0])
    places = {"library": "kitchen", "cellar": "garden", "terrace": "office"}
    for example in re.findall(r"<example>\n(.*)\nAnswer: (.*)\n</example>", instruction):
        story, answer = example
        for ours, known in places.items():
            story, answer = story.replace(ours, known), answer.replace(ours, known)
        *facts, question = sentences(story)
        assert simulate(facts, question) in answer.rstrip(".").split()[-1:]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "qa6"}, "task: expected one of qa1"),
        ({"length": 300}, "length: expected 0 or more than reserve >= 0, got length = 300, reserve = 300"),
        ({"shortest": 0}, "shortest: expected at least 1, got 0"),
        ({"background": "Too short.\nYes."}, "background: expected a sentence of at least 10 tokens"),
        (
            {"background": "missing"},
            r"background: expected a text to hide facts in.*PG19.*no such file",
        ),
        ({"background": None}, "PG19"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Babilong(**{"background": BOOK, **settings}).questions(Pieces(), 1)
