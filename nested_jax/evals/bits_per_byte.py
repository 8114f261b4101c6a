"""Bits per byte of a language model: in windows of any context length, and over one long stream in constant memory."""

import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from nested_jax.data.windows import Windows
from nested_jax.models.layers import at_least_float32
from nested_jax.models.placement import PLACES, constrain

Params = Any


def nats(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross-entropy of each token in nats.

    Args:
      logits: [..., V].
      targets: integers [...].

    Returns:
      [...] in float32 or better.
    """
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(at_least_float32(logits.dtype)), targets)


def window_scorer(model: nn.Module) -> Callable[[Params, ArrayLike], jax.Array]:
    """A jitted function of parameters and windows [B, T + 1]: the mean nats of the T predictions of each."""

    @jax.jit
    def score(params: Params, windows: jax.Array) -> jax.Array:
        inputs, targets = constrain((windows[:, :-1], windows[:, 1:]), PLACES)
        logits, _ = model.apply({"params": params}, inputs)
        return constrain(jnp.mean(nats(logits, targets), axis=-1), P())

    return score


def score_windows(
    scorer: Callable[[Params, ArrayLike], jax.Array], params: Params, windows: np.ndarray | Windows, batch_size: int
) -> float:
    """Mean bits per byte over windows, in batches of one size (the last is filled up and the filling is left out).

    Args:
      scorer: from `window_scorer`.
      params: the model's parameters.
      windows: int32 [N, T + 1], N ≥ 1.
      batch_size: windows at a time, ≥ 1.
    """
    scores = []
    for start in range(0, len(windows), batch_size):
        batch = windows[start : start + batch_size]
        filled = np.concatenate([batch, np.repeat(batch[-1:], batch_size - len(batch), axis=0)])
        scores.append(np.asarray(scorer(params, filled))[: len(batch)])
    return float(np.mean(np.concatenate(scores))) / math.log(2)


def bits_per_byte(
    model: nn.Module,
    params: Params,
    tokens: np.ndarray,
    context_lengths: Sequence[int],
    *,
    tokens_per_batch: int = 4096,
) -> dict[int, float]:
    """Bits per byte when the text is cut into windows of each length, every window read from a fresh state.

    All lengths are scored on the same bytes: a window of length L predicts the L bytes after its first, and the next
    one begins at the last of them. The bytes used are the largest multiple of the longest context.

    Args:
      model: a `LanguageModel`.
      params: its parameters.
      tokens: uint8 [N].
      context_lengths: each divides the longest.
      tokens_per_batch: tokens run at once, at least one window.

    Returns:
      Context length → bits per byte.

    Raises:
      ValueError: if a length is below 1 or does not divide the longest, or the text is too short for it.
    """
    longest = max(context_lengths)
    for length in context_lengths:
        if length < 1 or longest % length:
            raise ValueError(f"context lengths must be at least 1 and divide the longest, {longest}; got {length}")
    if len(tokens) < longest + 1:
        raise ValueError(f"the text must hold a context of {longest} bytes and one more; it has {len(tokens)}")
    used = (len(tokens) - 1) // longest * longest
    scorer = window_scorer(model)
    found = {}
    for length in context_lengths:
        windows = Windows(tokens, np.arange(0, used, length), length + 1)
        found[length] = score_windows(scorer, params, windows, max(1, min(tokens_per_batch // length, len(windows))))
    return found


@dataclass(frozen=True)
class Span:
    """What one stretch of a long context cost.

    Attributes:
      end: bytes of the context read by the end of the stretch.
      tokens: bytes in the stretch.
      bits_per_byte: over the stretch.
      seconds_per_token: wall-clock time, compilation left out.
      memory: resident bytes of the process at the end of the stretch.
    """

    end: int
    tokens: int
    bits_per_byte: float
    seconds_per_token: float
    memory: int


def resident_memory() -> int:
    """Bytes of this process in memory now (where /proc is missing, the most there ever were)."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def whole_chunks(model: nn.Module, tokens: np.ndarray, chunk: int) -> tuple[int, int]:
    """How a text is read in pieces: bytes per piece, on the model's chunk grid, and the number of whole pieces.

    Raises:
      ValueError: if there is no whole one.
    """
    grid = model.config.chunk_size
    chunk = max(chunk // grid, 1) * grid
    count = (len(tokens) - 1) // chunk
    if count < 1:
        raise ValueError(f"the text must hold a chunk of {chunk} bytes and one more; it has {len(tokens)}")
    return chunk, count


def stream(
    model: nn.Module, params: Params, tokens: np.ndarray, *, chunk: int = 1000, span: int = 100_000
) -> Iterator[Span]:
    """Reads one context of any length in constant memory, chunk by chunk with the carried state.

    The first chunk is run twice before the clock starts, so the first stretch is as warm as the last.

    Args:
      model: a `LanguageModel`.
      params: its parameters.
      tokens: uint8 [N], N ≥ chunk + 1; the bytes after the last whole chunk are left out.
      chunk: bytes per call, rounded down to the model's chunk grid (at least one chunk).
      span: bytes per stretch, rounded down likewise; the last stretch may be shorter.

    Yields:
      One `Span` after another, from the beginning of the context to its end.

    Raises:
      ValueError: if the text is shorter than a chunk, or a number is below 1.
    """
    if chunk < 1 or span < 1:
        raise ValueError(f"chunk and span are numbers of bytes, at least 1; got {chunk} and {span}")
    chunk, count = whole_chunks(model, tokens, chunk)
    per_span = max(span // chunk, 1)

    @jax.jit
    def run(params: Params, state: Any, window: jax.Array) -> tuple[jax.Array, Any]:
        logits, state = model.apply({"params": params}, window[None, :-1], state)
        return jnp.sum(nats(logits[0], window[1:])), state

    def window(number: int) -> jax.Array:
        return jnp.asarray(tokens[number * chunk : (number + 1) * chunk + 1].astype(np.int32))

    state = jax.jit(lambda params: model.apply({"params": params}, 1, method="start"))(params)
    for _ in range(2):
        jax.block_until_ready(run(params, state, window(0)))
    for first in range(0, count, per_span):
        numbers = range(first, min(first + per_span, count))
        began, total = time.perf_counter(), 0.0
        for number in numbers:
            value, state = run(params, state, window(number))
            total += float(value)
        read = len(numbers) * chunk
        seconds = (time.perf_counter() - began) / read
        yield Span(numbers[-1] * chunk + chunk, read, total / read / math.log(2), seconds, resident_memory())
