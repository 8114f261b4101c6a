"""Dependency tracing: where a variable has its value from, in generated programs and then in real code.

    python -m nested_jax sweep experiments/synthetic/dependencies.py --parts=values,names
    python -m nested_jax table experiments/synthetic/dependencies.py
    python -m nested_jax train --config=experiments/synthetic/dependencies.py:lmm/values

Variants are `ROW/PART@SIZE`: `gated-deltanet/names`, `lmm/code@tiny` (for tests). *values*: straight-line programs, and
what a variable holds at their end (0 to 9: guessing gives 10 %). *names*: copies, and which variable the value came
from. Both are trained on chains of zero to three assignments among eight other lines and tested on each depth and on
four. *code*: functions of at most 16 lines in the standard library's sources, and the variable where a chain begins
(`data.code_dependencies`), at depths zero and one; deeper ones are too few there. A fifth of the files, by the hash of
their paths, is kept for validation and tests. The answer "self" alone is right in about half of the questions of depth
zero and in a third of those of depth one. Questions about code take about a minute to find.

The curriculum goes from programs to code, each stage from the parameters of the one before:

    python -m nested_jax train --config=experiments/synthetic/dependencies.py:lmm/values --workdir=runs/values
    python -m nested_jax train --config=experiments/synthetic/dependencies.py:lmm/names --workdir=runs/names \
        --config.parameters_from=runs/values
    python -m nested_jax train --config=experiments/synthetic/dependencies.py:lmm/code --workdir=runs/code \
        --config.parameters_from=runs/names

Of the table the part *code* is without the curriculum. Everything in it is our choice; there is no public definition.
All rows at "small" have two blocks of width 64 and 190,000 parameters.

Rates, batches and 1,000 steps are guesses of ours; whether they are enough is open until the table is run.
"""

from nested_jax.data.code_dependencies import CodeDependencies
from nested_jax.data.dependencies import Programs
from nested_jax.data.documents import find, fraction
from nested_jax.data.question_task import QuestionTask
from nested_jax.train.comparison import Published, Row
from nested_jax.train.experiment import Experiment
from nested_jax.train.protocols import QUESTIONS_SWEEP, on_questions

PARTS = {"values": "value", "names": "name", "code": "code"}
TRAINED, TESTED = (0, 1, 2, 3), {"values": (0, 1, 2, 3, 4), "names": (0, 1, 2, 3, 4), "code": (0, 1)}

RESULT = Published(
    source="no published numbers at this scale (exact match in %)",
    columns={f"{part}/{depth}": f"{PARTS[part]}, depth {depth}" for part in PARTS for depth in TESTED[part]},
    values={},
    measured={f"{part}/{depth}": f"{part}:depth{depth}/sequence" for part in PARTS for depth in TESTED[part]},
    unit=100,
)
SWEEP = QUESTIONS_SWEEP
ROWS = {
    "lmm": Row("Titans LMM", "titans-lmm"),
    "hope": Row("Hope", "hope"),
    "deltanet": Row("DeltaNet", "deltanet"),
    "gated-deltanet": Row("Gated DeltaNet", "gated-deltanet"),
    "transformer++": Row("Transformer++", "transformer++"),
}


def programs(part: str, size: str) -> QuestionTask:
    def of(depth: int) -> Programs:
        return Programs(depth=depth, distractors=8, answer="root" if part == "names" else "value")

    trained = tuple(map(of, TRAINED))
    tested = tuple((f"depth{depth}", of(depth)) for depth in TESTED[part])
    if size == "tiny":
        few = {"train_examples": 64, "validation_examples": 8, "test_examples": 8}
        return QuestionTask(trained=trained, tested=tested, **few)
    return QuestionTask(trained=trained, tested=tested, train_examples=40_000)


def code(size: str) -> QuestionTask:
    """Real code, of other files in training, validation and tests."""
    library = find(None, field="text", format="auto", sample=False)

    def of(low: float, high: float, *depths: int) -> CodeDependencies:
        files = [name for name in library.files if low <= fraction(name) < high]
        chosen = tuple(str(library.file(name)) for name in files)
        return CodeDependencies(paths=chosen, answer="variable", depths=depths, max_lines=16)

    tested = tuple((f"depth{depth}", of(0, 0.1, depth)) for depth in TESTED["code"])
    first = 0.9 if size == "tiny" else 0.2
    train, held_out = (64, 8) if size == "tiny" else (2000, 100)
    return QuestionTask(
        trained=(of(first, 1, 0, 1),),
        tested=tested,
        validated=(of(0.1, 0.2, 0, 1),),
        train_examples=train,
        validation_examples=held_out,
        test_examples=held_out,
    )


def questions(part: str, size: str) -> QuestionTask:
    return code(size) if part == "code" else programs(part, size)


def get_config(arg: str = "") -> Experiment:
    """The experiment of a row on a part at a size; see the file's docstring."""
    return on_questions(ROWS, arg, PARTS, questions, batch_size=16)
