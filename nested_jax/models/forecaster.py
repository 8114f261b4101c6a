"""Forecasters of series: patches, the blocks of a language model and a linear head; or DLinear, to compare with."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from nested_jax.models.block import Block
from nested_jax.models.config import ModelConfig
from nested_jax.models.layer_stack import Turn, blocks, loop, scan
from nested_jax.models.layers import RMSNorm, at_least_float32


@dataclasses.dataclass(kw_only=True)
class ForecasterConfig(ModelConfig):
    """The configuration of a forecaster: that of the language model whose blocks it has.

    Attributes:
      patch: steps that make a token.
      linear: DLinear in place of patches and blocks, of which nothing is used then.
      average: steps of the moving average that is DLinear's trend, an odd number.
    """

    patch: int = 4
    linear: bool = False
    average: int = 25

    def validate(self) -> None:
        """Raises a ``ValueError`` that names the first field out of range."""
        super().validate()
        if self.patch < 1:
            raise ValueError(f"patch must be at least 1, got {self.patch}")
        if self.average < 1 or self.average % 2 == 0:
            raise ValueError(f"average must be an odd number of at least 1, got {self.average}")


class Forecaster(nn.Module):
    """Forecasts every channel of a series from its own past; all channels share the weights.

    There is a forecaster for each horizon, with weights of its own, as the tables of forecasting have one model for
    each. Titans puts its memory into Simba, which also mixes channels; that every channel is forecast alone is our
    choice, as in PatchTST and DLinear.

    Attributes:
      config: of patches and blocks.
      lookback: steps that are read.
      horizons: steps that are forecast.

    Example:
      >>> model = Forecaster(ForecasterConfig(dim=8, layers=1, blocks=("lstm",)), lookback=8, horizons=(2, 4))
      >>> variables = jax.jit(model.init)(jax.random.key(0), model.example_inputs)
      >>> forecasts, _ = jax.jit(model.apply)(variables, jnp.zeros((3, 8, 5)))
      >>> [forecast.shape for forecast in forecasts]
      [(3, 2, 5), (3, 4, 5)]
    """

    config: ForecasterConfig
    lookback: int
    horizons: tuple[int, ...]

    @property
    def example_inputs(self) -> jax.Array:
        """What its parameters may be initialised with: one channel, [1, lookback, 1]."""
        return jnp.zeros((1, self.lookback, 1), jnp.float32)

    def setup(self):
        self.config.validate()
        kind = DLinear if self.config.linear else BlockForecaster
        self.each = [kind(self.config, horizon) for horizon in self.horizons]

    def __call__(self, inputs: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
        """Forecasts the steps behind some.

        Args:
          inputs: [B, lookback, C], any real numbers.

        Returns:
          For each horizon [B, horizon, C] in float32; and no state.

        Raises:
          ValueError: for inputs of another length.
        """
        if jnp.ndim(inputs) != 3 or inputs.shape[1] != self.lookback:
            raise ValueError(f"inputs must be of shape [B, {self.lookback}, C], got {jnp.shape(inputs)}")
        channels = jnp.swapaxes(inputs, 1, 2)
        return tuple(jnp.swapaxes(one(channels), 1, 2).astype(jnp.float32) for one in self.each), None


class BlockForecaster(nn.Module):
    """Patches → blocks → all tokens' features → the horizon, of a channel by its own mean and deviation.

    Tokens are patches that do not overlap, and the head reads all of them, as in PatchTST (Nie et al. 2023); a window
    is standardised and its forecast scaled back (Liu et al. 2022). The source of the blocks' place is silent on both.

    Attributes:
      config: of patches and blocks.
      horizon: steps that are forecast.
    """

    config: ForecasterConfig
    horizon: int

    def setup(self):
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        self.embed = nn.Dense(config.dim, dtype=dtype)
        if config.stacked:
            self.stack = Turn(config)
        else:
            self.blocks = blocks(config, config.layers)
        self.norm, self.head = RMSNorm(), nn.Dense(self.horizon, dtype=at_least_float32(dtype))

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """[B, C, lookback] → [B, C, horizon]."""
        batch, channels, length = inputs.shape
        if length % self.config.patch:
            raise ValueError(f"lookback must be a multiple of patch={self.config.patch}, got {length}")
        mean = jnp.mean(inputs, axis=-1, keepdims=True)
        deviation = jnp.sqrt(jnp.var(inputs, axis=-1, keepdims=True) + 1e-5)
        hidden = ((inputs - mean) / deviation).reshape(batch * channels, -1, self.config.patch)
        hidden = self.embed(hidden)
        if self.config.stacked:
            hidden, _ = scan(self.stack, _read, hidden, (None,) * self.config.pattern)
        else:
            hidden, _ = loop(self.blocks, _read, hidden, (None,) * self.config.layers)
        forecast = self.head(self.norm(hidden).reshape(batch, channels, -1))
        return forecast * deviation + mean


def _read(block: Block, hidden: jax.Array, state: None) -> tuple[jax.Array, None]:
    """Runs a block from its start; what it carries is not needed."""
    return block(hidden, state, None)[0], None


class DLinear(nn.Module):
    """A linear map of the trend and one of the remainder, added (Zeng et al. 2023, "DLinear", cure-lab/LTSF-Linear).

    The trend is a moving average, the first and the last step repeated beyond the ends.

    Attributes:
      config: gives ``average``.
      horizon: steps that are forecast.
    """

    config: ForecasterConfig
    horizon: int

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """[B, C, lookback] → [B, C, horizon]."""
        width = self.config.average
        padded = jnp.pad(inputs, ((0, 0), (0, 0), (width // 2, width // 2)), mode="edge")
        trend = sum(padded[..., shift : shift + inputs.shape[-1]] for shift in range(width)) / width
        initial = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        maps = [nn.Dense(self.horizon, kernel_init=initial, name=name) for name in ("trend", "remainder")]
        return maps[0](trend) + maps[1](inputs - trend)
