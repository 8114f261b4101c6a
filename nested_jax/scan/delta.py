"""The delta form: exact online gradients of a linear memory, in blocks of tokens (DeltaNet, arXiv 2406.06484 §3; Gated
DeltaNet, arXiv 2412.06464 §3.3: the WY / UT transform).

The gradient of token t at the *current* weights is `g_t = k_t^T e_t` with the error `e_t = s_t k_t W_{t-1} + r_t`. The
response of the rule (see `response`) gives W_{t-1} from the state Z at the block's start and the gradients since,

    W_{t-1} = sum_j P'[t, j] Z_j + sum_{i < t} K'[t, i] k_i^T e_i,

so all errors of a block follow from one triangular system, and everything else is attention masked by the response:

    (I + A) E = R + sum_j diag(s P'[:, j]) K Z_j         A[t, i] = -s_t K'[t, i] (k_t . k_i)
    y_t = sum_j P[t, j] (q_t Z_j) + sum_{i <= t} K[t, i] (q_t . k_i) e_i

Only the two products with Z go from block to block. It holds for every elementwise-linear rule, with as many states as
it has: with gradient descent it is the delta rule, with `titans()` its momentum is in the mask. Masks are products of
the rule's own coefficients, never ratios, so a gate that clears the memory is exact.

Delta gradient descent (Nested Learning 57) adds `x_t^T x_t W_{t-1}` to every gradient, x being a layer's own input: one
more in the slope s. On a deep memory the rest of a gradient is taken at the weights of a chunk's start, where inputs
and errors are recorded; what the rule finds in the weights is not, and the same system per layer and chunk solves it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nested_jax.scan import affine, response, stages
from nested_jax.scan.operations import Factors
from nested_jax.scan.plan import Plan
from nested_jax.scan.response import Response
from nested_jax.scan.stages import Layout, Prepared, Z
from nested_jax.scan.state import Carry, Specification
from nested_jax.scan.structure import System
from nested_jax.scan.triangular import unit_lower_inverse

BLOCK = 64


class Block(NamedTuple):
    """What a block's errors and its state's end need; leading axis [N] for blocks, all n states Z side by side.

    Attributes:
      offset: [C, D_v], the errors for Z = 0.
      reach: [C, n · D_k], by how much Z changes the errors; None where it does not.
      carry: [n, m], what is kept of each state, with resets also of the m - n = n states that they return to.
      written: [n, C, D_k], the keys as they count at the block's end.
    """

    offset: jax.Array
    reach: jax.Array | None
    carry: jax.Array
    written: jax.Array


def online(
    system: System,
    slopes: jax.Array | None,
    offsets: jax.Array,
    keys: jax.Array,
    queries: jax.Array,
    start: Z,
    *,
    read: str = "after",
    reset: jax.Array | None = None,
    initial: Z = (),
) -> tuple[jax.Array, list[jax.Array]]:
    """A linear rule driven by errors that depend on its own weights, `BLOCK` tokens at a time.

    The naive code, with z a list of n matrices whose first is the weight:

        for t in range(T):
            if reset[t]: z = initial
            before = z[0]
            g = outer(keys[t], slopes[t] * (keys[t] @ z[0]) + offsets[t])
            z = [sum(A[t, i, j] * z[j] for j in range(n)) + B[t, i] * g for i in range(n)]
            y[t] = queries[t] @ (z[0] if read == "after" else before)

    Args:
      system: A [T, n, n] and B [T, n]; C and D are not read.
      slopes: [T], of the error in the prediction; None for errors that are the offsets alone.
      offsets: [T, D_v].
      keys: [T, D_k].
      queries: [T, D_k].
      start: n matrices [D_k, D_v], the state before the first token.
      read: "after" or "before" each token's own write.
      reset: bool [T], or None.
      initial: the state that a reset returns to; needed with `reset` only.

    Returns:
      y [T, D_v] and the state after the last token.
    """
    tokens, states = keys.shape[0], len(start)
    length = min(BLOCK, 1 << (tokens - 1).bit_length())
    count = -(-tokens // length)

    def split(x, fill=0.0):
        padding = jnp.broadcast_to(jnp.asarray(fill, x.dtype), (count * length - tokens, *x.shape[1:]))
        return jnp.concatenate([x, padding]).reshape(count, length, *x.shape[1:])

    A, B = split(system.A, jnp.eye(states)), split(system.B)
    flags = None if reset is None else split(reset, False)
    after, before = _responses(A, B, flags)
    keys, queries, offsets = split(keys), split(queries), split(offsets)
    fixed = list(initial) if reset is not None else []
    if slopes is not None:
        slopes = split(slopes)[..., None]
        offsets += slopes * _answers(before.P[..., states:], keys, fixed)
    blocks = _blocks(after, before, slopes, offsets, keys, states)
    seen = after if read == "after" else before
    from_start, from_errors = _by_state(seen.P[..., :states], queries), seen.K * _dot(queries, keys.mT)

    def block(z, block: Block):
        now = jnp.concatenate(z)
        errors = block.offset if block.reach is None else block.offset + _dot(block.reach, now)
        kept = [sum(scale * part for scale, part in zip(row, [*z, *fixed], strict=True)) for row in block.carry]
        new = [part + _dot(keys.T, errors) for part, keys in zip(kept, block.written, strict=True)]
        return new, (now, errors)

    end, (starts, errors) = jax.lax.scan(jax.checkpoint(block, prevent_cse=False), list(start), blocks)
    y = _dot(from_start, starts) + _dot(from_errors, errors) + _answers(seen.P[..., states:], queries, fixed)
    return y.reshape(count * length, -1)[:tokens], end


def _answers(scales: jax.Array, rows: jax.Array, parts: Z):
    """`sum_j scales[..., j] (rows @ parts[j])`: what states that never change answer."""
    return sum(scales[..., j, None] * _dot(rows, part) for j, part in enumerate(parts))


def _responses(A: jax.Array, B: jax.Array, flags: jax.Array | None) -> tuple[Response, Response]:
    """The responses after and before each token's write; with resets the m = 2n states are those now and those fixed.

    A reset replaces z by the fixed state before the token: a column of A moves from the first to the second.
    """
    states = A.shape[-1]
    if flags is not None:
        keep = jnp.where(flags, 0, 1).astype(A.dtype)[..., None, None]
        still = jnp.broadcast_to(jnp.eye(states, dtype=A.dtype), A.shape)
        top = jnp.concatenate([A * keep, A * (1 - keep)], -1)
        A = jnp.concatenate([top, jnp.concatenate([jnp.zeros_like(A), still], -1)], -2)
        B = jnp.concatenate([B, jnp.zeros_like(B)], -1)
    after = response.roll_out(System(A, B, A[..., 0, :], B[..., 0]))
    before = response.shift(after)
    if flags is not None:
        first = jnp.zeros_like(before.P).at[..., states].set(1)
        P, K = (jnp.where(flags[..., None], new, old) for new, old in ((first, before.P), (0, before.K)))
        before = before._replace(P=P, K=K)
    return after._replace(Pe=after.Pe[..., :states, :], Ke=after.Ke[..., :states, :]), before


def _blocks(
    after: Response, before: Response, slopes: jax.Array | None, offsets: jax.Array, keys: jax.Array, states: int
) -> Block:
    """All of the errors and of the state's end that does not depend on the state, for all blocks at once."""
    reach = None
    if slopes is not None:
        lower = -slopes * before.K * _dot(keys, keys.mT)
        sides = jnp.concatenate([offsets, _by_state(slopes * before.P[..., :states], keys)], -1)
        solved = _dot(unit_lower_inverse(lower), sides)
        offsets, reach = solved[..., : offsets.shape[-1]], solved[..., offsets.shape[-1] :]
    return Block(offsets, reach, after.Pe, after.Ke[..., None] * keys[..., None, :, :])


def _by_state(scale: jax.Array, rows: jax.Array) -> jax.Array:
    """[..., C, n] and [..., C, D] -> [..., C, n · D], the rows scaled for every state."""
    return (scale[..., :, None] * rows[..., None, :]).reshape(*rows.shape[:-1], -1)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a @ b` in the full precision of its operands, on accelerators too."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def scan(
    spec: Specification,
    plan: Plan,
    layouts: Sequence[Layout],
    prepared: Sequence[Prepared],
    carry: Carry,
    fresh: Carry | None,
    inputs: tuple[jax.Array, jax.Array, jax.Array, Mapping[str, jax.Array]],
    reset: jax.Array | None,
) -> tuple[Carry, jax.Array]:
    """A memory of chunks of one token over T tokens.

    Args:
      spec: the memory.
      plan: its plan, of one linear stage.
      layouts: the stage's layout.
      prepared: the stage's clocks and systems, leading axes [T, 1].
      carry: the state before the first token.
      fresh: the state that a reset returns to; needed with `reset` only.
      inputs: keys, values, queries [T, D] and gates.
      reset: bool [T], or None.

    Returns:
      The state after the last token and y [T, D_v].
    """
    keys, values, queries, gates = inputs
    found, _ = affine.read(spec, carry.weights)
    assert found is not None
    (stage,), (layout,), (ready,) = plan.stages, layouts, prepared
    ready = ready._replace(
        clocks=[x[:, 0] for x in ready.clocks], systems=jax.tree.map(lambda x: x[:, 0], ready.systems)
    )
    if plan.erases:
        ready, layout = stages.with_inputs(plan, carry, gates, {found.name: keys}, ready)
    system: System = ready.systems[0]
    slopes, ones = None, jnp.ones_like(system.A[:, 0, 0])
    if plan.erases or not affine.is_zero(found.slope):
        slopes = found.slope * (system.A[:, 0, 0] if spec.retain_first else ones) + (ones if plan.erases else 0)
    offsets = affine.error(spec, jnp.zeros_like(values), keys, values)

    def z(carry: Carry) -> Z:
        return stages.gather(carry.weights, (carry.weights, stage.states(carry.rule_state)), layout)[found.name]

    y, end = online(
        system,
        slopes,
        offsets,
        keys,
        queries,
        z(carry),
        read="after" if spec.read == "after" else "before",
        reset=reset,
        initial=() if fresh is None else z(fresh),
    )
    state = (carry.weights, stage.states(carry.rule_state))
    clocks = [x[-1] for x in ready.after]
    weights, states = stages.scatter(carry.weights, state, layout, {found.name: end}, clocks)
    y = spec.network(affine.Output(y), queries)
    return Carry(weights, stage.replace(carry.rule_state, states), None), y


def erased(
    plan: Plan, carry: Carry, gates: Mapping[str, jax.Array], factors: Factors, ready: Prepared
) -> tuple[Factors, Prepared, Layout]:
    """A chunk's gradients with what delta gradient descent adds to them, in factors again.

    The naive code, for one layer that is erased from, with inputs x and errors e, W its weights before each token:

        for t in range(C):
            e[t] += x[t] @ W
            z = [sum(A[t, i, j] * z[j] for j in range(n)) + B[t, i] * outer(x[t], e[t]) for i in range(n)]
            W = z[0]

    Args:
      plan: the plan of a rule that erases.
      carry: the state before the chunk.
      gates: name -> [C].
      factors: inputs and errors at the chunk's start.
      ready: the clocks of the plan's one stage.

    Returns:
      The factors with the errors solved, and the stage with its systems and responses and its layout.
    """
    ready, layout = stages.with_inputs(plan, carry, gates, factors.inputs, ready)
    (ready,) = stages.roll([ready])
    _, state = stages.stage_view(plan, 0, carry.weights, carry.rule_state)
    z = stages.gather(carry.weights, state, layout)
    rolled = stages.by_leaf(layout, carry.weights, ready.responses)

    def solve(name: str, errors: jax.Array) -> jax.Array:
        if name not in plan.erases:
            return errors
        x, before = factors.inputs[name], response.shift(rolled[name])
        found = errors + _answers(before.P, x, z[name])
        return _dot(unit_lower_inverse(-before.K * _dot(x, x.mT)), found)

    return factors._replace(errors={name: solve(name, e) for name, e in factors.errors.items()}), ready, layout
