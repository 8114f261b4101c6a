"""FLOPs of the matrix products in a JAX function, by precision, read off its jaxpr: nothing is computed or compiled.

Two per multiplication and addition; a scan counts as often as it goes round, recomputation in the backward pass counts,
elementwise work does not. The numbers are of the whole program, however many devices share it.
"""

import collections
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax


def product_flops(function: Callable[..., Any], *arguments: Any) -> collections.Counter[str]:
    """Counts a function.

    Args:
      function: of arrays.
      *arguments: arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      FLOPs of products of "bfloat16" (and float16), "float32" at the default precision and "highest" (float32 at higher
      precision, float64); under "unknown" the number of while loops, which count once.

    Example:
      >>> a = jax.ShapeDtypeStruct((4, 4), "bfloat16")
      >>> product_flops(lambda a: jax.lax.scan(lambda c, _: (c @ a, None), a, length=3)[0], a)
      Counter({'bfloat16': 384})
    """
    return count(jax.make_jaxpr(function)(*arguments).jaxpr)


def count(jaxpr: Any) -> collections.Counter[str]:
    """The same of a jaxpr."""
    total: collections.Counter[str] = collections.Counter()
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            total[_precision(equation)] += _dot(equation)
        elif name == "conv_general_dilated":
            total[_precision(equation)] += _convolution(equation)
        elif name == "cond":
            branches = [count(branch.jaxpr) for branch in equation.params["branches"]]
            total += max(branches, key=lambda branch: sum(branch.values()))
        elif name == "while":
            total += count(equation.params["body_jaxpr"].jaxpr)
            total["unknown"] += 1
        else:
            times = _times(name, equation.params)
            for inner in _inner(equation.params):
                for kind, flops in count(inner).items():
                    total[kind] += flops if kind == "unknown" else flops * times
    return total


def _times(name: str, parameters: dict[str, Any]) -> int:
    if name == "scan":
        return parameters["length"]
    if name == "shard_map":  # its body is of one shard
        axes = parameters.get("newly_manual_axes", parameters.get("manual_axes"))  # the name differs by version of JAX
        return math.prod(parameters["mesh"].shape[axis] for axis in axes)
    if name == "pallas_call":
        return math.prod(size for size in parameters["grid_mapping"].grid if isinstance(size, int))
    return 1


def _inner(parameters: dict[str, Any]) -> Iterator[Any]:
    for value in parameters.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(one, "eqns"):
                yield one
            elif hasattr(one, "jaxpr") and hasattr(one.jaxpr, "eqns"):
                yield one.jaxpr


def _precision(equation: Any) -> str:
    dtypes = {variable.aval.dtype.name for variable in equation.invars[:2]}
    if dtypes & {"bfloat16", "float16"}:
        return "bfloat16"
    given = equation.params.get("precision")
    each = given if isinstance(given, tuple) else (given,)
    exact = "float64" in dtypes or any(one not in (None, jax.lax.Precision.DEFAULT) for one in each)
    return "highest" if exact else "float32"


def _dot(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)


def _convolution(equation: Any) -> int:
    """Every output meets the whole kernel of its group: places in the padding count, too."""
    kernel = equation.invars[1].aval
    features = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * equation.outvars[0].aval.size * kernel.size // features
