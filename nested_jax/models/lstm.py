"""A long short-term memory layer (Hochreiter & Schmidhuber 1997): the recurrent baseline on formal languages."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from nested_jax.models.layers import at_least_float32
from nested_jax.models.placement import ROWS, on_own


class LSTMState(NamedTuple):
    """The cell and what it shows, [B, dim] each."""

    cell: jax.Array
    hidden: jax.Array


class LSTMLayer(nn.Module):
    r"""An LSTM over a sequence, with the parts that depend on the input alone computed for all tokens at once.

    .. math::
      (i, f, o, g)_t = x_t W_x + h_{t-1} W_h + b, \quad c_t = \sigma(f)\, c_{t-1} + \sigma(i) \tanh(g), \quad
      h_t = \sigma(o) \tanh(c_t)

    The forget gate's bias is 1 at the start; cell and hidden values are in float32 or better.

    Attributes:
      dim: features of a token, and of the cell.
      dtype: of the projection of the inputs.
    """

    dim: int
    dtype: DTypeLike = jnp.float32

    def setup(self):
        def bias(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
            del key
            return jnp.zeros(shape, dtype).at[self.dim : 2 * self.dim].set(1)

        self.inputs = nn.Dense(4 * self.dim, dtype=self.dtype, bias_init=bias)
        self.recurrent = self.param("recurrent", nn.initializers.orthogonal(), (self.dim, 4 * self.dim))
        self.output = nn.Dense(self.dim, use_bias=False, dtype=self.dtype)

    def start(self, batch_size: int) -> LSTMState:
        """Returns an empty cell."""
        zeros = jnp.zeros((batch_size, self.dim), at_least_float32(self.dtype))
        return LSTMState(zeros, zeros)

    def __call__(
        self, inputs: jax.Array, state: LSTMState | None = None, segments: jax.Array | None = None
    ) -> tuple[jax.Array, LSTMState]:
        """Runs over T tokens, one after the other.

        Args:
          inputs: [B, T, dim].
          state: what came before; None at the beginning of a document.
          segments: optional [B, T], the document of each token; `state` is in document 0.

        Returns:
          [B, T, dim] and the next state.
        """
        batch, length = inputs.shape[:2]
        wide = at_least_float32(self.dtype)
        state = self.start(batch) if state is None else state
        segments = jnp.zeros((batch, length), jnp.int32) if segments is None else segments
        begins = segments != jnp.concatenate([jnp.zeros_like(segments[:, :1]), segments[:, :-1]], axis=1)

        def run(state: LSTMState, xs: tuple[jax.Array, jax.Array], recurrent: jax.Array) -> tuple[LSTMState, jax.Array]:
            def token(state: LSTMState, xs: tuple[jax.Array, jax.Array]) -> tuple[LSTMState, jax.Array]:
                x, begin = xs
                cell, hidden = (jnp.where(begin[:, None], 0.0, part) for part in state)
                enter, forget, show, new = jnp.split(x + hidden @ recurrent, 4, axis=-1)
                cell = nn.sigmoid(forget) * cell + nn.sigmoid(enter) * jnp.tanh(new)
                hidden = nn.sigmoid(show) * jnp.tanh(cell)
                return LSTMState(cell, hidden), hidden

            return jax.lax.scan(token, state, xs)

        xs = (jnp.moveaxis(self.inputs(inputs).astype(wide), 1, 0), begins.T)
        by_row, by_place = P(ROWS), P(None, ROWS)
        state, read = on_own(run, (by_row, by_place, P()), (by_row, by_place))(state, xs, self.recurrent.astype(wide))
        return self.output(jnp.moveaxis(read, 0, 1).astype(self.dtype)), state

    def step(self, inputs: jax.Array, state: LSTMState) -> tuple[jax.Array, LSTMState]:
        """Runs one token: [B, dim] → [B, dim]."""
        outputs, state = self(inputs[:, None], state)
        return outputs[:, 0], state
