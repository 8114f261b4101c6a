"""Newton-Schulz on a TPU: blocks of square matrices go through all steps in VMEM, one read and one write per matrix.

The iterate is held in float32. The operands of every product have the dtype of the input: bfloat16, or float32 with
products in full precision. Interpreted on a CPU, and compiled by the TPU compiler for v5e, v5p and v6e at all sizes;
not yet run on a TPU.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from nested_jax.kernels.newton_schulz import Triple, normalize

_BLOCK_ENTRIES = 2**17
"""Entries of a block of matrices: with its four float32 arrays and the buffers in and out, some 4 MiB of VMEM."""


def iterate(matrices: jax.Array, triples: Sequence[Triple], eps: float) -> jax.Array:
    """What `newton_schulz.iterate` computes.

    Args:
      matrices: [N, d, d] of bfloat16 or float32, N at least 1, d one of 64, 128 and 256.
      triples: (a, b, c) of every step.
      eps: added to the Frobenius norm.

    Returns:
      The result, like `matrices`.
    """
    count, dim, _ = matrices.shape
    block = (min(count, max(1, _BLOCK_ENTRIES // dim**2)), dim, dim)
    # The last block may reach past the batch: what is read there is arbitrary, and what is written there is dropped.
    zero = np.int32(0)  # an index of 32 bits also where numbers have 64
    spec = pl.BlockSpec(block, lambda i: (i, zero, zero))
    return pl.pallas_call(
        functools.partial(_block, triples=triples, eps=eps),
        out_shape=jax.eval_shape(lambda x: x, matrices),  # also over which axes of a `jax.shard_map` it varies
        grid=(pl.cdiv(count, block[0]),),
        in_specs=[spec],
        out_specs=spec,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        name="newton_schulz",
    )(matrices)


def _block(x_ref, y_ref, *, triples: Sequence[Triple], eps: float) -> None:
    dtype = x_ref.dtype
    precision = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None

    def multiply(left: jax.Array, right: jax.Array, axis: int) -> jax.Array:
        """Batched products over the last axis of `left` and an axis of `right`."""
        dimensions = (((2,), (axis,)), ((0,), (0,)))
        return jax.lax.dot_general(
            left.astype(dtype), right.astype(dtype), dimensions, precision, preferred_element_type=jnp.float32
        )

    x = normalize(x_ref[...].astype(jnp.float32), eps)
    for a, b, c in triples:
        gram = multiply(x, x, 2)
        polynomial = b * gram + c * multiply(gram, gram, 1) if c else b * gram
        x = a * x + multiply(polynomial, x, 1)
    y_ref[...] = x.astype(dtype)
