"""What a memory carries from token to token, and the view of a chunk that every implementation gets."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from nested_jax.scan.operations import Network, Objective

Tree = Any


class Specification(Protocol):
    """What the engine has to know of a memory; `nested_jax.memory.Memory` is one."""

    @property
    def network(self) -> Network: ...
    @property
    def objective(self) -> Objective: ...
    @property
    def rule(self) -> optax.GradientTransformation: ...
    @property
    def chunk_size(self) -> int: ...
    @property
    def window(self) -> int: ...
    @property
    def step_per(self) -> str: ...
    @property
    def read(self) -> str: ...
    @property
    def retain_first(self) -> bool: ...
    @property
    def implementation(self) -> str: ...


class Window(NamedTuple):
    """The last `window - 1` tokens: keys [c-1, D_k], values [c-1, D_v], and how many of them are there."""

    keys: jax.Array
    values: jax.Array
    seen: jax.Array


class Open(NamedTuple):
    """A chunk in progress.

    Attributes:
      position: tokens of the chunk that were written, 0 between chunks.
      weights: the weights at the chunk's start, where its gradients are taken.
      rule_state: the rule's state at the chunk's start; with `step_per="chunk"` only, else None.
      gradient: the chunk's weighted gradient sum so far; with `step_per="chunk"` only, else None.
      gates: the sums of the chunk's gates so far; with `step_per="chunk"` only, else None.
    """

    position: jax.Array
    weights: Tree
    rule_state: Tree = None
    gradient: Tree = None
    gates: Tree = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MemoryState:
    """A memory's state: a pytree to save, copy, branch and carry on from.

    Attributes:
      weights: the network's dict of weights, as they are now.
      rule_state: what the rule carries.
      initial: the weights that a reset returns to.
      window: the last tokens, for `window > 1`, else None.
      open: the chunk in progress, for `chunk_size > 1`, else None.
    """

    weights: dict[str, jax.Array]
    rule_state: Tree
    initial: dict[str, jax.Array]
    window: Window | None
    open: Open | None

    @property
    def position(self) -> jax.Array | None:
        """Tokens of the open chunk that were written, 0 between chunks; None where there are no open chunks."""
        return None if self.open is None else self.open.position


class Carry(NamedTuple):
    """The part of the state that changes from chunk to chunk."""

    weights: Tree
    rule_state: Tree
    window: Window | None


class Chunk(NamedTuple):
    """One chunk of C tokens with the c - 1 tokens before it, S = c - 1 + C.

    keys [S, D_k], values [S, D_v], live [S] (0 where no token is), queries [C, D_k], gates name -> [C, ...],
    band [C, S]: the weight of token s in the loss at t (the window), None for a window of 1.
    """

    keys: jax.Array
    values: jax.Array
    live: jax.Array
    queries: jax.Array
    gates: Mapping[str, jax.Array]
    band: jax.Array | None


def select(flag: jax.Array, new: Tree, old: Tree) -> Tree:
    """`new` where the scalar `flag` is set, else `old`, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(flag, a, b), new, old)


def like(answers: jax.Array, given: jax.typing.ArrayLike) -> jax.Array:
    """Answers in the type of the values or queries, unless these are no floating-point numbers."""
    dtype = jnp.result_type(given)
    return answers.astype(dtype) if jnp.issubdtype(dtype, jnp.floating) else answers


def begin(rule: optax.GradientTransformation, weights: Mapping[str, jax.Array]) -> Tree:
    """The state of a rule at the start, of arrays alone."""
    return jax.tree.map(jnp.asarray, rule.init(dict(weights)))


def chunk_start(state: MemoryState) -> MemoryState:
    """The state with the weights at the start of the chunk that the next token is in."""
    if state.open is None:
        return state
    return dataclasses.replace(state, weights=select(state.open.position == 0, state.weights, state.open.weights))


def view(
    window: Window | None, keys: jax.Array, values: jax.Array, queries: jax.Array, gates: Mapping[str, jax.Array]
) -> tuple[Chunk, Window | None]:
    """A chunk together with the tokens its windows reach back to, and the window after it.

    Args:
      window: the tokens before the chunk, None for a window of 1.
      keys: [C, D_k].
      values: [C, D_v].
      queries: [C, D_k].
      gates: name -> [C, ...]; "window" [C, c] weighs the last c tokens at each t, newest first.

    Returns:
      The `Chunk`, without the gate "window", and the next `Window`.
    """
    rule_gates = {name: gate for name, gate in gates.items() if name != "window"}
    count = keys.shape[0]
    if window is None:
        return Chunk(keys, values, jnp.ones(count, keys.dtype), queries, rule_gates, None), None
    before = window.keys.shape[0]
    keys = jnp.concatenate([window.keys, keys.astype(window.keys.dtype)])
    values = jnp.concatenate([window.values, values.astype(window.values.dtype)])
    # A place without a token holds the oldest one: its loss counts for nothing, but has a derivative, where 0 may not.
    oldest = (jax.lax.dynamic_index_in_dim(x, before - window.seen) for x in (keys, values))
    live = jnp.concatenate([jnp.arange(before) >= before - window.seen, jnp.ones(count, bool)]).astype(keys.dtype)
    keys, values = (jnp.where(live[:, None] > 0, x, old) for x, old in zip((keys, values), oldest, strict=True))
    age = before + jnp.arange(count)[:, None] - jnp.arange(before + count)[None, :]
    inside = (age >= 0) & (age <= before)
    weights = jnp.take_along_axis(gates["window"], jnp.clip(age, 0, before), axis=1) if "window" in gates else 1.0
    band = jnp.where(inside, weights, 0.0).astype(keys.dtype) * live[None, :]
    after = Window(keys[count:], values[count:], jnp.minimum(window.seen + count, before))
    return Chunk(keys, values, live, queries, rule_gates, band), after
