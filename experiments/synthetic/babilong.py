"""BABILong-gen: facts in the world of bAbI, scattered over a text, and one question about them.

    python -m nested_jax sweep experiments/synthetic/babilong.py --parts=qa1,qa2
    python -m nested_jax table experiments/synthetic/babilong.py
    python -m nested_jax train --config=experiments/synthetic/babilong.py:lmm/qa1

Variants are `ROW/TASK@SIZE`: `transformer++/qa3`, `lmm/qa1@tiny` (for tests), with the tasks qa1 to qa5. Trained are
texts of 512 bytes, tested new ones of 512, 1,024 and 2,048 bytes, 100 of which are kept for the question. The score is
the share of answers, one word each, that are right to the last byte; one of six places, or of seven people and things,
is right by chance. Longer texts have room for longer stories: in qa2, qa3 and qa5 they have more facts, too.

Differs from BABILong: stories are generated ("babi_gen"; the published files are read by `Babilong(babi_dir=...)`), the
text around them is RULER's five sentences of noise instead of books (`Babilong(background=PATH)`), there are no
instructions, and models are trained for the task alone. The papers print figures only, of models that were fine-tuned;
nothing here compares with them. All rows at "small" have two blocks of width 64 and 190,000 parameters.

Rates, batches and 1,000 steps are guesses of ours; whether they are enough is open until the table is run.
"""

from nested_jax.data.babilong import Babilong
from nested_jax.data.haystacks import NOISE
from nested_jax.data.question_task import QuestionTask
from nested_jax.train.comparison import Published
from nested_jax.train.experiment import Experiment
from nested_jax.train.protocols import QUESTIONS_SWEEP, RECALL_ROWS, on_questions

PARTS = {"qa1": "qa1", "qa2": "qa2", "qa3": "qa3", "qa4": "qa4", "qa5": "qa5"}
TRAINED, TESTED = 512, (512, 1024, 2048)

RESULT = Published(
    source="no published numbers at this scale (exact match in %)",
    columns={f"{part}/{length}": f"{title}, {length}" for part, title in PARTS.items() for length in TESTED},
    values={},
    measured={f"{part}/{length}": f"{part}:{length}/sequence" for part in PARTS for length in TESTED},
    unit=100,
)
SWEEP = QUESTIONS_SWEEP
ROWS = RECALL_ROWS


def task(part: str, size: str) -> QuestionTask:
    def facts(length: int) -> Babilong:
        return Babilong(task=part, length=length, reserve=100, background=f"{NOISE}\n", prompt=("", "", ""))

    tested = tuple((str(length), facts(length)) for length in TESTED)
    if size == "tiny":
        few = {"train_examples": 64, "validation_examples": 8, "test_examples": 8}
        return QuestionTask(trained=(facts(TRAINED),), tested=tested, **few)
    return QuestionTask(trained=(facts(TRAINED),), tested=tested, train_examples=10_000, test_examples=200)


def get_config(arg: str = "") -> Experiment:
    """The experiment of a row on a task at a size; see the file's docstring."""
    return on_questions(ROWS, arg, PARTS, task, batch_size=8)
