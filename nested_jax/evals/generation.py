"""Writing with a language model: prompts of any lengths are read side by side, then each is continued token by token.

    context = (state after the tokens read so far, logits of the next token, number of tokens drawn so far)
    token ~ sampling(logits; fold_in(key of the row, number))
    (logits, state) = step(token, state)                       for the rows that go on; the others keep what they have

A row never sees the others. Nothing is padded into a state: whole chunks of a prompt run in parallel for the rows that
have them, the rest token by token, and a row that has nothing to read at a step keeps its context.
"""

import functools
import operator
import os
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from nested_jax import description
from nested_jax.evals.sampling import Sampling
from nested_jax.memory.slots import SlotState
from nested_jax.models import MemoryLayerState, load_state, save_state, saved_rows
from nested_jax.models.hybrids import ContextState
from nested_jax.models.layers import at_least_float32

REST, DRAW = -2, -1  # instead of a token: keep the context; draw one


class Context(NamedTuple):
    """Where a text stands: a pytree to keep, copy, save and write on from.

    Attributes:
      state: the model's state after every token so far, drawn ones included.
      logits: [B, V], of the next token; zeros before the first.
      drawn: int32 [B], how many tokens were drawn. The next one's key depends on it, so that a text that is continued
        with the same key is the text written at once.
    """

    state: Any
    logits: jax.Array
    drawn: jax.Array


class Piece(NamedTuple):
    """What a call to the compiled step has written.

    Attributes:
      tokens: the new tokens of each row, none where a row has stopped.
      context: the context after them.
    """

    tokens: list[list[int]]
    context: Context


def keep(live: jax.Array, new: Any, old: Any) -> Any:
    """`new` in the rows that are live, `old` in the others.

    Args:
      live: bool [B].
      new: a pytree of leaves [B, ...].
      old: another of the same shapes.

    Returns:
      A pytree of the same shapes.

    Example:
      >>> keep(jnp.array([True, False]), jnp.ones((2, 2)), jnp.zeros((2, 2))).tolist()
      [[1.0, 1.0], [0.0, 0.0]]
    """
    return jax.tree.map(lambda a, b: jnp.where(jnp.expand_dims(live, range(1, a.ndim)), a, b), new, old)


class Generator:
    """A model that writes, compiled once for any prompts, lengths and stop tokens.

    Args:
      model: a `LanguageModel`.
      params: its parameters.
      sampling: how tokens are drawn.
      learn: whether memories write the tokens that are drawn. Prompts are always written.
      alphabet: tokens below this number are drawn, ≤ vocab_size; None for all.
      chunk: tokens of a prompt that run in parallel, rounded down to the model's chunk grid (at least one chunk).

    Raises:
      ValueError: if `alphabet` or `chunk` is out of range.

    Example:
      >>> from nested_jax.models import LanguageModel, MemoryConfig, ModelConfig
      >>> model = LanguageModel(ModelConfig(dim=16, layers=1, memory=MemoryConfig(heads=2)))
      >>> params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
      >>> generator = Generator(model, params, Sampling(temperature=0))
      >>> for piece in generator.stream([b"to be", b"or"], 3):
      ...     print([len(tokens) for tokens in piece.tokens])
      [1, 1]
      [1, 1]
      [1, 1]
    """

    def __init__(
        self,
        model: nn.Module,
        params: Any,
        sampling: Sampling | None = None,
        *,
        learn: bool = True,
        alphabet: int | None = None,
        chunk: int = 512,
    ):
        config = model.config
        self.alphabet = config.vocab_size if alphabet is None else alphabet
        if not 1 <= self.alphabet <= config.vocab_size:
            raise ValueError(f"alphabet must be from 1 to vocab_size={config.vocab_size}; got {alphabet}")
        if chunk < 1:
            raise ValueError(f"chunk is a number of tokens, at least 1; got {chunk}")
        self.model, self.params, self.sampling, self.learn = model, params, sampling or Sampling(), learn
        self.grid = config.chunk_size
        self.chunk = max(chunk // self.grid, 1) * self.grid
        self._start = jax.jit(self._run_start, static_argnames="rows")
        self._steps = jax.jit(self._run_steps, static_argnames="learn")
        self._parallel = jax.jit(self._run_parallel)

    def start(self, rows: int) -> Context:
        """The context before the first token of `rows` texts."""
        return self._start(self.params, rows=rows)

    def read(self, prompts: Sequence[Sequence[int]], context: Context | None = None, *, every: int = 64) -> Context:
        """Reads a prompt per row, of any lengths.

        Args:
          prompts: bytes, or sequences of tokens. Without a context each holds at least one.
          context: what was read before; None for the beginning of each text.
          every: steps per call of the compiled program.

        Returns:
          The context after the last token of each prompt.

        Raises:
          ValueError: if a prompt is empty or holds no token of the model, or the context has another number of rows.
        """
        tokens = self._check_prompts(prompts, context)
        context = self.start(len(tokens)) if context is None else context
        lead = np.minimum(-self._places(context) % self.grid, [len(row) for row in tokens])
        whole = (np.array([len(row) for row in tokens]) - lead) // self.chunk
        context = self._feed(context, [row[:n] for row, n in zip(tokens, lead, strict=True)], every)
        for number in range(max(whole)):
            live = number < whole
            pieces = np.zeros((len(tokens), self.chunk), np.int32)
            for row in np.flatnonzero(live):
                first = lead[row] + number * self.chunk
                pieces[row] = tokens[row][first : first + self.chunk]
            context = self._parallel(self.params, context, pieces, live)
        return self._feed(
            context, [row[n + m * self.chunk :] for row, n, m in zip(tokens, lead, whole, strict=True)], every
        )

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        length: int,
        *,
        context: Context | None = None,
        key: jax.Array | None = None,
        stop: Sequence[int] = (),
        every: int = 1,
    ) -> Iterator[Piece]:
        """Reads prompts, then writes: yields tokens as they are made.

        Args:
          prompts: bytes, or sequences of tokens, one per row; they may be empty if there is a context.
          length: tokens to write per row, ≥ 0.
          context: where to go on from; None for the beginning of each text.
          key: typed PRNG key, or an array of one per row; needed unless the temperature is 0. Row b of a single key
            has the key `jax.random.fold_in(key, b)`. The n-th token that a row draws, from 0, is drawn with
            `fold_in(its key, n)`, and depends on nothing of other rows.
          stop: tokens that end a row; the row's last token is then one of them, and is read into its state.
          every: tokens per row in a piece. The program is compiled once per value of it; more are faster, later.

        Returns:
          An iterator of pieces: until every row has stopped or has `length` tokens; at least one, so that there is a
          last context.

        Raises:
          ValueError: at once, if a number is out of range, the key is missing or the prompts do not fit; see `read`.
        """
        rows = len(self._check_prompts(prompts, context))
        if length < 0:
            raise ValueError(f"length is a number of tokens, at least 0; got {length}")
        if every < 1:
            raise ValueError(f"every is a number of tokens, at least 1; got {every}")
        keys = self._keys(key, rows)
        stops = np.zeros(self.model.config.vocab_size, bool)
        stops[self._check_tokens(stop, "stop")] = True
        return self._write(prompts, length, context, keys, stops, every)

    def save(self, path: str | os.PathLike[str], context: Context) -> None:
        """Writes a context to one file, together with the model's config and a checksum of its parameters."""
        save_state(path, context, self._about)

    def load(self, path: str | os.PathLike[str]) -> Context:
        """Reads a context that :meth:`save` wrote, with as many rows as it was saved with.

        Raises:
          ValueError: if the file is damaged or belongs to another model; it says what differs.
        """
        like = jax.eval_shape(functools.partial(self._run_start, rows=saved_rows(path)), self.params)
        return load_state(path, like, self._about)

    def _write(self, prompts, length, context, keys, stops, every) -> Iterator[Piece]:
        context = self.read(prompts, context, every=every)
        going = np.ones(len(prompts), bool)
        if length == 0:
            yield Piece([[] for _ in prompts], context)
        for first in range(0, length, every):
            given = np.where(np.arange(first, first + every) < length, DRAW, REST)
            given = np.repeat(given[:, None], len(prompts), axis=1).astype(np.int32)
            context, going, tokens = self._steps(self.params, context, given, keys, stops, going, learn=self.learn)
            yield Piece([[token for token in row if token >= 0] for row in np.asarray(tokens).T.tolist()], context)
            if not np.any(going):
                return

    def _feed(self, context: Context, tokens: list[np.ndarray], every: int) -> Context:
        """Reads tokens one by one, learning them."""
        rows, longest = len(tokens), max(map(len, tokens))
        given = np.full((-(-longest // every) * every, rows), REST, np.int32)
        for row, found in enumerate(tokens):
            given[: len(found), row] = found
        unused = self._blank_keys(rows), np.zeros(self.model.config.vocab_size, bool), np.ones(rows, bool)
        for block in given.reshape(-1, every, rows):
            context, _, _ = self._steps(self.params, context, block, *unused, learn=True)
        return context

    def _run_start(self, params, rows):
        config = self.model.config
        state = self.model.apply({"params": params}, rows, method="start")
        logits = jnp.zeros((rows, config.vocab_size), at_least_float32(config.dtype))
        return Context(state, logits, jnp.zeros(rows, jnp.int32))

    def _run_steps(self, params, context, given, keys, stops, going, learn):
        """Steps of all rows: `given` [n, B] is a token, DRAW or REST; returns the tokens read [n, B], else REST."""

        def draw(logits, key, number):
            return self.sampling(logits[: self.alphabet], jax.random.fold_in(key, number))

        def one(carry, given):
            context, going = carry
            drawing = given == DRAW
            live = jnp.where(drawing, going, given >= 0)
            token = jnp.where(drawing, jax.vmap(draw)(context.logits, keys, context.drawn), given)
            token = jnp.where(live, token, 0)
            logits, state = self.model.apply({"params": params}, token, context.state, learn, method="step")
            new = Context(state, logits, context.drawn + drawing)
            going = going & ~(live & drawing & stops[token])
            return (keep(live, new, context), going), jnp.where(live, token, REST)

        (context, going), tokens = jax.lax.scan(one, (context, going), given)
        return context, going, tokens

    def _run_parallel(self, params, context, tokens, live):
        """A piece [B, chunk] of the prompts, of the rows that have it."""
        logits, state = self.model.apply({"params": params}, tokens, context.state)
        return keep(live, Context(state, logits[:, -1], context.drawn), context)

    def _places(self, context: Context) -> np.ndarray:
        """How many tokens each row is behind a place where all chunks, periods and segments begin, [B]."""
        rows = len(context.logits)
        places = np.zeros(rows, int)
        parts = MemoryLayerState, ContextState, SlotState
        for part in jax.tree.leaves(context.state, is_leaf=lambda node: isinstance(node, parts)):
            position = part.memory.position if isinstance(part, MemoryLayerState) else getattr(part, "position", None)
            if position is not None:  # [B], with heads [B, H], of stacked layers [B, L/p, ...]: one place per row
                places = np.maximum(places, np.reshape(position, (rows, -1))[:, 0])
        return places

    def _blank_keys(self, rows: int) -> jax.Array:
        return jax.random.split(jax.random.key(0), rows)

    def _keys(self, key: jax.Array | None, rows: int) -> jax.Array:
        if key is None:
            if self.sampling.temperature > 0:
                raise ValueError("key is needed to sample at a temperature above 0; got None")
            return self._blank_keys(rows)
        if key.shape == ():
            return jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(rows))
        if key.shape != (rows,):
            raise ValueError(f"key must be one key, or one for each of {rows} rows; got shape {key.shape}")
        return key

    def _check_prompts(self, prompts: Sequence[Sequence[int]], context: Context | None) -> list[np.ndarray]:
        if isinstance(prompts, bytes | str) or not prompts:
            raise ValueError(f"prompts: expected a list of one prompt per row, got {prompts!r}")
        tokens = [self._check_tokens(prompt, f"prompts[{row}]") for row, prompt in enumerate(prompts)]
        if context is None and not all(map(len, tokens)):
            raise ValueError("prompt must hold at least one token where there is no context; got an empty one")
        if context is not None and len(context.logits) != len(prompts):
            raise ValueError(f"prompts: expected one per row of the context, {len(context.logits)}; got {len(prompts)}")
        return tokens

    def _check_tokens(self, tokens: Sequence[int], name: str) -> np.ndarray:
        size = self.model.config.vocab_size
        if isinstance(tokens, str):
            raise ValueError(f"{name}: expected bytes or tokens, got a str; encode it")
        if isinstance(tokens, bytes):
            found = np.frombuffer(tokens, np.uint8).astype(np.int32)
        else:
            found = np.array(list(map(operator.index, tokens)), np.int32)
        if np.any((found < 0) | (found >= size)):
            raise ValueError(f"{name}: expected tokens in [0, {size}), got {found.min()} to {found.max()}")
        return found

    @functools.cached_property
    def _about(self) -> dict[str, Any]:
        checksum = 0
        for leaf in jax.tree.leaves(self.params):
            checksum = zlib.crc32(np.asarray(leaf).tobytes(), checksum)
        return {"config": description.to_dict(self.model.config), "checksum of parameters": f"{checksum:08x}"}


def generate(
    model: nn.Module,
    params: Any,
    prompts: Sequence[bytes],
    length: int,
    *,
    sampling: Sampling | None = None,
    context: Context | None = None,
    key: jax.Array | None = None,
    stop: Sequence[int] = (),
    learn: bool = True,
    chunk: int = 512,
) -> tuple[list[bytes], Context]:
    """Continues prompts, with a model over bytes; a `Generator` used once.

    Args:
      model: a `LanguageModel` over bytes.
      params: its parameters.
      prompts: one per row, of any lengths.
      length: bytes to write per row, ≥ 0.
      sampling: how bytes are drawn.
      context: where to go on from; None for the beginning of each text.
      key: see `Generator.stream`; needed unless the temperature is 0.
      stop: bytes that end a row.
      learn: whether memories write what is drawn.
      chunk: bytes of the prompts run in parallel.

    Returns:
      The bytes drawn for each row, without the prompt, and the context after them.

    Raises:
      ValueError: as `Generator` and its `stream`.
    """
    generator = Generator(model, params, sampling, learn=learn, alphabet=min(256, model.config.vocab_size), chunk=chunk)
    every = max(min(length, 64), 1)
    texts = [bytearray() for _ in prompts]
    for piece in generator.stream(prompts, length, context=context, key=key, stop=stop, every=every):
        context = piece.context
        for text, tokens in zip(texts, piece.tokens, strict=True):
            text += bytes(tokens)
    assert context is not None
    return [bytes(text) for text in texts], context
