"""S-NIAH-trained: small models that are trained to find a needle, in haystacks as long as those and longer.

    python -m nested_jax sweep experiments/synthetic/needles.py --seeds=0,1,2
    python -m nested_jax table experiments/synthetic/needles.py
    python -m nested_jax train --config=experiments/synthetic/needles.py:lmm/single_1

Variants are `ROW/TASK@SIZE`: `gated-deltanet/multi_key_2`, `lmm/single_1@tiny` (for tests). A text of 512 bytes hides a
number under a key and asks for it at its end (RULER's templates, of which one needle and one line of noise take 450
bytes); answers alone are trained. *S-NIAH-1* hides one needle in one line of noise again and again, *MK-2* among
needles with other keys. The score is the share of answers that are right to the last byte, in texts of 512, 1,024 and
2,048 bytes that training has not seen.

All rows at "small" have two blocks of width 64 and 190,000 parameters. The sliding window (64 bytes in each of two
blocks) sees the needle only where it stands near the end. Titans table 2 asks larger models that were trained on 15
billion tokens of text and never on needles (`experiments/titans/table2.py`): with it, only the decay with the length
compares, and only in words.

Rates, batches and 1,000 steps are guesses of ours; whether they are enough is open until the table is run.
"""

from nested_jax.data.niah import Needles, multi_key_2, single_1
from nested_jax.data.question_task import QuestionTask
from nested_jax.train.comparison import Published
from nested_jax.train.experiment import Experiment
from nested_jax.train.protocols import QUESTIONS_SWEEP, RECALL_ROWS, on_questions

PARTS = {"single_1": "S-NIAH-1", "multi_key_2": "MK-2"}
MAKERS = {"single_1": single_1, "multi_key_2": multi_key_2}
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
    def needles(length: int) -> Needles:
        return MAKERS[part](length=length, answer_budget=9)  # a space, seven digits, a line break

    tested = tuple((str(length), needles(length)) for length in TESTED)
    if size == "tiny":
        few = {"train_examples": 64, "validation_examples": 8, "test_examples": 8}
        return QuestionTask(trained=(needles(TRAINED),), tested=tested, **few)
    return QuestionTask(trained=(needles(TRAINED),), tested=tested, train_examples=20_000, test_examples=200)


def get_config(arg: str = "") -> Experiment:
    """The experiment of a row on a task at a size; see the file's docstring."""
    return on_questions(ROWS, arg, PARTS, task, batch_size=8)
