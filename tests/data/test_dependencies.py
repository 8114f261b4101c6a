"""Dependencies: programs are run, real functions are traced line by line, and both agree with the answers."""

import hashlib
import re
import sys

import numpy as np
import pytest

from nested_jax.data.code_dependencies import CodeDependencies, Source, sources
from nested_jax.data.dependencies import Programs, VariableTracking, variable_tracking
from nested_jax.data.haystacks import NOISE
from nested_jax.data.tokenizers import Bytes


def digest(questions):
    text = "\0".join("\0".join((question.prompt, *question.answers)) for question in questions)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("settings", "golden"),
    [
        ({}, "3475293f7e755bbf"),
        ({"answer": "root", "depth": 5}, "921f92f7fe4d6a4e"),
        ({"depth": 3, "distance": 4, "modulus": 100}, "4a65fb726de6f137"),
    ],
)
def test_golden_programs(settings, golden):
    questions = Programs(**settings).questions(5)
    assert digest(questions) == golden
    assert Programs(**settings).questions(7)[:5] == questions
    assert digest(Programs(**settings).questions(5, seed=1)) != golden


@pytest.mark.parametrize("modulus", [2, 10, 1000])
@pytest.mark.parametrize("depth", [0, 1, 4])
@pytest.mark.parametrize("answer", ["value", "root"])
def test_programs_are_run(answer, depth, modulus):
    """The prompt is a program: its value is what Python says, its chain what its text says."""
    distances = set()
    for question in Programs(depth=depth, distractors=6, answer=answer, modulus=modulus).questions(40):
        values = {}
        exec(question.prompt, values)
        *lines, asked = question.prompt.split("\n")
        name = re.search(r"v\d+", asked)[0]
        assert len(lines) == depth + 1 + 6
        bound = [line.split(" = ")[0] for line in lines]
        assert sorted(bound) == sorted(f"v{n}" for n in range(len(lines)))
        assert all(0 <= values[each] < modulus for each in bound)
        right = dict(line.split(" = ") for line in lines)
        if answer == "value":
            assert question.answers == (str(values[name]),)
        for _ in range(depth):
            name, *others = re.findall(r"v\d+", right[name])
            assert len(others) == (answer == "value")
            assert all(right[other].isdigit() for other in others)
        assert right[name].isdigit()
        if answer == "root":
            assert question.answers == (name,)
        distance = len(lines) - 1 - bound.index(name)
        assert question.about["distance"] == distance
        assert question.about["depth"] == depth
        distances.add(distance)
    assert distances == set(range(depth, depth + 7))


@pytest.mark.parametrize("distance", [2, 5, 8])
def test_programs_of_one_distance(distance):
    questions = Programs(depth=2, distractors=6, distance=distance).questions(20)
    assert {question.about["distance"] for question in questions} == {distance}


def test_half_of_the_distractors_are_constants():
    lines = [
        line
        for question in Programs(depth=0, distractors=20, distance=20).questions(100)
        for line in question.prompt.split("\n")[1:-1]
    ]
    share = np.mean(["%" not in line for line in lines])
    assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(len(lines))


@pytest.mark.parametrize(
    ("settings", "golden"),
    [({}, "ff79465bed78d268"), ({"chains": 3, "hops": 2, "example": False}, "a805d8b97b20f150")],
)
def test_golden_tracking(settings, golden):
    assert digest(VariableTracking(length=3000, **settings).questions(Bytes(), 3)) == golden


@pytest.mark.parametrize("settings", [{}, {"chains": 3, "hops": 2}, {"example": False}])
def test_tracking_is_run(settings):
    config = VariableTracking(length=4000, **settings)
    for question in config.questions(Bytes(), 10):
        assert 4000 - len(NOISE) - 1 < len(question.prompt) + config.answer_budget <= 4000
        *example, text = question.prompt.split("Memorize and track the chain(s) of variable assignment")[1:]
        assert len(example) == config.example
        for prompt, answers in [(text, question.answers), *((part, None) for part in example)]:
            context, end = prompt.split("\nQuestion: Find all variables that are assigned the value ")
            lines = context.split("\n")[2:]
            held = {}
            for line in lines:
                if line != NOISE:
                    name, value = re.fullmatch(r"VAR ([A-Z]+) = (?:VAR )?(\w+)", line).groups()
                    held[name] = held.get(value, value)
            asked = re.match(r"\d+", end)[0]
            wanted = tuple(name for name, value in held.items() if value == asked)
            assert len(wanted) == config.hops + 1
            if answers is None:
                assert end.rstrip("\n").endswith(f"they are: {' '.join(wanted)}")
                continue
            assert end.endswith(f"above, {config.hops + 1} variables are assigned the value {asked}, they are:")
            assert set(answers) == set(wanted)
            first = next(i for i, line in enumerate(lines) if line.endswith(f"= {asked}"))
            assert question.about["distance"] == len(lines) - 1 - first
            assert len(held) == config.chains * (config.hops + 1)
    assert variable_tracking(1000) == VariableTracking(length=1000, chains=1, hops=4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Programs(depth=-1), "depth: expected at least 0, got -1"),
        (Programs(modulus=1), "modulus: expected at least 2, got 1"),
        (Programs(answer="name"), "answer: expected 'value' or 'root', got 'name'"),
        (Programs(depth=2, distractors=3, distance=6), r"distance: expected None or 2\.\.5, got 6"),
        (Programs(depth=2, distractors=3, distance=1), r"distance: expected None or 2\.\.5, got 1"),
        (CodeDependencies(answer="name"), "answer: expected 'line' or 'variable', got 'name'"),
        (CodeDependencies(depths=(1, 1)), r"depths: expected different numbers of 0 or more, got \(1, 1\)"),
        (CodeDependencies(paths=("missing",)), "paths: expected Python files .* no such file or folder: missing"),
    ],
)
def test_bad_settings(config, message):
    with pytest.raises(ValueError, match=message):
        config.questions(1)


def test_bad_tracking():
    with pytest.raises(ValueError, match="chains: expected at least 1, got 0"):
        VariableTracking(chains=0).questions(Bytes(), 1)
    with pytest.raises(ValueError, match=r"length: expected at least \d+ tokens, got 300"):
        VariableTracking(length=300).questions(Bytes(), 1)


CODE = """def f(items, start,
      limit=3):
    total = start
    seen = []
    for item in items:
        half = item / 2
        total += half
        if total > limit:
            name = "big"
            rest = total
        else:
            name = "small"
        seen.append(name)
    first = items[0]
    try:
        ratio = start / first
    except ZeroDivisionError as error:
        ratio = None
        text = str(error)
        seen.append(text)
    copy = first
    twice = copy * 2
    twice += 1
    last = twice
    while limit > 0:
        limit -= 1
        step = last
        seen.append(step)
    pair = [start, limit]
    a, b = pair
    both = a + b
    squares = [n * n for n in seen if n == both]
    many = len(squares)
    del copy
    with open("/dev/null") as file:
        data = file.read()
    size = len(data)
    return (total, ratio,
            last, many, b, size)
"""

FOUND = {
    (3, "start"): (1, "start", 0),
    (5, "items"): (1, "items", 0),
    (6, "item"): (5, "item", 0),
    (7, "half"): (5, "item", 1),
    (8, "limit"): (2, "limit", 0),
    (8, "total"): (7, "total", 0),
    (10, "total"): (7, "total", 0),
    (13, "seen"): (4, "seen", 0),
    (14, "items"): (1, "items", 0),
    (16, "start"): (1, "start", 0),
    (16, "first"): (1, "items", 1),
    (19, "error"): (17, "error", 0),
    (20, "seen"): (4, "seen", 0),
    (20, "text"): (17, "error", 1),
    (21, "first"): (1, "items", 1),
    (22, "copy"): (1, "items", 2),
    (23, "twice"): (1, "items", 3),
    (24, "twice"): (1, "items", 4),
    (27, "last"): (1, "items", 5),
    (28, "seen"): (4, "seen", 0),
    (28, "step"): (1, "items", 6),
    (29, "start"): (1, "start", 0),
    (30, "pair"): (29, "pair", 0),
    (31, "a"): (29, "pair", 1),
    (31, "b"): (29, "pair", 1),
    (36, "file"): (35, "file", 0),
    (37, "data"): (35, "file", 1),
    (39, "last"): (1, "items", 5),
    (39, "b"): (29, "pair", 1),
    (39, "size"): (35, "file", 2),
}


OPEN = {(7, "total"), (13, "name"), (25, "limit"), (26, "limit"), (29, "limit"), (38, "ratio")}


def test_sources_by_hand():
    """Not in the list: what branches, loops or a caught error leave open, and what a comprehension hides."""
    found = {(each.line, each.name): (each.source_line, each.source_name, each.depth) for each in sources(CODE)}
    assert found == FOUND
    assert Source(9, "a", 2, "b", 3).distance == 7


def traced(code, *arguments):
    """(line, name) → the binding at the beginning of its chain, each time the line runs: by watching a run.

    Which names a line binds and reads is read off its text; every line is one statement.
    """
    lines = ["", *code.split("\n")]
    space = {}
    exec(compile(code, "traced", "exec"), space)
    local = space["f"].__code__.co_varnames
    last, found, running = {}, {}, []

    def names(text):
        words = re.findall(r"(?<![\w.])[a-z]\w*(?![\w(])", re.sub(r"\"[^\"]*\"", "", text))
        return [word for word in words if word in local]

    def finish(line):
        text = lines[line]
        plain = re.fullmatch(r" *(\w+(?:, \w+)*) (\+|-)?= (.*)", text)
        if plain:
            read = set(names(plain[3])) | ({plain[1]} if plain[2] else set())
            for name in plain[1].split(", "):
                origin = (line, name, 0)
                if len(read) == 1:
                    start = before[next(iter(read))]
                    origin = (*start[:2], start[2] + 1)
                last[name] = origin
        elif other := re.fullmatch(r" *(?:for (\w+) in|with .* as (\w+)|except .* as (\w+)).*", text):
            name = other[1] or other[2] or other[3]
            last[name] = (line, name, 0)

    before = {}

    def watch(frame, event, _):
        if frame.f_code.co_name != "f":
            return None
        if event == "call":
            for name in space["f"].__code__.co_varnames[: space["f"].__code__.co_argcount]:
                last[name] = (1 if name in lines[1] else 2, name, 0)
        elif event == "exception":
            running.clear()
        elif event in ("line", "return"):
            if running:
                finish(running.pop())
            before.clear()
            before.update(last)
            if event == "line":
                running.append(frame.f_lineno)
                right = lines[frame.f_lineno]
                if assigned := re.fullmatch(r" *[\w, ]+ = (.*)", right):
                    right = assigned[1]
                for name in names(right):
                    if name in before:
                        found.setdefault((frame.f_lineno, name), set()).add(before[name])
        return watch

    old = sys.gettrace()
    sys.settrace(watch)
    try:
        space["f"](*arguments)
    finally:
        sys.settrace(old)
    return found


def test_sources_by_watching_runs():
    """Whatever branches a run takes, it agrees, and what runs show to be open is not in the list."""
    runs = [traced(CODE, *arguments) for arguments in [([4, 8], 1), ([0, 9, 1], 5, 0), ([1], 0, 2)]]
    checked = set()
    for run in runs:
        for place, origins in run.items():
            if place in FOUND:
                assert origins == {FOUND[place]}, place
                checked.add(place)
    assert len(checked) >= len(FOUND) - 5, set(FOUND) - checked
    together = {place: set().union(*(run.get(place, set()) for run in runs)) for place in runs[0]}
    several = {place for place, origins in together.items() if len(origins) > 1}
    assert several == OPEN
    assert not several & set(FOUND)


@pytest.mark.parametrize(
    "code",
    [
        "def f(x):\n    global y\n    return x",
        "def f(x):\n    def g():\n        nonlocal x\n        x = 2\n    g()\n    return x",
        "def f(x):\n    if (y := x):\n        pass\n    return y",
        "def f(x):\n    if g():\n        x = 1\n    return x",
        "def f(x):\n    for i in range(3):\n        x\n        x = i",
        "def f(x):\n    try:\n        x = g()\n    finally:\n        x",
        "def f(x):\n    try:\n        x = g()\n    except E:\n        return x",
        "def f(y, z):\n    x = y; x = z\n    return x",
        "def f(x):\n    with c():\n        x = 1\n    return x",
        "def f(x):\n    return [x for _ in range(3)], x",
        "def f(x):\n    return (lambda x: x)(1) + x",
        "def f(x):\n    return f'{x}' + x",
    ],
)
def test_what_is_left_open_is_not_asked(code):
    assert "x" not in {source.name for source in sources(code)}


def test_sources_need_a_function():
    for code in ("x = 1", "def f(:", "  def f():\n    pass", "def f(): pass\nx = 1"):
        with pytest.raises(ValueError, match="code: expected one function"):
            sources(code)


@pytest.mark.parametrize("answer", ["line", "variable"])
def test_questions_about_files(tmp_path, answer):
    method = "class A:\n    x = 1\n\n    def g(self, y):\n        z = y\n        return z\n"
    (tmp_path / "one.py").write_text(method + "\n\n" + CODE)
    (tmp_path / "two.py").write_text("\n\n" + CODE)
    (tmp_path / "broken.py").write_text("def f(:")
    config = CodeDependencies(paths=(str(tmp_path),), answer=answer)
    questions = config.questions(7)
    assert digest(questions) == {"line": "c30930a5c9d8e0d9", "variable": "7332413b1226dc36"}[answer]
    assert digest(config.questions(7, seed=1)) != digest(questions)
    assert sorted(question.about["depth"] for question in questions) == [0, 0, 0, 1, 1, 2, 2]
    assert {question.about["file"] for question in questions} <= {"one.py", "two.py"}
    for question in questions:
        *listing, asked = question.prompt.split("\n")
        code = "\n".join(line[6:] for line in listing)
        assert [int(line[:4]) for line in listing] == list(range(1, len(listing) + 1))
        line, name = re.match(r"# Line (\d+) reads (\w+)\.", asked).groups()
        source = next(each for each in sources(code) if (each.line, each.name) == (int(line), name))
        assert question.answers == (str(source.source_line) if answer == "line" else source.source_name,)
        assert (question.about["depth"], question.about["distance"]) == (source.depth, source.distance)
    with pytest.raises(ValueError, match=r"paths: expected 12 questions in 3 files, too few by depth: \{0: 1, "):
        config.questions(12)


def test_the_standard_library():
    questions = CodeDependencies(depths=(0, 1), max_lines=15).questions(10)
    assert {question.about["depth"] for question in questions} == {0, 1}
    assert max(question.about["lines"] for question in questions) <= 15
