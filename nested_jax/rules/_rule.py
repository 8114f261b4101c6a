"""The type of a rule: an optax transformation that can say what it is made of."""

import functools
import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
import optax


class Rule(optax.GradientTransformationExtraArgs):
    """An optax transformation, the pair (init, update), with a readable description and its links.

    It is what every function of `nested_jax.rules` returns, and may be used wherever optax expects a transformation.

    Attributes:
      init: params -> state.
      update: (updates, state, params=None, **gates) -> (updates, state).
      description: how the rule was built, e.g. `momentum(momentum=0.9)`; also its `repr`.
      factored: for a stateless map f of matrices that keeps thin factors, `(left, right) -> z` with
        `f(left.T @ right) == left.T @ z @ right`; else None. Windows of few tokens then go through it without being
        formed.
      mirrored: for `mirror`, the rule that drives the accumulator and the map from it to the weights; else None.

    Example:
      >>> from nested_jax import rules
      >>> rules.momentum(0.9, nesterov=True)
      momentum(momentum=0.9, nesterov=True)
    """

    description: str
    factored: Callable[[jax.Array, jax.Array], jax.Array] | None
    mirrored: tuple[optax.GradientTransformation, Any] | None
    _links: tuple[optax.GradientTransformation, ...]

    def __new__(
        cls,
        init: optax.TransformInitFn,
        update: optax.TransformUpdateExtraArgsFn,
        description: str = "",
        links: tuple[optax.GradientTransformation, ...] = (),
        factored: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
        mirrored: tuple[optax.GradientTransformation, Any] | None = None,
    ) -> "Rule":
        rule = super().__new__(cls, init, update)
        rule.description = description or _describe_pair(init, update, ())
        rule._links = links
        rule.factored = factored
        rule.mirrored = mirrored
        return rule

    @classmethod
    def _make(cls, iterable: Iterable[Any]) -> "Rule":
        return cls(*iterable)

    @property
    def links(self) -> tuple[optax.GradientTransformation, ...]:
        """The rules of a chain in order, aligned with its state; a rule that is not a chain is its only link."""
        return self._links or (self,)

    def __repr__(self) -> str:
        return self.description


def describe_rule(rule: optax.GradientTransformation) -> str:
    """A stable, readable text for any optax transformation: what it is and the constants it holds.

    The text depends on neither the process nor the machine, so it may enter the fingerprint of a configuration. Rules
    of `nested_jax` give their constructor. For others the name of the function that made them is given, with the
    numbers, strings, arrays (long ones as a hash) and functions that their `init` and `update` close over. What is
    written in the body of a user's own function is not seen.

    Args:
      rule: any optax transformation.

    Returns:
      The text, on one line.

    Example:
      >>> from nested_jax import rules
      >>> describe_rule(optax.chain(optax.clip(1.0), optax.scale(-0.1)))
      'optax.chain(optax.clip(max_delta=1.0), optax.scale(step_size=-0.1))'
      >>> describe_rule(rules.titans(decay=0.1))
      'chain(scale_by_learning_rate(), momentum(), retention(decay=0.1))'
    """
    return _describe(rule, ())


def call_text(name: str, defaults: Mapping[str, Any], **arguments: Any) -> str:
    """The text of a call, leaving out arguments that have their default (`None` where `defaults` names none)."""
    given = []
    for key, value in arguments.items():
        default = defaults.get(key)
        if value is default or (type(value) is type(default) and not hasattr(value, "shape") and value == default):
            continue
        given.append(f"{key}={_describe(value, ())}")
    return f"{name}({', '.join(given)})"


def check_rules(function: str, rules: tuple[Any, ...]) -> None:
    """Raises a ValueError unless there is at least one rule and all are optax transformations."""
    if not rules:
        raise ValueError(f"{function} takes at least one rule, got none.")
    for position, rule in enumerate(rules):
        if not isinstance(rule, optax.GradientTransformation):
            raise ValueError(f"{function} takes optax transformations, got {rule!r} at position {position}.")


def _describe(value: Any, seen: tuple[int, ...]) -> str:
    if isinstance(value, Rule):
        return value.description
    if id(value) in seen:
        return "..."
    seen = (*seen, id(value))
    if isinstance(value, optax.GradientTransformation):
        return _describe_pair(value.init, value.update, seen)
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if isinstance(value, jax.core.Tracer):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return _describe_array(value)
    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_describe(item, seen)}" for key, item in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(_describe(item, seen) for item in value) + ")"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(_describe(item, seen) for item in value)) + "}"
    if isinstance(value, functools.partial):
        parts = [_describe(value.func, seen), *(_describe(item, seen) for item in value.args)]
        parts += [f"{key}={_describe(item, seen)}" for key, item in sorted(value.keywords.items())]
        return f"partial({', '.join(parts)})"
    if inspect.isfunction(value):
        return _describe_functions(value, seen=seen)
    if inspect.ismethod(value):
        return f"{_describe(value.__self__, seen)}.{value.__name__}"
    if hasattr(value, "__wrapped__"):
        return _describe(value.__wrapped__, seen)
    if hasattr(value, "__qualname__"):
        return _name(value)
    return _call(_name(type(value)), getattr(value, "__dict__", {}), seen)


def _describe_pair(init: Any, update: Any, seen: tuple[int, ...]) -> str:
    if inspect.isfunction(init) and inspect.isfunction(update):
        return _describe_functions(update, init, seen=seen)
    return _describe(update, seen)


def _describe_functions(*functions: Any, seen: tuple[int, ...]) -> str:
    """The constructor of the functions, and what they close over."""
    name, held = _name(functions[0]), _closure(functions[0])
    if name == "optax.with_extra_args_support":
        return _describe(held["tx"], seen)
    for function in functions[1:]:
        held = _closure(function) | held
    if set(held) == {"init_fns", "update_fns"}:
        pairs = zip(held["init_fns"], held["update_fns"], strict=True)
        return f"{name}({', '.join(_describe_pair(*pair, seen) for pair in pairs)})"
    if not held and "<locals>" not in functions[0].__qualname__:
        return name
    return _call(name, held, seen)


def _closure(function: Any) -> dict[str, Any]:
    """The values a function closes over, and its defaults other than None."""
    held = {}
    for key, parameter in inspect.signature(function).parameters.items():
        if parameter.default is not None and parameter.default is not inspect.Parameter.empty:
            held[key] = parameter.default
    for key, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        held[key] = cell.cell_contents
    return held


def _call(name: str, arguments: Mapping[str, Any], seen: tuple[int, ...]) -> str:
    return f"{name}({', '.join(f'{key}={_describe(arguments[key], seen)}' for key in sorted(arguments))})"


def _describe_array(value: Any) -> str:
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    if array.size <= 16:
        return f"{array.dtype}({array.tolist()})"
    return f"{array.dtype}{list(array.shape)}#{hashlib.sha256(array.tobytes()).hexdigest()[:12]}"


def _name(value: Any) -> str:
    """Package and name of whatever made a function or class: optax.transforms._x.trace.<locals>.f -> optax.trace."""
    package = (value.__module__ or "").split(".")[0]
    name = value.__qualname__.split(".<locals>")[0]
    return name if package in ("", "builtins", "nested_jax", "__main__") else f"{package}.{name}"
