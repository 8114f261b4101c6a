"""The dual form: a chunk of a linear rule as masked attention over its own tokens (Titans §3.2, TTT §2.4).

Three passes over a chunk: *write* records every token's gradient in factors at the chunk's start weights; *read* sends
each query through the weights of its own token without forming them; *end* mixes the factors into the weights and the
rule's state after the chunk. Rules with a map that is not linear between linear ones (Atlas: momentum, Newton-Schulz,
decay) go stage by stage over formed updates. For delta gradient descent the recorded errors are first solved for what
each token finds in the weights (see `delta`). The naive code is `token.chunk`.
"""

from collections.abc import Sequence

import jax

from nested_jax.scan import delta, response, stages
from nested_jax.scan.operations import Mixed, PerToken, Plain, combine, mix, record
from nested_jax.scan.plan import Plan
from nested_jax.scan.response import Response
from nested_jax.scan.stages import Last, Layout, Prepared, Z
from nested_jax.scan.state import Carry, Chunk, Specification
from nested_jax.scan.structure import System
from nested_jax.scan.updates import Factored, LowRank, Updates


def after_chunk(z: Z, rolled: Response, name: str, updates: Updates) -> Z:
    """z after the chunk: `Pe z + sum_t Ke[:, t] u_t`."""
    written = [updates.mix(name, rolled.Ke[..., i, :]) for i in range(len(z))]
    return [sum((rolled.Pe[..., i, j] * part for j, part in enumerate(z)), new) for i, new in enumerate(written)]


def by_response(z: Z, system: System, rolled: Response | None, name: str, updates: Updates) -> tuple[jax.Array, Z]:
    """A linear stage over formed updates, by its impulse response: outputs [C, ...leaf] and z after the chunk."""
    assert rolled is not None
    outputs = combine(rolled.P, z) + mix(rolled.K, updates.formed()[name])
    return outputs, after_chunk(z, rolled, name, updates)


def chunk(
    spec: Specification,
    plan: Plan,
    layouts: Sequence[Layout],
    carry: Carry,
    tokens: Chunk,
    prepared: Sequence[Prepared],
) -> tuple[Carry, jax.Array]:
    """One chunk: the state after it (its window is the caller's) and y [C, D_v]."""
    weights = carry.weights
    keep = stages.retained(spec, layouts, weights, prepared)
    factors = record(spec.network, spec.objective, weights, tokens.keys, tokens.values, tokens.live, keep)
    if plan.erases:
        factors, ready, layout = delta.erased(plan, carry, tokens.gates, factors, prepared[0])
        prepared, layouts = [ready], [layout]
    prepared = stages.roll(prepared)

    def finish(last: Last):
        after = {name: after_chunk(last.z[name], r, name, last.updates) for name, r in last.responses.items()}
        if spec.read == "start":
            return Plain(weights), after
        seen = last.responses
        if spec.read == "before":
            seen = {name: response.shift(r) for name, r in seen.items()}
        if plan.map is None and isinstance(last.updates, Factored | LowRank):
            return Mixed(last.z, seen, last.updates), after
        formed = last.updates.formed()
        rows = {name: combine(r.P, last.z[name]) + mix(r.K, formed[name]) for name, r in seen.items()}
        if plan.map is not None:
            rows = jax.tree.map(jax.vmap(plan.map.forward), rows)
            if spec.read == "before":
                rows = {name: row.at[0].set(weights[name]) for name, row in rows.items()}
        return PerToken(rows), after

    gradients = Factored(factors, None if tokens.band is None else dict.fromkeys(weights, tokens.band))
    after, y = stages.chunk(spec, plan, layouts, plan.driven(carry), tokens, prepared, gradients, by_response, finish)
    return plan.written(carry, after), y
