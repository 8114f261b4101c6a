"""A memory that slower clocks put back to starts of their own, which learn at those clocks' pace (Nested Learning 72).

    owners 1, ..., n, slowest first, with periods C_1 > ... > C_n, each a multiple of the next; the last is the memory
    g_t = gradient of objective(network(W^n; k_t), v_t)                      at W^n, frozen inside a chunk of C_n
    G^s = sum_t learning_rate_t^s * g_t                                      over the chunk of owner s
    at the end of a chunk of owner s:  W^s = rule^s(G^s; other gates^s averaged over it),  then W^j = W^s for j > s

W^s is where the faster ones begin again. Its step is a first-order one: the gradients are those of the adapted weights
W^n, and what the start did to them by way of the steps between is left out. A rule that begins again has a new state.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nested_jax import rules
from nested_jax.scan import per_chunk
from nested_jax.scan.operations import Plain
from nested_jax.scan.state import Chunk, Specification, Tree, begin, select

Gates = Mapping[str, jax.Array]


class Copy(NamedTuple):
    """The memory's weights as one owner has them, and its chunk in progress.

    Attributes:
      weights: the start that the faster owners come back to; of the last owner, the weights that answer.
      rule_state: of the owner's rule.
      gradient: the weighted sum of the gradients of the chunk so far.
      gates: the sums of the owner's gates.
      count: tokens of the chunk so far.
    """

    weights: dict[str, jax.Array]
    rule_state: Tree
    gradient: dict[str, jax.Array]
    gates: dict[str, jax.Array]
    count: jax.Array


class RestartsState(NamedTuple):
    """A copy for each owner, slowest first, and the weights that a reset returns to."""

    copies: tuple[Copy, ...]
    initial: dict[str, jax.Array]


class Tokens(NamedTuple):
    """Keys [T, D_k], values [T, D_v], queries [T, D_k] and the rule's gates of every owner, [T] each."""

    keys: jax.Array
    values: jax.Array
    queries: jax.Array
    gates: tuple[Gates, ...]


def start(owners: Sequence[Specification], weights: Mapping[str, jax.Array]) -> RestartsState:
    """The state of a memory that has seen nothing: every owner has the same weights, in f32 or wider."""
    wide = {name: w.astype(jnp.promote_types(w.dtype, jnp.float32)) for name, w in weights.items()}
    return RestartsState(tuple(_fresh(owner, wide) for owner in owners), wide)


def _fresh(owner: Specification, weights: dict[str, jax.Array]) -> Copy:
    dtype = next(iter(weights.values())).dtype
    sums = {name: jnp.zeros((), dtype) for name in rules.gates(owner.rule, weights)}
    zeros = jax.tree.map(jnp.zeros_like, weights)
    return Copy(weights, begin(owner.rule, weights), zeros, sums, jnp.zeros((), jnp.int32))


def _end(
    owners: Sequence[Specification], copies: tuple[Copy, ...], number: int, given: Sequence[Gates]
) -> tuple[Copy, ...]:
    """The copies after the end of a chunk of owner `number`: it steps, the faster ones begin again."""
    owner, copy = owners[number], copies[number]
    sums = {name: copy.gates[name] for name in given[number]}
    gates = per_chunk.chunk_gates(sums, jnp.maximum(copy.count, 1))  # where a chunk is not open it is not looked at
    weights, rule_state = per_chunk.step(owner, copy.weights, copy.rule_state, copy.gradient, gates)
    own = _fresh(owner, weights)._replace(rule_state=rule_state)
    return (*copies[:number], own, *(_fresh(faster, weights) for faster in owners[number + 1 :]))


def _close(
    owners: Sequence[Specification], copies: tuple[Copy, ...], given: Sequence[Gates], ends: Sequence[jax.Array]
) -> tuple[Copy, ...]:
    """The copies after the chunks that are at their end, the fastest first."""
    for number in reversed(range(len(owners))):
        copies = select(ends[number], _end(owners, copies, number, given), copies)
    return copies


def _write(spec: Specification, copies: tuple[Copy, ...], tokens: Tokens) -> tuple[tuple[Copy, ...], jax.Array]:
    """Tokens of one chunk of the fastest owner: their answers, and every owner's sums after them."""
    weights, count = copies[-1].weights, tokens.keys.shape[0]
    after = []
    for copy, gates in zip(copies, tokens.gates, strict=True):
        chunk = Chunk(tokens.keys, tokens.values, jnp.ones(count, tokens.keys.dtype), tokens.queries, gates, None)
        found = per_chunk.totals(spec, "dual", weights, chunk)
        sums = {name: copy.gates[name] + gate for name, gate in found.gates.items()}
        gradient = jax.tree.map(jnp.add, copy.gradient, found.gradient)
        after.append(copy._replace(gradient=gradient, gates={**copy.gates, **sums}, count=copy.count + count))
    return tuple(after), spec.network(Plain(weights), tokens.queries)


def scan(
    spec: Specification,
    owners: Sequence[Specification],
    state: RestartsState,
    tokens: Tokens,
    reset: jax.Array | None,
) -> tuple[jax.Array, RestartsState]:
    """Runs the memory over a sequence, one nested loop per owner; chunks that are open end before it.

    Args:
      spec: the memory, its objective packed.
      owners: slowest first, the memory itself last.
      state: the state.
      tokens: the sequence.
      reset: bool [ceil(T / C_1)], one flag per chunk of the slowest owner.

    Returns:
      y [T, D_v] and the state after the last token; a chunk that is not full is left open for `step`.
    """
    given = tokens.gates
    beginning = tuple(_fresh(owner, state.initial) for owner in owners)

    def pieces(number: int, copies: tuple[Copy, ...], tokens: Tokens, flags: jax.Array | None):
        """Tokens as chunks of owner `number`, the last of which may be short."""
        size = owners[number].chunk_size
        full, rest = divmod(tokens.keys.shape[0], size)

        def body(copies: tuple[Copy, ...], xs: tuple[Tokens, jax.Array | None]):
            tokens, flag = xs
            return chunk(number, copies if flag is None else select(flag, beginning, copies), tokens)

        outputs = []
        if full:
            grouped = jax.tree.map(lambda x: x[: full * size].reshape(full, size, *x.shape[1:]), tokens)
            xs = grouped, None if flags is None else flags[:full]
            copies, y = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), copies, xs)
            outputs.append(y.reshape(full * size, -1))
        if rest:
            left = jax.tree.map(lambda x: x[full * size :], tokens)
            copies, y = body(copies, (left, None if flags is None else flags[full]))
            outputs.append(y)
        return copies, jnp.concatenate(outputs)

    def chunk(number: int, copies: tuple[Copy, ...], tokens: Tokens) -> tuple[tuple[Copy, ...], jax.Array]:
        last = number == len(owners) - 1
        copies, y = _write(spec, copies, tokens) if last else pieces(number + 1, copies, tokens, None)
        if tokens.keys.shape[0] == owners[number].chunk_size:
            copies = _end(owners, copies, number, given)
        return copies, y

    copies = _close(owners, state.copies, given, [copy.count > 0 for copy in state.copies])
    copies, y = pieces(0, copies, tokens, reset)
    return y, RestartsState(copies, state.initial)


def step(
    spec: Specification, owners: Sequence[Specification], state: RestartsState, tokens: Tokens
) -> tuple[jax.Array, RestartsState]:
    """One token, arrays with T = 1: y [1, D_v] and the state after it."""
    copies, y = _write(spec, state.copies, tokens)
    ends = [copy.count == owner.chunk_size for copy, owner in zip(copies, owners, strict=True)]
    return y, RestartsState(_close(owners, copies, tokens.gates, ends), state.initial)
