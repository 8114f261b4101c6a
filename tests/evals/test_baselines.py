"""Count models against a literal loop over dictionaries; probabilities sum to one; xz is the compressor's own size."""

import collections
import lzma
import math

import numpy as np
import pytest

from nested_jax.data import TextConfig, load_text
from nested_jax.evals import baselines

TRAIN = np.frombuffer(b"the cat sat on the mat; the bat ate the fat rat at the end of the day\n" * 3, np.uint8)
TEXT = np.frombuffer(b"that hat, the cat: and \xff then the cat\n", np.uint8)


def literal(train: bytes, text: bytes, order: int) -> list[float]:
    """The recursion of the docstring, one byte at a time."""
    tables = []
    for k in range(order + 1):
        table = collections.defaultdict(collections.Counter)
        for i in range(k, len(train)):
            table[train[i - k : i]][train[i]] += 1
        tables.append(table)

    def probability(history: bytes, byte: int, k: int) -> float:
        lower = probability(history, byte, k - 1) if k > 0 else 1 / 256
        seen = tables[k].get(history[len(history) - k :])
        if seen is None:
            return lower
        return (seen[byte] + len(seen) * lower) / (seen.total() + len(seen))

    return [probability(text[:i], text[i], min(order, i)) for i in range(len(text))]


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("train", [TRAIN, TRAIN[:1], TRAIN[:2], TRAIN[:50]])
@pytest.mark.parametrize("text", [TEXT, TEXT[:1], TEXT[:2]])
def test_probabilities_are_those_of_the_literal_loop(order, train, text):
    expected = literal(train.tobytes(), text.tobytes(), order)
    np.testing.assert_allclose(baselines.byte_probabilities(train, text, order), expected, rtol=1e-13, atol=0)
    bits = -sum(math.log2(p) for p in expected) / len(expected)
    assert baselines.count_model_bits_per_byte(train, text, order) == pytest.approx(bits, rel=1e-12)


@pytest.mark.parametrize(("order", "block"), [(0, 1), (0, 36), (1, 1), (1, 5), (2, 30)])
def test_a_text_is_looked_at_block_by_block(order, block, monkeypatch):
    whole = baselines.count_model_bits_per_byte(TRAIN, TEXT, order)
    monkeypatch.setattr(baselines, "BLOCK", block)
    assert baselines.count_model_bits_per_byte(TRAIN, TEXT, order) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("context", [b"th", b"\xff\xfe", b"\xffe"])
def test_probabilities_sum_to_one(order, context):
    text = np.frombuffer(b"".join(context + bytes([byte]) for byte in range(256)), np.uint8)
    total = baselines.byte_probabilities(TRAIN, text, order)[len(context) :: len(context) + 1].sum()
    assert total == pytest.approx(1, abs=1e-12)


def test_xz_is_the_size_of_the_compressed_bytes():
    size = len(lzma.compress(TRAIN.tobytes(), preset=9 | lzma.PRESET_EXTREME))
    assert baselines.xz_bits_per_byte(TRAIN) == 8 * size / len(TRAIN)


def test_the_table_on_real_text():
    text = load_text(TextConfig(max_bytes=2_000_000))
    table = baselines.baseline_table(text.train, text.validation)
    assert list(table) == ["unigram", "bigram", "trigram", "xz"]
    assert 5 > table["unigram"] > table["bigram"] > table["trigram"] > table["xz"] > 1


@pytest.mark.parametrize(
    ("train", "text", "order", "message"),
    [
        (TRAIN, TEXT, 3, "order: expected 0, 1 or 2, got 3"),
        (TRAIN[:0], TEXT, 1, r"train: expected non-empty uint8 \[N\], got uint8 \[0\]"),
        (TRAIN, TEXT.astype(np.int64), 1, r"text: expected non-empty uint8 \[N\], got int64"),
    ],
)
def test_bad_arguments(train, text, order, message):
    with pytest.raises(ValueError, match=message):
        baselines.byte_probabilities(train, text, order)
