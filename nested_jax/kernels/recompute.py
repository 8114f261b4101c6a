"""Kernels that are differentiated through another program: the derivative runs that one again from the saved input."""

from collections.abc import Callable

import jax


def with_derivative_of(reference: Callable, kernel: Callable) -> Callable:
    """A kernel with the derivatives of a reference that computes the same.

    The forward pass runs the kernel alone and saves its input; the backward pass runs the reference and its derivative.
    Derivatives of any order, forward or reverse, go through the reference. `jax.vmap` adds to the batch of the kernel.

    Args:
      reference: arrays [N, ...] -> arrays [N, ...], differentiable, each of the N on its own.
      kernel: the same map.

    Returns:
      The map.

    Example:
      >>> cube = with_derivative_of(lambda x: x**3, lambda x: x * x * x)
      >>> print(jax.vmap(jax.grad(lambda x: cube(x)[0]))(jax.numpy.ones([2, 1])))
      [[3.]
       [3.]]
    """

    @jax.custom_batching.custom_vmap
    def batched(x):
        return kernel(x)

    @batched.def_vmap
    def _(size, in_batched, x):
        (mapped,) = in_batched
        if not mapped:
            return batched(x), False
        return batched(x.reshape(-1, *x.shape[2:])).reshape(x.shape), True

    @jax.custom_jvp
    def call(x):
        return batched(x)

    @call.defjvp
    def _(primals, tangents):
        # What a transposed `jax.checkpoint` keeps of the reference is its input; its result is not used.
        return call(*primals), jax.jvp(jax.checkpoint(reference), primals, tangents)[1]

    return call
