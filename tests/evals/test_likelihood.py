"""Log-likelihoods are those of the logits, whatever the batch, the padding and the pieces a row is read in."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from nested_jax import Memory, networks
from nested_jax.data.tokenizers import Bytes
from nested_jax.evals.likelihood import (
    Likelihood,
    Row,
    count_bytes,
    count_words,
    encode_pair,
    perplexity,
    rolling_rows,
)
from nested_jax.models import AttentionConfig, LanguageModel, MemoryConfig, ModelConfig

TEXT = "to be, or not to be, that is the question: whether 'tis nobler in the mind to suffer "
SHAPES = []


class Bigram(nn.Module):
    """Logits that depend on the last token alone: a table in the parameters."""

    config: ModelConfig

    def start(self, rows):
        return (jnp.zeros(rows),)

    def __call__(self, tokens, state=None):
        SHAPES.append(tokens.shape)
        return self.scope.variables()["params"]["table"][tokens], state


def table(**following):
    """Log-probabilities [256, 256] of the next byte: `a="b"` gives b one half after a, the other bytes the rest."""
    probabilities = np.full((256, 256), 1 / 256)
    for before, after in following.items():
        row = {"newline": "\n", "space": " "}.get(before, before)
        probabilities[ord(row)] = 0.5 / 255
        probabilities[ord(row), ord(after)] = 0.5
    return {"table": np.log(probabilities).astype(np.float32)}


def bigram(options=None, **following):
    return Likelihood(Bigram(ModelConfig(blocks=("lstm",))), table(**following), Bytes(), **(options or {}))


@pytest.fixture(autouse=True, scope="module")
def compile_quickly():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def built():
    """Kind of block → model and parameters, drawn so that predictions are far from uniform."""
    made = {}

    def build(kind):
        if kind not in made:
            memory = MemoryConfig(memory=Memory(network=networks.Linear(), chunk_size=4), heads=2)
            attention = AttentionConfig(heads=2, max_length=20)
            config = ModelConfig(dim=16, layers=1, blocks=(kind,), memory=memory, attention=attention)
            model = LanguageModel(config)
            shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
            draw = np.random.default_rng(0)
            params = jax.tree.map(lambda x: np.float32(0.4 * draw.standard_normal(x.shape)), shapes)
            apply = jax.jit(lambda tokens: jax.nn.log_softmax(model.apply({"params": params}, tokens)[0][0]))

            def logits(tokens, room=20 if kind == "attention" else 88):
                """Of a row alone, filled up so that one program does."""
                filled = np.zeros((1, room), np.int32)
                filled[0, : len(tokens)] = tokens
                return apply(filled)[: len(tokens)]

            made[kind] = model, params, logits
        return made[kind]

    return build


def direct(logits, tokens, scored):
    """The sum of log-probabilities and greediness, from the logits of one row."""
    logs = np.asarray(logits(tokens[:-1]))[-scored:]
    targets = tokens[-scored:]
    return logs[np.arange(scored), targets].astype(np.float64).sum(), bool((logs.argmax(-1) == targets).all())


def close(found, expected):
    np.testing.assert_allclose([x for x, _ in found], [x for x, _ in expected], rtol=1e-5, atol=1e-5)
    assert [g for _, g in found] == [g for _, g in expected]


def test_hand_worked_continuations():
    likelihood = bigram(a="b", b="c", newline="a")
    half, rest, uniform = math.log(0.5), math.log(0.5 / 255), math.log(1 / 256)
    found = likelihood.loglikelihood([("a", "bc"), ("a", "bd"), ("xa", "b"), ("", "ab"), ("", "ba"), ("b", "c!")])
    expected = [(2 * half, True), (half + rest, False), (half, True), (2 * half, True), (rest + rest, False),
                (half + uniform, False)]  # fmt: skip
    close(found, expected)
    assert likelihood.loglikelihood([]) == []


def test_a_tie_goes_to_the_first_token():
    pairs = [("x", "\0"), ("x", "y")]
    close(bigram().loglikelihood(pairs), [(-math.log(256), True), (-math.log(256), False)])


def test_only_the_continuation_has_to_be_greedy():
    (found,) = bigram(a="b").loglikelihood([("zzza", "b")])
    assert found[1] is True


def test_prefix_is_given_or_the_end_or_a_newline():
    class Ending(Bytes):
        end = ord("$")

    model, params = Bigram(ModelConfig(blocks=("lstm",))), table(**{"$": "a", "%": "b"})
    for options, text in (({}, "a"), ({"prefix": ord("%")}, "b")):
        likelihood = Likelihood(model, params, Ending(), **options)
        close(likelihood.loglikelihood([("", text)]), [(math.log(0.5), True)])
        assert likelihood.rolling([text]) == pytest.approx([math.log(0.5)])


def test_spaces_at_the_end_of_a_context_are_scored():
    likelihood = bigram(a=" ", space="b")
    spaced, plain = likelihood.loglikelihood([("a ", "b"), ("a", " b")])
    assert spaced == plain
    assert plain == (pytest.approx(2 * math.log(0.5)), True)


class Merging(Bytes):
    """ "ab" is one token, 1."""

    name = "merging"

    def encode(self, text):
        return np.array([ord(c) for c in text.replace("ab", "\1")], np.int32)


@pytest.mark.parametrize(
    ("context", "continuation", "expected"),
    [
        ("x", "ab", ([ord("x")], [1])),
        ("xa", "b", ([ord("x"), ord("a")], [ord("b")])),
        ("xa", "bab", ([ord("x"), ord("a")], [ord("b"), 1])),
        ("", "ab", ([], [1])),
        ("x \n", "b", ([ord("x")], [ord(" "), ord("\n"), ord("b")])),
    ],
)
def test_pairs_are_cut_after_the_contexts_own_tokens(context, continuation, expected):
    assert tuple(part.tolist() for part in encode_pair(Merging(), context, continuation)) == expected


@pytest.mark.parametrize("kind", ["memory", "lstm"])
def test_pairs_of_any_lengths_together_are_each_alone(kind, built):
    model, params, logits = built(kind)
    likelihood = Likelihood(model, params, Bytes(), tokens_per_batch=64)
    cuts = [(0, 1), (3, 20), (10, 12), (1, 24)]
    found = likelihood.loglikelihood([(TEXT[:a], TEXT[a:b]) for a, b in cuts])
    expected = []
    for start, end in cuts:
        before, after = encode_pair(Bytes(), TEXT[:start], TEXT[start:end])
        tokens = np.concatenate([before if len(before) else [10], after])
        expected.append(direct(logits, tokens, len(after)))
    close(found, expected)


def test_greedy_text_of_a_model_is_greedy(built):
    model, params, logits = built("memory")
    tokens = [ord("t")]
    for _ in range(6):
        tokens.append(int(logits(tokens)[-1].argmax()))
    other = [*tokens[:-1], (tokens[-1] + 1) % 256]
    likelihood = Likelihood(model, params, Bytes())
    found = likelihood.score([Row(np.array(row), 6) for row in (tokens, other)])
    assert [greedy for _, greedy in found] == [True, False]


@pytest.mark.parametrize("kind", ["memory", "lstm"])
def test_long_rows_are_read_in_pieces_with_the_carried_state(kind, built):
    model, params, logits = built(kind)
    likelihood = Likelihood(model, params, Bytes(), chunk=10, tokens_per_batch=20)
    assert likelihood.chunk == (8 if kind == "memory" else 10)
    texts = [TEXT, "", TEXT[:8], TEXT[5:40], "t"]
    expected = [direct(logits, np.array([10, *text.encode()]), len(text))[0] if text else 0.0 for text in texts]
    np.testing.assert_allclose(likelihood.rolling(texts), expected, rtol=1e-5)
    far = [(TEXT[:50], TEXT[50:]), (TEXT[:50], TEXT[50:51])]
    close(likelihood.loglikelihood(far), [direct(logits, np.array([*TEXT.encode()]), len(TEXT) - 50),
                                          direct(logits, np.array([*TEXT[:51].encode()]), 1)])  # fmt: skip


def test_greedy_is_of_all_pieces():
    likelihood = bigram({"chunk": 4}, a="b", b="a")
    assert [greedy for _, greedy in likelihood.loglikelihood([("a", "ba" * 6), ("a", "bb" + "ab" * 5)])] == [
        True,
        False,
    ]
    assert likelihood.rolling(["ab" * 5]) == pytest.approx([-math.log(256) + 9 * math.log(0.5)])


def test_whole_attention_reads_long_documents_in_windows(built):
    model, params, logits = built("attention")
    likelihood = Likelihood(model, params, Bytes(), chunk=8)
    assert likelihood.max_length == 20
    tokens = np.array([10, *TEXT.encode()])
    total = sum(direct(logits, tokens[a : a + 21], 20)[0] for a in (0, 20, 40, 60))
    total += direct(logits, tokens[-21:], len(TEXT) - 80)[0]
    np.testing.assert_allclose(likelihood.rolling([TEXT]), [total], rtol=1e-5)


def test_whole_attention_forgets_the_beginning_of_a_long_context(built):
    model, params, logits = built("attention")
    likelihood = Likelihood(model, params, Bytes())
    expected = [direct(logits, np.array([*TEXT[34:55].encode()]), 5)]
    close(likelihood.loglikelihood([(TEXT[:50], TEXT[50:55])]), expected)
    with pytest.raises(ValueError, match=r"pairs\[1\]: expected a continuation of 1 to 20 tokens, got 21"):
        likelihood.loglikelihood([("a", "b"), ("a", "b" * 21)])


def test_a_given_length_makes_windows_of_any_model(built):
    model, params, logits = built("lstm")
    likelihood = Likelihood(model, params, Bytes(), max_length=10)
    tokens = np.array([10, *TEXT[:14].encode()])
    expected = direct(logits, tokens[:11], 10)[0] + direct(logits, tokens[4:], 4)[0]
    np.testing.assert_allclose(likelihood.rolling([TEXT[:14]]), [expected], rtol=1e-5)


@pytest.mark.parametrize("length", [0, 1, 4, 5, 8, 11])
@pytest.mark.parametrize("limit", [1, 4, None])
def test_windows_score_each_token_once(length, limit):
    tokens = np.arange(length) + 5
    rows = rolling_rows(tokens, 99, limit)
    scored = [row.tokens[-row.scored :].tolist() for row in rows]
    assert [token for targets in scored for token in targets] == tokens.tolist()
    whole = [99, *tokens.tolist()]
    for row, targets in zip(rows, scored, strict=True):
        read = row.tokens.tolist()[:-1]
        assert len(read) <= (limit or length)
        end = whole.index(targets[-1])
        assert read == whole[end - len(read) : end]
        assert len(read) == min(limit or length, end)


def test_few_shapes_for_many_lengths():
    SHAPES.clear()
    likelihood = bigram({"tokens_per_batch": 96, "chunk": 48}, a="b")
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 110, 150)
    found = likelihood.loglikelihood([("a" * int(n), "b") for n in lengths])
    close(found, [(math.log(0.5), True)] * 150)
    widths = {24, 32, 48}
    assert {width for _, width in set(SHAPES)} == widths
    assert all(rows * width <= 96 for rows, width in SHAPES)
    assert len(SHAPES) <= 2 * len(widths)
    before = len(SHAPES)
    likelihood.loglikelihood([("a" * int(n), "b") for n in lengths])
    assert len(SHAPES) == before


def test_perplexities():
    assert perplexity([-3 * math.log(4), -math.log(4)], ["a b c", "é"], count_words) == pytest.approx(4)
    assert perplexity([-3 * math.log(4), -math.log(4)], ["ab", "é"], count_bytes) == pytest.approx(4)
    assert count_words(" \n a  b\n") == 4
    with pytest.raises(ValueError, match="expected one per log-likelihood, 1, got 2"):
        perplexity([-1.0], ["a", "b"], count_words)
    with pytest.raises(ValueError, match="expected something to count, got 1 texts with 0"):
        perplexity([0.0], [""], count_bytes)


class Wide(Bytes):
    vocab_size = 300


class NoNewline(Bytes):
    def encode(self, text):
        return np.array([1, 2], np.int32)


@pytest.mark.parametrize(
    ("tokenizer", "options", "message"),
    [
        (Wide(), {}, "at most the model's vocab_size=256, got bytes with 300"),
        (NoNewline(), {}, "bytes has no end token and writes a newline in 2 tokens; got None"),
        (Bytes(), {"prefix": 256}, r"prefix: expected a token in \[0, 256\), got 256"),
        (Bytes(), {"max_length": 21}, "max_length: expected from 1 to 20, got 21"),
        (Bytes(), {"max_length": 0}, "max_length: expected from 1 to 20, got 0"),
        (Bytes(), {"chunk": 0}, "chunk: expected a number of tokens, at least 1, got 0"),
        (Bytes(), {"tokens_per_batch": 0}, "tokens_per_batch: expected a number of tokens, at least 1, got 0"),
    ],
)
def test_bad_arguments(tokenizer, options, message, built):
    model, params, _ = built("attention")
    with pytest.raises(ValueError, match=message):
        Likelihood(model, params, tokenizer, **options)


def test_a_continuation_has_tokens():
    with pytest.raises(ValueError, match=r"pairs\[0\]: expected a continuation of 1 to any number of tokens, got 0"):
        bigram().loglikelihood([("a", "")])
