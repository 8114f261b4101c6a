"""Scores of predictions on examples: the four ways in which benchmarks count what is right.

All look at the scored places alone, and are between 0 and 1.
"""

from typing import Any

import numpy as np

from nested_jax.data.examples import Examples


def sequence_accuracy(predictions: Any, examples: Examples) -> float:
    """Share of sequences that are right at every scored place, the score of formal languages.

    Args:
      predictions: integers [N, T], N ≥ 1.
      examples: of the same N and T.

    Raises:
      ValueError: for predictions of another shape or type, or without sequences.

    Example:
      >>> from nested_jax.data.examples import examples
      >>> asked = examples(np.zeros((2, 2)), [[1, 1], [1, 2]], np.ones((2, 2)))
      >>> sequence_accuracy(np.array([[1, 1], [2, 2]]), asked)
      0.5

    References:
      IDSIA/fwp-formal-lang.
    """
    return float(np.mean(np.all(_right(predictions, examples) | ~examples.scored, axis=1)))


def accuracy(predictions: Any, examples: Examples) -> float:
    """Share of scored places that are right, over all sequences ("micro").

    Args:
      predictions: integers [N, T], N ≥ 1.
      examples: of the same N and T.

    Raises:
      ValueError: for predictions of another shape or type, or without sequences.

    Example:
      >>> from nested_jax.data.examples import examples
      >>> asked = examples(np.zeros((2, 2)), [[1, 1], [1, 2]], [[1, 1], [1, 0]])
      >>> accuracy(np.array([[1, 1], [2, 2]]), asked) == 2 / 3
      True
    """
    return float(np.mean(_right(predictions, examples)[examples.scored]))


def example_accuracy(predictions: Any, examples: Examples) -> float:
    """Mean over sequences of the share of their scored places that are right, the score of MQAR.

    Args:
      predictions: integers [N, T], N ≥ 1.
      examples: of the same N and T.

    Raises:
      ValueError: for predictions of another shape or type, or without sequences.

    Example:
      >>> from nested_jax.data.examples import examples
      >>> asked = examples(np.zeros((2, 2)), [[1, 1], [1, 2]], [[1, 1], [1, 0]])
      >>> example_accuracy(np.array([[1, 1], [2, 2]]), asked)
      0.5

    References:
      HazyResearch/zoology.
    """
    right = np.sum(_right(predictions, examples) & examples.scored, axis=1)
    return float(np.mean(right / np.sum(examples.scored, axis=1)))


def macro_accuracy(predictions: Any, examples: Examples) -> float:
    """Mean over classes of the share of a class's scored places that are right, the score of MAD.

    This is `MulticlassAccuracy` of torchmetrics 1 with its default average. A class that is neither a target nor
    predicted is left out; one that is predicted but never a target counts as 0. (Version 0.11 took the mean over all
    classes of the vocabulary.) MAD's repository takes the mean of this over batches of 128 sequences, here it is taken
    over all at once.

    Args:
      predictions: integers [N, T], N ≥ 1, 0 or more where scored.
      examples: of the same N and T.

    Raises:
      ValueError: for predictions of another shape or type, below 0 where scored, or without sequences.

    Example:
      >>> from nested_jax.data.examples import examples
      >>> asked = examples(np.zeros((1, 4)), [[0, 0, 0, 1]], np.ones((1, 4)))
      >>> macro_accuracy(np.array([[0, 0, 0, 0]]), asked), accuracy(np.array([[0, 0, 0, 0]]), asked)
      (0.5, 0.75)

    References:
      Lightning-AI/torchmetrics, `functional/classification/accuracy.py`; athms/mad-lab.
    """
    right = _right(predictions, examples)[examples.scored]
    predicted, targets = np.asarray(predictions)[examples.scored], examples.targets[examples.scored]
    if predicted.min() < 0:
        raise ValueError(f"predictions: expected 0 or more where scored, got {predicted.min()}")
    classes = int(max(predicted.max(), targets.max())) + 1
    asked = np.bincount(targets, minlength=classes)
    present = (asked + np.bincount(predicted, minlength=classes)) > 0
    shares = np.bincount(targets[right], minlength=classes) / np.maximum(asked, 1)
    return float(np.mean(shares[present]))


def scores(predictions: Any, examples: Examples) -> dict[str, float]:
    """All four: "sequence", "token" (`accuracy`), "example" and "macro".

    Args:
      predictions: integers [N, T], N ≥ 1.
      examples: of the same N and T.

    Raises:
      ValueError: as the scores do.

    Example:
      >>> from nested_jax.data.examples import examples
      >>> asked = examples(np.zeros((1, 2)), [[1, 2]], np.ones((1, 2)))
      >>> scores(np.array([[1, 1]]), asked)
      {'sequence': 0.0, 'token': 0.5, 'example': 0.5, 'macro': 0.5}
    """
    return {
        "sequence": sequence_accuracy(predictions, examples),
        "token": accuracy(predictions, examples),
        "example": example_accuracy(predictions, examples),
        "macro": macro_accuracy(predictions, examples),
    }


def _right(predictions: Any, examples: Examples) -> np.ndarray:
    predictions = np.asarray(predictions)
    shape = examples.targets.shape
    if predictions.shape != shape or not np.issubdtype(predictions.dtype, np.integer) or not shape[0]:
        raise ValueError(
            f"predictions: expected integers [N, T] = {list(shape)} with N >= 1, got {predictions.dtype} "
            f"{list(predictions.shape)}"
        )
    return predictions == examples.targets
