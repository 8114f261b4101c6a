"""Materialised weights: every token's gradient and weights formed, linear stages by `jax.lax.associative_scan`.

An oracle of its own for the chunk-parallel forms, and what most public ports of Titans do. Memory grows with
tokens × weights; the dual form gives the same numbers without it.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from nested_jax.scan import stages, token
from nested_jax.scan.operations import PerToken
from nested_jax.scan.plan import Plan
from nested_jax.scan.response import Response
from nested_jax.scan.stages import Last, Layout, Prepared, Z
from nested_jax.scan.state import Carry, Chunk, Specification
from nested_jax.scan.structure import System
from nested_jax.scan.updates import Formed, Updates


def trajectory(z: Z, system: System, updates: jax.Array) -> jax.Array:
    """z before the chunk and after each token, [C + 1, n, ...leaf]: an associative scan of `z -> A_t z + B_t g_t`."""
    channels = system.A.shape[1:-2]
    if channels:
        axis = max(range(len(channels)), key=lambda i: channels[i])
        each = System(*(x.reshape(len(x), channels[axis], *x.shape[1 + len(channels) :]) for x in system))
        return jax.vmap(trajectory, (axis, 1, 1 + axis), 2 + axis)(z, each, updates)
    pushed = jax.vmap(lambda b, g: jnp.tensordot(b, g, axes=0))(system.B, updates)

    def compose(first, second):
        (A, x), (B, y) = first, second
        return jnp.einsum("tij,tjk->tik", B, A), jnp.einsum("tij,tj...->ti...", B, x) + y

    start = jnp.stack(z) if z else jnp.zeros((0, *updates.shape[1:]), updates.dtype)
    A, x = jax.lax.associative_scan(compose, (system.A, pushed))
    return jnp.concatenate([start[None], jnp.einsum("tij,j...->ti...", A, start) + x])


def by_scan(z: Z, system: System, rolled: Response | None, name: str, updates: Updates) -> tuple[jax.Array, Z]:
    """A linear stage by an associative scan: outputs [C, ...leaf] and z after the chunk."""
    del rolled
    arrays = updates.formed()[name]
    path = trajectory(z, system, arrays)

    def output(c, d, z, g):
        return sum((c[..., j] * part for j, part in enumerate(z)), d * g)

    return jax.vmap(output)(system.C, system.D, path[:-1], arrays), list(path[-1])


def gradients(spec: Specification, weights, tokens: Chunk, keep=None) -> dict[str, jax.Array]:
    """Every token's gradient, formed: name -> [C, ...leaf], at weights scaled by `keep`, see `stages.retained`."""

    def one(key, value, live, keep):
        at = weights if keep is None else {name: keep[name] * w for name, w in weights.items()}
        return token.gradient(spec, at, key[None], value[None], live[None])

    each = jax.vmap(one, (0, 0, 0, -1))(tokens.keys, tokens.values, tokens.live, keep)
    return each if tokens.band is None else jax.tree.map(lambda g: jnp.tensordot(tokens.band, g, axes=1), each)


def chunk(
    spec: Specification,
    plan: Plan,
    layouts: Sequence[Layout],
    carry: Carry,
    tokens: Chunk,
    prepared: Sequence[Prepared],
) -> tuple[Carry, jax.Array]:
    """One chunk: the state after it (its window is the caller's) and y [C, D_v]."""
    count = tokens.queries.shape[0]
    rows = {"after": slice(1, count + 1), "before": slice(0, count), "start": jnp.zeros(count, int)}[spec.read]

    def finish(last: Last):
        arrays = last.updates.formed()
        paths = {name: trajectory(z, last.systems[name], arrays[name]) for name, z in last.z.items()}
        operations = PerToken({name: path[rows, 0] for name, path in paths.items()})
        return operations, {name: list(path[-1]) for name, path in paths.items()}

    keep = stages.retained(spec, layouts, carry.weights, prepared)
    formed = Formed(gradients(spec, carry.weights, tokens, keep))
    return stages.chunk(spec, plan, layouts, carry, tokens, prepared, formed, by_scan, finish)
