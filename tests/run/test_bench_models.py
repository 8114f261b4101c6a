"""`bench models` at sizes that say nothing about speed: its cells, what it keeps, its tables and its options."""

import csv

import numpy as np
import pytest

from nested_jax.models.families import FAMILIES, count, family
from nested_jax.run import bench_models, growth, main
from nested_jax.run.growth import Cell, Place

SIZES = ["--families=sliding-window", "--size=tiny", "--rounds=2"]
FORWARD, BOTH = bench_models.PASSES


def cell(length: int, *seconds: float, memory: int = 2**20, what: str = "forward", wall: float = 5.0) -> Cell:
    return Cell(Place("lstm", "tiny", what, length), 100, seconds, memory, 1.0, wall)


def table(*cells: Cell) -> dict[Place, Cell]:
    return {cell.place: cell for cell in cells}


class Call:
    """What `compiled` gives, with nothing behind it."""

    compile_seconds, temporary_bytes, total_bytes = 0.5, 1000, 3 * 2**30
    made: list[Place]

    def __init__(self, place: Place):
        self.place = place

    def __call__(self) -> None:
        self.made.append(self.place)


@pytest.fixture
def calls(monkeypatch) -> list[Place]:
    """The places called, nothing being compiled or drawn."""
    monkeypatch.setattr(Call, "made", [], raising=False)
    monkeypatch.setattr(bench_models, "compiled", Call)
    monkeypatch.setattr(bench_models, "parameters", lambda *names: {"w": np.zeros(7)})
    monkeypatch.setattr(growth, "draw", lambda *arguments: None)
    return Call.made


def test_cells_are_kept_and_a_longer_run_adds_to_them(tmp_path, capsys, calls):
    options = [*SIZES, "--memory=4", f"--output={tmp_path}"]
    assert main.main(["bench", "models", *options, "--lengths=16"]) == 0
    assert [place.what for place in calls] == [FORWARD] * 3 + [BOTH] * 3
    del calls[:]
    capsys.readouterr()
    assert main.main(["bench", "models", *options, "--lengths=32,16"]) == 0
    assert {place.length for place in calls} == {32}
    text = capsys.readouterr().out
    assert "2 of 4 cells are in" in text
    assert "2/2 sliding-window, 32 tokens, forward+backward: " in text
    for what in bench_models.PASSES:
        (row,) = (line.split() for line in text.splitlines() if line.startswith(f"sliding-window  {what} "))
        assert len(row) == 2 + 2 + 1 + 2 + 1
        assert row[-3:] == ["3,072", "3,072", "0.00"]
    assert "| sliding-window | forward+backward |" in (tmp_path / "models.md").read_text()
    with (tmp_path / "models.csv").open() as file:
        records = list(csv.DictReader(file))
    expected = [(what, tokens) for tokens in ("16", "32") for what in bench_models.PASSES]
    assert [(record["pass"], record["tokens"]) for record in records] == expected
    assert {(record["calls"], record["parameters"]) for record in records} == {("2", "7")}


def test_what_needs_more_memory_is_not_run_until_there_is_more(tmp_path, capsys, calls, monkeypatch):
    options = ["bench", "models", *SIZES, f"--output={tmp_path}", "--lengths=16"]
    assert main.main([*options, "--memory=2.9"]) == 0
    assert "forward: out of memory (3.0 GiB), " in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(bench_models, "compiled", lambda place: pytest.fail("was compiled again"))
        assert main.main([*options, "--memory=2.99"]) == 0
    assert not calls
    assert "2 of 2 cells are in" in capsys.readouterr().out
    assert main.main([*options, "--memory=3"]) == 0
    assert "out of memory" not in capsys.readouterr().out
    assert len(calls) == 6


def test_cells_of_a_killed_run_are_not_lost(tmp_path, calls, monkeypatch):
    options = ["bench", "models", *SIZES, "--memory=4", f"--output={tmp_path}", "--lengths=16"]
    with monkeypatch.context() as patch:
        patch.setattr(bench_models, "remaining_seconds", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main.main(options)
    assert {place.what for place in calls} == {FORWARD}
    del calls[:]
    assert main.main(options) == 0
    assert {place.what for place in calls} == {BOTH}


def test_a_cell_is_compiled_and_called():
    found = [
        bench_models.measure(Place("sliding-window", "tiny", what, 16), 2, 60.0, 2**30) for what in (FORWARD, BOTH)
    ]
    assert [len(cell.seconds) for cell in found] == [2, 2]
    forward, both = found
    assert forward.parameters == both.parameters == count(family("sliding-window"))
    weights = 4 * forward.parameters
    assert weights < forward.memory < both.memory - weights


def test_attention_over_everything_has_room_for_the_sequence():
    assert bench_models.config_of("transformer++", "tiny", 5000).attention.max_length == 5000
    assert bench_models.config_of("titans-mag", "tiny", 5000).attention.window == 32


def test_default_families_exist_and_have_every_kind_of_block():
    assert set(bench_models.DEFAULT) <= set(FAMILIES)
    kinds = {kind for name in bench_models.DEFAULT for kind in bench_models.config_of(name, "tiny", 8).kinds}
    assert kinds == {"memory", "attention", "mag", "mac", "lstm"}


def test_growth_is_the_slope_of_the_last_lengths():
    assert growth.growth([(1, 9.0), (2, 2.0), (4, 8.0), (8, 32.0)]) == pytest.approx(2)
    assert growth.growth([(1, 3.0), (2, 6.0), (4, None)]) == pytest.approx(1)
    assert growth.growth([(1, 3.0), (2, None)]) is None


def test_a_row_has_rates_memory_and_their_growth():
    cells = table(
        cell(1024, 1.0, 2.0, 4.0),
        cell(2048, 8.0, memory=4 * 2**20),
        cell(4096, memory=16 * 2**20),
        cell(8, 1.0, what="x"),
    )
    assert growth.headings([8, 1024])[2:4] == ["tokens/s at 8", "tokens/s at 1K"]
    (row,) = growth.rows(cells, ["lstm"], ["forward"], [1024, 2048, 4096, 8192])
    assert row[2:] == ["512", "256", "out of memory (0.0 GiB)", "–", "2.00", "1", "4", "16", "–", "2.00"]


def test_the_picture_has_a_curve_per_family_and_a_cross_where_memory_did_not_suffice(tmp_path, monkeypatch):
    drawn = []
    curves = growth._curves
    monkeypatch.setattr(growth, "_curves", lambda axes, *rest: drawn.append(axes) or curves(axes, *rest))
    cells = table(cell(8, 1.0), cell(16, 2.0, memory=2**22), cell(32, memory=2**24))
    growth.draw(tmp_path / "a.png", "title", cells, ["lstm", "atlas"], ["forward"])
    time, memory = ([line.get_xydata().tolist() for line in axes.lines] for axes in drawn)
    assert time == [[[8, 1], [16, 2]], [[8, 1], [16, 2]]]
    assert memory == [[[8, 1], [16, 4], [32, 16]], [[32, 16]], [[8, 1], [32, 4]]]
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_kept_cells_are_those_of_the_same_computer(tmp_path):
    cells = table(cell(8, 1.0, 2.0), cell(16))
    growth.save(tmp_path, "here", cells)
    assert growth.load(tmp_path, "here") == cells
    assert growth.load(tmp_path, "there") == {}
    assert growth.load(tmp_path / "nowhere", "here") == {}


def test_remaining_time_follows_the_nearest_shorter_length():
    done = [cell(8, 1.0, wall=2.0), cell(16, 1.0, wall=3.0), cell(16, 1.0, wall=7.0, what="x")]
    ask = lambda what, length: bench_models.remaining_seconds([Place("lstm", "tiny", what, length)], done)
    assert ask("forward", 64) == pytest.approx(1 + 2 * 4)
    assert ask("x", 32) == pytest.approx(1 + 6 * 2)
    assert ask("other", 32) == pytest.approx(4)
    assert bench_models.remaining_seconds([], done) == 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--families=lstm,gru", "--families takes 'all' or names among .*; got 'gru'"),
        ("--size=huge", "--size takes one of tiny, .*; got 'huge'"),
        ("--lengths=16,0", "--lengths takes positive whole numbers separated by commas; got '16,0'"),
        ("--rounds=0", "--rounds takes a whole number of at least 1; got 0"),
        ("--memory=-1", "--memory takes a number of at least 0; got -1.0"),
        ("--seconds=nan", "--seconds takes a number of at least 0; got nan"),
    ],
)
def test_options_out_of_range_are_named(option, message):
    with pytest.raises(ValueError, match=message):
        bench_models.arguments_of([option])


def test_all_families_can_be_asked_for():
    assert bench_models.arguments_of(["--families=all"]).families == list(FAMILIES)
