"""Token by token: the definition of every memory, and the implementation for rules that allow no other.

For each token t of a chunk that starts at the weights W_0

    g_t = gradient of sum_j window[t, j] * objective(network(W_0; k_{t-j}), v_{t-j})
    W_t, state_t = rule(g_t, state_{t-1}, W_{t-1}; gates_t)
    y_t = network(W_t; q_t)                               # or W_{t-1}, or W_0

A rule that reads them is also given each layer's own inputs, recorded at W_0. With `chunk_size=1`, W_0 is W_{t-1}: the
exact online rule.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nested_jax import rules
from nested_jax.scan import structure
from nested_jax.scan.operations import Plain, layer_inputs
from nested_jax.scan.state import Carry, Chunk, Specification


def predict(spec: Specification, weights, x: jax.Array) -> jax.Array:
    """The memory's answer to one query: [D_k] -> [D_v]."""
    return spec.network(Plain(weights), x[None])[0]


def gradient(spec: Specification, weights, keys: jax.Array, values: jax.Array, importance: jax.Array):
    """The gradient of the window's loss `sum_i importance_i * objective(network(k_i), v_i)`, keys [c, D_k]."""

    def loss(weights):
        return jnp.sum(importance * spec.objective(spec.network(Plain(weights), keys), values))

    return jax.grad(loss)(weights)


def retained(spec: Specification, weights, rule_state, gates: Mapping[str, jax.Array]):
    """The already decayed weights, (1 - decay) W: what the rule makes of W with a zero gradient and an empty state.

    What it would give out without weights, such as noise, is left out.
    """
    owners = structure.owners(weights, rule_state)
    leaves, treedef = jax.tree.flatten(rule_state)
    quiet = treedef.unflatten(
        [leaf if owner is None else jnp.zeros_like(leaf) for leaf, owner in zip(leaves, owners, strict=True)]
    )
    step, nothing = structure.rule_step(spec.rule), jax.tree.map(jnp.zeros_like, weights)
    with_weights, without = (step(nothing, quiet, given, gates)[0] for given in (weights, nothing))
    return optax.apply_updates(weights, jax.tree.map(jnp.subtract, with_weights, without))


def write(spec: Specification, start, weights, rule_state, keys, values, importance, gates: Mapping[str, jax.Array]):
    """One token's step.

    Args:
      spec: the memory.
      start: the weights at which the gradient is taken.
      weights: the weights now.
      rule_state: the rule's state now.
      keys: [c, D_k], the window, oldest first.
      values: [c, D_v].
      importance: [c], the weights of their losses.
      gates: the token's gates.

    Returns:
      The weights and the rule's state after the token.
    """
    at = retained(spec, start, rule_state, gates) if spec.retain_first else start
    updates = gradient(spec, at, keys, values, importance)
    if rules.reads_inputs(spec.rule, weights):
        known: Mapping[str, Any] = {"inputs": layer_inputs(spec.network, at, keys), "importance": importance, **gates}
    else:
        known = gates
    updates, after = structure.rule_step(spec.rule)(updates, rule_state, weights, known)
    return optax.apply_updates(weights, updates), keep_types(after, rule_state)


def keep_types(new, old):
    """`new` with the dtypes of `old`, so that a state can be carried by a loop."""
    return jax.tree.map(lambda a, b: a.astype(b.dtype), new, old)


def chunk(spec: Specification, carry: Carry, tokens: Chunk) -> tuple[Carry, jax.Array]:
    """One chunk, token by token: the state after it (its window is the caller's) and y [C, D_v]."""
    start = carry.weights
    size = tokens.keys.shape[0] - tokens.queries.shape[0] + 1

    def token(state, inputs):
        position, query, gates, band = inputs
        weights, rule_state = state
        keys = jax.lax.dynamic_slice_in_dim(tokens.keys, position, size)
        values = jax.lax.dynamic_slice_in_dim(tokens.values, position, size)
        importance = jnp.ones(1, keys.dtype) if band is None else jax.lax.dynamic_slice_in_dim(band, position, size)
        after = write(spec, start, weights, rule_state, keys, values, importance, gates)
        seen = {"after": after[0], "before": weights, "start": start}[spec.read]
        return after, predict(spec, seen, query)

    positions = jnp.arange(tokens.queries.shape[0])
    inputs = (positions, tokens.queries, dict(tokens.gates), tokens.band)
    if tokens.queries.shape[0] == 1:
        after, y = token((carry.weights, carry.rule_state), jax.tree.map(lambda x: x[0], inputs))
        return Carry(*after, None), y[None]
    after, y = jax.lax.scan(token, (carry.weights, carry.rule_state), inputs)
    return Carry(*after, None), y
