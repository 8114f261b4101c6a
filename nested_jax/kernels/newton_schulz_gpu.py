"""Newton-Schulz on Hopper GPUs: one block of threads takes one square matrix through all steps in shared memory.

Every warpgroup owns 64 rows of the matrix and holds those of the float32 iterate in registers. Products are `wgmma`
with bfloat16 operands and float32 sums. A `wgmma` takes no buffer for both operands, so that three are needed:

    left    rows that only their warpgroup reads and writes, in turn: X, A = X Xᵀ and B = b A + c A²
    right   X, read by all warpgroups, once as it lies and once transposed
    gram    A, read by all warpgroups

For d = 256 they would exceed the 227 KiB of shared memory that a block has. Compiled for the H100 (116 registers a
thread for d = 64, 237 for d = 128, none spilled) and run on one (jax 0.11.2, 2026-11-26): the tests pass; not timed
yet.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from nested_jax.kernels.newton_schulz import Triple, reciprocal

_ROWS = 64


def iterate(matrices: jax.Array, triples: Sequence[Triple], eps: float) -> jax.Array:
    """What `newton_schulz.iterate` computes.

    Args:
      matrices: [N, d, d] of bfloat16, N at least 1, d one of 64 and 128.
      triples: (a, b, c) of every step.
      eps: added to the Frobenius norm.

    Returns:
      The result, like `matrices`.
    """
    count, dim, _ = matrices.shape
    squares = jnp.sum(jnp.square(matrices.astype(jnp.float32)), axis=(1, 2))
    transforms = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    buffer = plgpu.SMEM((dim, dim), matrices.dtype, transforms=transforms)
    warpgroups = dim // _ROWS
    barriers = {"loaded": plgpu.Barrier(num_barriers=warpgroups)}
    if warpgroups > 1:
        barriers["met"] = plgpu.Barrier(num_arrivals=warpgroups)
    result = plgpu.kernel(
        functools.partial(_matrix, triples=triples),
        out_type=jax.ShapeDtypeStruct(matrices.shape, matrices.dtype),
        scratch_types=dict(left=buffer, right=buffer, gram=buffer, **barriers),
        grid=(count,),
        grid_names=("matrix",),
        num_threads=warpgroups,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
    )(matrices, reciprocal(squares, eps))
    # `plgpu.kernel` forgets over which axes of a `jax.shard_map` its inputs vary.
    axes = jax.typeof(matrices).manual_axis_type.varying - jax.typeof(result).manual_axis_type.varying
    return jax.lax.pcast(result, tuple(axes), to="varying") if axes else result


def _matrix(x_ref, scale_ref, y_ref, *, left, right, gram, loaded, met=None, triples: Sequence[Triple]) -> None:
    matrix, warpgroup = jax.lax.axis_index("matrix"), jax.lax.axis_index("warpgroup")
    rows = pl.ds(warpgroup * _ROWS, _ROWS)

    def store(value: jax.Array, *buffers) -> None:
        for buffer in buffers:
            buffer[rows] = value.astype(buffer.dtype)
        plgpu.commit_smem()

    def meet() -> None:
        """Waits until every warpgroup is here."""
        if met is not None:
            plgpu.barrier_arrive(met)
            plgpu.barrier_wait(met)

    def multiply(other) -> jax.Array:
        """This warpgroup's rows of `left` times a whole matrix."""
        return _accumulate((_ROWS, other.shape[1]), lambda sums: plgpu.wgmma(sums, left.at[rows], other))

    plgpu.copy_gmem_to_smem(x_ref.at[matrix, rows], left.at[rows], loaded.at[warpgroup])
    plgpu.barrier_wait(loaded.at[warpgroup])
    x = left[rows].astype(jnp.float32) * scale_ref[matrix]
    for a, b, c in triples:
        store(x, left, right)
        meet()
        product = multiply(right.transpose((1, 0)))
        if c:
            store(product, left, gram)
            meet()
            product = b * product + c * multiply(gram)
        else:
            product = b * product
        store(product, left)
        x = a * x + multiply(right)
        meet()
    store(x, left)
    plgpu.copy_smem_to_gmem(left.at[rows], y_ref.at[matrix, rows])
    plgpu.wait_smem_to_gmem(0)


def _accumulate(shape: tuple[int, int], add: Callable) -> jax.Array:
    """What a `wgmma` adds to zeros."""

    def scope(sums) -> jax.Array:
        add(sums)
        return sums[...]

    return pl.run_scoped(scope, plgpu.ACC(shape, jnp.float32))
