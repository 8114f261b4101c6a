"""Small layers of the blocks: RMSNorm, SwiGLU, scale and shift, depthwise causal convolution (Titans §4.4)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from nested_jax.models import sequence
from nested_jax.models.placement import HEADS, ROWS, TIME, on_own
from nested_jax.scan import ring


def at_least_float32(dtype: DTypeLike) -> jnp.dtype:
    """Returns the precision for sums that must not be rounded to bfloat16: float32, or float64 when computing in it."""
    return jnp.promote_types(dtype, jnp.float32)


def rms_normalise(inputs: jax.Array, scale: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    r"""Divides by the root mean square over the last axis: :math:`x / \sqrt{\mathrm{mean}(x^2) + \epsilon} \odot g`.

    Args:
      inputs: [..., D].
      scale: [D].
      epsilon: keeps value and gradient finite at zero.

    Returns:
      [..., D] in the dtype of ``inputs``; the mean is taken in float32 or better.
    """
    wide = inputs.astype(at_least_float32(inputs.dtype))
    normed = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + epsilon)
    return (normed * jnp.expand_dims(scale, range(inputs.ndim - 1))).astype(inputs.dtype)


def causal_convolution(
    inputs: jax.Array,
    kernel: jax.Array,
    buffer: jax.Array,
    segments: jax.Array | None = None,
    before: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    r"""Mixes every feature with its own last inputs: :math:`y_t = \sum_{j<W} w_j \odot x_{t-j}`.

    One call over a sequence, several over its pieces and one per token give the same numbers.

    Args:
      inputs: [B, T, F].
      kernel: [W, F]; row 0 weighs the current token, row j the one j places before.
      buffer: [B, W - 1, F], the inputs just before; zeros at the beginning of a document.
      segments: optional [B, T], the number of the document a token is in, non-decreasing. Tokens of other documents
        count as zeros.
      before: optional [B, W - 1], the documents of ``buffer``; None for document 0.

    Returns:
      The outputs [B, T, F] and the next ``buffer``.
    """
    batch, length, _ = inputs.shape
    width = kernel.shape[0]
    padded = jnp.concatenate([buffer, inputs], axis=1)
    taps = [padded[:, width - 1 - j : width - 1 - j + length] for j in range(width)]
    buffer = padded[:, length:]
    if segments is not None:
        before = jnp.zeros((batch, width - 1), segments.dtype) if before is None else before
        around = jnp.concatenate([before, segments], axis=1)
        taps = [
            jnp.where((around[:, width - 1 - j : width - 1 - j + length] == segments)[..., None], tap, 0)
            for j, tap in enumerate(taps)
        ]
        buffer = jnp.where((around[:, length:] == segments[:, -1:])[..., None], buffer, 0)
    outputs = taps[0] * kernel[0][None, None]
    for tap, weight in zip(taps[1:], kernel[1:], strict=True):
        outputs = outputs + tap * weight[None, None]
    return outputs, buffer


class RMSNorm(nn.Module):
    """:func:`rms_normalise` with a learned scale per feature, one at the start."""

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        return rms_normalise(inputs, self.param("scale", nn.initializers.ones, (inputs.shape[-1],), jnp.float32))


class Affine(nn.Module):
    """A learned scale and shift per channel, one and zero at the start."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (inputs.shape[-1],), jnp.float32).astype(self.dtype)
        shift = self.param("bias", nn.initializers.zeros, (inputs.shape[-1],), jnp.float32).astype(self.dtype)
        return inputs * jnp.expand_dims(scale, range(inputs.ndim - 1)) + jnp.expand_dims(shift, range(inputs.ndim - 1))


class CausalConvolution(nn.Module):
    """:func:`causal_convolution` with a learned kernel, normal with variance 1 / width at the start (our choice)."""

    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, inputs: jax.Array, buffer: jax.Array, segments: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        initial = nn.initializers.normal(self.width**-0.5)
        kernel = self.param("kernel", initial, (self.width, inputs.shape[-1]), jnp.float32).astype(self.dtype)
        members = sequence.members()
        if members == 1 or inputs.shape[1] % members:
            return causal_convolution(inputs, kernel, buffer, segments)
        split, end = P(ROWS, TIME, HEADS), P(ROWS, None, HEADS)
        run = on_own(_convolve_piece, (split, P(None, HEADS), end, P(ROWS, TIME)), (split, end))
        return run(inputs, kernel, buffer, segments)


def _convolve_piece(
    inputs: jax.Array, kernel: jax.Array, buffer: jax.Array, segments: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """:func:`causal_convolution` of one piece of a split sequence; the next buffer is that of the whole."""
    earlier = None
    if segments is not None:
        earlier = sequence.before(segments, jnp.zeros((inputs.shape[0], kernel.shape[0] - 1), segments.dtype))
    outputs, buffer = causal_convolution(inputs, kernel, sequence.before(inputs, buffer), segments, earlier)
    return outputs, ring.from_last(TIME, buffer)


class SwiGLU(nn.Module):
    r"""The gated feed-forward layer :math:`(\mathrm{SiLU}(x W_g) \odot x W_u) W_d`, without biases."""

    hidden: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, use_bias=False, dtype=self.dtype, name=name)

        gated = nn.silu(dense(self.hidden, "gate")(inputs)) * dense(self.hidden, "up")(inputs)
        return dense(inputs.shape[-1], "down")(gated)
