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
from nested_jax.scan.stages import Factored, Last, Layout, Prepared, Updates
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
    weights = carry.weights
    keep = stages.retained(spec, layouts, weights, prepared)
    keep = None if keep is None else {name: scale[:, None] for name, scale in keep.items()}
    factors = record(spec.network, spec.objective, weights, tokens.keys, tokens.values, tokens.live, keep)

    def finish(last: Last):
        after = {
            name: jnp.tensordot(r.Pe, last.z[name], axes=1) + last.updates.mix(name, r.Ke)
            for name, r in last.responses.items()
        }
        if spec.read == "start":
            return Plain(weights), after
        seen = last.responses
        if spec.read == "before":
            seen = {name: response.shift(r) for name, r in seen.items()}
        if isinstance(last.updates, Factored):
            if tokens.band is not None:
                seen = {name: r._replace(K=r.K @ tokens.band) for name, r in seen.items()}
            return Mixed(last.z, seen, factors.inputs, factors.errors), after
        rows = {
            name: jnp.tensordot(r.P, last.z[name], axes=1) + last.updates.mix(name, r.K) for name, r in seen.items()
        }
        return PerToken(rows), after

    gradients = Factored(factors, tokens.band)
    return stages.chunk(spec, plan, layouts, carry, tokens, prepared, gradients, by_response, finish)
