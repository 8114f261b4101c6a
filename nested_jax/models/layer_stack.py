"""A model's blocks one after the other: each written out, or the turns of a repeated pattern as one `jax.lax.scan`.

Of L blocks whose pattern has p, a stack holds p, `stack/blocks_0` to `stack/blocks_{p−1}`, with parameters [L/p, ...]:
block i is `stack/blocks_{i mod p}` at i // p. A program then has p blocks, whatever the depth. Scan over layers is
usual in JAX language models (MaxText, Levanter).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from nested_jax.models.block import Block, BlockState
from nested_jax.models.config import ModelConfig

STACK = "stack"
Run = Callable[[Block, Any, BlockState | None], tuple[Any, BlockState]]
"""What is done with a block: features and its state before → features and its state after."""

_POLICIES = {
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def blocks(config: ModelConfig, count: int) -> list[Block]:
    """The first blocks of a model, recomputed in the backward pass as `config.remat` says."""
    kind = Block
    if config.remat:
        policy = None if config.remat is True else _POLICIES[config.remat]
        kind = nn.remat(Block, methods=["__call__"], policy=policy, prevent_cse=not config.stacked)
    each = zip(config.kinds[:count], config.block_levels[:count], strict=True)
    return [kind(name, config, levels) for name, levels in each]


class Turn(nn.Module):
    """The blocks of one turn of the pattern; all turns, through `scan`.

    Attributes:
      config: the model's.
    """

    config: ModelConfig

    def setup(self):
        self.blocks = blocks(self.config, self.config.pattern)

    def through(self, run: Run, hidden: Any, states: Sequence[Any]) -> tuple[Any, tuple[BlockState, ...]]:
        """See :func:`loop`."""
        return loop(self.blocks, run, hidden, states)


def loop(blocks: Sequence[Block], run: Run, hidden: Any, states: Sequence[Any]) -> tuple[Any, tuple[BlockState, ...]]:
    """Runs blocks one after the other: features and states → features and the next states, one per block."""
    after = []
    for block, before in zip(blocks, states, strict=True):
        hidden, new = run(block, hidden, before)
        after.append(new)
    return hidden, tuple(after)


def scan(turn: Turn, run: Run, hidden: Any, states: Sequence[Any]) -> tuple[Any, tuple[BlockState, ...]]:
    """What :func:`loop` does, over all turns of a stack.

    Args:
      turn: one turn; its parameters have an axis of turns in front.
      run: as there.
      hidden: as there.
      states: one per block of the pattern, with the turns as second axis, [B, L/p, ...]; or None each.

    Returns:
      Features and the next states, likewise.
    """

    def body(turn: Turn, hidden: Any, states: Any) -> tuple[Any, Any]:
        return turn.through(run, hidden, states)

    config = turn.config
    return nn.scan(
        body,
        variable_axes={"params": 0, "diagnostics": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=1,
        out_axes=1,
        length=config.layers // config.pattern,
        check_constancy_invariants=False,
    )(turn, hidden, tuple(states))


def in_stack(path: str) -> bool:
    """Whether a parameter has an axis of turns in front.

    Args:
      path: as `stack/blocks_0/mlp/up/kernel`; that of an optimizer's state contains its parameter's.

    Example:
      >>> in_stack("stack/blocks_0/mlp/up/kernel"), in_stack("blocks_0/mlp/up/kernel")
      (True, False)
    """
    return STACK in path.split("/")


def stack_layers(tree: Any, config: ModelConfig) -> Any:
    """Parameters of blocks written out, as the parameters of a stack.

    Args:
      tree: any pytree with `blocks_0` to `blocks_{L−1}` in one or several of its dicts: parameters, their gradients,
        an optimizer's state.
      config: the model's, stacked or not.

    Returns:
      The tree with `stack` in their place, numbers copied.

    Raises:
      ValueError: if the tree has other blocks, or those that share a place in the pattern are not alike.

    Example:
      >>> config = ModelConfig(layers=2, blocks=("lstm",))
      >>> stacked = stack_layers({"blocks_0": {"w": jnp.zeros(3)}, "blocks_1": {"w": jnp.ones(3)}}, config)
      >>> stacked["stack"]["blocks_0"]["w"].shape
      (2, 3)
    """

    def stack(node: Any) -> Any:
        found = [node[f"blocks_{number}"] for number in range(config.layers) if f"blocks_{number}" in node]
        others = {name: part for name, part in node.items() if not _is_block(name)}
        if len(found) < config.layers or len(node) > len(others) + len(found):
            raise ValueError(f"tree: expected blocks_0 to blocks_{config.layers - 1}, got {sorted(node)}")
        turns = zip(*_turns(found, config), strict=True)
        return others | {STACK: {f"blocks_{place}": _stacked(turn, axis=0) for place, turn in enumerate(turns)}}

    return jax.tree.map(lambda node: stack(node) if _has_blocks(node) else node, tree, is_leaf=_has_blocks)


def unstack_layers(tree: Any, config: ModelConfig) -> Any:
    """The inverse of :func:`stack_layers`; also for what some layers of a stack record, [L/p] each.

    Example:
      >>> config = ModelConfig(layers=4, blocks=("lstm", "attention"))
      >>> stack = {"blocks_0": {"w": jnp.arange(2)}, "blocks_1": {"w": jnp.arange(2, 4)}}
      >>> params = unstack_layers({"stack": stack}, config)
      >>> {name: int(block["w"]) for name, block in sorted(params.items())}
      {'blocks_0': 0, 'blocks_1': 2, 'blocks_2': 1, 'blocks_3': 3}
    """

    def unstack(node: Any) -> Any:
        layers = {}
        for name, stack in node[STACK].items():
            place = int(name.removeprefix("blocks_"))
            for turn in range(config.layers // config.pattern):
                layers[f"blocks_{turn * config.pattern + place}"] = _taken(stack, turn, axis=0)
        return {name: part for name, part in node.items() if name != STACK} | layers

    return jax.tree.map(lambda node: unstack(node) if _has_stack(node) else node, tree, is_leaf=_has_stack)


def stack_states(states: Sequence[BlockState], config: ModelConfig) -> tuple[BlockState, ...]:
    """States of blocks written out, [B, ...] each, as those of a stack, [B, L/p, ...].

    Raises:
      ValueError: if there is not one per block, or those that share a place in the pattern are not alike.
    """
    if len(states) != config.layers:
        raise ValueError(f"states: expected one for each of {config.layers} blocks, got {len(states)}")
    return tuple(_stacked(turn, axis=1) for turn in zip(*_turns(states, config), strict=True))


def unstack_states(states: Sequence[BlockState], config: ModelConfig) -> tuple[BlockState, ...]:
    """The inverse of :func:`stack_states`."""
    turns = range(config.layers // config.pattern)
    return tuple(_taken(state, turn, axis=1) for turn in turns for state in states)


def _turns(each: Sequence[Any], config: ModelConfig) -> list[Sequence[Any]]:
    """What there is one of per block, turn by turn."""
    return [each[begin : begin + config.pattern] for begin in range(0, config.layers, config.pattern)]


def _is_block(name: Any) -> bool:
    return re.fullmatch(r"blocks_\d+", str(name)) is not None


def _has_blocks(node: Any) -> bool:
    return isinstance(node, dict) and any(map(_is_block, node))


def _has_stack(node: Any) -> bool:
    return isinstance(node, dict) and STACK in node


def _stacked(trees: Sequence[Any], axis: int) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis), *trees)


def _taken(tree: Any, turn: int, axis: int) -> Any:
    return jax.tree.map(lambda leaf: jnp.take(leaf, turn, axis), tree)
