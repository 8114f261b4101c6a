"""Networks: the function that is the memory (Titans §3.1; Atlas eqs 42-43; TTT §2.7).

A network holds no weights. `init(key, dim_k, dim_v)` makes them, a flat dict; calling it with `operations` and tokens x
[T, D_k] gives [T, D_v]. It is written once against the two operations of `nested_jax.scan.operations`, and thereby runs
plainly, recorded, or with every token's own weights.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from nested_jax.scan.operations import Operations

_LAYER_NORM_EPSILON = 1e-6


def _matrix(key: jax.Array, dim_in: int, dim_out: int) -> jax.Array:
    return jax.random.normal(key, (dim_in, dim_out)) / jnp.sqrt(jnp.float32(dim_in))


def _positive(name: str, value, least: int = 1) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}: expected an integer >= {least}, got {value!r}")


def _residual(network: str, x: jax.Array, y: jax.Array) -> jax.Array:
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"{network}(residual=True): expected keys and values of one width, got {x.shape[-1]} and {y.shape[-1]}; "
            "set residual=False"
        )
    return x + y


@dataclasses.dataclass(frozen=True)
class Linear:
    """`M(x) = x @ w`: weights {"w": [D_k, D_v]}, zero at the start.

    Example:
      >>> import jax, nested_jax as nj
      >>> {name: w.shape for name, w in nj.networks.Linear().init(jax.random.key(0), 8, 4).items()}
      {'w': (8, 4)}
    """

    def init(self, key: jax.Array, dim_k: int, dim_v: int) -> dict[str, jax.Array]:
        """Initial weights: zeros, so that an unwritten memory answers 0 (our choice; Titans is silent)."""
        del key
        return {"w": jnp.zeros((dim_k, dim_v))}

    def dims(self, weights: Mapping[str, jax.Array]) -> tuple[int, int]:
        """(D_k, D_v) of some weights."""
        return weights["w"].shape[0], weights["w"].shape[1]

    def __call__(self, operations: Operations, x: jax.Array) -> jax.Array:
        """[T, D_k] -> [T, D_v]."""
        return operations.dense("w", x)


@dataclasses.dataclass(frozen=True)
class MLP:
    """A multi-layer perceptron, `M(x) = x + norm(act(x @ w1) @ w2)` at depth 2.

    Weights {"w1": [D_k, H], "w2": [H, D_v], ...} with H = expansion × D_v; with `bias` also {"b1", ...}, with `norm`
    {"gain"}.

    Attributes:
      depth: layers, >= 1. Depth 1 without residual is `Linear`, with its weight called "w1".
      expansion: hidden width as a multiple of D_v, >= 1.
      activation: any function of arrays, between the layers.
      residual: whether the input is added; needs D_k = D_v.
      norm: whether the last layer's output passes through a LayerNorm with a learnable gain (TTT: x + LN(f(x))).
      bias: whether dense layers have a bias.

    Example:
      >>> import jax, nested_jax as nj
      >>> {name: w.shape for name, w in nj.networks.MLP().init(jax.random.key(0), 8, 8).items()}
      {'w1': (8, 32), 'w2': (32, 8)}

    References:
      Titans §3.1 (depth 1-4); Atlas eq 42 (2 layers, expansion 4, GELU, residual: the defaults); TTT §2.7 (norm).
    """

    depth: int = 2
    expansion: int = 4
    activation: Callable[[jax.Array], jax.Array] = jax.nn.gelu
    residual: bool = True
    norm: bool = False
    bias: bool = False

    def __post_init__(self):
        _positive("MLP(depth)", self.depth)
        _positive("MLP(expansion)", self.expansion)

    def init(self, key: jax.Array, dim_k: int, dim_v: int) -> dict[str, jax.Array]:
        """Initial weights: normal with variance 1 / fan-in (our choice; Titans is silent), biases 0, gain 1."""
        widths = self.widths(dim_k, dim_v)
        weights = {}
        for layer, subkey in enumerate(jax.random.split(key, self.depth), 1):
            weights[f"w{layer}"] = _matrix(subkey, widths[layer - 1], widths[layer])
            if self.bias:
                weights[f"b{layer}"] = jnp.zeros(widths[layer])
        if self.norm:
            weights["gain"] = jnp.ones(dim_v)
        return weights

    def widths(self, dim_k: int, dim_v: int) -> list[int]:
        """Features of the input, of every hidden layer and of the output."""
        return [dim_k, *[self.expansion * dim_v] * (self.depth - 1), dim_v]

    def dims(self, weights: Mapping[str, jax.Array]) -> tuple[int, int]:
        """(D_k, D_v) of some weights."""
        return weights["w1"].shape[0], weights[f"w{self.depth}"].shape[1]

    def __call__(self, operations: Operations, x: jax.Array) -> jax.Array:
        """[T, D_k] -> [T, D_v]."""
        h = x
        for layer in range(1, self.depth + 1):
            h = operations.dense(f"w{layer}", self.activation(h) if layer > 1 else h)
            if self.bias:
                h = h + operations.vector(f"b{layer}")
        if self.norm:
            h = operations.vector("gain") * _layer_norm(h)
        return _residual("MLP", x, h) if self.residual else h


@dataclasses.dataclass(frozen=True)
class GatedMLP:
    """The gated MLP of Atlas++, `M(x) = x + (act(x @ w1) * (x @ w2)) @ w3`.

    Weights {"w1": [D_k, H], "w2": [D_k, H], "w3": [H, D_v]} with H = expansion × D_v, or `hidden`.

    Attributes:
      expansion: hidden width as a multiple of D_v, >= 1.
      activation: any function of arrays.
      residual: whether the input is added; needs D_k = D_v.
      hidden: hidden width, >= 1; None for expansion × D_v.

    Example:
      >>> import jax, nested_jax as nj
      >>> {name: w.shape for name, w in nj.networks.GatedMLP(expansion=2).init(jax.random.key(0), 8, 8).items()}
      {'w1': (8, 16), 'w2': (8, 16), 'w3': (16, 8)}

    References:
      Atlas eq 43 (its W_2, W_3, W_1 are our w1, w2, w3); LaCT §3.
    """

    expansion: int = 4
    activation: Callable[[jax.Array], jax.Array] = jax.nn.gelu
    residual: bool = True
    hidden: int | None = None

    def __post_init__(self):
        _positive("GatedMLP(expansion)", self.expansion)
        if self.hidden is not None:
            _positive("GatedMLP(hidden)", self.hidden)

    def init(self, key: jax.Array, dim_k: int, dim_v: int) -> dict[str, jax.Array]:
        """Initial weights: normal with variance 1 / fan-in (our choice)."""
        hidden = self.hidden or self.expansion * dim_v
        shapes = {"w1": (dim_k, hidden), "w2": (dim_k, hidden), "w3": (hidden, dim_v)}
        keys = jax.random.split(key, len(shapes))
        return {name: _matrix(k, *shape) for k, (name, shape) in zip(keys, shapes.items(), strict=True)}

    def dims(self, weights: Mapping[str, jax.Array]) -> tuple[int, int]:
        """(D_k, D_v) of some weights."""
        return weights["w1"].shape[0], weights["w3"].shape[1]

    def __call__(self, operations: Operations, x: jax.Array) -> jax.Array:
        """[T, D_k] -> [T, D_v]."""
        hidden = self.activation(operations.dense("w1", x)) * operations.dense("w2", x)
        h = operations.dense("w3", hidden)
        return _residual("GatedMLP", x, h) if self.residual else h


def _layer_norm(x: jax.Array) -> jax.Array:
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + _LAYER_NORM_EPSILON)
