"""Whether a memory's error is affine in the output of one dense layer, read off its network and its objective.

With a network whose only weight is used as `u = x @ W`, on the token itself, a gradient is `k^T e` with
`e = d objective(network(k), v) / d u`. Where that is `e = slope * u + offset` at every u, the gradient at the *current*
weights is a linear recurrence: slope 1 and offset -v for `l2`, slope 0 and offset -v for `dot_product`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nested_jax.scan import linearity
from nested_jax.scan.state import Specification


class Affine(NamedTuple):
    """A network with one dense layer, and the slope of its error.

    Attributes:
      name: of the layer's weight.
      slope: of the error in the layer's output: a number, or a traced scalar where the objective holds one.
    """

    name: str
    slope: Any


class Output:
    """A network's operations with the output of its one dense layer given; notes what the network asked for."""

    def __init__(self, output: jax.Array):
        self.output = output
        self.asked: list[tuple[str, jax.Array | None]] = []

    def dense(self, name: str, x: jax.Array) -> jax.Array:
        self.asked.append((name, x))
        return self.output

    def vector(self, name: str) -> jax.Array:
        self.asked.append((name, None))
        return jnp.zeros_like(self.output[:1])


def error(spec: Specification, output: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    """The gradient of every token's objective with respect to the dense layer's output, all [T, D_v]."""
    return jax.grad(lambda u: jnp.sum(spec.objective(spec.network(Output(u), keys), values)))(output)


def read(spec: Specification, weights) -> tuple[Affine | None, str]:
    """Reads a memory's error as an affine function.

    Args:
      spec: the memory.
      weights: its weights, arrays or shapes.

    Returns:
      The `Affine` and "", or None and why there is none. The analysis is sound: what is called affine is affine.
    """
    if getattr(spec.objective, "gates", None):
        return None, "its objective reads gates of its own"
    if len(weights) != 1 or next(iter(weights.values())).ndim != 2:
        return None, "its network has other weights than one matrix"
    ((name, matrix),) = weights.items()
    (dim_k, dim_v), dtype = matrix.shape, matrix.dtype
    if spec.network.dims(weights) != (dim_k, dim_v):
        return None, "its network has other widths than its matrix"
    used = []

    def traced(output, keys, values):
        operations = Output(output)
        spec.network(operations, keys)
        used[:] = [asked == name and x is keys for asked, x in operations.asked]
        return error(spec, output, keys, values)

    shapes = [jax.ShapeDtypeStruct((2, dim), dtype) for dim in (dim_v, dim_k, dim_v)]
    closed = jax.make_jaxpr(traced)(*shapes)
    if used != [True]:
        return None, "its network is not one dense layer on the token itself"
    unit = np.ones((), dtype)
    inputs: list[linearity.Value] = [linearity.Linear({i: unit}, 0) for i in range(3)]
    if dim_k != dim_v:
        inputs[1] = linearity.Opaque(frozenset([1]), "the key")
    (found,) = linearity.interpret(closed.jaxpr, closed.consts, inputs)
    if not isinstance(found, linearity.Linear):
        reason = f"`{found.reason}` is in it" if isinstance(found, linearity.Opaque) else "it adds a constant"
        return None, f"its objective's gradient is not linear in prediction and value: {reason}"
    slope = found.terms.get(0, np.zeros((), dtype))
    if np.ndim(slope):
        return None, "its objective's gradient has a slope of its own for every feature"
    return Affine(name, slope), ""


def is_zero(slope) -> bool:
    """Whether a slope is known to be 0 when the program is traced."""
    return not isinstance(slope, jax.core.Tracer) and float(slope) == 0.0
