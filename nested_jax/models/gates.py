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
the initial Taylor weights where there are features. Behind a LayerNorm m is also divided by the width H of the layer
before it. A gate whose name ends in one of the first three
(``slow_momentum``) is of that kind.

A start may be given for every head, and gates named in ``fixed`` stay there: W = 0 and b are no parameters then.
A memory of several parts (:class:`nested_jax.memory.TNT`) has the gates of each under its name, with an m of its own.

With ``gate_rank=r`` gates are channel-wise, vectors [head_dim] that act on weights as :func:`nested_jax.rules.scale`
says, and z = (x A) W + b, where A [dim, r] is shared by gates and heads (MIRAS §5.3). Our choice: all channels start at
the value above; ``window`` goes through A too and stays one number per place; with ``step_per="chunk"``, whose one step
averages the rule's gates over a chunk, these stay one number per token, and only the objective's are channel-wise.

Why this learning rate: gradients of a chunk are taken at the weights of its start, so the C writes of a run of equal
keys (a line of spaces) add up, each living on for 1 / (1 − momentum) steps. A linear memory overshoots its target when
learning_rate · C · |k|² / (1 − momentum) exceeds 1 and diverges beyond 2. The form above keeps that number below 1
whatever the gates learn; without the factor 1 − momentum small models diverged on such runs within 100 steps.
With x + LN(h W), h of H features and W's entries of variance 1 / H, the norm divides by a standard deviation of
|h| / √H, its gradient does so once more, and h comes in squared: a step moves the answer H times as far as it would for
h of length one without the norm. Without the factor 1 / H gradients of 1e14 came back through chunks of 64 of Yaad;
with it the loss fell faster, too. Newton-Schulz makes every step of the same length; a larger ``max_learning_rate`` may
then suit a windowed rule.

The price is recall: in a long chunk a token writes little. Where a deep memory has to look up what it has read, shorter
chunks help: with 4 tokens in the place of 16 Titans found 98 to 100 % of the values of associative recall where it had
found 28 to 77 %; a linear memory does not need them (`experiments/titans/recall.py`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from numbers import Real
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from nested_jax import rules
from nested_jax.memory import Memory, objectives
from nested_jax.memory.networks import MLP
from nested_jax.models.config import MemoryConfig
from nested_jax.models.layers import at_least_float32


class Gate(NamedTuple):
    """One gate.

    Attributes:
      kind: "learning_rate", "momentum", "decay" or "other".
      initial: its value at the start, or that of every head; of a learning rate without the factor for momentum.
      maximum: the sigmoid's factor.
      size: numbers per token and head; None for a single one without an axis of its own.
      fixed: whether it stays at `initial`.
      part: of the memory that reads it, in `memory.parts`.
    """

    kind: str
    initial: float | tuple[float, ...]
    maximum: float = 1.0
    size: int | None = None
    fixed: bool = False
    part: str = ""

    def scaled(self, share: float) -> Gate:
        """The gate with another unit."""
        starts = self.initial
        initial = tuple(share * start for start in starts) if isinstance(starts, tuple) else share * starts
        return self._replace(initial=initial, maximum=share * self.maximum)


def gate_table(config: MemoryConfig, head_dim: int | None = None) -> dict[str, Gate]:
    """Returns the gates that the layer has to compute: those of rule and objective with no constant, and the window's.

    Args:
      config: the memory and the initial values.
      head_dim: features of a head, where they are not in the config and there is a `gate_rank`, or a norm in the
        network.

    Returns:
      Gates by name, in the order of the rule.

    Raises:
      ValueError: if there is a `gate_rank`, and the memory has no channel-wise gates or its rule cannot use them; if a
        name in `fixed` is no gate without a constant.

    Example:
      >>> import nested_jax as nj
      >>> memory = nj.Memory(rule=nj.rules.titans(decay=0.0), chunk_size=32)
      >>> for name, gate in gate_table(MemoryConfig(memory=memory)).items():
      ...     print(name, gate.initial, gate.maximum)
      learning_rate 0.015625 0.03125
      momentum 0.5 1.0
    """
    channels = config.head_dim or head_dim
    if config.gate_rank is not None and channels is None:
        raise ValueError("head_dim: expected the features of a head, as there is a gate_rank, got None")
    table: dict[str, Gate] = {}
    given, parts = config.max_learning_rate, config.memory.parts
    largest = given if isinstance(given, tuple) else (given,) * len(parts)
    for (part, memory), maximum in zip(parts.items(), largest, strict=True):
        prefix = f"{part}_" if part else ""
        for name, gate in _part_table(config, memory, channels, prefix, maximum).items():
            table[prefix + name] = gate._replace(part=part)
    for name in config.fixed:
        if name not in table:
            raise ValueError(f"fixed: expected gates without a constant, {[*table]}, got {name!r}")
    return table


def _part_table(
    config: MemoryConfig, memory: Memory, channels: int | None, prefix: str, maximum: float | None
) -> dict[str, Gate]:
    """The gates of one of the layer's memories; in `fixed` they have the prefix of its name."""
    constants = memory.gates()
    if maximum is None:
        with jax.ensure_compile_time_eval():
            length = 1.0 if config.features is None else float(jnp.sum(config.features.coefficients()))
        maximum = 1 / (memory.chunk_size * memory.window * length * _norm_factor(config, memory, channels))
        fixed = [float(c) for name, c in constants.items() if _kind(name) == "momentum" and isinstance(c, Real)]
        maximum *= math.prod(1 - c for c in fixed if c < 1)
    kinds = {
        "learning_rate": Gate("learning_rate", maximum / 2, maximum),
        "momentum": Gate("momentum", config.momentum),
        "decay": Gate("decay", config.decay),
        "other": Gate("other", 0.5),
    }
    table = {name: kinds[_kind(name)] for name, constant in constants.items() if constant is None}
    for name in table:
        if prefix + name in config.fixed:
            table[name] = table[name]._replace(fixed=True)
    if config.gate_rank is not None and channels is not None:
        learned = [name for name, gate in table.items() if not gate.fixed]
        for name in _channel_wise(config, memory, learned, channels):
            table[name] = table[name]._replace(size=channels)
    if memory.window > 1:
        table["window"] = Gate("other", 0.5, size=memory.window)
    return table


def _norm_factor(config: MemoryConfig, memory: Memory, channels: int | None) -> int:
    """H where the network ends in a LayerNorm, else 1."""
    network = memory.network
    if not isinstance(network, MLP) or not network.norm:
        return 1
    if channels is None:
        raise ValueError("head_dim: expected the features of a head, as the memory's network has a norm, got None")
    return network.widths(_key_width(config, channels), channels)[-2]


def _key_width(config: MemoryConfig, channels: int) -> int:
    """Features of a key as the memory gets it."""
    width = config.key_dim or channels
    return width if config.features is None else config.features.dim(width)


def _channel_wise(config: MemoryConfig, memory: Memory, names: Collection[str], channels: int) -> list[str]:
    """Which of a memory's gates are channel-wise, where there is a `gate_rank`."""
    of_rule = [name for name in rules.gates(memory.rule) if name in names and memory.step_per == "token"]
    of_objective = [name for name in objectives.gates(memory.objective) if name in names]
    if not of_rule and not of_objective:
        raise ValueError(
            f"gate_rank: expected None, as no gate of this memory is channel-wise (step_per={memory.step_per!r}, gates "
            f"without a constant: {[*names]}), got {config.gate_rank}"
        )
    if not of_rule:
        return of_objective

    def step(weights: Mapping[str, jax.Array], gates: Mapping[str, jax.Array]) -> optax.Updates:
        rule = optax.with_extra_args_support(memory.rule)
        return rule.update(weights, rule.init(weights), weights, **gates)[0]

    dim = (_key_width(config, channels), channels)
    weights = jax.eval_shape(lambda key: memory.init(key, dim), jax.random.key(0))
    try:
        jax.eval_shape(step, weights, {name: jax.ShapeDtypeStruct((channels,), jnp.float32) for name in of_rule})
    except ValueError as error:
        raise ValueError(
            f"gate_rank: expected None, as the rule cannot apply gates of {channels} channels to the memory's weights, "
            f"got {config.gate_rank}. {error}"
        ) from error
    return of_rule + of_objective


def _kind(name: str) -> str:
    return next((kind for kind in ("learning_rate", "momentum", "decay") if name.endswith(kind)), "other")


class Gates(nn.Module):
    """All gates of all heads from one linear map, of low rank or not, computed in float32 or better.

    Attributes:
      table: what :func:`gate_table` returns.
      heads: number of heads.
      rank: of the map; None for a full one.
    """

    table: Mapping[str, Gate]
    heads: int
    rank: int | None = None

    @nn.compact
    def __call__(self, inputs: jax.Array) -> dict[str, jax.Array]:
        """Returns each gate, [..., H], or [..., H, size] where it has a size, for inputs [..., dim]."""
        dtype = at_least_float32(inputs.dtype)
        values = self._learned(inputs, dtype)
        for name, gate in self.table.items():
            if gate.fixed:
                starts = np.broadcast_to(self._starts(gate)[:, None], (self.heads, gate.size or 1))
                start = jnp.asarray(starts if gate.size else starts[:, 0], dtype)
                values[name] = jnp.broadcast_to(start, (*inputs.shape[:-1], *start.shape))
        momenta = [(gate.part, values[name]) for name, gate in self.table.items() if gate.kind == "momentum"]
        for name, gate in self.table.items():
            if gate.kind == "learning_rate":
                for part, momentum in momenta:
                    values[name] = values[name] * (1 - momentum) if part == gate.part else values[name]
        return {name: values[name] for name in self.table}

    def _starts(self, gate: Gate) -> np.ndarray:
        """[H]."""
        return np.broadcast_to(np.asarray(gate.initial, float), (self.heads,))

    def _learned(self, inputs: jax.Array, dtype: jnp.dtype) -> dict[str, jax.Array]:
        """The gates that depend on the token; a learning rate without its factor for momentum."""
        table = {name: gate for name, gate in self.table.items() if not gate.fixed}
        if not table:
            return {}
        sizes = [gate.size or 1 for gate in table.values()]
        share = np.stack([self._starts(gate) / gate.maximum for gate in table.values()], axis=1).repeat(sizes, axis=1)
        logits = np.log(share) - np.log1p(-share)
        if self.rank is not None:
            inputs = nn.Dense(self.rank, use_bias=False, dtype=dtype, name="reduce")(inputs)
        raw = nn.DenseGeneral(
            (self.heads, sum(sizes)),
            dtype=dtype,
            kernel_init=nn.initializers.zeros,
            bias_init=lambda _, shape, dtype: jnp.asarray(logits.reshape(shape), dtype),
            name="dense",
        )(inputs)
        parts = jnp.split(nn.sigmoid(raw), np.cumsum(sizes)[:-1], axis=-1)
        return {
            name: gate.maximum * (part if gate.size else part[..., 0])
            for (name, gate), part in zip(table.items(), parts, strict=True)
        }
