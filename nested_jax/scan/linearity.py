"""An interpreter that reads a jaxpr as linear algebra: which outputs are weighted sums of which inputs, entry by entry.

Every intermediate array is one of five things. `Uniform`: all entries equal one number that no data enters, or one
number per channel. `Known`: no data enters. `Inputs`: known, the input row x of one layer. `Linear`: entry by entry a
sum of data inputs with one number (or one per channel) each; a data input may stand there as its projection x^T x W.
`Opaque`: anything else. Only operations listed here keep an array linear, so a linear rule may be called opaque, never
the reverse. The numbers are ordinary jax values: run under `vmap` over tokens, the interpretation *is* the linear
system that `response` rolls out.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np


class Uniform(NamedTuple):
    """An array of `shape` in which no data enters, with few different entries.

    Attributes:
      value: the scalar that all entries equal; or one number per channel, an array with as many axes as the whole that
        is 1 long in all but one of them.
      shape: of the whole.
    """

    value: Any
    shape: tuple[int, ...]


class Known(NamedTuple):
    """An array in which no data enters."""

    value: Any


class Inputs(NamedTuple):
    """The input x of the layer whose weight is `leaf`, in which no data enters: [1, D_in], or its transpose."""

    value: Any
    leaf: int
    transposed: bool = False


class Projection(NamedTuple):
    """Stands for `x^T (x @ input)` in a sum, x being the input of the leaf's layer."""

    source: int


class Answer(NamedTuple):
    """In place of a leaf: the sum is over `x @ input`, [1, D_out], not over the inputs themselves."""

    leaf: int


class Linear(NamedTuple):
    """`sum_i terms[i] * input_i`, entry by entry; all inputs belong to one `leaf` of the weights.

    Coefficients are numbers or, all along one axis, one number per channel: see `Uniform.value`.
    """

    terms: Mapping[int | Projection, Any]
    leaf: int | Answer


class Opaque(NamedTuple):
    """Any function of the data inputs in `sources`; `reason` is the first operation that was not linear."""

    sources: frozenset[int]
    reason: str


Value = Uniform | Known | Inputs | Linear | Opaque


def sources(value: Linear | Opaque) -> frozenset[int]:
    """The data inputs that enter a value."""
    if isinstance(value, Opaque):
        return value.sources
    return frozenset(key.source if isinstance(key, Projection) else key for key in value.terms)


# fmt: off
_ELEMENTWISE = frozenset([
    "abs", "add", "add_any", "and", "cbrt", "ceil", "clamp", "copy", "copy_p", "cos", "div", "eq", "erf", "exp",
    "exp2", "expm1", "floor", "ge", "gt", "integer_pow", "is_finite", "le", "log", "log1p", "logistic", "lt", "max",
    "min", "mul", "ne", "neg", "not", "or", "pow", "rem", "round", "rsqrt", "select_n", "sign", "sin", "sqrt",
    "square", "sub", "tan", "tanh", "xor", "convert_element_type",
])
# fmt: on
_SHAPE_ONLY = frozenset(["broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "slice", "rev"])
# Where an array lies, not what is in it: jax writes these where there is a mesh.
_PLACEMENTS = frozenset(["reshard", "sharding_constraint", "pvary"])
_NO_MESH = jax.sharding.AbstractMesh((), ())
_CALLS = frozenset(["jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"])


class _Scalars:
    """Arithmetic on the numbers of the system; equal expressions give one object, so that equal leaves can be told."""

    def __init__(self):
        self._seen: dict[Any, Any] = {}
        self._alive: list[Any] = []

    def apply(self, primitive, params: Mapping[str, Any], *operands):
        """The result of an elementwise primitive on numbers."""
        label, shape = (primitive.name, str(sorted(params.items(), key=lambda item: item[0]))), common_shape(operands)
        assert shape is not None
        return self._once(label, lambda *x: primitive.bind(*spread(x, shape), **params), operands)

    def binary(self, name: str, a, b):
        """`a` and `b` added, subtracted, multiplied or divided."""
        if name == "mul" and _is(a, 1):
            return b
        if name in ("mul", "div") and _is(b, 1):
            return a
        if name == "add" and _is(a, 0):
            return b
        if name in ("add", "sub") and _is(b, 0):
            return a
        dtype, shape = jnp.result_type(a, b), common_shape((a, b))
        assert shape is not None
        operation = _ARITHMETIC[name]
        return self._once((name,), lambda *x: operation(*spread(x, shape)), (_cast(a, dtype), _cast(b, dtype)))

    def negate(self, a):
        """`-a`."""
        return self._once(("neg",), jax.lax.neg, (a,))

    def reshape(self, a, shape: tuple[int, ...]):
        """`a` in another shape."""
        return self._once(("reshape", str(shape)), lambda x: jnp.reshape(x, shape), (a,))

    def _once(self, label: tuple[str, ...], function: Callable, operands):
        key = (label, tuple(identity(o) for o in operands))
        if key not in self._seen:
            self._alive.extend(operands)
            if all(_concrete(o) for o in operands):
                with jax.ensure_compile_time_eval(), jax.sharding.use_abstract_mesh(_NO_MESH):
                    self._seen[key] = np.asarray(function(*map(jnp.asarray, operands)))
            else:
                self._seen[key] = function(*map(jnp.asarray, operands))
        return self._seen[key]


_ARITHMETIC = {"add": jax.lax.add, "sub": jax.lax.sub, "mul": jax.lax.mul, "div": jax.lax.div}


def common_shape(values: Sequence[Any]) -> tuple[int, ...] | None:
    """The one shape of those numbers that are not scalars, () if all are; None where two differ."""
    shapes = {np.shape(value) for value in values if np.ndim(value)}
    return None if len(shapes) > 1 else next(iter(shapes), ())


def spread(values: Sequence[Any], shape: tuple[int, ...]) -> list[jax.Array]:
    """Scalars repeated to `shape`, arrays as they are."""
    return [jnp.broadcast_to(value, shape) for value in values]


def _concrete(value) -> bool:
    return isinstance(value, (np.ndarray, np.generic, int, float, bool))


def identity(value):
    """A key that is equal for two numbers of the system known to be equal at trace time."""
    if not _concrete(value):
        return id(value)
    array = np.asarray(value)
    return ("literal", str(array.dtype), array.shape, array.tobytes())


def _is(value, number) -> bool:
    return _concrete(value) and np.ndim(value) == 0 and value == number


def _cast(value, dtype):
    return np.asarray(value, dtype) if _concrete(value) else value.astype(dtype) if value.dtype != dtype else value


def is_zero(value: Value) -> bool:
    """True where `value` is an array of zeros whatever the gates are."""
    return isinstance(value, Uniform) and _is(value.value, 0)


def known(array) -> Uniform | Known:
    """A data-free array as the interpreter sees it."""
    return _uniform(array, np.shape(array)) if np.ndim(array) < 2 or np.size(array) == 1 else Known(array)


def _uniform(value, shape: tuple[int, ...]) -> Uniform:
    return Uniform(value.reshape(()) if np.ndim(value) and np.size(value) == 1 else value, shape)


def materialize(value: Uniform | Known | Inputs):
    """The array itself."""
    return jnp.broadcast_to(value.value, value.shape) if isinstance(value, Uniform) else value.value


def interpret(jaxpr, consts: Sequence[Any], inputs: Sequence[Value]) -> list[Value]:
    """Reads `jaxpr` with its inputs given as values of the interpreter.

    Args:
      jaxpr: a `Jaxpr` whose outputs are to be understood.
      consts: its constants, arrays.
      inputs: one `Value` per input variable; data inputs are `Linear({i: 1.0}, leaf)`.

    Returns:
      One `Value` per output variable.
    """
    return _run(jaxpr, [_constant(c) for c in consts], inputs, _Scalars())


def _constant(array) -> Uniform | Known:
    if not isinstance(array, jax.core.Tracer) and not jnp.issubdtype(jnp.result_type(array), jax.dtypes.extended):
        entries = np.asarray(array)
        if entries.size and (entries == entries.flat[0]).all():
            return Uniform(entries.flat[0], entries.shape)
    return known(array)


def _run(jaxpr, consts: Sequence[Value], inputs: Sequence[Value], scalars: _Scalars) -> list[Value]:
    env: dict[Any, Value] = {}

    def read(var) -> Value:
        if not isinstance(var, jex.Literal):
            return env[var]
        aval: Any = var.aval
        return Uniform(np.asarray(var.val, aval.dtype), aval.shape)

    for var, value in zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True):
        env[var] = value
    for eqn in jaxpr.eqns:
        outputs = _equation(eqn, [read(v) for v in eqn.invars], scalars)
        for var, value in zip(eqn.outvars, outputs, strict=True):
            env[var] = value
    return [read(v) for v in jaxpr.outvars]


def _equation(eqn, inputs: list[Value], scalars: _Scalars) -> list[Value]:
    name, shape = eqn.primitive.name, eqn.outvars[0].aval.shape if eqn.outvars else ()
    if name in _PLACEMENTS:
        return inputs
    if name in _CALLS:
        inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
        if inner is not None:
            closed = isinstance(inner, jex.ClosedJaxpr)
            consts = [_constant(c) for c in inner.consts] if closed else []
            return _run(inner.jaxpr if closed else inner, consts, inputs, scalars)
    if not any(isinstance(v, (Linear, Opaque)) for v in inputs):
        return _data_free(eqn, name, shape, inputs, scalars)
    if not any(isinstance(v, Opaque) for v in inputs):
        result = _product(eqn, inputs) if name == "dot_general" else _linear(eqn, name, shape, inputs, scalars)
        if result is not None:
            return [result]
    return [_opaque(inputs, name)] * len(eqn.outvars)


def _opaque(inputs: Sequence[Value], name: str) -> Opaque:
    data = [v for v in inputs if isinstance(v, (Linear, Opaque))]
    reasons = [v.reason for v in data if isinstance(v, Opaque)]
    return Opaque(frozenset().union(*map(sources, data)), reasons[0] if reasons else name)


def _data_free(eqn, name: str, shape, inputs, scalars: _Scalars) -> list[Value]:
    if inputs and isinstance(inputs[0], Inputs) and name == "transpose" and eqn.params["permutation"] == (1, 0):
        x = inputs[0]
        return [Inputs(jnp.transpose(x.value), x.leaf, not x.transposed)]
    if all(isinstance(v, Uniform) for v in inputs):
        if name in _ELEMENTWISE and common_shape([v.value for v in inputs]) is not None:
            return [_uniform(scalars.apply(eqn.primitive, eqn.params, *(v.value for v in inputs)), shape)]
        if name in _SHAPE_ONLY and (moved := _moved(eqn, name, shape, inputs[0], scalars)) is not None:
            return [moved]
    outputs = eqn.primitive.bind(*map(materialize, inputs), **eqn.primitive.get_bind_params(eqn.params))
    return [known(o) for o in (outputs if eqn.primitive.multiple_results else [outputs])]


def _moved(eqn, name: str, shape, x: Uniform, scalars: _Scalars) -> Uniform | None:
    """A uniform array in another shape, or None where its channels do not lie along one axis of that."""
    if np.ndim(x.value) == 0:
        return Uniform(x.value, shape)
    axis = max(range(len(x.shape)), key=lambda i: x.value.shape[i])
    size, params = x.shape[axis], eqn.params
    if name == "broadcast_in_dim":
        new = params["broadcast_dimensions"][axis]
    elif name == "transpose":
        new = params["permutation"].index(axis)
    elif name == "squeeze":
        new = axis - sum(i < axis for i in params["dimensions"])
    elif name == "reshape":
        before = math.prod(x.shape[:axis])
        fits = [i for i, n in enumerate(shape) if n == size and math.prod(shape[:i]) == before]
        if not fits:
            return None
        (new,) = fits
    else:
        return None
    return Uniform(scalars.reshape(x.value, tuple(size if i == new else 1 for i in range(len(shape)))), shape)


def _product(eqn, inputs: list[Value]) -> Linear | None:
    """`x @ W`, or `x^T @ (x @ W)` of the layer's own input x; None for any other product."""
    x, y = inputs
    if not (isinstance(x, Inputs) and isinstance(y, Linear)) or common_shape(list(y.terms.values())) != ():
        return None
    exact = eqn.outvars[0].aval.dtype == eqn.invars[1].aval.dtype
    if eqn.params["dimension_numbers"] != (((1,), (0,)), ((), ())) or not exact:
        return None
    terms = {source: c for source, c in y.terms.items() if not isinstance(source, Projection)}
    if not x.transposed and y.leaf == x.leaf and len(terms) == len(y.terms):
        return Linear(y.terms, Answer(x.leaf))
    if x.transposed and y.leaf == Answer(x.leaf):
        return Linear({Projection(source): c for source, c in terms.items()}, x.leaf)
    return None


def _linear(eqn, name: str, shape, inputs: list[Value], scalars: _Scalars) -> Linear | None:
    """The output as a `Linear`, or None where the operation is not known to be linear in the data."""
    if not all(_covers(value, var.aval.shape, shape) for value, var in zip(inputs, eqn.invars, strict=True)):
        return None
    if name in ("add", "add_any", "sub"):
        a, b = (Linear({}, _leaf(inputs)) if is_zero(v) else v for v in inputs)
        if not (isinstance(a, Linear) and isinstance(b, Linear) and a.leaf == b.leaf):
            return None
        if common_shape([*a.terms.values(), *b.terms.values()]) is None:
            return None
        terms = dict(a.terms)
        for i, coefficient in b.terms.items():
            if name == "sub":
                terms[i] = scalars.binary("sub", terms[i], coefficient) if i in terms else scalars.negate(coefficient)
            else:
                terms[i] = scalars.binary("add", terms[i], coefficient) if i in terms else coefficient
        return Linear(terms, a.leaf)
    if name in ("mul", "div"):
        if name == "mul" and isinstance(inputs[0], Uniform):
            inputs = inputs[::-1]
        a, b = inputs
        if not (isinstance(a, Linear) and isinstance(b, Uniform)) or common_shape([*a.terms.values(), b.value]) is None:
            return None
        return Linear({i: scalars.binary(name, c, b.value) for i, c in a.terms.items()}, a.leaf)
    if name == "select_n":
        return _select(eqn, inputs, scalars)
    (x,) = inputs if len(inputs) == 1 else (None,)
    if not isinstance(x, Linear):
        return None
    if name == "neg":
        return Linear({i: scalars.negate(c) for i, c in x.terms.items()}, x.leaf)
    if name == "integer_pow":
        return x if eqn.params["y"] == 1 else None
    if name in ("copy", "copy_p", *_SHAPE_ONLY):
        return x if eqn.invars[0].aval.shape == shape and name not in ("transpose", "rev") else None
    if name == "convert_element_type":
        return x if _exact(eqn.invars[0].aval.dtype, eqn.params["new_dtype"]) else None
    return None


def _covers(value: Value, own: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether an operand stands entry by entry against an output of this shape."""
    if isinstance(value, Uniform) and len(own) == len(shape):
        return all(n in (1, whole) for n, whole in zip(own, shape, strict=True))
    return own in ((), shape)


def _leaf(inputs: Sequence[Value]) -> int | Answer:
    return next(v.leaf for v in inputs if isinstance(v, Linear))


def _exact(old, new) -> bool:
    return jnp.issubdtype(new, jnp.floating) and jnp.promote_types(old, new) == new


def _select(eqn, inputs: list[Value], scalars: _Scalars) -> Linear | None:
    predicate, *cases = inputs
    if not isinstance(predicate, Uniform):
        return None
    leaf = _leaf(cases)
    linear = [v if isinstance(v, Linear) else Linear({}, leaf) for v in cases if isinstance(v, Linear) or is_zero(v)]
    if len(linear) < len(cases) or any(case.leaf != leaf for case in linear):
        return None
    if common_shape([predicate.value, *(c for case in linear for c in case.terms.values())]) is None:
        return None
    terms = {}
    for i in dict.fromkeys(i for case in linear for i in case.terms):
        branches = [case.terms.get(i, np.asarray(0.0, jnp.float32)) for case in linear]
        dtype = jnp.result_type(*branches)
        terms[i] = scalars.apply(eqn.primitive, eqn.params, predicate.value, *(_cast(b, dtype) for b in branches))
    return Linear(terms, leaf)
