"""Sampling from a language model: a prompt of any length, then bytes one by one, all from one carried state."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn


def read_chunks(model: nn.Module, params: Any, tokens: np.ndarray, chunk: int) -> Any:
    """Runs whole chunks in parallel, one after the other, in constant memory.

    Args:
      model: a `LanguageModel`.
      params: its parameters.
      tokens: uint8 [N], N a multiple of `chunk`, 0 included.
      chunk: bytes per call, a multiple of the model's chunk size.

    Returns:
      The state after the last of them.
    """

    @jax.jit
    def run(params: Any, state: Any, tokens: jax.Array) -> Any:
        return model.apply({"params": params}, tokens[None], state)[1]

    state = jax.jit(lambda params: model.apply({"params": params}, 1, method="start"))(params)
    for piece in tokens.astype(np.int32).reshape(-1, chunk):
        state = run(params, state, piece)
    return state


def generate(
    model: nn.Module,
    params: Any,
    prompt: bytes,
    length: int,
    *,
    temperature: float = 0.7,
    key: jax.Array | None = None,
    chunk: int = 512,
) -> bytes:
    """Continues a prompt.

    Args:
      model: a `LanguageModel` over bytes.
      params: its parameters.
      prompt: at least one byte; any length, read in constant memory: whole chunks in parallel, the rest byte by byte.
      length: bytes to draw, ≥ 0.
      temperature: logits are divided by it, ≥ 0; 0 takes the likeliest byte.
      key: typed PRNG key, needed unless the temperature is 0.
      chunk: bytes of the prompt run in parallel, rounded down to the model's chunk grid (at least one chunk).

    Returns:
      The bytes drawn, without the prompt.

    Raises:
      ValueError: if the prompt is empty, a number is out of range or the key is missing.
    """
    if not prompt:
        raise ValueError("prompt must hold at least one byte; got an empty one")
    if length < 0:
        raise ValueError(f"length is a number of bytes, at least 0; got {length}")
    if temperature < 0:
        raise ValueError(f"temperature must be at least 0; got {temperature}")
    if temperature > 0 and key is None:
        raise ValueError("key is needed to sample at a temperature above 0; got None")
    if length == 0:
        return b""
    grid = model.config.chunk_size
    chunk = max(chunk // grid, 1) * grid
    tokens = np.frombuffer(prompt, np.uint8)
    whole = (len(tokens) - 1) // chunk * chunk
    state = read_chunks(model, params, tokens[:whole], chunk)
    given = jnp.asarray(tokens[whole:].astype(np.int32))
    keys = jax.random.split(jax.random.key(0) if key is None else key, length)

    def draw(logits: jax.Array, key: jax.Array) -> jax.Array:
        if temperature == 0:
            return jnp.argmax(logits).astype(jnp.int32)
        return jax.random.categorical(key, logits / temperature).astype(jnp.int32)

    @jax.jit
    def run(params: Any, state: Any, given: jax.Array, keys: jax.Array) -> jax.Array:
        steps = len(given) - 1 + length
        forced = jnp.pad(given[1:], (0, length))

        def one(carry: tuple[jax.Array, Any], number: jax.Array) -> tuple[tuple[jax.Array, Any], jax.Array]:
            token, state = carry
            logits, state = model.apply({"params": params}, token[None], state, method="step")
            drawn = draw(logits[0, :256], keys[jnp.maximum(number - len(given) + 1, 0)])
            token = jnp.where(number < len(given) - 1, forced[number], drawn)
            return (token, state), token

        _, tokens = jax.lax.scan(one, (given[0], state), jnp.arange(steps))
        return tokens[len(given) - 1 :]

    return np.asarray(run(params, state, given, keys)).astype(np.uint8).tobytes()
