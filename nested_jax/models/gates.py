"""Gates of a memory layer: from one linear map of the token to learning rates, momenta and decays (Titans eqs 13-14).

Titans leaves the form of the gates open. Our choice, for every head by itself:

======================  =================================  ===============================
gate                    value at token t                   at the start, for every token
======================  =================================  ===============================
``learning_rate``       (1 − momentum_t) · m · sigmoid(z)  (1 − momentum) · m / 2
``momentum``            sigmoid(z)                         0.5
``decay``               sigmoid(z)                         0.002
``window`` (c of them)  sigmoid(z)                         0.5
any other               sigmoid(z)                         0.5
======================  =================================  ===============================

z = x W + b with W = 0 at the start; m = 1 / (chunk_size · window · |k|²) unless configured, |k|² being 1, or the sum of
the initial Taylor weights where there are features. A gate whose name ends in one of the first three
(``slow_momentum``) is of that kind.

Why this learning rate: gradients of a chunk are taken at the weights of its start, so the C writes of a run of equal
keys (a line of spaces) add up, each living on for 1 / (1 − momentum) steps. A linear memory overshoots its target when
learning_rate · C · |k|² / (1 − momentum) exceeds 1 and diverges beyond 2. The form above keeps that number below 1
whatever the gates learn; without the factor 1 − momentum small models diverged on such runs within 100 steps.
Newton-Schulz makes every step of the same length; a larger ``max_learning_rate`` may then suit a windowed rule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from nested_jax.models.config import MemoryConfig
from nested_jax.models.layers import at_least_float32


class Gate(NamedTuple):
    """One gate.

    Attributes:
      kind: "learning_rate", "momentum", "decay" or "other".
      initial: its value at the start; of a learning rate without the factor for momentum.
      maximum: the sigmoid's factor.
      size: numbers per token; None for a single one without an axis of its own.
    """

    kind: str
    initial: float
    maximum: float = 1.0
    size: int | None = None


def gate_table(config: MemoryConfig) -> dict[str, Gate]:
    """Returns the gates that the layer has to compute: those of rule and objective with no constant, and the window's.

    Args:
      config: the memory and the initial values.

    Returns:
      Gates by name, in the order of the rule.

    Example:
      >>> import nested_jax as nj
      >>> memory = nj.Memory(rule=nj.rules.titans(decay=0.0), chunk_size=32)
      >>> for name, gate in gate_table(MemoryConfig(memory=memory)).items():
      ...     print(name, gate.initial, gate.maximum)
      learning_rate 0.015625 0.03125
      momentum 0.5 1.0
    """
    memory, constants = config.memory, config.memory.gates()
    maximum = config.max_learning_rate
    if maximum is None:
        with jax.ensure_compile_time_eval():
            length = 1.0 if config.features is None else float(jnp.sum(config.features.coefficients()))
        maximum = 1 / (memory.chunk_size * memory.window * length)
        fixed = [float(c) for name, c in constants.items() if _kind(name) == "momentum" and isinstance(c, Real)]
        maximum *= math.prod(1 - c for c in fixed if c < 1)
    kinds = {
        "learning_rate": Gate("learning_rate", maximum / 2, maximum),
        "momentum": Gate("momentum", config.momentum),
        "decay": Gate("decay", config.decay),
        "other": Gate("other", 0.5),
    }
    table = {name: kinds[_kind(name)] for name, constant in constants.items() if constant is None}
    if memory.window > 1:
        table["window"] = Gate("other", 0.5, size=memory.window)
    return table


def _kind(name: str) -> str:
    return next((kind for kind in ("learning_rate", "momentum", "decay") if name.endswith(kind)), "other")


class Gates(nn.Module):
    """All gates of all heads from one linear map, computed in float32 or better.

    Attributes:
      table: what :func:`gate_table` returns.
      heads: number of heads.
    """

    table: Mapping[str, Gate]
    heads: int

    @nn.compact
    def __call__(self, inputs: jax.Array) -> dict[str, jax.Array]:
        """Returns each gate, [..., H], or [..., H, size] where it has a size, for inputs [..., dim]."""
        if not self.table:
            return {}
        sizes = [gate.size or 1 for gate in self.table.values()]
        share = np.repeat([gate.initial / gate.maximum for gate in self.table.values()], sizes)
        logits = np.tile(np.log(share) - np.log1p(-share), self.heads)
        raw = nn.DenseGeneral(
            (self.heads, sum(sizes)),
            dtype=at_least_float32(inputs.dtype),
            kernel_init=nn.initializers.zeros,
            bias_init=lambda _, shape, dtype: jnp.asarray(logits.reshape(shape), dtype),
            name="dense",
        )(inputs)
        parts = jnp.split(nn.sigmoid(raw), np.cumsum(sizes)[:-1], axis=-1)
        values = {
            name: gate.maximum * (part if gate.size else part[..., 0])
            for (name, gate), part in zip(self.table.items(), parts, strict=True)
        }
        momenta = [values[name] for name, gate in self.table.items() if gate.kind == "momentum"]
        for name, gate in self.table.items():
            if gate.kind == "learning_rate":
                for momentum in momenta:
                    values[name] = values[name] * (1 - momentum)
        return values
