"""The memory layer: projections, convolutions, gates, a memory per head, output norm and gate (Titans §4.4)."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from nested_jax.memory import Cached, Memory, across, objectives
from nested_jax.memory.features import l2_normalise
from nested_jax.models import sequence
from nested_jax.models.config import MemoryConfig
from nested_jax.models.gates import Gate, Gates, gate_table
from nested_jax.models.layers import CausalConvolution, RMSNorm, at_least_float32
from nested_jax.models.placement import HEADS, ROWS, TIME, constrain, on_own

_STATES = P(ROWS, HEADS)  # [B, H, ...]


class MemoryLayerState(NamedTuple):
    """What a memory layer carries from one token to the next.

    Attributes:
      memory: the memory's own state with leading axes [B, H].
      convolution: the last inputs of the query, key and value convolutions, [B, width − 1, H · D] each; None without.
    """

    memory: Any
    convolution: dict[str, jax.Array] | None


def resets(segments: jax.Array, chunk_size: int) -> jax.Array:
    """Returns where documents begin, [B, ceil(T / chunk_size)], from the document number of each token, [B, T].

    Example:
      >>> resets(jnp.array([[0, 0, 1, 1, 1]]), 2).tolist()
      [[False, True, False]]
    """
    first = segments[:, ::chunk_size]
    before = segments[:, chunk_size - 1 :: chunk_size][:, : first.shape[1] - 1]
    return first != jnp.concatenate([jnp.zeros_like(first[:, :1]), before], axis=1)


def _fold(run: Callable[..., Any], state: Any, arguments: tuple[Any, ...], reset: jax.Array | None) -> Any:
    """Calls `run` with rows and heads on one leading axis, and takes them apart in what it returns.

    Args:
      run: (state, *arguments, reset), all with a leading axis [B · H], -> ([B · H, T, D], the next state), or None.
      state: with leading axes [B, H].
      arguments: [B, T, H, ...].
      reset: [B, C] or None.

    Returns:
      [B, T, H, D] and the next state; or None.
    """
    batch, length, heads = jax.tree.leaves(arguments)[0].shape[:3]
    before = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), state)
    folded = jax.tree.map(lambda x: jnp.moveaxis(x, 2, 1).reshape(batch * heads, length, *x.shape[3:]), arguments)
    found = run(before, *folded, None if reset is None else jnp.repeat(reset, heads, axis=0))
    if found is None:
        return None
    read, after = jax.tree.map(lambda x: x.reshape(batch, heads, *x.shape[1:]), found)
    return jnp.moveaxis(read, 1, 2), after


class Memories(nn.Module):
    """One memory per head of each row, with learned initial weights and gates: what a layer of them is built on.

    Attributes:
      config: the memory, heads, initial gates.
      dim: features of a token.
      dtype: of the layer around the memories, which run in float32 or better.
    """

    config: MemoryConfig
    dim: int
    dtype: DTypeLike = jnp.float32

    def setup(self):
        self.gates = Gates(self.gate_table(), self.config.heads, self.config.gate_rank)
        self.initial = self.param("initial", self._initial_weights)

    def gate_table(self) -> dict[str, Gate]:
        """The gates that the layer computes."""
        return gate_table(self.config, self._head_dim)

    @property
    def key_width(self) -> int:
        """Features of all heads' queries."""
        return self.config.heads * self._key_dim

    @property
    def _head_dim(self) -> int:
        return self.config.head_dim or self.dim // self.config.heads

    @property
    def _key_dim(self) -> int:
        return self.config.key_dim or self._head_dim

    def _initial_weights(self, key: jax.Array) -> dict[str, Any]:
        width, features = self._key_dim, self.config.features
        dim = (width if features is None else features.dim(width), self._head_dim)
        weights = jax.vmap(lambda k: self.config.memory.init(k, dim))(jax.random.split(key, self.config.heads))
        return jax.tree.map(jnp.float32, weights)

    def _initial_memory(self) -> dict[str, Any]:
        weights = jax.tree.map(lambda x: x.astype(at_least_float32(self.dtype)), self.initial)
        return jax.vmap(self.config.memory.constrain)(weights)

    def _fresh(self, batch_size: int) -> Any:
        """The learned initial weights for every row, [B, H, ...]."""
        one = jax.vmap(self.config.memory.start)(self._initial_memory())
        return constrain(jax.tree.map(lambda x: jnp.broadcast_to(x[None], (batch_size, *x.shape)), one), _STATES)

    def _scan(self, state: Any, arguments: tuple[Any, ...], segments: jax.Array | None) -> tuple[jax.Array, Any]:
        """T tokens, all heads and rows at once: what a memory's `scan` takes, [B, T, H, ...] -> [B, T, H, D], state."""
        batch, length, heads = jax.tree.leaves(arguments)[0].shape[:3]
        memory = self.config.memory
        if self.is_initializing():  # only the parameters matter then
            return jnp.zeros((batch, length, heads, self._head_dim), at_least_float32(self.dtype)), state
        reset = None if segments is None else resets(segments, memory.chunk_size)
        scan, time = jax.vmap(memory.scan), None
        if sequence.splits(memory, length):
            scan, time = functools.partial(across.scan_across, memory, TIME), TIME
        streams = P(ROWS, time, HEADS)
        run = on_own(functools.partial(_fold, scan), (_STATES, streams, P(ROWS, time)), (streams, _STATES))
        read, after = run(state, arguments, reset)
        if self.is_mutable_collection("diagnostics"):
            _fold(self._diagnose, state, arguments, reset)
        return read, after

    def _step(self, state: Any, arguments: tuple[Any, ...]) -> tuple[jax.Array, Any]:
        """One token: what a memory's `step` takes, [B, H, ...] -> [B, H, D] and the next state."""
        return jax.vmap(jax.vmap(self.config.memory.step))(state, *arguments)

    def _recall(self, state: Any, arguments: tuple[Any, ...]) -> jax.Array:
        """What memories answer to a token as they are, [B, H, D]."""
        _, _, query, _ = arguments
        return jax.vmap(jax.vmap(self.config.memory.recall))(state, query[:, :, None])[:, :, 0]

    def _diagnose(self, *arguments: Any) -> None:
        """Records gates and inner losses from what a scan was given."""
        state, keys, values, _, gates, reset = arguments
        memory = self.config.memory
        for name in self.gates.table:
            self._record(name, jnp.mean(gates[name]))
        if not isinstance(memory, Memory):
            return
        targets = objectives.pack(memory.objective, values, gates)
        for name, read in (("inner_loss", "start"), ("inner_loss_after", memory.read)):
            reader = dataclasses.replace(memory, read=read)
            found, _ = jax.vmap(reader.scan)(state, keys, values, keys, gates, reset)
            losses = jax.vmap(objectives.Packed(memory.objective))(found, targets)
            self._record(name, jnp.sum(losses) / math.prod(keys.shape[:2]))

    def _record(self, name: str, value: jax.Array) -> None:
        self.sow("diagnostics", name, value, reduce_fn=lambda _, new: new, init_fn=lambda: None)


class Mixer(Memories):
    """Memories in place of attention: norm per head and a SiLU gate before the output projection."""

    def setup(self):
        super().setup()
        self.norm = RMSNorm()
        self.gate = self.dense(self._head_dim)
        self.output = nn.Dense(self.dim, use_bias=False, dtype=self.dtype)

    def dense(self, width: int) -> nn.Dense:
        """A map to `width` features per head."""
        return nn.Dense(self.config.heads * width, use_bias=False, dtype=self.dtype)

    def streams(self) -> dict[str, int]:
        """What passes through a convolution, and its features per head."""
        raise NotImplementedError

    def arguments(
        self, inputs: jax.Array, buffers: dict[str, jax.Array] | None, segments: jax.Array | None
    ) -> tuple[tuple[Any, ...], dict[str, jax.Array] | None]:
        """What the memory's `scan` takes between state and reset, [B, T, H, ...], and the next convolution buffers."""
        raise NotImplementedError

    def start(self, batch_size: int) -> MemoryLayerState:
        """Returns the state before the first token: the learned initial weights for every row, empty buffers."""
        if not self.config.conv:
            return MemoryLayerState(self._fresh(batch_size), None)
        shape, heads = (batch_size, self.config.conv - 1), self.config.heads
        buffers = {name: jnp.zeros((*shape, heads * width), self.dtype) for name, width in self.streams().items()}
        return MemoryLayerState(self._fresh(batch_size), buffers)

    def __call__(
        self, inputs: jax.Array, state: MemoryLayerState | None = None, segments: jax.Array | None = None
    ) -> tuple[jax.Array, MemoryLayerState]:
        """Runs over T tokens, chunk by chunk, all heads and rows at once.

        Args:
          inputs: [B, T, dim].
          state: what came before; None at the beginning of a document.
          segments: optional [B, T], the document of each token; ``state`` is in document 0. Documents begin at chunk
            starts.

        Returns:
          [B, T, dim] and the next state.
        """
        read, state = self.read(inputs, state, segments)
        return self.output(read), state

    def step(
        self, inputs: jax.Array, state: MemoryLayerState, learn: bool = True
    ) -> tuple[jax.Array, MemoryLayerState]:
        """Runs one token: [B, dim] → [B, dim].

        Unless `learn`, the token is not written, and read from the weights as they are, whatever `memory.read` says.
        """
        read, state = self.read_step(inputs, state, learn)
        return self.output(read), state

    def read(
        self, inputs: jax.Array, state: MemoryLayerState | None, segments: jax.Array | None
    ) -> tuple[jax.Array, MemoryLayerState]:
        """What a call does before the output projection: [B, T, dim] → [B, T, H · D], normalised and gated."""
        state = self.start(inputs.shape[0]) if state is None else state
        arguments, convolution = self.arguments(inputs, state.convolution, segments)
        read, memory = self._scan(state.memory, arguments, segments)
        return self._gated(read, inputs), MemoryLayerState(memory, convolution)

    def read_step(
        self, inputs: jax.Array, state: MemoryLayerState, learn: bool = True
    ) -> tuple[jax.Array, MemoryLayerState]:
        """What a step does before the output projection: [B, dim] → [B, H · D]."""
        arguments, convolution = self.arguments(inputs[:, None], state.convolution, None)
        arguments = jax.tree.map(lambda x: x[:, 0], arguments)
        if learn:
            read, memory = self._step(state.memory, arguments)
        else:
            read, memory = self._recall(state.memory, arguments), state.memory
        return self._gated(read, inputs), MemoryLayerState(memory, convolution)

    def _convolve(
        self,
        projected: dict[str, jax.Array],
        convolutions: Mapping[str, CausalConvolution],
        buffers: dict[str, jax.Array] | None,
        segments: jax.Array | None,
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array] | None]:
        """Streams [B, T, H · D] through their convolutions, if there are any -> [B, T, H, D], and the next buffers."""
        if buffers is not None:
            mixed = {name: convolutions[name](x, buffers[name], segments) for name, x in projected.items()}
            projected = {name: x for name, (x, _) in mixed.items()}
            buffers = {name: buffer for name, (_, buffer) in mixed.items()}
        wide = at_least_float32(self.dtype)
        return {
            name: x.astype(wide).reshape(*x.shape[:2], self.config.heads, -1) for name, x in projected.items()
        }, buffers

    def _gated(self, read: jax.Array, inputs: jax.Array) -> jax.Array:
        normed = self.norm(read).reshape(*read.shape[:-2], -1).astype(self.dtype)
        return normed * nn.silu(self.gate(inputs))


class MemoryLayer(Mixer):
    """A sequence layer whose state is one memory per head, learning while it reads.

    As in Titans: linear q, k and v, each through a depthwise causal convolution and SiLU; q and k of length one;
    the memory; normalisation and a gate before the output projection. Our choice where Titans is silent: the norm is
    RMSNorm per head, the gate SiLU of a linear map (as in Gated DeltaNet), the memory's gates are those of
    :mod:`nested_jax.models.gates`, initial weights are learned per head (where the weights are a map of an accumulator,
    that is what is learned), there are no biases elsewhere, and v is divided by the root of its width to be about as
    long as k (the output norm makes up for it): a deep memory with longer targets needs larger weights, and then its
    frozen-gradient chunks diverge.

    Attributes:
      config: the memory, heads, convolution, features, initial gates.
      dim: features of a token.
      dtype: of projections; the memory itself runs in float32 or better.
    """

    def setup(self):
        super().setup()
        widths = self.streams()
        self.query, self.key, self.value = (self.dense(widths[name]) for name in ("query", "key", "value"))
        if self.config.conv:
            self.convolve_query, self.convolve_key, self.convolve_value = (
                CausalConvolution(self.config.conv, self.dtype) for _ in range(3)
            )
        if self._routed:
            self.route = self.dense(self._key_dim)
        if self.config.features is not None:
            self.coefficients = self.param("coefficients", lambda _: jnp.float32(self.config.features.coefficients()))

    def streams(self) -> dict[str, int]:
        """Queries, keys and values."""
        return {"query": self._key_dim, "key": self._key_dim, "value": self._head_dim}

    def project(self, inputs: jax.Array) -> dict[str, jax.Array]:
        """Queries, keys and values as they come from their maps, [..., H · D] each."""
        return {"query": self.query(inputs), "key": self.key(inputs), "value": self.value(inputs)}

    def arguments(
        self, inputs: jax.Array, buffers: dict[str, jax.Array] | None, segments: jax.Array | None
    ) -> tuple[tuple[Any, ...], dict[str, jax.Array] | None]:
        """Keys and queries (features of them), values, gates; with "route", what a cache is asked by."""
        projected = self.project(inputs)
        convolutions: dict[str, CausalConvolution] = {}
        if buffers is not None:
            convolutions = {"query": self.convolve_query, "key": self.convolve_key, "value": self.convolve_value}
        mixed, buffers = self._convolve(projected, convolutions, buffers, segments)
        query, key, value = (nn.silu(x) for x in mixed.values())
        query, key, value = l2_normalise(query), l2_normalise(key), value * self._head_dim**-0.5
        gates = self.gates(inputs)
        if self._routed:
            route = self.route(inputs).astype(at_least_float32(self.dtype))
            gates |= {"route": self.expand(route.reshape(*inputs.shape[:-1], self.config.heads, -1))}
        return (self.expand(key), value, self.expand(query), gates), buffers

    @property
    def _routed(self) -> bool:
        return isinstance(self.config.memory, Cached) and self.config.memory.routed

    def _recall(self, state: Any, arguments: tuple[Any, ...]) -> jax.Array:
        if not self._routed:
            return super()._recall(state, arguments)
        _, _, query, gates = arguments
        recall = cast(Cached, self.config.memory).recall
        return jax.vmap(jax.vmap(recall))(state, query[:, :, None], gates["route"][:, :, None])[:, :, 0]

    def expand(self, inputs: jax.Array) -> jax.Array:
        """Queries or keys [..., head_dim] as the memory gets them: the feature map, if there is one."""
        return inputs if self.config.features is None else self.config.features(inputs, self.coefficients)
