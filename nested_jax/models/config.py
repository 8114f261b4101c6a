"""The configuration of a language model: plain typed dataclasses, checked by ``validate``."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Literal

import jax
import optax

from nested_jax import rules
from nested_jax.memory import AnyMemory, Memory, SelfModifying, objectives
from nested_jax.memory.continuum import TOPOLOGIES, check_nested, check_periods
from nested_jax.memory.features import Polynomial
from nested_jax.memory.networks import GatedMLP
from nested_jax.memory.slots import SlotMemory
from nested_jax.scan.operations import Objective

BLOCKS = ("memory", "attention", "mag", "mal", "mac", "lact", "slots", "lstm")
HYBRIDS = frozenset(["mag", "mal", "mac", "lact"])
WITH_MEMORY, WITH_ATTENTION = HYBRIDS | {"memory"}, HYBRIDS | {"attention"}
DTYPES = ("float32", "bfloat16", "float64")
REMAT = (False, True, "dots", "dots_no_batch")


@dataclasses.dataclass(kw_only=True)
class MemoryConfig:
    """A memory layer: which memory, in how many heads, and where its gates start.

    Attributes:
      memory: the network, objective and rule, run once per head: `nj.Memory`, or one made of several (`nj.memory.TNT`,
        `nj.memory.Cached`, `nj.memory.SelfModifying`).
      heads: number of independent memories.
      head_dim: features of a head; None for dim / heads.
      key_dim: features of a head's keys and queries, before the feature map; None for head_dim.
      conv: width of the causal convolution after each of the q, k and v projections; 0 for none.
      features: feature map of q and k (Atlas §3.1), with learned Taylor weights; None for the identity.
      max_learning_rate: upper end of the learning rate, before its factor 1 − momentum; it starts at half of that. None
        for 1 / (chunk_size · window · |k|²), with which equal keys never move a linear memory beyond its target. A
        tuple has one for each part of a memory made of several. See :mod:`nested_jax.models.gates`.
      momentum: where the gate starts, in (0, 1): a number, or one per head.
      decay: where the gate starts, likewise.
      fixed: gates that stay where they start, the same at every token (RetNet's decay).
      gate_rank: None for gates of one number per token and head. Else gates are channel-wise, [head_dim], through a
        projection of this rank (MIRAS §5.3: 32 or 64); see :mod:`nested_jax.models.gates`. It changes no number at the
        start of training.
    """

    memory: AnyMemory | SelfModifying = dataclasses.field(default_factory=Memory)
    heads: int = 4
    head_dim: int | None = None
    key_dim: int | None = None
    conv: int = 4
    features: Polynomial | None = None
    max_learning_rate: float | tuple[float | None, ...] | None = None
    momentum: float | tuple[float, ...] = 0.5
    decay: float | tuple[float, ...] = 0.002
    fixed: tuple[str, ...] = ()
    gate_rank: int | None = None

    def validate(self) -> None:
        """Raises a ``ValueError`` that names the first field out of range."""
        _at_least("heads", self.heads, 1)
        for name in ("head_dim", "key_dim"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        _at_least("conv", self.conv, 0)
        if self.gate_rank is not None:
            _at_least("gate_rank", self.gate_rank, 1)
        for name in ("momentum", "decay"):
            given = getattr(self, name)
            starts = given if isinstance(given, tuple) else (given,) * self.heads
            if len(starts) != self.heads:
                raise ValueError(f"{name} must be a number or one for each of {self.heads} heads, got {len(starts)}")
            if not all(0 < start < 1 for start in starts):
                raise ValueError(f"{name} starts a sigmoid gate, expected inside (0, 1), got {given}")
        given, parts = self.max_learning_rate, self.memory.parts
        if isinstance(given, tuple) and len(given) != len(parts):
            raise ValueError(f"max_learning_rate must be one for each of {[*parts]}, or one number, got {given}")
        if not all(rate is None or rate > 0 for rate in (given if isinstance(given, tuple) else (given,))):
            raise ValueError(f"max_learning_rate must be positive or None, got {given}")
        if isinstance(self.memory, SelfModifying):
            gates = [name for name in self.memory.static if name in self.memory.gate_names]
            if gates:
                raise ValueError(f"memory.static must hold queries, keys and values only in a layer, got {gates}")
            for name in ("head_dim", "key_dim", "features", "max_learning_rate", "gate_rank"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} must be None where memories generate keys and gates, got a value")


@dataclasses.dataclass(kw_only=True)
class AttentionConfig:
    """Causal softmax attention, with rotary positions or with none.

    Attributes:
      heads: number of heads; dim / heads must be even.
      window: how many last tokens are seen, the current one included; None for all.
      max_length: the longest context where there is no window, hence the size of the cache.
      rope_base: base of the rotary frequencies; None for no positions but the order that causality gives.
      persistent: number of learned tokens that every token sees (Titans eq 19).
    """

    heads: int = 4
    window: int | None = None
    max_length: int = 4096
    rope_base: float | None = 10000.0
    persistent: int = 0

    def validate(self) -> None:
        """Raises a ``ValueError`` that names the first field out of range."""
        _at_least("heads", self.heads, 1)
        if self.window is not None:
            _at_least("window", self.window, 1)
        _at_least("max_length", self.max_length, 1)
        _at_least("persistent", self.persistent, 0)
        if self.rope_base is not None and not self.rope_base > 1:
            raise ValueError(f"rope_base must be above 1 or None, got {self.rope_base}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LevelConfig:
    """A feed-forward layer as a level of a continuum memory (Nested Learning 70-71).

    Attributes:
      period: tokens from one step of the level to its next; None for the plain layer, which never changes.
      rule: what is done with the gradient of a period; gates without a constant are computed per token.
      objective: of the layer's output and a learned projection of its input.
      max_learning_rate: upper end of the learning rate, which starts at half of that; None for
        1 / (8 · period · dim), see :class:`nested_jax.models.LevelLayer`.

    Example:
      >>> LevelConfig(period=32).memory(64).memory.chunk_size
      32
    """

    period: int | None = None
    rule: optax.GradientTransformation = dataclasses.field(default_factory=rules.gradient_descent)
    objective: Objective = objectives.l2
    max_learning_rate: float | None = None

    def validate(self) -> None:
        """Raises a ``ValueError`` that names the first field out of range."""
        if self.period is not None:
            _at_least("period", self.period, 1)
        if self.max_learning_rate is not None and not self.max_learning_rate > 0:
            raise ValueError(f"max_learning_rate must be positive or None, got {self.max_learning_rate}")

    def memory(self, hidden: int) -> MemoryConfig:
        """The level as a memory of one head, of a `hidden` width; not for one that never changes."""
        assert self.period is not None
        memory = Memory(
            GatedMLP(activation=jax.nn.silu, residual=False, hidden=hidden),
            self.objective,
            self.rule,
            chunk_size=self.period,
            step_per="chunk",
            read="start",
        )
        return MemoryConfig(memory=memory, heads=1, conv=0, max_learning_rate=self.max_learning_rate)


@dataclasses.dataclass(kw_only=True)
class ModelConfig:
    """A language model: embedding, a stack of blocks, tied or separate output weights.

    Attributes:
      vocab_size: number of token values; 256 for bytes.
      dim: features of a token.
      layers: number of blocks.
      blocks: kinds of block, repeated over the layers: ``("memory",)`` is Titans' LMM, ``("attention",)`` a
        Transformer++, ``("memory", "attention")`` alternates; ``"mag"``, ``"mal"`` and ``"mac"`` have memory and
        attention in one layer, as a gate, one after the other, and as context (Titans §4); ``"lact"`` has them on the
        same projections, added (LaCT §4); ``"slots"`` has slots that fade (CMS); ``"lstm"`` is a baseline.
      memory: of the blocks with a memory.
      attention: of the blocks with attention. A window is what makes them local, and MAC's segment.
      slots: of the blocks with slots.
      expansion: hidden features of the SwiGLU layers over dim, rounded up to a multiple of 8; of all levels of a block
        together, where there are levels.
      levels: the feed-forward part of a block as levels of a continuum memory, one pre-norm residual layer each, in the
        order of the chain. Empty: one SwiGLU layer.
      topology: how a block's levels stand to each other: "sequential", as said, or one layer of all of them, "nested"
        (a level begins again at every step of a slower one) or "independent" (a learned mean of their answers); see
        :class:`nested_jax.models.ContinuumLayer`.
      levels_per_block: None for all levels in every block. A number lets the blocks take so many each, in turn: 1 makes
        the feed-forward layers of successive blocks the levels (Nested Learning §7.3).
      tie_embeddings: whether the output weights are the embedding's.
      dtype: of the computation ("float32", "bfloat16", "float64"). Parameters are float32 always; memories, norms'
        sums and logits are float32 or better.
      remat: what of each block is computed again in the backward pass instead of being kept: False for nothing; True
        for everything but its input; "dots" for everything but its input and the results of matrix products;
        "dots_no_batch" likewise, but of products without batch axes only: the projections, not what memories and
        attention do per row and head.
      stacked: run the turns of the repeated pattern of blocks as one loop, so that compile time does not grow with
        depth. Parameters are then `stack/blocks_0/...` with an axis of turns in front, and a parameter's path stands
        for all turns; :func:`nested_jax.models.stack_layers` converts. The numbers are the same up to rounding, except
        that initial parameters are drawn from other keys.

    Example:
      >>> config = ModelConfig(dim=32, layers=4, blocks=("memory", "attention"))
      >>> config.validate()
      >>> config.kinds
      ('memory', 'attention', 'memory', 'attention')
    """

    vocab_size: int = 256
    dim: int = 128
    layers: int = 4
    blocks: tuple[str, ...] = ("memory",)
    memory: MemoryConfig = dataclasses.field(default_factory=MemoryConfig)
    attention: AttentionConfig = dataclasses.field(default_factory=AttentionConfig)
    slots: SlotMemory = dataclasses.field(default_factory=SlotMemory)
    expansion: float = 8 / 3
    levels: tuple[LevelConfig, ...] = ()
    topology: str = "sequential"
    levels_per_block: int | None = None
    tie_embeddings: bool = True
    dtype: str = "float32"
    remat: bool | Literal["dots", "dots_no_batch"] = False
    stacked: bool = False

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of each layer's block."""
        return tuple(itertools.islice(itertools.cycle(self.blocks), self.layers))

    @property
    def chunk_size(self) -> int:
        """The grid on which documents begin and states are handed over: the memory's or slots' chunk, else 1.

        With MAC it is the segment. With levels it is the longest of these and their periods.
        """
        slots = self.slots.chunk_size if "slots" in self.kinds else 1
        periods = [level.period for level in self.levels]
        return check_periods("levels, memory, slots", [self._mixer_grid, slots, *periods])

    @property
    def _mixer_grid(self) -> int:
        if "mac" in self.kinds and self.attention.window:
            return self.attention.window
        return self.memory.memory.chunk_size if WITH_MEMORY & set(self.kinds) else 1

    @property
    def hidden(self) -> int:
        """Hidden features of the SwiGLU layers of a block."""
        return -(-round(self.expansion * self.dim) // 8) * 8

    @property
    def level_hidden(self) -> int:
        """Hidden features of one level: a block's, divided among its levels, rounded up to a multiple of 8."""
        return -(-self.hidden // (8 * (self.levels_per_block or len(self.levels) or 1))) * 8

    @property
    def block_levels(self) -> tuple[tuple[LevelConfig, ...], ...]:
        """The levels of each layer's block."""
        count = self.levels_per_block or len(self.levels)
        turns = itertools.cycle(self.levels)
        return tuple(tuple(itertools.islice(turns, count)) for _ in range(self.layers))

    @property
    def pattern(self) -> int:
        """The number of blocks after which kinds and levels repeat."""
        each = list(zip(self.kinds, self.block_levels, strict=True))
        return next(size for size in range(1, self.layers + 1) if each[size:] == each[: self.layers - size])

    def validate(self) -> None:
        """Raises a ``ValueError`` that names the first field out of range."""
        for name in ("vocab_size", "dim", "layers"):
            _at_least(name, getattr(self, name), 1)
        if not self.expansion > 0:
            raise ValueError(f"expansion must be positive, got {self.expansion}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {DTYPES}, got {self.dtype!r}")
        if jax.dtypes.canonicalize_dtype(self.dtype) != self.dtype:
            raise ValueError("dtype 'float64' needs jax.config.update('jax_enable_x64', True)")
        if isinstance(self.blocks, str) or not self.blocks:
            raise ValueError(f"blocks must be a non-empty tuple of block kinds, got {self.blocks!r}")
        for kind in self.blocks:
            if kind not in BLOCKS:
                raise ValueError(f"blocks must hold kinds among {BLOCKS}, got {kind!r}")
        if WITH_MEMORY & set(self.kinds):
            self.memory.validate()
            hybrids = sorted(HYBRIDS & set(self.kinds))
            if hybrids and isinstance(self.memory.memory, SelfModifying):
                raise ValueError(f"blocks must be of 'memory' where memories generate keys and gates, got {hybrids}")
            if self.memory.head_dim is None and self.dim % self.memory.heads:
                raise ValueError(f"dim must be a multiple of memory.heads={self.memory.heads}, got {self.dim}")
        if "mac" in self.kinds and (self.attention.window or 0) % self.memory.memory.chunk_size:
            raise ValueError(
                f"attention.window must be a multiple of the memory's chunk_size={self.memory.memory.chunk_size} where "
                f"it is MAC's segment, got {self.attention.window}"
            )
        for level in self.levels:
            level.validate()
        if self.topology not in TOPOLOGIES:
            raise ValueError(f"topology must be one of {TOPOLOGIES}, got {self.topology!r}")
        if self.levels_per_block is not None:
            _at_least("levels_per_block", self.levels_per_block, 1)
            if not self.levels:
                raise ValueError(
                    f"levels_per_block must be None where there are no levels, got {self.levels_per_block}"
                )
        if self.topology == "nested":
            for levels in self.block_levels:
                check_nested("levels", [level.period for level in levels])
        if self.remat not in REMAT:
            raise ValueError(f"remat must be one of {REMAT}, got {self.remat!r}")
        if self.stacked and self.layers % self.pattern:
            raise ValueError(
                f"layers must be a multiple of the {self.pattern} blocks after which the pattern repeats where layers "
                f"are stacked, got {self.layers}"
            )
        _ = self.chunk_size
        if HYBRIDS & set(self.kinds) and self.attention.window is None:
            raise ValueError("attention.window must be given for blocks of memory and attention, got None")
        if "lact" in self.kinds:
            self._validate_shared()
        if WITH_ATTENTION & set(self.kinds):
            self.attention.validate()
            if self.dim % (2 * self.attention.heads):
                raise ValueError(
                    f"dim must be a multiple of 2 * attention.heads={2 * self.attention.heads} (rotary pairs), "
                    f"got {self.dim}"
                )

    def _validate_shared(self) -> None:
        """Memory and attention of one layer can share q, k and v."""
        window, memory = self.attention.window or 0, self.memory
        if window < memory.memory.chunk_size:
            raise ValueError(
                f"attention.window must be at least the memory's chunk_size={memory.memory.chunk_size} in blocks "
                f"'lact', got {window}"
            )
        for name in ("head_dim", "key_dim"):
            if getattr(memory, name) is not None:
                raise ValueError(
                    f"memory.{name} must be None in blocks 'lact', which share projections with attention, "
                    f"got {getattr(memory, name)}"
                )
        if self.attention.persistent:
            raise ValueError(f"attention.persistent must be 0 in blocks 'lact', got {self.attention.persistent}")


def _at_least(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
