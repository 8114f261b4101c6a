"""Hash-Hop: shuffled lines `name = next`, and where a name leads after one to four of them.

    python -m nested_jax sweep experiments/synthetic/hash_hop.py --seeds=0,1,2
    python -m nested_jax table experiments/synthetic/hash_hop.py
    python -m nested_jax train --config=experiments/synthetic/hash_hop.py:lmm/direct

Variants are `ROW/PART@SIZE`: `transformer++/chain`, `lmm/direct@tiny` (for tests). *direct* asks for the last name,
*chain* for every name on the way (the benchmark's chain of thought). Trained are chains of one, two and three lines in
texts of about 240 characters (22, 11 and 8 chains), tested all of these and four. The score is the share of answers
that are right to the last byte.

Differs from Magic's benchmark: names of 4 letters instead of 16, texts of 240 characters instead of up to millions, one
question per text; there are no published numbers at such a size. All rows at "small" have two blocks of width 64 and
190,000 parameters.

Rates, batches and 1,000 steps are guesses of ours; whether they are enough is open until the table is run.
"""

from nested_jax.data.hash_hop import HashHop
from nested_jax.data.question_task import QuestionTask
from nested_jax.train.comparison import Published
from nested_jax.train.experiment import Experiment
from nested_jax.train.protocols import QUESTIONS_SWEEP, RECALL_ROWS, on_questions

PARTS = {"direct": "last name", "chain": "all names"}
TRAINED, TESTED = (1, 2, 3), (1, 2, 3, 4)

RESULT = Published(
    source="no published numbers at this scale (exact match in %)",
    columns={f"{part}/{hops}": f"{title}, hops {hops}" for part, title in PARTS.items() for hops in TESTED},
    values={},
    measured={f"{part}/{hops}": f"{part}:hops{hops}/sequence" for part in PARTS for hops in TESTED},
    unit=100,
)
SWEEP = QUESTIONS_SWEEP
ROWS = RECALL_ROWS


def task(part: str, size: str) -> QuestionTask:
    def chains(hops: int) -> HashHop:
        characters = 60 if size == "tiny" else 240
        return HashHop(characters=characters, hops=hops, queries=1, hash_length=4, chain_of_thought=part == "chain")

    trained = tuple(map(chains, TRAINED))
    tested = tuple((f"hops{hops}", chains(hops)) for hops in TESTED)
    if size == "tiny":
        few = {"train_examples": 64, "validation_examples": 8, "test_examples": 8}
        return QuestionTask(trained=trained, tested=tested, **few)
    return QuestionTask(trained=trained, tested=tested, train_examples=30_000, test_examples=200)


def get_config(arg: str = "") -> Experiment:
    """The experiment of a row on a part at a size; see the file's docstring."""
    return on_questions(ROWS, arg, PARTS, task, batch_size=16)
