"""Configs: loading, typed overrides, validation, stable descriptions and their differences."""

import dataclasses
import enum
import functools
import json
import pathlib
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nested_jax import config as configs
from nested_jax import description, rules


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass(frozen=True)
class Level:
    period: int = 1
    widths: tuple[int, ...] = (8,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    dim: int = 128
    dropout: float = 0.0
    tied: bool = True
    kind: Literal["lmm", "transformer"] = "lmm"
    colour: Colour = Colour.RED
    limit: int | None = None
    mixed: int | str | None = None
    pair: tuple[int, float] = (1, 2.0)
    nested: tuple[tuple[int, ...], ...] = ()
    names: list[str] = dataclasses.field(default_factory=list)
    folder: pathlib.Path = pathlib.Path(".")
    activation: Callable = jax.nn.gelu
    schedule: float | Callable[[int], float] = 0.1
    levels: tuple[Level, ...] = (Level(), Level(period=8))
    options: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"b1": 0.9})
    twice: int = dataclasses.field(init=False, default=0)

    def __post_init__(self):
        object.__setattr__(self, "twice", 2 * self.dim)

    def validate(self):
        if self.dim % 8:
            raise ValueError(f"dim: expected a multiple of 8, got {self.dim}")


@dataclasses.dataclass
class Experiment:
    name: str = "x"
    steps: int = 10
    model: Model = dataclasses.field(default_factory=Model)
    rule: Any = dataclasses.field(default_factory=rules.titans)
    table: dict[str, int] = dataclasses.field(default_factory=lambda: {"a": 1})


FILE = """
from __future__ import annotations
import dataclasses

@dataclasses.dataclass(frozen=True)
class Config:
    dim: int = 4
    arg: str = ""
    activation: object = None

    def validate(self):
        if self.dim < 1:
            raise ValueError(f"dim: expected at least 1, got {self.dim}")

def get_config(arg: str = "") -> Config:
    if arg not in ("", "tiny", "a:b"):
        raise ValueError(f"unknown variant {arg!r}")
    scale = 3
    return Config(arg=arg, activation=lambda x: x * scale)
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "experiment.py"
    path.write_text(textwrap.dedent(FILE))
    return path


def test_load_with_and_without_a_variant(file):
    assert configs.load(str(file)).arg == ""
    assert configs.load(f"{file}:tiny", {"dim": "7"}).dim == 7
    assert configs.load(f"{file}:a:b").arg == "a:b"


@pytest.mark.parametrize(
    ("spec", "overrides", "message"),
    [
        ("{dir}/none.py", {}, "no such file"),
        ("{dir}/experiment.txt", {}, "expected path/to/file.py"),
        ("{dir}/experiment.py:huge", {}, "unknown variant 'huge'"),
        ("{dir}/experiment.py", {"dim": "0"}, "dim: expected at least 1, got 0"),
        ("{dir}/empty.py", {}, "defines no function get_config"),
        ("{dir}/wrong.py", {}, "must return a dataclass, got dict"),
    ],
)
def test_load_errors(file, spec, overrides, message):
    (file.parent / "empty.py").write_text("x = 1\n")
    (file.parent / "wrong.py").write_text("def get_config(arg=''):\n    return {}\n")
    with pytest.raises(ValueError, match=message):
        configs.load(spec.format(dir=file.parent), overrides)


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("steps", "1_000", 1000),
        ("name", "none", "none"),
        ("model.dim", "64", 64),
        ("model.dropout", "3e-4", 3e-4),
        ("model.dropout", "1", 1.0),
        ("model.tied", "False", False),
        ("model.kind", "transformer", "transformer"),
        ("model.colour", "BLUE", Colour.BLUE),
        ("model.limit", "5", 5),
        ("model.limit", "None", None),
        ("model.mixed", "5", 5),
        ("model.mixed", "five", "five"),
        ("model.mixed", "none", None),
        ("model.pair", "(3, 4.5)", (3, 4.5)),
        ("model.nested", "(1,8),(64,)", ((1, 8), (64,))),
        ("model.nested", "((1,8),)", ((1, 8),)),
        ("model.nested", "()", ()),
        ("model.options", "{}", {}),
        ("model.options", '{"momentum": 0.9, "nesterov": true}', {"momentum": 0.9, "nesterov": True}),
        ("model.options.b1", "0.8", 0.8),
        ("model.names", "[a, b]", ["a", "b"]),
        ("model.names", "", []),
        ("model.folder", "data/x", pathlib.Path("data/x")),
        ("model.schedule", "0.5", 0.5),
        ("model.levels.1.period", "16", 16),
        ("model.levels.0.widths", "1,2", (1, 2)),
        ("table.a", "2", 2),
    ],
)
def test_override_converts_by_annotation(path, text, value):
    config = Experiment()
    before = description.to_dict(config)
    node = configs.override(config, {path: text})
    for name in path.split("."):
        node = node[name] if isinstance(node, dict) else node[int(name)] if name.isdigit() else getattr(node, name)
    assert node == value
    assert type(node) is type(value)
    assert description.to_dict(config) == before


def test_override_rebuilds_computed_fields_and_keeps_the_rest():
    config = Experiment(name="kept")
    new = configs.override(config, {"model.dim": "64", "model.limit": "3"})
    assert (new.name, new.model.dim, new.model.twice, new.model.limit) == ("kept", 64, 128, 3)
    assert new.rule is config.rule


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model.dims": "1"}, r"unknown field 'model.dims' \(did you mean 'model.dim'\?\).*'model' \(Model\).*dropout"),
        ({"dim": "1"}, r"unknown field 'dim' \(did you mean 'model.dim'\?\).*Experiment are: name, steps"),
        ({"zzz": "1"}, r"unknown field 'zzz'; the fields of Experiment are: name"),
        ({"steps.x": "1"}, "'steps' is 10 and has no fields"),
        ({"model.limit.x": "1"}, "'model.limit' is None and has no fields"),
        ({"rule.init": "1"}, "'rule' is a Rule and has no fields"),
        ({"model.levels.2.period": "1"}, "unknown field 'model.levels.2'"),
        ({"steps": "3.5"}, "steps: expected int, got '3.5'"),
        ({"model.dropout": "much"}, "model.dropout: expected float, got 'much'"),
        ({"model.tied": "yes"}, "model.tied: expected bool, got 'yes'"),
        ({"model.kind": "rnn"}, r"model.kind: expected Literal\['lmm', 'transformer'\], got 'rnn'"),
        ({"model.colour": "GREEN"}, "model.colour: expected Colour, got 'GREEN'"),
        ({"model.limit": "x"}, r"model.limit: expected int \| None, got 'x'"),
        ({"model.options": "[1]"}, r"model.options: expected .*Mapping\[str, Any\], got '\[1\]'"),
        ({"model.pair": "1,2,3"}, r"model.pair: expected tuple\[int, float\], got '1,2,3'"),
        ({"model.nested": "(1, 8)"}, r"model.nested: expected tuple\[tuple\[int, ...\], ...\], got '\(1, 8\)'"),
        ({"model.activation": "gelu"}, "model.activation: .*Callable cannot be given as text; set it in the config"),
        ({"model.schedule": "cosine"}, r"model.schedule: expected float \| .*, got 'cosine'"),
        ({"model.levels": "1"}, "model.levels: .* cannot be given as text"),
        ({"rule": "titans"}, "rule: .*Any cannot be given as text"),
        ({"model.twice": "1"}, "model.twice: is computed"),
        ({"model": "1", "model.dim": "8"}, "a field above it is overridden too"),
        ({"model.dim": "8", "model": "1"}, "a field below it is overridden too"),
    ],
)
def test_override_errors(values, message):
    with pytest.raises(ValueError, match=message):
        configs.override(Experiment(), values)


def test_validate_names_the_path():
    with pytest.raises(ValueError, match=r"^model: dim: expected a multiple of 8, got 9$"):
        configs.validate(Experiment(model=Model(dim=9)))
    configs.validate(Experiment())


def test_description_survives_json_and_hides_addresses():
    def closure(scale):
        return lambda x: x * scale

    @dataclasses.dataclass
    class Odd:
        value: Any

    values = [
        rules.titans(),
        optax.adam(1e-3),
        optax.cosine_decay_schedule(1.0, 10),
        functools.partial(jax.nn.gelu, approximate=False),
        jax.jit(closure(2)),
        closure,
        np.arange(1000),
        jnp.ones(2),
        jnp.bfloat16,
        np.dtype("int8"),
        float("nan"),
        {1, 2},
        Colour.RED,
        object(),
        np.float32(0.5),
        len,
        [].append,
        Model(),
    ]
    described = description.to_dict(Odd(values))
    text = json.dumps(described, allow_nan=False)
    assert json.loads(text) == described
    assert "0x" not in text
    for different in (closure(3), closure(4), np.arange(1001), optax.adam(2e-3), rules.titans(decay=0.1)):
        assert description.to_dict(Odd(different)) not in [description.to_dict(Odd(value)) for value in values]
    assert description.to_dict(Odd(closure(3))) != description.to_dict(Odd(closure(4)))


def test_description_ends_on_a_function_that_holds_itself():
    def outer():
        def inner():
            return inner

        return inner

    @dataclasses.dataclass
    class Odd:
        value: Any

    assert "(itself)" in json.dumps(description.to_dict(Odd(outer())))


def test_description_is_the_same_in_another_process(file):
    script = "import json; from nested_jax import config as c, description as d; "
    script += f"print(json.dumps(d.to_dict(c.load({str(file)!r}))))"
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert json.loads(other) == description.to_dict(configs.load(str(file)))
    assert "scale" in other


def test_differences():
    a = description.to_dict(Experiment())
    assert description.differences(a, json.loads(json.dumps(a))) == []
    b = description.to_dict(configs.override(Experiment(), {"model.dim": "64", "model.levels.1.period": "4"}))
    lines = description.differences(a, b)
    assert lines == ["model.dim: 128 != 64", "model.levels.1.period: 8 != 4", "model.twice: 256 != 128"]
    assert description.differences({"a": 1}, {"b": [1]}) == ["a: 1 != (absent)", "b: (absent) != [1]"]
    assert description.differences({"a": True}, {"a": 1}) == ["a: True != 1"]
    assert description.differences({"a": [1, 2]}, {"a": [1, 2, 3]}) == ["a: [1, 2] != [1, 2, 3]"]


def test_a_description_from_before_a_field_was_added_has_it_at_its_default():
    now = Experiment()
    older = json.loads(json.dumps(description.to_dict(now)))
    del older["model"]["dropout"]
    assert description.differences(description.completed(older, now), description.to_dict(now)) == []
    assert "dropout" not in older["model"]
    changed = configs.override(now, {"model.dropout": "0.5"})
    (line,) = description.differences(description.completed(older, changed), description.to_dict(changed))
    assert line.startswith("model.dropout: ")
    older["model"]["__type__"] = "Another"
    assert "dropout" not in description.completed(older, now)["model"]
