"""`step_per="chunk"`: the rule steps once per chunk, on the sum of the chunk's gradients (continuum levels, LaCT).

    G = sum_t learning_rate_t * g_t            # all g_t at the chunk's start weights
    W = rule(G; learning_rate=1, every other gate averaged over the chunk)

A learning rate that is a constant of the rule stays inside the rule. Queries read the chunk's start weights.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nested_jax.scan import structure, token
from nested_jax.scan.materialize import gradients
from nested_jax.scan.operations import Plain
from nested_jax.scan.state import Carry, Chunk, Specification


def importance(gates: Mapping[str, jax.Array], tokens: Chunk) -> jax.Array:
    """[S], the weight of every token's loss in the chunk's gradient."""
    count = tokens.queries.shape[0]
    rates = gates.get("learning_rate", jnp.ones(count, tokens.keys.dtype))
    return rates * tokens.live if tokens.band is None else rates @ tokens.band


def chunk_gates(sums: Mapping[str, jax.Array], count) -> dict[str, jax.Array]:
    """The gates of the chunk's one step, from their sums over its `count` tokens."""
    return {name: jnp.ones_like(s) if name == "learning_rate" else s / count for name, s in sums.items()}


def step(spec: Specification, weights, rule_state, gradient, gates):
    """The rule's one step."""
    updates, after = structure.rule_step(spec.rule)(gradient, rule_state, weights, gates)
    return optax.apply_updates(weights, updates), token.keep_types(after, rule_state)


class Totals(NamedTuple):
    """A chunk's weighted gradient sum and the sums of its gates."""

    gradient: Any
    gates: dict[str, jax.Array]


def totals(spec: Specification, implementation: str, weights, tokens: Chunk) -> Totals:
    """The sums over a chunk's tokens, all gradients taken at `weights`.

    "dual" takes the chunk's gradient in one backward pass, "scan" token by token, "materialize" from all tokens'
    gradients.
    """
    if implementation == "dual":
        total = token.gradient(spec, weights, tokens.keys, tokens.values, importance(tokens.gates, tokens))
    elif implementation == "materialize":
        rates = tokens.gates.get("learning_rate", jnp.ones(tokens.queries.shape[0], tokens.keys.dtype))
        total = jax.tree.map(lambda g: jnp.tensordot(rates, g, axes=1), gradients(spec, weights, tokens))
    else:
        total = _token_by_token(spec, weights, tokens)
    return Totals(total, {name: jnp.sum(gate, 0) for name, gate in tokens.gates.items()})


def chunk(spec: Specification, implementation: str, carry: Carry, tokens: Chunk) -> tuple[Carry, jax.Array, Totals]:
    """One chunk: the state after it (its window is the caller's), y [C, D_v] and the chunk's sums."""
    found = totals(spec, implementation, carry.weights, tokens)
    gates = chunk_gates(found.gates, tokens.queries.shape[0])
    after = step(spec, carry.weights, carry.rule_state, found.gradient, gates)
    return Carry(*after, None), spec.network(Plain(carry.weights), tokens.queries), found


def _token_by_token(spec: Specification, weights, tokens: Chunk):
    def add(total, inputs):
        key, value, weight = inputs
        one = token.gradient(spec, weights, key[None], value[None], weight[None])
        return jax.tree.map(jnp.add, total, one), None

    inputs = (tokens.keys, tokens.values, importance(tokens.gates, tokens))
    return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, weights), inputs)[0]
