"""Log-likelihoods of continuations and of whole documents under a language model, in batches of few shapes.

    log p(continuation | context) = Σ_t log softmax(logits_t)[token_{t+1}]        over the tokens of the continuation
    greedy                        = every one of them is the argmax of its logits

A row is filled up on its right: the model is causal, so that what stands there changes nothing that is scored. Rows
longer than `chunk` are read piece by piece with the carried state, in memory that does not grow with their length.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from nested_jax.data.tokenizers import Tokenizer
from nested_jax.evals.bits_per_byte import Params, nats


class Row(NamedTuple):
    """Tokens to read, the last of which are scored.

    Attributes:
      tokens: int32 [N], N ≥ 2; the first is only read.
      scored: how many of the last tokens are scored, in [1, N - 1].
    """

    tokens: np.ndarray
    scored: int


def context_limit(config: Any) -> int | None:
    """The most tokens a model reads from a fresh state: the cache of attention without a window; None for any number.

    Args:
      config: a `ModelConfig`.

    Example:
      >>> from nested_jax.models import AttentionConfig, ModelConfig
      >>> context_limit(ModelConfig(blocks=("memory", "attention")))
      4096
      >>> context_limit(ModelConfig(blocks=("memory",))), context_limit(
      ...     ModelConfig(blocks=("attention",), attention=AttentionConfig(window=32))
      ... )
      (None, None)
    """
    whole = "attention" in config.kinds and config.attention.window is None
    return config.attention.max_length if whole else None


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of a context and of what follows it.

    Spaces at the end of the context go to the continuation, as lm-evaluation-harness has it, since subword tokenizers
    put them before words. The text is then encoded as a whole and cut after the context's own tokens. Where these are
    not the beginning of the whole, a token having grown across the cut, both are encoded apart (our choice; the harness
    cuts the whole after as many tokens).

    Args:
      tokenizer: of both.
      context: may be empty.
      continuation: the text to score.

    Returns:
      int32 [N] and int32 [M].

    Example:
      >>> from nested_jax.data.tokenizers import Bytes
      >>> [bytes(part.astype("uint8")) for part in encode_pair(Bytes(), "to be ", "or")]
      [b'to be', b' or']
    """
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation
    before, whole = tokenizer.encode(kept), tokenizer.encode(kept + continuation)
    if len(whole) > len(before) and np.array_equal(whole[: len(before)], before):
        return before, whole[len(before) :]
    return before, tokenizer.encode(continuation)


def rolling_rows(tokens: np.ndarray, prefix: int, max_length: int | None) -> list[Row]:
    """Rows that score each token of a document once.

    Without a limit it is one row. With one, rows are windows side by side, each predicting `max_length` tokens from the
    token before them on, and the last is moved back so that it is full: it predicts what is left with all the context
    it has room for. These are the windows of lm-evaluation-harness with a context of one token.

    Args:
      tokens: int32 [N].
      prefix: stands before the first.
      max_length: tokens read at once, at least 1; None for no limit.

    Returns:
      The rows; an empty document has none.

    Example:
      >>> [(row.tokens.tolist(), row.scored) for row in rolling_rows(np.arange(10), -1, 4)]
      [([-1, 0, 1, 2, 3], 4), ([3, 4, 5, 6, 7], 4), ([5, 6, 7, 8, 9], 2)]
    """
    whole = np.concatenate([[prefix], tokens]).astype(np.int32)
    size = len(tokens) if max_length is None else max_length
    rows = []
    for first in range(0, len(tokens), size or 1):
        last = min(first + size, len(tokens))
        rows.append(Row(whole[max(last - size, 0) : last + 1], last - first))
    return rows


class Likelihood:
    """A model that scores text, compiled for few shapes and any texts.

    Models without a limit to their context, those of memories, slots, recurrence and attention within a window, read
    pairs and documents of any length as they are, with the carried state. Attention without a window holds
    `max_length` tokens: longer pairs lose the beginning of their context, longer documents are read in the windows of
    `rolling_rows`, as lm-evaluation-harness does.

    Args:
      model: a `LanguageModel`.
      params: its parameters.
      tokenizer: of the texts; its vocabulary is not larger than the model's.
      prefix: the token that stands where there is no context; None for the tokenizer's `end`, or a newline where it
        has none, as bytes have none (our choice: a newline comes before most lines, and documents begin with lines).
      max_length: the most tokens read from a fresh state; None for the model's own limit, see `context_limit`.
      tokens_per_batch: tokens run at once, at least one row.
      chunk: longer rows are read in pieces of so many tokens, rounded down to the model's chunk grid (at least one
        chunk).

    Raises:
      ValueError: if an argument is out of range, or there is no prefix.

    Example:
      >>> from nested_jax.data.tokenizers import Bytes
      >>> from nested_jax.models import LanguageModel, ModelConfig
      >>> model = LanguageModel(ModelConfig(dim=8, layers=1, blocks=("lstm",)))
      >>> params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
      >>> likelihood = Likelihood(model, params, Bytes())
      >>> [(number, greedy)] = likelihood.loglikelihood([("to be", " or")])
      >>> (total,) = likelihood.rolling(["to be or"])
      >>> total < number < 0
      True

    References:
      Definitions of loglikelihood and of its rolling form: EleutherAI/lm-evaluation-harness 0.4.13.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Params,
        tokenizer: Tokenizer,
        *,
        prefix: int | None = None,
        max_length: int | None = None,
        tokens_per_batch: int = 4096,
        chunk: int = 2048,
    ):
        config = model.config
        if tokenizer.vocab_size > config.vocab_size:
            raise ValueError(
                f"tokenizer: expected one of at most the model's vocab_size={config.vocab_size}, "
                f"got {tokenizer.name} with {tokenizer.vocab_size}"
            )
        limit = context_limit(config)
        if max_length is not None and not 1 <= max_length <= (limit or max_length):
            raise ValueError(f"max_length: expected from 1 to {limit or 'any number'}, got {max_length}")
        for name, value in (("tokens_per_batch", tokens_per_batch), ("chunk", chunk)):
            if value < 1:
                raise ValueError(f"{name}: expected a number of tokens, at least 1, got {value}")
        self.model, self.params, self.tokenizer = model, params, tokenizer
        self.prefix = _prefix(tokenizer, config.vocab_size, prefix)
        self.max_length = max_length or limit
        self.tokens_per_batch = tokens_per_batch
        self.chunk = max(chunk // config.chunk_size, 1) * config.chunk_size
        self._start = jax.jit(self._run_start, static_argnames="rows")
        self._whole = jax.jit(self._run_whole)
        self._piece = jax.jit(self._run_piece)

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Scores continuations.

        Args:
          pairs: of a context, which may be empty, and its continuation, which holds the space between them; encoded by
            `encode_pair`.

        Returns:
          For each pair the sum of the log-probabilities of the continuation's tokens, in nats, and whether each is the
          likeliest token at its place.

        Raises:
          ValueError: if a continuation has no token, or more than `max_length`.
        """
        rows = []
        for number, (context, continuation) in enumerate(pairs):
            before, after = encode_pair(self.tokenizer, context, continuation)
            if len(after) == 0 or (self.max_length and len(after) > self.max_length):
                raise ValueError(
                    f"pairs[{number}]: expected a continuation of 1 to {self.max_length or 'any number of'} tokens, "
                    f"got {len(after)}: {continuation[:60]!r}"
                )
            tokens = np.concatenate([before if len(before) else np.array([self.prefix]), after]).astype(np.int32)
            keep = 0 if self.max_length is None else max(len(tokens) - self.max_length - 1, 0)
            rows.append(Row(tokens[keep:], len(after)))
        return self.score(rows)

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """Scores whole documents, every token once.

        Args:
          texts: each is read from a fresh state after the prefix token; see the class for what is read at once.

        Returns:
          For each text the sum of the log-probabilities of its tokens, in nats; 0 for an empty one.
        """
        rows = [rolling_rows(self.tokenizer.encode(text), self.prefix, self.max_length) for text in texts]
        found = iter(self.score([row for of_text in rows for row in of_text]))
        return [math.fsum(next(found)[0] for _ in of_text) for of_text in rows]

    def score(self, rows: Sequence[Row]) -> list[tuple[float, bool]]:
        """Scores the last tokens of rows, each read from a fresh state.

        Args:
          rows: in any order and of any lengths up to `max_length` + 1.

        Returns:
          For each row the sum of log-probabilities of the scored tokens, in nats, and whether each is the likeliest.
        """
        found: list[tuple[float, bool]] = [(0.0, True)] * len(rows)
        by_width: dict[int, list[int]] = {}
        for number in sorted(range(len(rows)), key=lambda n: -len(rows[n].tokens)):
            by_width.setdefault(self._width(len(rows[number].tokens) - 1), []).append(number)
        for width, numbers in by_width.items():
            size = max(self.tokens_per_batch // width, 1)
            for first in range(0, len(numbers), size):
                batch = numbers[first : first + size]
                filled = min(size, 1 << (len(batch) - 1).bit_length())
                for number, result in zip(batch, self._score([rows[n] for n in batch], width, filled), strict=True):
                    found[number] = result
        return found

    def _width(self, length: int) -> int:
        """The number of inputs a row of so many is filled up to: of each power of two, that and half as much again."""
        if length > self.chunk:
            return self.chunk
        power = 1 << max((length - 1).bit_length(), 5)
        width = 3 * power // 4 if length <= 3 * power // 4 else power
        return min(width, self.chunk, self.max_length or width)

    def _score(self, rows: list[Row], width: int, filled: int) -> list[tuple[float, bool]]:
        """One batch, filled up to so many rows; longer ones than the width in pieces of it."""
        lengths = np.array([len(row.tokens) - 1 for row in rows])
        pieces = -(-int(lengths.max()) // width)
        windows = np.zeros((filled, pieces * width + 1), np.int32)
        for place, row in enumerate(rows):
            windows[place, : len(row.tokens)] = row.tokens
        totals, greedy = np.zeros(len(rows)), np.ones(len(rows), bool)
        begin = lengths - np.array([row.scored for row in rows])
        state = self._start(self.params, rows=filled) if pieces > 1 else None
        for first in range(0, pieces * width, width):
            window = windows[:, first : first + width + 1]
            if state is None:
                logs, likeliest = self._whole(self.params, window)
            else:
                logs, likeliest, state = self._piece(self.params, state, window)
            places = np.arange(first, first + width)
            counted = (places >= begin[:, None]) & (places < lengths[:, None])
            totals += np.where(counted, np.asarray(logs, np.float64)[: len(rows)], 0).sum(1)
            greedy &= np.where(counted, np.asarray(likeliest)[: len(rows)], True).all(1)
        return list(zip(totals.tolist(), greedy.tolist(), strict=True))

    def _run_start(self, params: Params, rows: int) -> Any:
        return self.model.apply({"params": params}, rows, method="start")

    def _run_whole(self, params: Params, windows: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, _ = self.model.apply({"params": params}, windows[:, :-1])
        return _of_targets(logits, windows[:, 1:])

    def _run_piece(self, params: Params, state: Any, windows: jax.Array) -> tuple[jax.Array, jax.Array, Any]:
        logits, state = self.model.apply({"params": params}, windows[:, :-1], state)
        return *_of_targets(logits, windows[:, 1:]), state


def _of_targets(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities, and whether they are the likeliest: [B, T] each."""
    return -nats(logits, targets), jnp.argmax(logits, axis=-1) == targets


def _prefix(tokenizer: Tokenizer, vocab_size: int, prefix: int | None) -> int:
    if prefix is None:
        prefix = tokenizer.end
    if prefix is None:
        newline = tokenizer.encode("\n")
        if len(newline) != 1:
            raise ValueError(
                f"prefix: expected the token that stands where there is no context, since {tokenizer.name} has no end "
                f"token and writes a newline in {len(newline)} tokens; got None"
            )
        prefix = int(newline[0])
    if not 0 <= prefix < vocab_size:
        raise ValueError(f"prefix: expected a token in [0, {vocab_size}), got {prefix}")
    return prefix


def count_words(text: str) -> int:
    """Words as perplexities count them: the pieces between stretches of white space, empty ones at the ends included.

    References:
      lm-evaluation-harness 0.4.13, whose word perplexities divide by this number.

    Example:
      >>> count_words("to be, or not"), count_words(" to be ")
      (4, 4)
    """
    return len(re.split(r"\s+", text))


def count_bytes(text: str) -> int:
    """Bytes of a text in UTF-8.

    Example:
      >>> count_bytes("né")
      3
    """
    return len(text.encode())


def perplexity(log_likelihoods: Sequence[float], texts: Sequence[str], count: Callable[[str], int]) -> float:
    """Perplexity per word, byte or whatever is counted: exp(−Σ log-likelihood / Σ count).

    Args:
      log_likelihoods: of the texts, in nats.
      texts: what is counted; it may be another spelling than the one that was scored.
      count: `count_words` or `count_bytes`.

    Returns:
      At least 1; infinite where it is no float64.

    Raises:
      ValueError: if there are no texts, or not as many as log-likelihoods, or nothing is counted.

    Example:
      >>> round(perplexity([-2 * math.log(8), -math.log(8)], ["a b", "c"], count_words), 6)
      8.0
    """
    if len(log_likelihoods) != len(texts):
        raise ValueError(f"texts: expected one per log-likelihood, {len(log_likelihoods)}, got {len(texts)}")
    total = sum(map(count, texts))
    if total < 1:
        raise ValueError(f"texts: expected something to count, got {len(texts)} texts with {total}")
    with np.errstate(over="ignore"):
        return float(np.exp(-math.fsum(log_likelihoods) / total))
