"""Configs as plain data: what a dataclass holds as nested dicts, where two such descriptions differ, and older ones."""

import dataclasses
import enum
import functools
import hashlib
import inspect
import json
import math
import os
import types
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import optax

_ABSENT = "(absent)"


def to_dict(config: Any) -> dict[str, Any]:
    """Describe a config as a nested dict that survives JSON unchanged.

    Dataclasses and named tuples become `{"__type__": class name, field: value}`, tuples become lists, functions their
    module and qualified name together with the values they close over, optax transformations what
    `nested_jax.rules.describe_rule` says of them, large arrays a hash. No memory address enters, so the same
    file gives the same description in every process. Two lambdas of one scope that close over the same
    values cannot be told apart.
    """
    return _describe(config, ())


def without(description: Mapping[str, Any], paths: Container[str]) -> dict[str, Any]:
    """A description made by `to_dict`, but for some fields.

    Example:
      >>> without({"dim": 64, "data": {"path": "text", "cache": None}}, ["dim", "data.cache"])
      {'data': {'path': 'text'}}
    """
    return _without(description, paths, "")


def _without(node: Any, paths: Container[str], path: str) -> Any:
    if not isinstance(node, Mapping):
        return node
    left = {name: join(path, name) for name in node if join(path, name) not in paths}
    return {name: _without(node[name], paths, at) for name, at in left.items()}


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """List where two descriptions made by `to_dict` differ, one readable line per value.

    Example:
      >>> differences({"model": {"dim": 64}}, {"model": {"dim": 128}})
      ['model.dim: 64 != 128']
    """
    return list(_differences(a, b, ""))


def completed(description: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """A description of an older config, with the fields that its dataclasses have got since, at their defaults.

    Args:
      description: as `to_dict` made it, before fields with defaults were added to the dataclasses in it.
      config: a config of today, whose types say which fields there are.

    Returns:
      The description, for `differences`; where the types are other ones, it is left as it is.

    Example:
      >>> import dataclasses
      >>> @dataclasses.dataclass
      ... class Model:
      ...     dim: int
      ...     depth: int = 1
      >>> completed({"__type__": "Model", "dim": 64}, Model(dim=32))
      {'__type__': 'Model', 'dim': 64, 'depth': 1}
    """
    return _completed(dict(description), config)


def digest(config: Any, without: Container[str] = ()) -> str:
    """A hash of what a config says, 16 hexadecimal digits.

    Fields at their defaults do not enter it: it stays the same when a dataclass gets a field with a default, and it
    does not tell that a default has become another one.

    Args:
      config: a dataclass.
      without: paths of fields that do not enter either, such as "data.seed".

    Example:
      >>> Model = dataclasses.make_dataclass("Model", [("dim", int), ("depth", int, 1)])
      >>> [digest(model) == digest(Model(dim=64)) for model in (Model(dim=64, depth=1), Model(dim=64, depth=2))]
      [True, False]
      >>> digest(Model(dim=32), without=["dim"]) == digest(Model(dim=64), without=["dim"])
      True
    """
    told = json.dumps(_told(config, "", without), sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _told(node: Any, path: str, without: Container[str]) -> Any:
    """A description without defaults and without some fields."""
    if isinstance(node, tuple | list) and not hasattr(node, "_fields"):
        return [_told(one, join(path, name), without) for name, one in children(node)]
    if not is_dataclass(node):
        return _describe(node, ())
    found = {"__type__": type(node).__qualname__}
    for field in dataclasses.fields(node):
        at, value, default = join(path, field.name), getattr(node, field.name), _default(field)
        if at in without:
            continue
        if default is dataclasses.MISSING or _describe(default, ()) != _describe(value, ()):
            found[field.name] = _told(value, at, without)
    return found


def _default(field: dataclasses.Field) -> Any:
    """A field's default, `dataclasses.MISSING` if it has none."""
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def _completed(description: Any, node: Any) -> Any:
    if isinstance(description, list) and isinstance(node, tuple | list) and len(description) == len(node):
        return [_completed(one, other) for one, other in zip(description, node, strict=True)]
    if not (isinstance(description, Mapping) and is_dataclass(node)):
        return description
    if description.get("__type__") != type(node).__qualname__:
        return description
    found = {}
    for field in dataclasses.fields(node):
        if field.name in description:
            found[field.name] = _completed(description[field.name], getattr(node, field.name))
        elif (default := _default(field)) is not dataclasses.MISSING:
            found[field.name] = _describe(default, ())
    return {**description, **found}


def is_dataclass(x: Any) -> bool:
    """Whether this is a dataclass's instance."""
    return dataclasses.is_dataclass(x) and not isinstance(x, type)


def join(path: str, name: object) -> str:
    """The path of a field below a path, `model.dim`."""
    return f"{path}.{name}" if path else str(name)


def children(node: Any) -> list[tuple[str, Any]]:
    """What a dataclass, a mapping or a sequence holds, by name; of an optax transformation nothing."""
    if is_dataclass(node):
        return [(f.name, getattr(node, f.name)) for f in dataclasses.fields(node)]
    if isinstance(node, Mapping):
        return [(str(key), value) for key, value in node.items()]
    if isinstance(node, tuple | list) and not isinstance(node, optax.GradientTransformation):
        return [(str(i), value) for i, value in enumerate(node)]
    return []


def _describe(x: Any, above: tuple[int, ...]) -> Any:
    if x is None or isinstance(x, bool | str) or type(x) is int:
        return x
    if type(x) is float:
        return x if math.isfinite(x) else str(x)
    if id(x) in above:
        return "(itself)"
    above = (*above, id(x))
    if isinstance(x, optax.GradientTransformation):
        from nested_jax.rules import describe_rule

        return describe_rule(x)
    if isinstance(x, enum.Enum):
        return f"{type(x).__qualname__}.{x.name}"
    if isinstance(x, os.PathLike):
        return os.fspath(x)
    if isinstance(x, np.ndarray | np.generic | jax.Array):
        return _describe_array(np.asarray(x))
    if isinstance(x, np.dtype):
        return str(x)
    if is_dataclass(x) or hasattr(x, "_fields"):
        fields = dict(children(x)) if is_dataclass(x) else x._asdict()
        return {"__type__": type(x).__qualname__, **{name: _describe(value, above) for name, value in fields.items()}}
    if isinstance(x, Mapping):
        return {str(key): _describe(value, above) for key, value in x.items()}
    if isinstance(x, tuple | list):
        return [_describe(value, above) for value in x]
    if isinstance(x, set | frozenset):
        return sorted((_describe(value, above) for value in x), key=str)
    if callable(x):
        return _describe_callable(x, above)
    return _describe_object(x, above)


def _describe_object(x: Any, above: tuple[int, ...]) -> dict[str, Any]:
    fields = getattr(x, "__dict__", {})
    return {"__type__": type(x).__qualname__, **{name: _describe(value, above) for name, value in fields.items()}}


def _describe_array(x: np.ndarray) -> Any:
    if x.size <= 64:
        return _describe(x.tolist(), ())
    digest = hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()[:16]
    return {"__type__": "array", "shape": list(x.shape), "dtype": str(x.dtype), "sha256": digest}


def _describe_callable(x: Callable, above: tuple[int, ...]) -> Any:
    if isinstance(x, functools.partial):
        bound = {str(i): value for i, value in enumerate(x.args)} | x.keywords
        return {"__partial__": _describe(x.func, above), **{k: _describe(v, above) for k, v in bound.items()}}
    if not isinstance(x, types.FunctionType):
        x = inspect.unwrap(x)  # what `jax.jit` and `jax.custom_jvp` objects stand for
    if not hasattr(x, "__qualname__"):
        return _describe_object(x, above)
    name = f"{getattr(x, '__module__', None) or 'builtins'}.{x.__qualname__}"
    cells = getattr(x, "__closure__", None) or ()
    names = x.__code__.co_freevars if cells else ()
    closed = {k: _describe(cell.cell_contents, above) for k, cell in zip(names, cells, strict=True)}
    owner = getattr(x, "__self__", None)
    if owner is not None and not isinstance(owner, types.ModuleType | type):
        closed["self"] = _describe(owner, above)
    return {"__callable__": name, **closed} if closed else name


def _differences(a: Any, b: Any, path: str) -> Iterator[str]:
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        a, b = dict(enumerate(a)), dict(enumerate(b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in [*a, *(key for key in b if key not in a)]:
            yield from _differences(a.get(key, _ABSENT), b.get(key, _ABSENT), join(path, key))
    elif type(a) is not type(b) or a != b:
        yield f"{path}: {a!r} != {b!r}".replace(repr(_ABSENT), _ABSENT)
