"""The impulse response of a linear rule over a chunk: an optax chain as an attention mask.

For one entry of the weights with state z and gradients g the rule is `z_t = A_t z_{t-1} + B_t g_t`, with the output
`u_t = C_t z_{t-1} + D_t g_t`. Rolled out over a chunk of C tokens that starts at `z_0`,

    u_t = P[t] z_0 + sum_{i <= t} K[t, i] g_i        z_C = Pe z_0 + sum_i Ke[:, i] g_i.

For Titans (eqs 13-14), with z = (M, S), P[:, 0] is the product of (1 - decay), and K is the lower-triangular product of
the decay and the momentum masks times -learning_rate (the kappa of Titans §3.2).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nested_jax.scan.structure import System


class Response(NamedTuple):
    """P [C, n], K [C, C] (lower triangular), Pe [n, n], Ke [n, C]; leading axes for chunks, or for channels.

    Where gates have a value per channel there are as many leading axes as the leaf has, 1 long but for the one that the
    channels are along: K [1, D, C, C] scales the outputs of a layer, K [D, 1, C, C] its inputs.
    """

    P: jax.Array
    K: jax.Array
    Pe: jax.Array
    Ke: jax.Array


def roll_out(system: System) -> Response:
    """The response of a chunk, by merging neighbouring blocks log2(C) times.

    The naive code, for one chunk, carries the n × (n + C) matrix `Z = [Pe | Ke]`:

        Z = hstack([eye(n), zeros((n, C))])
        for t in range(C):
            rows.append(C_t @ Z + D_t * onehot(n + t))         # [P[t] | K[t]]
            Z = A_t @ Z + outer(B_t, onehot(n + t))

    Two blocks l, r merge to `P = [P_l; P_r Pe_l]`, `K = [[K_l, 0], [P_r Ke_l, K_r]]`, `Pe = Pe_r Pe_l`, `Ke = [Pe_r
    Ke_l | Ke_r]`. Only products are formed, never ratios, so that no decay overflows.

    Args:
      system: A [..., C, n, n], B [..., C, n], C [..., C, n], D [..., C]; any C >= 1.

    Returns:
      The `Response`, in the system's dtype (f32 or f64).

    Example:
      >>> import jax.numpy as jnp
      >>> from nested_jax.scan.response import roll_out
      >>> from nested_jax.scan.structure import System
      >>> half = System(jnp.full((3, 1, 1), 0.5), jnp.ones((3, 1)), jnp.full((3, 1), 0.5), jnp.ones(3))
      >>> roll_out(half).K.tolist()
      [[1.0, 0.0, 0.0], [0.5, 1.0, 0.0], [0.25, 0.5, 1.0]]
    """
    tokens = system.B.shape[-2]
    length = 1 << (tokens - 1).bit_length()
    A, B, C, D = _pad(system, length - tokens)
    block = Response(C[..., None, :], D[..., None, None], A, B[..., None])
    while block.Pe.shape[-3] > 1:
        left, right = (jax.tree.map(lambda x, side=side: x[..., side::2, :, :], block) for side in (0, 1))
        P = jnp.concatenate([left.P, _dot(right.P, left.Pe)], -2)
        lower = _dot(right.P, left.Ke)
        K = jnp.concatenate(
            [jnp.concatenate([left.K, jnp.zeros_like(left.K)], -1), jnp.concatenate([lower, right.K], -1)], -2
        )
        Ke = jnp.concatenate([_dot(right.Pe, left.Ke), right.Ke], -1)
        block = Response(P, K, _dot(right.Pe, left.Pe), Ke)
    P, K, Pe, Ke = (x[..., 0, :, :] for x in block)
    return Response(P[..., :tokens, :], K[..., :tokens, :tokens], Pe, Ke[..., :tokens])


def tokens_last(system: System) -> System:
    """A chunk's system, A [C, 1, D, n, n] say, with its tokens behind the channels, [1, D, C, n, n]."""
    A, B, C, D = system
    return System(jnp.moveaxis(A, 0, -3), jnp.moveaxis(B, 0, -2), jnp.moveaxis(C, 0, -2), jnp.moveaxis(D, 0, -1))


def _pad(system: System, count: int) -> System:
    """Tokens that change nothing, appended."""
    if not count:
        return system
    A, B, C, D = system
    identity = jnp.broadcast_to(jnp.eye(A.shape[-1], dtype=A.dtype), (*A.shape[:-3], count, *A.shape[-2:]))
    B, C = (jnp.concatenate([x, jnp.zeros((*x.shape[:-2], count, x.shape[-1]), x.dtype)], -2) for x in (B, C))
    D = jnp.concatenate([D, jnp.zeros((*D.shape[:-1], count), D.dtype)], -1)
    return System(jnp.concatenate([A, identity], -3), B, C, D)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a @ b` in the full precision of its operands, on accelerators too."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def shift(response: Response, weight: int = 0) -> Response:
    """The response read *before* each token's write: row t becomes row t - 1, row 0 the start (entry `weight` of z)."""
    first = jnp.zeros_like(response.P[..., :1, :]).at[..., weight].set(1)
    P = jnp.concatenate([first, response.P[..., :-1, :]], -2)
    K = jnp.concatenate([jnp.zeros_like(response.K[..., :1, :]), response.K[..., :-1, :]], -2)
    return response._replace(P=P, K=K)
