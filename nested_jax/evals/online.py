"""Learning from the text that is being read, by the next-token loss: slow levels at test time (Nested Learning 71).

    score chunk n at the parameters as they are, with the carried state
    G_l += Σ_{t in chunk} ∇_{W_l} nats_t
    at the end of a period of C_l tokens:  W_l ← W_l + rule_l(G_l / C_l),  G_l = 0

Prequential: nothing is learned from a byte before it is scored.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from nested_jax.evals.bits_per_byte import Params, nats, whole_chunks


@dataclass(frozen=True, kw_only=True)
class OnlineLevel:
    """Parameters that go on learning at one pace.

    Attributes:
      parameters: regular expression, searched in the parameter's path (`blocks_0/mlp/up/kernel`).
      period: bytes from one step to the next, in which the parameters do not move; a multiple of the chunk.
      rule: what is done with the mean gradient of a period, learning rate and sign included (`optax.sgd(0.1)`).
    """

    parameters: str
    period: int
    rule: optax.GradientTransformation


@dataclass(frozen=True)
class OnlineChunk:
    """One chunk, scored before it was learned from.

    Attributes:
      end: bytes read by its end.
      bits_per_byte: over the chunk.
      params: the parameters after it.
    """

    end: int
    bits_per_byte: float
    params: Params


def learn_online(
    model: nn.Module, params: Params, tokens: np.ndarray, levels: Sequence[OnlineLevel], *, chunk: int = 512
) -> Iterator[OnlineChunk]:
    r"""Reads one text in constant memory, chunk by chunk, while chosen parameters go on learning from it.

    The paper's levels follow the task's loss, which for a language model at test time is that of the bytes it has
    read. Gradients are those of each chunk, the carried state taken as given (truncated backpropagation). What a
    memory's weights are when its learned start moves stays as it is: a start shows after the next reset. The gradient
    of a period is its mean, so that learning rates are of the size of training's (our choice; the equation prints a
    sum).

    Args:
      model: a `LanguageModel`.
      params: its trained parameters; they are not changed.
      tokens: uint8 [N], N ≥ chunk + 1; the bytes after the last whole chunk are left out.
      levels: who learns, and how; the first whose expression matches wins, and what none matches stays as it is.
      chunk: bytes per call, rounded down to the model's chunk grid (at least one chunk).

    Yields:
      An `OnlineChunk` after another, from the beginning of the text to its end.

    Raises:
      ValueError: if the text is shorter than a chunk, an expression is none or matches nothing, or a period is not a
        multiple of the chunk.

    Example:
      >>> from nested_jax.models import LanguageModel, ModelConfig
      >>> model = LanguageModel(ModelConfig(dim=8, layers=1, blocks=("lstm",)))
      >>> params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
      >>> level = OnlineLevel(parameters="mlp", period=16, rule=optax.sgd(0.1))
      >>> text = np.frombuffer(b"to be or not to be, " * 3, np.uint8)
      >>> [found.end for found in learn_online(model, params, text, [level], chunk=16)]
      [16, 32, 48]

    References:
      Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025, equation (71). Across the steps of
      training it is :class:`nested_jax.train.optimizer.Group`.
    """
    if chunk < 1:
        raise ValueError(f"chunk is a number of bytes, at least 1; got {chunk}")
    chunk, count = whole_chunks(model, tokens, chunk)
    chosen = _choose(params, levels, chunk)
    return _read(model, params, tokens, levels, chosen, chunk, count)


def _choose(params: Params, levels: Sequence[OnlineLevel], chunk: int) -> list[list[int]]:
    """The leaves of each level, by their place in the tree."""
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(params)]
    free = dict(enumerate(names))
    chosen = []
    for number, level in enumerate(levels):
        if level.period < 1 or level.period % chunk:
            raise ValueError(f"levels[{number}].period must be a multiple of the chunk, {chunk}; got {level.period}")
        try:
            found = [place for place, name in free.items() if re.search(level.parameters, name)]
        except re.error as error:
            raise ValueError(f"levels[{number}].parameters: {level.parameters!r} is no expression: {error}") from None
        if not found:
            raise ValueError(
                f"levels[{number}].parameters: {level.parameters!r} matches none of {sorted(free.values())}"
            )
        free = {place: name for place, name in free.items() if place not in found}
        chosen.append(found)
    return chosen


def _read(model, params, tokens, levels, chosen, chunk: int, count: int) -> Iterator[OnlineChunk]:
    leaves, tree = jax.tree.flatten(params)

    @jax.jit
    def score(groups, leaves, state, window):
        """The chunk's nats, the gradient of each level, and the next state."""

        def loss(groups):
            full = list(leaves)
            for places, group in zip(chosen, groups, strict=True):
                for place, leaf in zip(places, group, strict=True):
                    full[place] = leaf
            logits, after = model.apply({"params": tree.unflatten(full)}, window[None, :-1], state)
            return jnp.sum(nats(logits[0], window[1:])), after

        (value, after), gradient = jax.value_and_grad(loss, has_aux=True)(groups)
        return value, gradient, after

    @jax.jit
    def add(total, gradient):
        return jax.tree.map(jnp.add, total, gradient)

    def make_step(level: OnlineLevel):
        @jax.jit
        def step(group, rule_state, total):
            updates, rule_state = level.rule.update([g / level.period for g in total], rule_state, group)
            return optax.apply_updates(group, updates), rule_state

        return step

    steps = [make_step(level) for level in levels]
    groups = [[leaves[place] for place in places] for places in chosen]
    rule_states = [level.rule.init(group) for level, group in zip(levels, groups, strict=True)]
    totals: list[Any] = [None] * len(levels)
    state = jax.jit(lambda params: model.apply({"params": params}, 1, method="start"))(params)
    for number in range(count):
        window = jnp.asarray(tokens[number * chunk : (number + 1) * chunk + 1].astype(np.int32))
        value, gradients, state = score(groups, leaves, state, window)
        end = (number + 1) * chunk
        for place, level in enumerate(levels):
            found = gradients[place]
            totals[place] = found if totals[place] is None else add(totals[place], found)
            if end % level.period == 0:
                groups[place], rule_states[place] = steps[place](groups[place], rule_states[place], totals[place])
                totals[place] = None
                for leaf, new in zip(chosen[place], groups[place], strict=True):
                    leaves[leaf] = new
        yield OnlineChunk(end, float(value) / chunk / math.log(2), tree.unflatten(leaves))
