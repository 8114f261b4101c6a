"""Typed configs: load a dataclass from an experiment file, override its fields from strings and validate it.

An experiment file is plain Python with a function `get_config(arg: str = "")` that returns a dataclass (frozen or not)
whose fields may be numbers, strings, tuples, rules, callables and further dataclasses.
"""

import dataclasses
import difflib
import enum
import importlib.util
import json
import pathlib
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Union

from nested_jax.description import children, is_dataclass, join


def load(spec: str, overrides: Mapping[str, str] | None = None) -> Any:
    """Run an experiment file and return its validated config.

    Args:
      spec: `path/to/file.py` or `path/to/file.py:arg`; `arg` is handed to the file's `get_config`.
      overrides: Dotted field paths and their new values as strings; see `override`.

    Returns:
      The dataclass that `get_config(arg)` returned, with the overrides applied.

    Raises:
      ValueError: If the file is missing or has no `get_config`, if it returns no dataclass, if an override does not
        fit, or if the config's own validation refuses it.
    """
    found, arg = module(spec)
    get_config = getattr(found, "get_config", None)
    if not callable(get_config):
        raise ValueError(f"config: {found.__file__} defines no function get_config(arg)")
    config = get_config(arg)
    if not is_dataclass(config):
        raise ValueError(f"config: get_config of {found.__file__} must return a dataclass, got {type(config).__name__}")
    config = override(config, overrides or {})
    validate(config)
    return config


def module(spec: str) -> tuple[types.ModuleType, str]:
    """Run an experiment file.

    Args:
      spec: As for `load`.

    Returns:
      The file as a module, and `arg`.

    Raises:
      ValueError: If there is no such file.
    """
    head, extension, arg = spec.partition(".py:") if ".py:" in spec else (spec, "", "")
    path = pathlib.Path(head + (".py" if extension else "")).expanduser()
    if path.suffix != ".py":
        raise ValueError(f"config: expected path/to/file.py or path/to/file.py:variant, got {spec!r}")
    if not path.is_file():
        raise ValueError(f"config: no such file: {path} (looked in {pathlib.Path.cwd()})")
    return _execute(path), arg


def override(config: Any, values: Mapping[str, str]) -> Any:
    """Return a copy of a config with some fields replaced, each converted to the type its annotation names.

    Understood types: `int`, `float`, `bool` (true/false), `str`, paths, enums (by name), `Literal`, `tuple[...]` and
    `list[...]` of those (comma separated, parentheses or brackets optional), mappings (as JSON), and unions, where
    `none` stands for None. A path may go through tuples, lists (by index) and dicts (by key) that are already there:
    `model.levels.0.period`.

    Args:
      config: A dataclass instance, frozen or not; nested ones likewise. It is left as it is.
      values: Dotted field path to new value, as written on a command line.

    Returns:
      A new object of the same type; every dataclass on the way is rebuilt once, after all its fields are known.

    Raises:
      ValueError: If a field does not exist (the nearest name is suggested) or a value does not fit its type.

    Example:
      >>> import dataclasses
      >>> @dataclasses.dataclass(frozen=True)
      ... class Model:
      ...     dim: int = 128
      >>> override(Model(), {"dim": "64"})
      Model(dim=64)
    """
    tree: dict[str, Any] = {}
    for path, text in values.items():
        node = tree
        *parents, last = path.split(".")
        for name in parents:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise ValueError(f"{path}: a field above it is overridden too")
        if last in node:
            raise ValueError(f"{path}: a field below it is overridden too")
        node[last] = text
    return _override(config, tree, "", config)


def validate(config: Any) -> None:
    """Call `validate()` of every dataclass inside a config that has one, the innermost first.

    Raises:
      ValueError: What a `validate` raised, with the dotted path of its dataclass in front.
    """
    for path, node in _walk(config, ""):
        check = getattr(node, "validate", None)
        if check is None:
            continue
        try:
            check()
        except ValueError as error:
            raise ValueError(f"{path}: {error}" if path else str(error)) from error


def _execute(path: pathlib.Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # postponed annotations of the file's dataclasses are resolved through it
    spec.loader.exec_module(module)
    return module


def _walk(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, value in children(node):
        yield from _walk(value, join(path, name))
    if is_dataclass(node):
        yield path, node


def _override(node: Any, tree: Mapping[str, Any], path: str, root: Any) -> Any:
    if not tree:
        return node
    current = dict(children(node))
    changed = {}
    for name, value in tree.items():
        here = join(path, name)
        if name not in current:
            raise ValueError(_unknown(node, name, path, root))
        if isinstance(value, dict):
            changed[name] = _override(current[name], value, here, root)
        else:
            changed[name] = _convert(value, _hint(node, name, current[name]), here)
    if is_dataclass(node):
        fixed = [f.name for f in dataclasses.fields(node) if f.name in changed and not f.init]
        if fixed:
            raise ValueError(f"{join(path, fixed[0])}: is computed from other fields and cannot be set")
        return dataclasses.replace(node, **changed)
    if isinstance(node, Mapping):
        return {key: changed.get(str(key), value) for key, value in node.items()}
    items = [changed.get(str(i), value) for i, value in enumerate(node)]
    return type(node)(*items) if hasattr(node, "_fields") else type(node)(items)


def _hint(node: Any, name: str, value: Any) -> Any:
    """The annotated type of a dataclass field; the type of the present value for an item of a tuple, list or dict."""
    return typing.get_type_hints(type(node), include_extras=True)[name] if is_dataclass(node) else type(value)


def _unknown(node: Any, name: str, path: str, root: Any) -> str:
    here = join(path, name)
    names = [child for child, _ in children(node)]
    if not names:
        return f"unknown field {here!r}: {path!r} is {_summary(node)} and has no fields; set it in the config file"
    near = [join(path, match) for match in difflib.get_close_matches(name, names, n=1)]
    elsewhere = [known for known in _paths(root, "") if known.rpartition(".")[2] == name]
    hint = f" (did you mean {(near + elsewhere)[0]!r}?)" if near or elsewhere else ""
    owner = f"{path!r} ({type(node).__name__})" if path else type(node).__name__
    return f"unknown field {here!r}{hint}; the fields of {owner} are: {', '.join(names)}"


def _paths(node: Any, path: str) -> Iterator[str]:
    for name, value in children(node):
        yield join(path, name)
        yield from _paths(value, join(path, name))


def _summary(node: Any) -> str:
    return repr(node) if node is None or isinstance(node, int | float | str) else f"a {type(node).__name__}"


def _convert(text: str, hint: Any, path: str) -> Any:
    """The value of type `hint` that `text` spells; `TypeError` inside means no string can spell it."""
    try:
        return _parse(text, hint)
    except TypeError:
        raise ValueError(f"{path}: a {_type_name(hint)} cannot be given as text; set it in the config file") from None
    except ValueError:
        raise ValueError(f"{path}: expected {_type_name(hint)}, got {text!r}") from None


def _parse(text: str, hint: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _parse(text, args[0])
    if origin in (Union, types.UnionType):
        return _parse_union(text, args)
    if origin is Literal:
        return _pick(text, {str(value): value for value in args})
    if hint in (tuple, list) or origin in (tuple, list):
        return _parse_sequence(text, origin or hint, args)
    if hint in (None, types.NoneType):
        return _pick(text.lower(), {"none": None})
    if hint is bool:
        return _pick(text.lower(), {"true": True, "false": False})
    if hint in (int, float, str):
        return hint(text)
    if hint in (dict, Mapping) or origin in (dict, Mapping):
        return _parse_mapping(text)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _pick(text, dict(hint.__members__))
    if isinstance(hint, type) and issubclass(hint, pathlib.PurePath):
        return pathlib.Path(text)
    raise TypeError


def _parse_mapping(text: str) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError
    return found


def _pick(text: str, table: Mapping[str, Any]) -> Any:
    if text not in table:
        raise ValueError
    return table[text]


def _parse_union(text: str, members: tuple[Any, ...]) -> Any:
    """The first member that fits, `str` last because everything fits it."""
    spelled = False
    for member in sorted(members, key=lambda m: (m is str, m is not types.NoneType)):
        try:
            return _parse(text, member)
        except ValueError:
            spelled = spelled or member is not types.NoneType
        except TypeError:
            continue
    raise ValueError if spelled else TypeError


def _parse_sequence(text: str, kind: type, args: tuple[Any, ...]) -> Any:
    items = _split(text)
    if len(items) == 1 and _bracketed(items[0]):
        items = _split(items[0][1:-1])
    if not args or kind is list or args[-1] is Ellipsis:
        args = (args[0] if args else str,) * len(items)
    if len(items) != len(args):
        raise ValueError
    pairs = list(zip(items, args, strict=True))
    if any(typing.get_origin(arg) in (tuple, list) and not _bracketed(item) for item, arg in pairs):
        raise ValueError
    return kind(_parse(item, arg) for item, arg in pairs)


def _bracketed(text: str) -> bool:
    return text[:1] + text[-1:] in ("()", "[]")


def _split(text: str) -> list[str]:
    """The parts of `text` between commas that are not inside parentheses or brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    parts = [part.strip() for part in parts]
    return parts if parts[-1] else parts[:-1]


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")
