"""`orthogonalize`: one Newton-Schulz iteration, and the choice among the programs that compute it."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import cast

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from nested_jax.kernels import gram, newton_schulz
from nested_jax.kernels.newton_schulz import Triple, polynomials
from nested_jax.kernels.recompute import with_derivative_of

KERNELS = ("pallas_tpu", "mosaic_gpu")
IMPLEMENTATIONS = ("auto", "xla", "gram", *KERNELS)

_KERNEL_SIZES = {"pallas_tpu": (64, 128, 256), "mosaic_gpu": (64, 128)}
_KERNEL_DTYPES = {"pallas_tpu": ("bfloat16", "float32"), "mosaic_gpu": ("bfloat16",)}
_GRAM_SAVES = 5 / 6
_GRAM_ROWS = 16


def orthogonalize(
    x: jax.Array,
    coefficients: str | Sequence[Sequence[float]] = "muon",
    steps: int = 5,
    eps: float = 1e-7,
    implementation: str = "auto",
) -> jax.Array:
    r"""Pushes all singular values of a matrix towards 1 and keeps its singular vectors.

    .. math::
      X_0 = x / (\lVert x \rVert_F + \epsilon), \qquad
      X_{i+1} = a_i X_i + (b_i A_i + c_i A_i^2)\, X_i, \qquad A_i = X_i X_i^\top

    Each step is the odd polynomial :math:`a\sigma + b\sigma^3 + c\sigma^5` applied to every singular value. In code::

      x = x / (norm(x) + eps)
      for a, b, c in polynomials(coefficients, steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x

    The result is the polar factor :math:`UV^\top` only in the limit, and only where the polynomials have 1 as an
    attracting fixed point:

    - `"cubic"` (1.5, -0.5, 0) is the classical iteration. It converges to :math:`UV^\top`, slowly: small singular
      values grow by 1.5 a step. Texts that call it "Newton-Schulz 5" mean this polynomial with five steps; what Muon's
      users call so is the next one, a different polynomial.
    - `"muon"` (3.4445, -4.7750, 2.0315) is tuned for slope at zero and does *not* converge to 1: five steps leave
      singular values in about [0.7, 1.2], however many more steps are added.
    - `"polar_express"` has one minimax-optimal triple per step and converges, from the ninth step on by
      (1.875, -1.25, 0.375). All triples but that last one carry the paper's safety factor
      :math:`(a/1.01, b/1.01^3, c/1.01^5)`; the input is divided by its Frobenius norm as for the other tables.

    A tall matrix is transposed first, so that the Gram matrix is the small one. Inputs narrower than float32 are
    multiplied as they are with float32 accumulation, and the iterate is held in float32. Products of float32 are taken
    in full precision on every backend; give bfloat16 for speed.

    How it is computed, all with the same result up to rounding:

    - `"xla"` is the code above, batched.
    - `"gram"` multiplies the polynomials of successive steps first (`nested_jax.kernels.gram`): fewer operations where
      n is well above m. It computes in float32 (float64 for float64 input) whatever the dtype of `x`.
    - `"pallas_tpu"` and `"mosaic_gpu"` run all steps of a matrix on chip, for batches of square matrices of a few sizes
      (`nested_jax.kernels.newton_schulz_tpu`, `newton_schulz_gpu`). Their derivative is that of `"xla"`: the backward
      pass runs the iteration again, and saves the input alone. They do not split themselves over devices: call them
      inside `jax.shard_map`. That for GPUs equals `"xla"` on an H100 (2026-11-26); that for TPUs has been interpreted,
      lowered and compiled on a CPU, and not yet run.
    - `"auto"` takes, on a CPU, the Gram form for float32 matrices of 16 rows or more where it saves a sixth of the
      operations or more, and `"xla"` elsewhere; on an accelerator a kernel if it takes the input and the program runs
      on one device or inside `jax.shard_map` over all axes of the mesh, and `"xla"` elsewhere.

    Matrices may lie on any mesh, split over any of their axes, be these automatic or explicit; the result lies as `x`.

    At an input of exactly zero both the result and its derivative are zero (our choice). The derivative elsewhere grows
    as one over the norm of the input, so the one-sided limit would be some 1e10 and a padded token would carry it.

    Args:
      x: matrices [..., m, n] of a floating dtype.
      coefficients: `"cubic"`, `"muon"`, `"polar_express"`, or a sequence of triples (a, b, c), the last of which
        repeats.
      steps: number of iterations, at least 1.
      eps: added to the Frobenius norm; inputs of that size or smaller are not brought to norm 1.
      implementation: `"auto"`, `"xla"`, `"gram"`, `"pallas_tpu"` or `"mosaic_gpu"`.

    Returns:
      Matrices [..., m, n] in the dtype of `x`.

    Raises:
      ValueError: if `x` has fewer than two axes or is not floating, for bad `coefficients` or `steps`, or if the
        implementation asked for is unknown or does not take such an `x`.

    Example:
      >>> x = jnp.array([[3.0, 0.0], [0.0, -0.5]])
      >>> print(jnp.round(orthogonalize(x, "polar_express", steps=8), 4))
      [[ 1.  0.]
       [ 0. -1.]]

    References:
      Jordan et al., `Muon <https://kellerjordan.github.io/posts/muon/>`_, 2024 (`"muon"`).
      Amsel et al., `The Polar Express <https://arxiv.org/abs/2505.16932>`_, 2025, Algorithm 1 (`"polar_express"`).
      Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025, equations (42-44).
    """
    x = jnp.asarray(x)
    triples = polynomials(coefficients, steps)
    if x.ndim < 2:
        raise ValueError(f"x must be a matrix or a batch of them, [..., m, n], got shape {x.shape}.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must have a floating dtype, got {x.dtype}.")
    check_implementation(implementation)
    if implementation == "auto":
        implementation = choose(x, triples)
    elif reason := refusal(implementation, x):
        raise ValueError(f"implementation={implementation!r} {reason}, got {x.dtype}{list(x.shape)}.")
    run = functools.partial(_run, _PROGRAMS[implementation], triples, eps)
    sharding = jax.typeof(x).sharding
    if AxisType.Explicit in sharding.mesh.axis_types:
        return cast(jax.Array, jax.sharding.auto_axes(run, out_sharding=sharding)(x))
    return run(x)


def check_implementation(name: str) -> None:
    """Raises ValueError for a name that is not among `IMPLEMENTATIONS`."""
    if name not in IMPLEMENTATIONS:
        names = ", ".join(map(repr, IMPLEMENTATIONS))
        raise ValueError(f"implementation must be one of {names}, got {name!r}.")


def refusal(implementation: str, x: jax.Array) -> str:
    """Why an implementation does not take `x`, as the end of a sentence; empty where it does."""
    if implementation not in KERNELS:
        return ""
    sizes, dtypes = _KERNEL_SIZES[implementation], _KERNEL_DTYPES[implementation]
    if x.shape[-1] != x.shape[-2] or x.shape[-1] not in sizes:
        text = f"takes square matrices [..., d, d] with d one of {', '.join(map(str, sizes))}"
        if implementation == "mosaic_gpu" and x.shape[-2:] == (256, 256):
            text += " (for d = 256 the three buffers of a matrix exceed a block's shared memory)"
        return text
    return "" if x.dtype.name in dtypes else f"takes {' and '.join(dtypes)}"


def choose(x: jax.Array, triples: Sequence[Triple]) -> str:
    """What `"auto"` stands for on the default backend."""
    backend = jax.default_backend()
    if backend == "cpu":
        rows, columns = sorted(x.shape[-2:])
        written, saved = gram.operations(rows, columns, triples)
        worthwhile = x.dtype == jnp.float32 and rows >= _GRAM_ROWS and saved <= _GRAM_SAVES * written
        return "gram" if worthwhile else "xla"
    kernel = {"tpu": "pallas_tpu", "gpu": "mosaic_gpu"}.get(backend)
    if kernel is None or refusal(kernel, x) or not _on_one_device():
        return "xla"
    hopper = getattr(jax.devices()[0], "compute_capability", "") == "9.0"
    return kernel if kernel == "pallas_tpu" or hopper else "xla"


def _on_one_device() -> bool:
    """Whether arrays are whole as they are traced: on one device, or in a `jax.shard_map` over all axes of the mesh."""
    kinds = set(jax.sharding.get_abstract_mesh().axis_types)
    return jax.device_count() == 1 or kinds == {AxisType.Manual}


def _run(program: Callable, triples: Sequence[Triple], eps: float, x: jax.Array) -> jax.Array:
    *batch, rows, columns = x.shape
    # One batch axis: dots with several are slow or miscompiled on some backends.
    matrices = x.reshape(math.prod(batch), rows, columns)
    return program(matrices, triples, eps).reshape(x.shape)


def _widely(iterate: Callable) -> Callable:
    """An iteration for wide matrices that are held in float32 or more, for any matrices [N, m, n]."""

    def program(matrices: jax.Array, triples: Sequence[Triple], eps: float) -> jax.Array:
        tall = matrices.shape[-2] > matrices.shape[-1]
        held = matrices.astype(jnp.promote_types(matrices.dtype, jnp.float32))
        result = iterate(held.mT if tall else held, triples, eps, matrices.dtype)
        return (result.mT if tall else result).astype(matrices.dtype)

    return program


_xla = _widely(newton_schulz.iterate)


def _kernel(name: str) -> Callable:
    """A Pallas kernel, imported when it is first used."""

    def program(matrices: jax.Array, triples: Sequence[Triple], eps: float) -> jax.Array:
        if not matrices.size:
            return matrices
        if name == "pallas_tpu":
            from nested_jax.kernels.newton_schulz_tpu import iterate
        else:
            from nested_jax.kernels.newton_schulz_gpu import iterate
        kernel = functools.partial(iterate, triples=triples, eps=eps)
        return with_derivative_of(functools.partial(_xla, triples=triples, eps=eps), kernel)(matrices)

    return program


_PROGRAMS = {
    "xla": _xla,
    "gram": _widely(lambda matrices, triples, eps, dtype: gram.iterate(matrices, triples, eps)),
    **{name: _kernel(name) for name in KERNELS},
}
