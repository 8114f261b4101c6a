"""Ad-hoc level stacking: a trained Transformer's feed-forward layers become levels (Nested Learning §7.3)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from nested_jax.models.config import LevelConfig, ModelConfig
from nested_jax.models.language_model import LanguageModel
from nested_jax.models.level_layer import LevelLayer

_WEIGHTS = {"w1": "gate", "w2": "up", "w3": "down"}


def stack_levels(
    params: dict[str, Any], config: ModelConfig, levels: tuple[LevelConfig, ...], key: jax.Array
) -> tuple[dict[str, Any], ModelConfig]:
    """The same model with its feed-forward layers as levels that go on learning while they read.

    Block i becomes level i mod n: what was trained is where the level starts. Everything else is as it was, and with
    learning rates of 0 so are the logits. The projections to the levels' targets and their gates are new, drawn with
    `key`; they are for the training that follows. Levels compute in float32 or better, the layers before in `dtype`.

    Args:
      params: the trained model's.
      config: its config, without levels.
      levels: taken in turn by the blocks.
      key: a PRNG key.

    Returns:
      The parameters and the config of the model with levels.

    Raises:
      ValueError: if the model has levels already or its layers are stacked, there are none to give, or the parameters
        are of another model.

    Example:
      >>> config, levels = ModelConfig(dim=16, layers=2, blocks=("attention",)), (LevelConfig(period=32), LevelConfig())
      >>> def stacked(key):
      ...     params = LanguageModel(config).init(key, jnp.zeros((1, 1), jnp.int32))["params"]
      ...     return stack_levels(params, config, levels, key)[0]
      >>> shapes = jax.eval_shape(stacked, jax.random.key(0))
      >>> [sorted(shapes[f"blocks_{number}"]["levels_0"]) for number in range(2)]
      [['gates', 'initial', 'value'], ['down', 'gate', 'up']]

    References:
      Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025, §7.3.
    """
    if config.levels or not levels:
        raise ValueError(f"levels: expected some, for a model without levels, got {levels} for {config.levels}")
    if config.stacked:
        raise ValueError("config: expected layers that are not stacked, see unstack_layers, got stacked=True")
    after = dataclasses.replace(config, levels=tuple(levels), levels_per_block=1)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    _check(params, jax.eval_shape(LanguageModel(config).init, jax.random.key(0), tokens)["params"])
    stacked = {name: value for name, value in params.items() if not name.startswith("blocks_")}
    for number, (level,) in enumerate(after.block_levels):
        block = dict(params[f"blocks_{number}"])
        trained, norm = block.pop("mlp"), block.pop("mlp_norm")
        layer = trained
        if level.period is not None:
            initial = {name: trained[layer]["kernel"][None] for name, layer in _WEIGHTS.items()}
            new = LevelLayer(level.memory(after.level_hidden), config.dim, jnp.dtype(config.dtype))
            fresh = jax.jit(new.init)(jax.random.fold_in(key, number), jnp.zeros((1, 1, config.dim), config.dtype))[
                "params"
            ]
            layer = {**fresh, "initial": initial}
        stacked[f"blocks_{number}"] = block | {"level_norms_0": norm, "levels_0": layer}
    return stacked, after


def _check(params: Any, expected: Any) -> None:
    found, wanted = (jax.tree.map(jnp.shape, tree) for tree in (params, expected))
    if found != wanted:
        raise ValueError("params: expected those of a model of this config, got other names or shapes")
