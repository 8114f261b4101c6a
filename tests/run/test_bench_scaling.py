"""`bench scaling`: what is counted, that it is right where that is known, and what is kept and drawn."""

import csv
import json

import pytest

from nested_jax.models.families import count, family
from nested_jax.run import bench_scaling, main, scaling_table
from nested_jax.run.bench_scaling import Shape, places
from nested_jax.run.scaling_table import Cell, Place, Scaling

ALONE = Place("sliding-window", "tiny", "", 1, 4, 16)


@pytest.fixture(scope="module")
def split():
    """One device, and the batch or the parameters on four."""
    return {axis: bench_scaling.counted(ALONE._replace(axis=axis, devices=4 if axis else 1)) for axis in ("", "data")}


def test_one_device_sends_nothing(split):
    alone = split[""]
    assert (alone.collectives, alone.sent, dict(alone.kinds)) == (0, 0, {})
    assert alone.unknown_loops == 0


def test_data_parallel_work_is_shared_and_gradients_are_sent_once(split):
    """A ring sends 2 (n − 1) / n of all gradients, and of a loss.

    The tied embedding's come from both its uses, and XLA's CPU compiler adds them after it has sent both.
    """
    line = {1: split[""], 4: split["data"]}
    assert scaling_table.work(line, "strong", 4) == pytest.approx(1, abs=0.02)
    assert set(split["data"].kinds) == {"all-reduce"}
    config = family(ALONE.family, ALONE.size)
    sizes = count(config) + config.vocab_size * config.dim
    assert 4 * sizes <= split["data"].sent / (2 * 3 / 4) <= 4 * sizes + 64


def parameters():
    return count(family(ALONE.family, ALONE.size))


def test_cells_of_both_scalings_meet_at_the_largest_mesh():
    found = places(["lstm"], "tiny", ["fsdp", "sequence"], [1, 2, 4], Shape(8, 64))
    for axis in ("fsdp", "sequence"):
        assert found[Scaling("strong", "lstm", axis, 4)] == found[Scaling("weak", "lstm", axis, 4)]
    assert found[Scaling("weak", "lstm", "fsdp", 2)] == Place("lstm", "tiny", "fsdp", 2, 4, 64)
    assert found[Scaling("weak", "lstm", "sequence", 2)] == Place("lstm", "tiny", "sequence", 2, 8, 32)
    one = {place for point, place in found.items() if point[:1] + point[3:] == ("strong", 1)}
    assert one == {Place("lstm", "tiny", "", 1, 8, 64)}


@pytest.fixture
def invented(monkeypatch):
    """The places that are counted, at once: work 1 + devices / 8, a KiB sent per device and row."""
    counted = []

    def count(place):
        counted.append(place)
        flops = 1e6 * place.rows * place.tokens / place.devices * (1 + (place.devices - 1) / 8)
        return Cell(place, place.devices - 1, 1024.0 * (place.devices - 1), {"all-gather": 1}, flops, 1.0, 2048, 0, 0.1)

    monkeypatch.setattr(bench_scaling, "counted", count)
    return counted


def test_a_table_a_picture_and_what_is_kept(invented, tmp_path, capsys):
    options = [
        "--families=lstm",
        "--axes=data,sequence",
        "--devices=2,4",
        "--rows=4",
        "--tokens=8",
        f"--output={tmp_path}",
    ]
    assert main.main(["bench", "scaling", *options]) == 0
    printed = capsys.readouterr().out
    assert len(invented) == len(set(invented)) == 1 + 2 * 2 + 2 * (1 + 1)
    (row,) = (line.split("  ") for line in printed.splitlines() if line.startswith("strong   lstm    data "))
    cells = [cell.strip() for cell in row if cell.strip()]
    assert cells == ["strong", "lstm", "data", "1 2 4", "0 1 3", "0 1 3", "1.00 1.12 1.38", "32 18 11", "2 2 2"]
    assert "not speed" in printed
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    with (tmp_path / "scaling.csv").open() as file:
        records = list(csv.DictReader(file))
    assert len(records) == 2 * 2 * 3
    assert {record["kinds"] for record in records} == {"all-gather:1"}

    del invented[:]
    assert main.main(["bench", "scaling", *options, "--axes=data,fsdp"]) == 0
    assert "5 of 8 cells are in" in capsys.readouterr().out
    assert {place.axis for place in invented} == {"fsdp"}
    assert main.main(["bench", "scaling", *options, "--label=b"]) == 0
    assert "already" not in capsys.readouterr().out
    versions = [json.loads(line)["version"] for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    assert all(version.endswith(", b") for version in versions)


def test_weak_work_is_that_of_one_device():
    table = {1: Cell(ALONE, 0, 0.0, {}, 10.0, 1.0, 0, 0, 0.0), 2: Cell(ALONE, 0, 0.0, {}, 15.0, 1.0, 0, 0, 0.0)}
    assert scaling_table.work(table, "weak", 2) == 1.5
    assert scaling_table.work(table, "strong", 2) == 3.0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--families=x", "--families takes names among .*; got 'x'"),
        ("--axes=time", "--axes takes names among data, .*; got 'time'"),
        ("--size=9b", "--size takes one of tiny, .*; got '9b'"),
        ("--devices=2,a", "--devices takes positive whole numbers .*; got '2,a'"),
        ("--rows=12", "--rows takes a positive multiple of the 8 devices; got 12"),
        ("--tokens=0", "--tokens takes a positive multiple of the 8 devices; got 0"),
    ],
)
def test_options_out_of_range_are_named(option, message):
    with pytest.raises(ValueError, match=message):
        bench_scaling.main([option])
