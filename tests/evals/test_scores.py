"""Scores on cases worked by hand, and against counting in a loop."""

import numpy as np
import pytest

from nested_jax.data.examples import examples
from nested_jax.evals import scores as module
from nested_jax.evals.scores import accuracy, example_accuracy, macro_accuracy, scores, sequence_accuracy

INPUTS = np.zeros((3, 4))
TARGETS = [[0, 1, 1, 7], [2, 2, 1, 0], [1, 1, 1, 1]]
SCORED = [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]
ASKED = examples(INPUTS, TARGETS, SCORED)
PREDICTED = np.array([[0, 1, 2, 9], [2, 2, 5, 5], [4, 1, 1, 1]])


def test_by_hand():
    """Scored: 0→0, 1→1, 1→2; 2→2, 2→2; 1→4: right are 2 of 3, 2 of 2 and 0 of 1."""
    found = scores(PREDICTED, ASKED)
    assert list(found) == ["sequence", "token", "example", "macro"]
    assert found["sequence"] == pytest.approx(1 / 3)
    assert found["token"] == pytest.approx(4 / 6)
    assert found["example"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert found["macro"] == pytest.approx((1 + 1 / 3 + 1 + 0) / 4)  # classes 0, 1, 2, and 4, which is no target


def test_places_that_are_not_scored_do_not_count():
    changed = np.where(ASKED.scored, PREDICTED, -3)
    assert scores(changed, ASKED) == scores(PREDICTED, ASKED)
    moved = ASKED._replace(targets=np.where(ASKED.scored, ASKED.targets, 8))
    assert scores(PREDICTED, moved) == scores(PREDICTED, ASKED)


def test_what_is_trained_does_not_count():
    everywhere = ASKED._replace(trained=np.ones_like(ASKED.trained))
    assert scores(PREDICTED, everywhere) == scores(PREDICTED, ASKED)


def test_all_right_and_all_wrong():
    assert set(scores(ASKED.targets, ASKED).values()) == {1.0}
    assert set(scores(ASKED.targets + 1, ASKED).values()) == {0.0}


def test_macro_equals_the_documented_cases_of_the_library_it_follows():
    """Cases printed in torchmetrics' documentation of multiclass accuracy, and of its treatment of absent classes."""
    one = examples(np.zeros((1, 4)), [[2, 1, 0, 0]], np.ones((1, 4)))
    assert macro_accuracy(np.array([[2, 1, 0, 1]]), one) == pytest.approx(0.8333, abs=1e-4)
    three = examples(np.zeros((1, 3)), [[0, 0, 2]], np.ones((1, 3)))
    assert macro_accuracy(np.array([[0, 0, 0]]), three) == 0.5


def test_against_loops():
    rng = np.random.default_rng(0)
    targets, predicted = rng.integers(0, 6, (2, 40, 9))
    scored = rng.random((40, 9)) < 0.4
    scored[:, 3] = True
    asked = examples(targets, targets, scored)
    per_class: dict[int, list[bool]] = {}
    per_row = []
    for row in range(40):
        hits = []
        for place in range(9):
            if scored[row, place]:
                hit = bool(targets[row, place] == predicted[row, place])
                hits.append(hit)
                per_class.setdefault(int(targets[row, place]), []).append(hit)
        per_row.append(hits)
    assert accuracy(predicted, asked) == pytest.approx(np.mean([hit for hits in per_row for hit in hits]))
    assert sequence_accuracy(predicted, asked) == pytest.approx(np.mean([all(hits) for hits in per_row]))
    assert example_accuracy(predicted, asked) == pytest.approx(np.mean([np.mean(hits) for hits in per_row]))
    assert macro_accuracy(predicted, asked) == pytest.approx(np.mean([np.mean(hits) for hits in per_class.values()]))


@pytest.mark.parametrize("score", ["sequence_accuracy", "accuracy", "example_accuracy", "macro_accuracy", "scores"])
@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        (PREDICTED[:2], r"expected integers \[N, T\] = \[3, 4\] with N >= 1, got int64 \[2, 4\]"),
        (PREDICTED[:, :3], r"got int64 \[3, 3\]"),
        (PREDICTED[..., None], r"got int64 \[3, 4, 1\]"),
        (PREDICTED.astype(np.float32), r"got float32 \[3, 4\]"),
    ],
)
def test_bad_predictions(score, predictions, message):
    with pytest.raises(ValueError, match=message):
        getattr(module, score)(predictions, ASKED)


def test_nothing_to_score():
    with pytest.raises(ValueError, match="with N >= 1"):
        accuracy(np.zeros((0, 4), int), ASKED.take(slice(0, 0)))
    with pytest.raises(ValueError, match="expected 0 or more where scored, got -1"):
        macro_accuracy(np.full((3, 4), -1), ASKED)
