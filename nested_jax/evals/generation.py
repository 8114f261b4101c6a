"""Sampling from a language model: the prompt is read in chunks, then bytes are drawn from the carried state."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn


def read_prompt(model: nn.Module, params: Any, prompt: np.ndarray, chunk: int) -> tuple[jax.Array, Any]:
    """Runs a prompt of any length in constant memory, and with two compilations whatever its length.

    Whole chunks are run in parallel, what is left token by token.

    Args:
      model: a `LanguageModel`.
      params: its parameters.
      prompt: uint8 [P], P ≥ 1.
      chunk: bytes per parallel call, a multiple of the model's chunk size.

    Returns:
      Logits of the next byte [V], and the state after the prompt.
    """

    @jax.jit
    def run(params: Any, state: Any, tokens: jax.Array) -> tuple[jax.Array, Any]:
        logits, state = model.apply({"params": params}, tokens[None], state)
        return logits[0, -1], state

    @jax.jit
    def step(params: Any, state: Any, token: jax.Array) -> tuple[jax.Array, Any]:
        logits, state = model.apply({"params": params}, token[None], state, method="step")
        return logits[0], state

    state = jax.jit(lambda params: model.apply({"params": params}, 1, method="start"))(params)
    tokens = jnp.asarray(prompt.astype(np.int32))
    whole = len(prompt) // chunk * chunk
    logits = jnp.zeros(())
    for begin in range(0, whole, chunk):
        logits, state = run(params, state, tokens[begin : begin + chunk])
    for place in range(whole, len(prompt)):
        logits, state = step(params, state, tokens[place])
    return logits, state


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
      prompt: at least one byte; any length, read in constant memory.
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
    logits, state = read_prompt(model, params, np.frombuffer(prompt, np.uint8), max(chunk // grid, 1) * grid)
    keys = jax.random.split(jax.random.key(0) if key is None else key, length)

    def draw(logits: jax.Array, key: jax.Array) -> jax.Array:
        logits = logits[:256]
        if temperature == 0:
            return jnp.argmax(logits).astype(jnp.int32)
        return jax.random.categorical(key, logits / temperature).astype(jnp.int32)

    @jax.jit
    def run(params: Any, logits: jax.Array, state: Any, keys: jax.Array) -> jax.Array:
        def one(carry: tuple[jax.Array, Any], key: jax.Array) -> tuple[tuple[jax.Array, Any], jax.Array]:
            logits, state = carry
            token = draw(logits, key)
            after, state = model.apply({"params": params}, token[None], state, method="step")
            return (after[0], state), token

        (logits, _), tokens = jax.lax.scan(one, (logits, state), keys[:-1])
        return jnp.append(tokens, draw(logits, keys[-1]))

    return np.asarray(run(params, logits, state, keys)).astype(np.uint8).tobytes()
