"""The models of the papers' tables as configurations, in the papers' sizes.

A family is a memory (network, objective, rule, when gradients are taken) and a pattern of blocks. Blocks, width and
heads of a size are those of Atlas table 7 (Titans and MIRAS train the same sizes; 400m is in the texts only, and takes
340m's). What no paper prints is the width of the feed-forward layers: here it is chosen so that the model has as many
parameters as its name says, which also makes families of one size comparable.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nested_jax import rules
from nested_jax.memory import Memory, SelfModifying, objectives
from nested_jax.memory.features import Polynomial
from nested_jax.memory.networks import MLP, GatedMLP, Linear
from nested_jax.memory.slots import Level, SlotMemory
from nested_jax.models.config import AttentionConfig, LevelConfig, MemoryConfig, ModelConfig
from nested_jax.models.language_model import LanguageModel, parameter_count

VOCABULARY = 32_000


class Size(NamedTuple):
    """A size of model: "tiny" for tests, "small" to compare families of equal parameters on a CPU, "20m" on one GPU,
    both of bytes, then the papers'.

    Attributes:
      layers: blocks.
      dim: features of a token.
      heads: of memories and attention.
      parameters: that the name says; None to leave the feed-forward width as it is.
      vocabulary: token values.
      chunk: tokens of a chunk where the family does not say.
      omega: tokens of an Omega window.
      window: tokens that local attention sees; MAC's segments are an eighth.
      large: tokens of a large chunk, and of the window attention beside it (LaCT).
      key_dim: features of a key before polynomial features.
      periods: of the levels of a continuum memory; there is one more that never changes.
    """

    layers: int
    dim: int
    heads: int
    parameters: float | None = None
    vocabulary: int = VOCABULARY
    chunk: int = 64
    omega: int = 16
    window: int = 2048
    large: int = 2048
    key_dim: int = 16
    periods: tuple[int, ...] = (512, 128, 32)


SIZES = {
    "tiny": Size(2, 32, 2, vocabulary=256, chunk=8, omega=3, window=32, large=8, key_dim=4, periods=(8, 4)),
    "small": Size(2, 64, 4, 1.9e5, vocabulary=256, chunk=16, omega=4, window=64, large=64, key_dim=4, periods=(64, 16)),
    "20m": Size(
        8, 384, 6, 20e6, vocabulary=256, chunk=32, omega=8, window=256, large=256, key_dim=8, periods=(256, 64, 16)
    ),
    "170m": Size(12, 768, 16, 170e6),
    "340m": Size(24, 1024, 16, 340e6),
    "400m": Size(24, 1024, 16, 400e6),
    "760m": Size(24, 1536, 16, 760e6),
    "1.3b": Size(18, 2048, 8, 1.3e9),
}

Build = Callable[[Size], dict[str, Any]]
FAMILIES: dict[str, Build] = {}


def _memory(size: Size, memory: Memory, *blocks: str, **options: Any) -> dict[str, Any]:
    return {"blocks": blocks or ("memory",), "memory": MemoryConfig(memory=memory, heads=size.heads, **options)}


def _family(*names: str) -> Callable[[Build], Build]:
    def register(build: Build) -> Build:
        for name in names:
            FAMILIES[name] = build
        return build

    return register


def _titans(size: Size) -> Memory:
    return Memory(MLP(), rule=rules.titans(), chunk_size=size.chunk)


def _hybrid(base: str, kind: str) -> Build:
    """The family with its memory blocks replaced by hybrid ones."""

    def build(size: Size) -> dict[str, Any]:
        fields = FAMILIES[base](size)
        window = max(size.window // 8, size.chunk) if kind == "mac" else size.window
        attention = AttentionConfig(heads=size.heads, window=window, persistent=4)
        return fields | {"blocks": (kind,), "attention": attention}

    return build


def _alternating(base: str) -> Build:
    """The family's memory blocks and local attention in turn (Samba's pattern)."""

    def build(size: Size) -> dict[str, Any]:
        attention = AttentionConfig(heads=size.heads, window=size.window)
        return FAMILIES[base](size) | {"blocks": ("memory", "attention"), "attention": attention}

    return build


@_family("titans-lmm")
def _titans_lmm(size: Size) -> dict[str, Any]:
    """Titans eqs 8-15: MLP of depth 2, l2, momentum and decay."""
    return _memory(size, _titans(size))


def _polynomial(size: Size, memory: Memory) -> dict[str, Any]:
    """Keys and queries of few features, so that their monomials stay about as many as a head's features."""
    return _memory(size, memory, features=Polynomial(2), key_dim=size.key_dim)


@_family("omeganet")
def _omeganet(size: Size) -> dict[str, Any]:
    """Atlas eq 10 with momentum: the Omega rule over polynomial features."""
    network = MLP(residual=False)
    return _polynomial(size, Memory(network, rule=rules.omega(), chunk_size=size.chunk, window=size.omega))


@_family("atlas")
def _atlas(size: Size) -> dict[str, Any]:
    """Atlas eqs 32-33: the Omega rule's momentum, orthogonalised."""
    network = MLP(residual=False)
    return _polynomial(size, Memory(network, rule=rules.atlas(), chunk_size=size.chunk, window=size.omega))


@_family("atlas++")
def _atlas_gated(size: Size) -> dict[str, Any]:
    """Atlas eq 43: a gated MLP."""
    network = GatedMLP(residual=False)
    return _polynomial(size, Memory(network, rule=rules.atlas(), chunk_size=size.chunk, window=size.omega))


@_family("dla")
def _dla(size: Size) -> dict[str, Any]:
    """Atlas eq 19: deep linear attention, a dot product with decay."""
    rule = rules.gated_gradient_descent()
    return _memory(size, Memory(MLP(), objectives.dot_product, rule, chunk_size=size.chunk))


@_family("swla")
def _swla(size: Size) -> dict[str, Any]:
    """Atlas eq 20: sliding-window linear attention."""
    rule = rules.gated_gradient_descent()
    return _memory(size, Memory(Linear(), objectives.dot_product, rule, chunk_size=size.chunk, window=size.omega))


@_family("deep-transformer")
def _deep_transformer(size: Size) -> dict[str, Any]:
    """Atlas eqs 25-26: a dot product over the features of exp, nothing forgotten."""
    network, rule = MLP(residual=False), rules.gradient_descent()
    return _polynomial(size, Memory(network, objectives.dot_product, rule, chunk_size=size.chunk))


@_family("dot")
def _dot(size: Size) -> dict[str, Any]:
    """Atlas eq 27: the delta rule over a window and the features of exp, nothing forgotten."""
    network, rule = MLP(residual=False), rules.gradient_descent()
    return _polynomial(size, Memory(network, rule=rule, chunk_size=size.chunk, window=size.omega))


def _miras(size: Size, memory: Memory, **options: Any) -> dict[str, Any]:
    """Gates per channel by a projection of rank 32; the memory is x + LN(W1 σ(W2 x))."""
    return _memory(size, memory, gate_rank=min(32, size.dim // 4), **options)


@_family("moneta")
def _moneta(size: Size) -> dict[str, Any]:
    """MIRAS eqs 24-25, (p, q) = (3, 4); the map at the ends of chunks."""
    return _miras(size, Memory(MLP(norm=True), objectives.lp(3), rules.moneta(), chunk_size=size.chunk, read="start"))


@_family("yaad")
def _yaad(size: Size) -> dict[str, Any]:
    """MIRAS eq 26: l2 where the error is small, l1 beyond δ."""
    return _miras(size, Memory(MLP(norm=True), objectives.huber(), rules.yaad(), chunk_size=size.chunk))


@_family("memora")
def _memora(size: Size) -> dict[str, Any]:
    """MIRAS eq 27, the softmax at the ends of chunks; gates per token, as the softmax sees no decay per channel.

    The learning rate is not divided for the norm: the weights are shares of a softmax, and long chunks train as it is.
    """
    memory = Memory(MLP(norm=True), rule=rules.memora(axis=0), chunk_size=size.chunk, read="start")
    return _memory(size, memory, max_learning_rate=1 / size.chunk)


@_family("linear-attention")
def _linear_attention(size: Size) -> dict[str, Any]:
    """W ← W + k v^T."""
    memory = Memory(Linear(), objectives.dot_product, rules.gradient_descent(1.0), chunk_size=size.chunk)
    return _memory(size, memory)


def _decaying(size: Size) -> Memory:
    return Memory(Linear(), objectives.dot_product, rules.gated_gradient_descent(1.0), chunk_size=size.chunk)


@_family("gated-linear-attention")
def _gated_linear_attention(size: Size) -> dict[str, Any]:
    """W ← (1 − α_t) W + k v^T with a decay per token and head, as Mamba-2; GLA's is per channel."""
    return _memory(size, _decaying(size))


@_family("retnet")
def _retnet(size: Size) -> dict[str, Any]:
    """RetNet: linear attention whose head h keeps 1 − 2^(−5−h) of its weights at every token."""
    decays = tuple(2.0 ** (-5 - head) for head in range(size.heads))
    return _memory(size, _decaying(size), decay=decays, fixed=("decay",))


@_family("deltanet")
def _deltanet(size: Size) -> dict[str, Any]:
    """W ← W − β k (k W − v)^T, exact."""
    memory = Memory(Linear(), rule=rules.gradient_descent(), chunk_size=1)
    return _memory(size, memory, max_learning_rate=1.0)


def _gated_delta(largest: float) -> Build:
    def build(size: Size) -> dict[str, Any]:
        """Gated DeltaNet: the decay first, then the delta rule, exact."""
        memory = Memory(Linear(), rule=rules.gated_gradient_descent(), chunk_size=1, retain_first=True)
        return _memory(size, memory, max_learning_rate=largest)

    return build


FAMILIES |= {"gated-deltanet": _gated_delta(1.0), "gated-deltanet-2": _gated_delta(2.0)}


def _ttt(network: MLP, base: float | None = None) -> Build:
    def build(size: Size) -> dict[str, Any]:
        """TTT §2: x + LN(f(x)), the sum of the gradients of mini-batches of 16, at the usual learning rates.

        With a base: their running mean, and η = base / head_dim · sigmoid, as in public code.
        """
        batch = min(16, size.chunk)
        mean, largest = ([], None) if base is None else ([rules.running_mean(batch)], base * size.heads / size.dim)
        memory = Memory(network, rule=rules.chain(rules.scale_by_learning_rate(), *mean), chunk_size=batch)
        return _memory(size, memory, max_learning_rate=largest)

    return build


TTT_LINEAR, TTT_MLP = MLP(depth=1, norm=True), MLP(norm=True)
FAMILIES |= {"ttt-linear": _ttt(TTT_LINEAR), "ttt-linear-mean": _ttt(TTT_LINEAR, 1.0)}
FAMILIES |= {"ttt-mlp": _ttt(TTT_MLP), "ttt-mlp-mean": _ttt(TTT_MLP, 0.1)}


@_family("transformer++")
def _transformer(size: Size) -> dict[str, Any]:
    """Rotary attention over everything, SwiGLU, RMSNorm."""
    return {"blocks": ("attention",), "attention": AttentionConfig(heads=size.heads)}


@_family("sliding-window")
def _sliding_window(size: Size) -> dict[str, Any]:
    """The same over a window."""
    return {"blocks": ("attention",), "attention": AttentionConfig(heads=size.heads, window=size.window)}


def _lact(variant: str) -> Build:
    def build(size: Size) -> dict[str, Any]:
        """LaCT §3-4: SwiGLU fast weights, one step per large chunk, and window attention on the same projections.

        Newton-Schulz lifts what is small in a chunk's gradient, and sends back long gradients through chunks of equal
        bytes: a median norm of 240 where Yaad and Moneta have 2 to 6. Clip them (`OptimizerConfig` does).
        """
        network = GatedMLP(expansion=1, activation=jax.nn.silu, residual=False)
        rule = rules.lact(variant=variant)
        options: dict[str, Any] = {"chunk_size": size.large, "step_per": "chunk", "read": "start"}
        attention = AttentionConfig(heads=size.heads, window=size.large)
        memory = Memory(network, objectives.dot_product, rule, **options)
        return _memory(size, memory, "lact", conv=0) | {"attention": attention}

    return build


FAMILIES |= {"lact": _lact("muon"), "lact-momentum": _lact("momentum"), "lact-gd": _lact("gradient_descent")}


@_family("slots")
def _slots(size: Size) -> dict[str, Any]:
    """CMS §8.3 and §10: three levels of slots, decays 0.1, 0.05 and 0.01; slower ones have more and wider slots."""
    slots, width = min(64, size.dim // 8), size.dim // 4
    levels = tuple(Level(slots * 2**n, width * 2**n, decay) for n, decay in enumerate((0.1, 0.05, 0.01)))
    key_dim = min(64, size.dim // size.heads)
    memory = SlotMemory(levels, key_dim, event_dim=size.dim // 2, context_dim=size.dim, chunk_size=size.chunk)
    return {"blocks": ("slots",), "slots": memory}


@_family("lstm")
def _lstm(size: Size) -> dict[str, Any]:
    """The recurrent baseline of Nested Learning's table 5."""
    return {"blocks": ("lstm",)}


def _levels(size: Size) -> tuple[LevelConfig, ...]:
    return (LevelConfig(), *(LevelConfig(period=period) for period in size.periods))


@_family("hope")
def _hope(size: Size) -> dict[str, Any]:
    """NL 94-97: a self-modifying memory, then a continuum memory in place of the feed-forward layer."""
    memory = Memory(rule=rules.hope(), chunk_size=size.chunk, read="start")
    generators = dataclasses.replace(memory, chunk_size=max(size.chunk // 8, 1))
    config = MemoryConfig(memory=SelfModifying(memory, generators), heads=size.heads)
    return {"memory": config, "levels": _levels(size)}


@_family("hope-attention")
def _hope_attention(size: Size) -> dict[str, Any]:
    """NL §8.3: attention over everything, then a continuum memory."""
    return _transformer(size) | {"levels": _levels(size)}


FAMILIES |= {f"titans-{kind}": _hybrid("titans-lmm", kind) for kind in ("mac", "mag", "mal")}
FAMILIES |= {f"{base}-{kind}": _hybrid(base, kind) for base in ("omeganet", "atlas") for kind in ("mag", "mal")}
FAMILIES |= {f"{base}-h": _alternating(base) for base in ("moneta", "yaad", "memora", "gated-deltanet")}


def family(name: str, size: str | Size = "tiny", **fields: Any) -> ModelConfig:
    """A model of the papers' tables.

    Args:
      name: one of `FAMILIES`.
      size: one of `SIZES`, or one of one's own; those with a number have that many parameters, to within 8 feed-forward
        features per block or level.
      **fields: fields of `ModelConfig` to replace; the parameters are counted with them.

    Returns:
      The configuration.

    Raises:
      ValueError: for an unknown family or size; if the size has too few parameters for what is not feed-forward.

    Example:
      >>> config = family("titans-mag", "170m")
      >>> config.kinds[:2], config.dim, config.attention.window
      (('mag', 'mag'), 768, 2048)
      >>> round(count(config) / 1e6)
      170
    """
    for what, given, known in (("family", name, FAMILIES), ("size", size, SIZES)):
        if isinstance(given, str) and given not in known:
            raise ValueError(f"{what} must be one of {', '.join(known)}, got {given!r}")
    found = size if isinstance(size, Size) else SIZES[size]
    common: dict[str, Any] = {"vocab_size": found.vocabulary, "dim": found.dim, "layers": found.layers}
    config = ModelConfig(**common | FAMILIES[name](found) | fields)
    if found.parameters is None or "expansion" in fields:
        return config
    hidden = config.hidden + (found.parameters - count(config)) / (3 * config.dim * config.layers)
    if hidden < 8:
        raise ValueError(f"size {size} has {found.parameters:.3g} parameters, fewer than {name!r} without feed-forward")
    return dataclasses.replace(config, expansion=hidden / config.dim)


def count(config: ModelConfig) -> int:
    """The parameters of a model; nothing is computed, only shapes, of one block of every kind and its levels."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)

    def block(kind: str, levels: tuple[LevelConfig, ...]) -> int:
        fields = {"blocks": (kind,), "layers": 1, "levels": levels, "levels_per_block": None, "stacked": False}
        one = LanguageModel(dataclasses.replace(config, **fields))
        return parameter_count(jax.eval_shape(one.init, jax.random.key(0), tokens)["params"]["blocks_0"])

    kinds = list(zip(config.kinds, config.block_levels, strict=True))
    blocks = {kind: block(*kind) for kind in set(kinds)}
    ends = config.vocab_size * config.dim * (1 if config.tie_embeddings else 2) + config.dim
    return sum(blocks[kind] for kind in kinds) + ends
