"""Gates of a memory layer: from one linear map of the token to learning rates, momenta and decays (Titans eqs 13-14).

Titans leaves the form of the gates open. Our choice, for every head by itself:

=====================  ==========================  =======================================================
gate                   value at token t            at the start, for every token
=====================  ==========================  =======================================================
``learning_rate``      maximum · sigmoid(z + b)    (1 − momentum) / (C · window · |k|²), maximum 4 × that
``momentum``           sigmoid(z + b)              0.5
``decay``              sigmoid(z + b)              0.002
``window`` (c of them) sigmoid(z + b)              0.5
any other              sigmoid(z + b)              0.5
=====================  ==========================  =======================================================

z = x W with W = 0 at the start and b the logit of the initial value. A gate whose name ends in one of the first three
(``slow_momentum``) is of that kind. |k|² is 1, or the sum of the initial Taylor weights where there are features. Why
this learning rate: gradients of a chunk are taken at the weights of its start, so C writes along one key add up, each
living on for 1 / (1 − momentum) steps; a linear memory overshoots its target when
learning_rate · C · |k|² / (1 − momentum) exceeds 1, and diverges beyond 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from nested_jax import rules
from nested_jax.models.config import MemoryConfig
from nested_jax.models.layers import at_least_float32


class Gate(NamedTuple):
    """One gate: ``maximum`` · sigmoid, ``initial`` at the start; ``size`` numbers per token (None for a single one)."""

    initial: float
    maximum: float
    size: int | None


def gate_table(config: MemoryConfig) -> dict[str, Gate]:
    """Returns the gates that the layer has to compute: those of the rule that have no constant, and the window's.

    Args:
      config: the memory and the initial values.

    Returns:
      Gates by name, in the order of the rule.
    """
    memory = config.memory
    constants = rules.gates(memory.rule)
    momenta = [config.momentum if c is None else float(c) for name, c in constants.items() if name.endswith("momentum")]
    slowest = min([1 - m for m in momenta if m < 1], default=1.0)
    length = 1.0 if config.features is None else float(np.sum(config.features.coefficients()))
    learning_rate = config.learning_rate or slowest / (memory.chunk_size * memory.window * length)
    if config.max_learning_rate is None:
        maximum = 4 * learning_rate
    else:
        maximum = config.max_learning_rate
        learning_rate = min(learning_rate, maximum / 2)
    kinds = {
        "learning_rate": Gate(learning_rate, maximum, None),
        "momentum": Gate(config.momentum, 1.0, None),
        "decay": Gate(config.decay, 1.0, None),
    }
    table = {}
    for name, constant in constants.items():
        if constant is None:
            table[name] = next((gate for kind, gate in kinds.items() if name.endswith(kind)), Gate(0.5, 1.0, None))
    if memory.window > 1:
        table["window"] = Gate(0.5, 1.0, memory.window)
    return table


class Gates(nn.Module):
    """All gates of all heads from one linear map, computed in float32.

    Attributes:
      table: what :func:`gate_table` returns.
      heads: number of heads.
    """

    table: Mapping[str, Gate]
    heads: int

    @nn.compact
    def __call__(self, inputs: jax.Array) -> dict[str, jax.Array]:
        """Returns each gate, [..., H], or [..., H, size] where it has a size, for inputs [..., dim]."""
        sizes = [gate.size or 1 for gate in self.table.values()]
        share = np.concatenate(
            [np.full(size, g.initial / g.maximum) for g, size in zip(self.table.values(), sizes, strict=True)]
        )
        logits = np.broadcast_to(np.log(share) - np.log1p(-share), (self.heads, sum(sizes)))
        raw = nn.DenseGeneral(
            (self.heads, sum(sizes)),
            dtype=at_least_float32(inputs.dtype),
            kernel_init=nn.initializers.zeros,
            bias_init=lambda _, shape, dtype: jnp.asarray(logits.reshape(shape), dtype),
            name="dense",
        )(inputs)
        values = {}
        for (name, gate), start, size in zip(self.table.items(), np.cumsum([0, *sizes]), sizes, strict=False):
            part = gate.maximum * nn.sigmoid(raw[..., start : start + size])
            values[name] = part if gate.size else part[..., 0]
        return values
