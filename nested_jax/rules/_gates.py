"""Gates: the per-token numbers that a rule reads (learning_rate, momentum, decay), their reading and their listing."""

import contextlib
import contextvars
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

_INPUTS = "inputs"
_TAKEN = ("window", _INPUTS, "importance")
_record: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar("gates", default=None)


def recording() -> bool:
    """Whether `gates` is tracing the rule just now, on a stand-in for the real weights."""
    return _record.get() is not None


@contextlib.contextmanager
def unlisted() -> Iterator[None]:
    """Keeps the gates read inside, those of a rule within a rule, out of what `gates` lists."""
    token = _record.set(None)
    try:
        yield
    finally:
        _record.reset(token)


def read_gate(
    extra: Mapping[str, Any], name: str | None, constant: jax.typing.ArrayLike | None, *, scalar: bool = False
) -> jax.Array:
    """The value of a gate at this step: the keyword of `update` if given, else the constructor's constant.

    Args:
      extra: the keyword arguments that `update` received.
      name: the gate; None where the constant is no gate.
        "window", "inputs" and "importance" are taken: a memory gives them other things.
      constant: what stands in for the gate where `extra` does not hold it (or holds None); None if nothing does.
      scalar: whether the rule can only use a single number. A rule is also traced with 1 for every gate.

    Returns:
      A scalar, or a vector [D] of one number per channel; `scale` says which axis of an array that is.

    Raises:
      ValueError: if there is neither a keyword nor a constant, the gate has more than one axis, with `scalar` any, or
        its name is taken.

    Example:
      >>> print(read_gate({"decay": 0.25}, "decay", 0.5), read_gate({}, "decay", 0.5))
      0.25 0.5
    """
    if name is None:
        return jnp.asarray(constant)
    if name in _TAKEN:
        raise ValueError(f"gate: expected another name than {', '.join(_TAKEN)}, which are taken, got {name!r}.")
    record = _record.get()
    if record is not None:
        record.setdefault(name, _report(constant))
        if constant is None:
            record[name] = None
    value = extra.get(name)
    if value is None:
        value = constant
    if value is None:
        if record is None:
            raise ValueError(
                f"The gate {name!r} has no value. Give a constant when the rule is built ({name}=...), "
                f"or a value at every step: update(updates, state, params, {name}=...)."
            )
        value = 1.0
    gate = jnp.asarray(value)
    if gate.ndim > (0 if scalar else 1):
        expected = "a scalar in this rule" if scalar else "a scalar or a vector [D]"
        raise ValueError(f"The gate {name!r} must be {expected}, got shape {gate.shape}.")
    return gate


def read_inputs(inputs: Any) -> Any:
    """Marks a rule as one that reads the keyword `inputs`, each layer's own input; returns `inputs`."""
    record = _record.get()
    if record is not None:
        record[_INPUTS] = None
    return inputs


def reads_inputs(rule: optax.GradientTransformation, params: optax.Params | None = None) -> bool:
    """Whether a rule reads the keyword `inputs`, a tree like the weights with each layer's own input.

    Args:
      rule: any optax transformation.
      params: as for `gates`.

    Example:
      >>> from nested_jax import rules
      >>> reads_inputs(rules.hope()), reads_inputs(rules.titans())
      (True, False)
    """
    return _INPUTS in _trace(rule, params)


def gates(rule: optax.GradientTransformation, params: optax.Params | None = None) -> dict[str, Any]:
    """The gates that a rule reads, in the order it reads them.

    A gate is what a rule reads by `read_gate`, one of your own too; other keywords of its `update` are none. `init` and
    `update` are traced on shapes only, so this sees through any composition: `chain`, `optax.chain`, `optax.masked`,
    `optax.partition`, `optax.inject_hyperparams`, ...

    Args:
      rule: any optax transformation.
      params: a tree of weights (or of `jax.ShapeDtypeStruct`) that the rule accepts. Default: a matrix `w` [2, 3] and a
        vector `b` [3]. Needed where a rule looks at the names or shapes of the weights.

    Returns:
      For each gate the constant that stands in for it, or None if the gate has to be given at every step. A constant
      that the rule carries in its state (`optax.inject_hyperparams`) is reported as a `jax.ShapeDtypeStruct`. If two
      links read one gate, the first one's constant is reported, or None if one of them has none. A stock optax rule has
      no gates: `{}`.

    Raises:
      ValueError: if `rule` is not an optax transformation. What the rule raises on `params` is passed on.

    Example:
      >>> from nested_jax import rules
      >>> gates(rules.titans(momentum=0.9))
      {'learning_rate': None, 'momentum': 0.9, 'decay': None}
      >>> gates(optax.adam(1e-3))
      {}
    """
    return {name: constant for name, constant in _trace(rule, params).items() if name != _INPUTS}


def _trace(rule: optax.GradientTransformation, params: optax.Params | None) -> dict[str, Any]:
    """What the rule reads when its `init` and `update` are traced."""
    if params is None:
        params = {"w": jax.ShapeDtypeStruct((2, 3), jnp.float32), "b": jax.ShapeDtypeStruct((3,), jnp.float32)}
    if not isinstance(rule, optax.GradientTransformation):
        hint = "; a memory lists its own, memory.gates()" if callable(getattr(rule, "gates", None)) else ""
        raise ValueError(f"rule must be an optax transformation, got {rule!r}{hint}.")
    init, update = optax.with_extra_args_support(rule)

    def step(params: optax.Params) -> optax.Updates:
        return update(params, init(params), params)[0]

    record: dict[str, Any] = {}
    token = _record.set(record)
    try:
        # Without jit no trace made here, with stand-ins for missing gates, can enter or come from jit's cache.
        with jax.disable_jit():
            jax.eval_shape(step, params)
    finally:
        _record.reset(token)
    return record


def scale(gate: jax.typing.ArrayLike, tree: optax.Updates) -> optax.Updates:
    """Multiplies every array of a tree by a gate.

    A vector gate [D] multiplies the axis of size D of every array: the last one if it has that size, else the one
    before it. Of a memory's layers `x @ w1`, w1 [D, H], and `h @ w2`, w2 [H, D], it gates the inputs of the one and the
    outputs of the other. Our choice where MIRAS, whose gates are channel-wise, is silent. Axes before these two are
    batch.

    Args:
      gate: a scalar or a vector [D].
      tree: a tree of arrays; None leaves stay None.

    Returns:
      The products, each in the dtype of its array. Arrays narrower than float32 are multiplied in float32.

    Raises:
      ValueError: if a vector gate fits neither of the last two axes of an array.

    Example:
      >>> layers = scale(jnp.array([2.0, 0.0]), {"w1": jnp.ones([2, 3]), "w2": jnp.ones([3, 2])})
      >>> print(layers["w1"])
      [[2. 2. 2.]
       [0. 0. 0.]]
      >>> print(layers["w2"])
      [[2. 0.]
       [2. 0.]
       [2. 0.]]

    References:
      Behrouz et al., `MIRAS <https://arxiv.org/abs/2504.13173>`_, 2025, §5.3.
    """
    return jax.tree.map(lambda leaf: (fit(gate, leaf) * widen(leaf)).astype(jnp.result_type(leaf)), tree)


def widen(leaf: jax.typing.ArrayLike) -> jax.Array:
    """The array in at least float32, the precision in which rules compute."""
    leaf = jnp.asarray(leaf)
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))


def fit(gate: jax.typing.ArrayLike, leaf: jax.typing.ArrayLike) -> jax.Array:
    """The gate in the dtype of `widen(leaf)`, shaped to multiply it as `scale` says."""
    shape = jnp.shape(leaf)
    gate = jnp.asarray(gate)
    gate = gate.astype(jnp.promote_types(jnp.result_type(leaf), jnp.float32))
    if gate.ndim == 0:
        return gate
    axis = next((axis for axis in (-1, -2) if gate.shape == shape[axis:][:1]), None)
    if axis is None:
        raise ValueError(
            "A gate must be a scalar, or a vector [D] for arrays whose last axis, or the one before it, has size D; "
            f"got a gate of shape {gate.shape} for an array of shape {shape}."
        )
    return gate.reshape((1,) * (len(shape) + axis) + gate.shape + (1,) * (-1 - axis))


def check_constant(name: str, value: Any, low: float = 0.0, high: float = float("inf")) -> None:
    """Raises ValueError unless a gate's constant is None, an array, or a number in [low, high]."""
    if value is None or isinstance(value, jax.Array | np.ndarray):
        return
    if not isinstance(value, int | float | np.integer | np.floating):
        raise ValueError(
            f"{name} must be a number, an array or None, got {value!r}. "
            "A schedule goes through optax.inject_hyperparams, or is called outside and given at every step."
        )
    if not low <= value <= high:
        expected = f"at least {low:g}" if high == float("inf") else f"in [{low:g}, {high:g}]"
        raise ValueError(f"{name} must be {expected}, got {value!r}.")


def _report(constant: Any) -> Any:
    if isinstance(constant, jax.core.Tracer):
        return jax.ShapeDtypeStruct(constant.shape, constant.dtype)
    return constant
