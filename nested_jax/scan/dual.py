"""The dual form: a chunk of a linear rule as masked attention over its own tokens (Titans §3.2, TTT §2.4).

Three passes over a chunk: *write* records every token's gradient in factors at the chunk's start weights; *read* sends
each query through the weights of its own token without forming them; *end* mixes the factors into the weights and the
rule's state after the chunk. Rules with a map that is not linear between linear ones (Atlas: momentum, Newton-Schulz,
decay) go stage by stage over formed updates. The naive code is `token.chunk`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from nested_jax.scan import response, stages
from nested_jax.scan.operations import Mixed, PerToken, Plain, record
from nested_jax.scan.plan import Plan
from nested_jax.scan.response import Response
from nested_jax.scan.stages import Factored, Layout, Prepared, Updates
from nested_jax.scan.state import Carry, Chunk, Specification
from nested_jax.scan.structure import System


def by_response(z: jax.Array, system: System, rolled: Response | None, name: str, updates: Updates):
    """A linear stage over formed updates, by its impulse response: outputs [C, ...leaf] and z after the chunk."""
    assert rolled is not None
    outputs = jnp.tensordot(rolled.P, z, axes=1) + updates.mix(name, rolled.K)
    return outputs, jnp.tensordot(rolled.Pe, z, axes=1) + updates.mix(name, rolled.Ke)


def chunk(
    spec: Specification,
    plan: Plan,
    layouts: Sequence[Layout],
    carry: Carry,
    tokens: Chunk,
    prepared: Sequence[Prepared],
) -> tuple[Carry, jax.Array]:
    """One chunk: the state after it (its window is the caller's) and y [C, D_v]."""
    weights, names = carry.weights, sorted(carry.weights)
    layout, ready = layouts[-1], prepared[-1]
    groups = dict(zip(names, layout.groups, strict=True))

    keep = {name: ready.systems[groups[name]].A[:, 0, 0, None] for name in names} if spec.retain_first else None
    factors = record(spec.network, spec.objective, weights, tokens.keys, tokens.values, tokens.live, keep)
    updates, rule_state = stages.walk(
        plan, layouts, prepared, weights, carry.rule_state, tokens.gates, Factored(factors, tokens.band), by_response
    )

    stage = plan.stages[-1]
    state = (weights, stage.states(rule_state))
    z = stages.gather(weights, state, layout)
    seen = ready.responses if spec.read == "after" else [response.shift(r) for r in ready.responses]
    if spec.read == "start":
        operations = Plain(weights)
    elif isinstance(updates, Factored):
        if updates.band is not None:
            seen = [r._replace(K=r.K @ updates.band) for r in seen]
        operations = Mixed(z, {name: seen[groups[name]] for name in names}, factors.inputs, factors.errors)
    else:
        rows = {name: seen[groups[name]] for name in names}
        operations = PerToken(
            {name: jnp.tensordot(r.P, z[name], axes=1) + updates.mix(name, r.K) for name, r in rows.items()}
        )
    y = spec.network(operations, tokens.queries)

    after = {}
    for name in names:
        rolled = ready.responses[groups[name]]
        after[name] = jnp.tensordot(rolled.Pe, z[name], axes=1) + updates.mix(name, rolled.Ke)
    weights, states = stages.scatter(weights, state, layout, after, ready.after)
    return Carry(weights, stage.replace(rule_state, states), None), y
