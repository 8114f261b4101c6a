"""Command lines that need no training: help, describe, and every kind of bad input."""

import pathlib
import re

import pytest

from nested_jax.data import TextConfig
from nested_jax.evals.generation import Context, Piece
from nested_jax.models import count, family
from nested_jax.run.commands import _print_text
from nested_jax.run.describe import description
from nested_jax.run.main import default_workdir, main, split_overrides
from nested_jax.run.text_table import text_table
from nested_jax.train.experiment import Experiment
from nested_jax.train.optimizer import Group, OptimizerConfig

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = f"--config={ROOT}/experiments/quickstart.py"
TINY = f"{CONFIG}:tiny"


def test_overrides_are_taken_out():
    rest, overrides = split_overrides(["train", TINY, "--config.a.b=1=2", "--config.c", "x", "--workdir=w"])
    assert rest == ["train", TINY, "--workdir=w"]
    assert overrides == {"a.b": "1=2", "c": "x"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--config.a"], "--config.a needs a value"), (["--config.a=1", "--config.a=2"], "--config.a is given twice")],
)
def test_overrides_that_cannot_be_read(arguments, message):
    with pytest.raises(ValueError, match=message):
        split_overrides(arguments)


def test_default_workdir():
    assert default_workdir("experiments/quickstart.py", {}) == pathlib.Path("runs/quickstart")
    assert default_workdir("/a/b.py:340m,x=1", {}) == pathlib.Path("runs/b-340m_x=1")
    free = {"log_every": "1", "mesh.data": "2"}
    assert default_workdir("a.py", {"steps": "9", **free}, ["log_every", "mesh"]) == pathlib.Path("runs/a-steps=9")
    long = [default_workdir("a.py", {"data.path": "/x" * 100 + end}).name for end in "ab"]
    assert long[0] != long[1]
    assert max(map(len, long)) <= 100


@pytest.mark.parametrize("variant", [CONFIG, TINY])
def test_describe(variant, capsys):
    assert main(["describe", variant]) == 0
    printed = capsys.readouterr().out
    for part in (
        "level",
        "period",
        "objective",
        "rule",
        "parameters",
        "state bytes",
        "per token",
        "l2",
        "momentum",
        "dual",
    ):
        assert part in printed
    lines = printed.splitlines()
    assert lines[2].startswith("training")
    assert lines[3].startswith("block")


def test_describe_draws_clocks_inside_clocks(tmp_path, capsys):
    picture = tmp_path / "nesting.png"
    levels = f"--config={ROOT}/experiments/families.py:hope-attention@tiny"
    assert main(["describe", levels, f"--picture={picture}"]) == 0
    lines = [re.split(" {2,}", line.strip()) for line in capsys.readouterr().out.splitlines()[2:7]]
    assert [line[:3] for line in lines] == [
        ["training", "1 update", "cross-entropy"],
        ["blocks 0-1 attention", "1 token", "–"],
        ["level 0", "1 update", "–"],
        ["level 1", "8 tokens", "l2"],
        ["level 2", "4 tokens", "l2"],
    ]
    assert picture.stat().st_size > 10_000


def test_paces_of_the_optimizer_are_levels():
    groups = (Group(parameters="levels_0", period=16), Group(parameters="embedding", period=None))
    optimizer = OptimizerConfig(rule="optax.sgd", arguments={}, groups=groups)
    model = family("hope-attention", layers=1)
    found = description(Experiment(model=model, data=TextConfig(sequence_length=8), optimizer=optimizer, steps=1))
    assert [(one.name, one.period, one.tokens, one.rule) for one in found.components[:4]] == [
        ("frozen", "never", None, "–"),
        ("training", "16 updates", 128, "optax.sgd for levels_0"),
        ("training", "1 update", 8, "optax.sgd"),
        ("block 0 attention", "1 token", 1, "keeps keys and values (at most 4,096 tokens)"),
    ]
    assert found.components[4][:3] == ("level 0", "16 updates", 128)
    assert found.components[0].parameters == model.vocab_size * model.dim
    assert sum(one.parameters for one in found.components[:3]) == count(model)


def test_describe_with_channel_wise_gates(capsys):
    assert main(["describe", TINY, "--config.model.memory.gate_rank=8"]) == 0
    gates = "learning_rate, momentum, decay"
    assert f"gates per token: {gates} (channel-wise, by rank 8: {gates}); run as" in capsys.readouterr().out


def test_describe_counts_what_is_there(capsys):
    attention = ["--config.model.blocks=memory,attention", "--config.model.layers=2"]
    assert main(["describe", TINY, *attention]) == 0
    printed = capsys.readouterr().out
    assert "block 0 memory" in printed
    assert "block 1 attention" in printed
    assert "keeps keys and values (at most 4,096 tokens)" in printed
    # dim 32, float32: keys and values of 4096 tokens and their count; weights twice (and once the start), momenta once
    row = next(line for line in printed.splitlines() if line.startswith("block 1"))
    assert f"{4096 * 32 * 4 * 2 + 4:,}" in row


def broken(tmp_path, content):
    path = tmp_path / "broken.py"
    path.write_text(content)
    return f"--config={path}"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["describe", "--config=missing/file.py"], ["no such file: missing/file.py"]),
        (["describe", f"{CONFIG}:huge"], ["quickstart has the variants", "'huge'"]),
        (["describe", TINY, "--config.model.dimm=3"], ["model.dimm", "did you mean 'model.dim'"]),
        (["describe", TINY, "--config.steps=many"], ["steps", "many"]),
        (["describe", TINY, "--config.steps=0"], ["steps must be at least 1; got 0"]),
        (["describe", TINY, "--config.model.layers=0"], ["layers", "at least 1", "got 0"]),
        (["describe", TINY, "--config.model.memory.memory.chunk_size=0"], ["chunk_size", "got 0"]),
        (["describe", TINY, "--config.model.memory.gate_rank=0"], ["gate_rank must be an integer of at least 1"]),
        (["describe", TINY, "--config.optimizer.rule=optax.adamm"], ["no 'adamm'; did you mean"]),
        (["train", TINY, "--config.data.path=nowhere"], ["no such file or folder: nowhere"]),
        (["generate", TINY], ["no checkpoint in", "train first"]),
        (["eval", TINY], ["no checkpoint in", "train first"]),
        (["bench", "nothing"], ["bench takes one of: scan", "'nothing'"]),
        (["generate", TINY, "--prompt-file=nowhere.txt"], ["nowhere.txt"]),
        (["generate", TINY, "--temperature=-1"], ["temperature must be at least 0", "got -1"]),
        (["generate", TINY, "--top-k=0"], ["top_k is a number of tokens, at least 1; got 0"]),
        (["generate", TINY, "--top-p=1.5"], ["top_p is a probability", "got 1.5"]),
        (["generate", TINY, "--state-out=nowhere/state"], ["--state-out=nowhere/state: no such folder"]),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(arguments, parts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("nested-jax: ")
    assert "Traceback" not in printed.err
    for part in parts:
        assert part in printed.err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_returns_something_else(tmp_path, capsys):
    assert main(["describe", broken(tmp_path, "import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: int = 1\n\n"
                                    "def get_config(arg=''):\n    return A()\n")]) == 2  # fmt: skip
    assert "must return an Experiment" in capsys.readouterr().err


def test_the_traceback_on_request(monkeypatch):
    monkeypatch.setenv("NESTED_JAX_DEBUG", "1")
    with pytest.raises(ValueError, match="no such file"):
        main(["describe", "--config=missing/file.py"])


def test_a_text_is_printed_as_it_is_made(capsys):
    printed = []

    def pieces():
        for part in (b"\xa9", b"\xe2\x82", b"\xac!", b"\xe2"):
            printed.append(capsys.readouterr().out)
            yield Piece([list(part)], Context(part, *[None] * 2))

    assert _print_text("é".encode()[:1], pieces()).state == b"\xe2"
    assert printed == ["", "é", "", "€!"]
    assert capsys.readouterr().out == "\N{REPLACEMENT CHARACTER}\n"


def test_an_empty_folder_and_an_unreadable_file(tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["train", TINY, "--config.data.path=empty", "--workdir=run"]) == 2
    assert "empty" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_help(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_the_list_of_benchmarks(capsys):
    assert main(["bench"]) == 0
    assert "NAME is one of: scan" in capsys.readouterr().out


def test_table_of_text():
    assert text_table(["a", "n"], [["x", "1"], ["yy", "10"]]) == "a    n\n--  --\nx    1\nyy  10"
