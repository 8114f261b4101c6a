"""Baselines for bits per byte: smoothed count models of orders 0 to 2 and the xz compressor."""

import lzma

import numpy as np

NAMES = ("unigram", "bigram", "trigram")
BLOCK = 1 << 24  # bytes of a text that are looked at at once


def byte_probabilities(train: np.ndarray, text: np.ndarray, order: int) -> np.ndarray:
    """Probability of each byte of a text given the bytes before it, by counts over a training text.

    Interpolated Witten-Bell smoothing, which has no parameter to tune. With c(h, x) the count of byte x after context
    h in `train`, c(h) its sum and d(h) the number of different bytes seen after h,

    .. math::
      p_k(x | h) = \\frac{c(h, x) + d(h)\\, p_{k-1}(x | h')}{c(h) + d(h)},

    where h is the last k bytes, h' the last k - 1, and p_{-1} = 1/256. A context never seen leaves the lower order
    as it is. The first bytes of the text, which have fewer than `order` before them, use the order they have.

    Args:
      train: uint8 [N], N >= 1.
      text: uint8 [M].
      order: Bytes of context: 0, 1 or 2.

    Returns:
      float64 [M], in (0, 1).

    Raises:
      ValueError: If an argument has another type, shape or range.

    References:
      Witten and Bell, "The zero-frequency problem", IEEE Transactions on Information Theory 37(4), 1991, method C;
      interpolated form as in Chen and Goodman, "An empirical study of smoothing techniques", 1998, section 2.5.
    """
    _check(train, text, order)
    return _probabilities(_tables(train, order), text)


def count_model_bits_per_byte(train: np.ndarray, validation: np.ndarray, order: int) -> float:
    """Mean of -log2 p over a validation text under the count model of `byte_probabilities`.

    Args:
      train: uint8 [N], the text that is counted.
      validation: uint8 [M], the text that is scored.
      order: 0 (unigram), 1 (bigram) or 2 (trigram).

    Returns:
      Bits per byte.

    Example:
      >>> text = np.frombuffer(b"abababab", np.uint8)
      >>> count_model_bits_per_byte(text, text, 1) < count_model_bits_per_byte(text, text, 0)
      True
    """
    _check(train, validation, order)
    tables, bits = _tables(train, order), 0.0
    for start in range(0, len(validation), BLOCK):
        before = min(start, order)
        found = _probabilities(tables, validation[start - before : start + BLOCK])
        bits -= float(np.log2(found[before:]).sum())
    return bits / len(validation)


def xz_bits_per_byte(validation: np.ndarray) -> float:
    """Bits per byte of xz at its strongest preset on the validation text alone, container included.

    It sees no training text, but it may look back over everything it has already coded, a context of megabytes. About
    one second per megabyte.
    """
    return 8 * len(lzma.compress(validation.tobytes(), preset=9 | lzma.PRESET_EXTREME)) / len(validation)


def baseline_table(train: np.ndarray, validation: np.ndarray) -> dict[str, float]:
    """Bits per byte of every baseline on the same validation bytes.

    Args:
      train: uint8 [N].
      validation: uint8 [M].

    Returns:
      `unigram`, `bigram`, `trigram` and `xz`, in this order.
    """
    table = {name: count_model_bits_per_byte(train, validation, order) for order, name in enumerate(NAMES)}
    return {**table, "xz": xz_bits_per_byte(validation)}


def _check(train: np.ndarray, text: np.ndarray, order: int) -> None:
    for name, array in (("train", train), ("text", text)):
        if array.ndim != 1 or array.dtype != np.uint8 or len(array) == 0:
            raise ValueError(f"{name}: expected non-empty uint8 [N], got {array.dtype} {list(array.shape)}")
    if order not in (0, 1, 2):
        raise ValueError(f"order: expected 0, 1 or 2, got {order}")


def _tables(train: np.ndarray, order: int) -> list[np.ndarray]:
    """How often each byte followed each context of 0 to `order` bytes, int64 [256 ** k, 256]."""
    tables = [np.zeros(256 ** (k + 1), np.int64) for k in range(order + 1)]
    for k, table in enumerate(tables):
        for start in range(0, len(train), BLOCK):
            grams = _grams(train[max(start - k, 0) : start + BLOCK], k)
            table += np.bincount(grams, minlength=len(table))
    return [table.reshape(-1, 256) for table in tables]


def _probabilities(tables: list[np.ndarray], text: np.ndarray) -> np.ndarray:
    """See `byte_probabilities`; float64 [M]."""
    probability = np.full(len(text), 1 / 256)
    for k, counts in enumerate(tables[: len(text)]):
        total, different = counts.sum(1), np.count_nonzero(counts, axis=1)
        grams = _grams(text, k)
        context = grams >> 8
        count, weight = counts[context, grams & 255], different[context]
        denominator = np.maximum(total[context] + weight, 1)
        lower = probability[k:]
        probability[k:] = np.where(weight > 0, (count + weight * lower) / denominator, lower)
    return probability


def _grams(text: np.ndarray, order: int) -> np.ndarray:
    """Each byte with the `order` bytes before it as one number, the byte itself lowest; [len(text) - order]."""
    grams = np.zeros(max(len(text) - order, 0), np.int64)
    for place in range(order + 1):
        grams = grams << 8 | text[place : place + len(grams)]
    return grams
