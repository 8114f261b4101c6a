"""An autoencoder: a sequence is read, and told again from what the last token knows (MAD's compression task)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from nested_jax.models.config import ModelConfig
from nested_jax.models.language_model import LanguageModel, at


@dataclasses.dataclass(kw_only=True)
class AutoEncoderConfig(ModelConfig):
    """The configuration of an autoencoder: that of the language model whose blocks read the sequence."""


class AutoEncoder(LanguageModel):
    """Blocks read T tokens; every answer is made of the last token's features and a position.

    The decoder is as in athms/mad-lab (Poli et al. 2024): sines and cosines of the place are added to the last
    features, and two layers of their width with GELU come before the logits. It is no causal model: it cannot be run
    token by token, and a state is handed on as the blocks leave it.

    Attributes:
      config: of the blocks.

    Example:
      >>> model = AutoEncoder(AutoEncoderConfig(vocab_size=5, dim=16, layers=1))
      >>> variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
      >>> logits, _ = jax.jit(model.apply)(variables, jnp.array([[3, 1, 4, 1]]))
      >>> logits.shape
      (1, 4, 5)
    """

    def setup(self):
        super().setup()
        self.decoder = [nn.Dense(self.config.dim, dtype=jnp.dtype(self.config.dtype)) for _ in range(2)]

    def __call__(
        self,
        tokens: jax.Array,
        state: tuple[Any, ...] | None = None,
        reset: jax.Array | None = None,
        places: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[Any, ...]]:
        """Tells the tokens again, [B, T] → logits [B, T, vocab_size]; else as `LanguageModel`."""
        hidden, after = self.read(tokens, state, reset)
        told = hidden[:, -1:] + sinusoids(tokens.shape[1], self.config.dim)[None].astype(hidden.dtype)
        for layer in self.decoder:
            told = nn.gelu(layer(told))
        return self._logits(at(told, places)), after


def sinusoids(length: int, dim: int) -> jax.Array:
    """Positions as sines and cosines of geometric frequencies (Vaswani et al. 2017, §3.5), [length, dim].

    Example:
      >>> [[round(float(x), 2) for x in row] for row in sinusoids(2, 4)]
      [[0.0, 0.0, 1.0, 1.0], [0.84, 0.01, 0.54, 1.0]]
    """
    half = (dim + 1) // 2
    angles = jnp.outer(jnp.arange(length), 1e4 ** (-jnp.arange(half) / half))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)[:, :dim]


def build(config: ModelConfig) -> LanguageModel:
    """The model of a configuration.

    Example:
      >>> type(build(AutoEncoderConfig())).__name__, type(build(ModelConfig())).__name__
      ('AutoEncoder', 'LanguageModel')
    """
    return AutoEncoder(config) if isinstance(config, AutoEncoderConfig) else LanguageModel(config)
