"""Tables of published and measured changes, and the sweeps that fill them."""

import csv
import dataclasses
import pathlib
import re

import pytest

from nested_jax.run import table as tables
from nested_jax.run.main import main
from nested_jax.run.sweep import sweep
from nested_jax.train.comparison import Published, Row
from nested_jax.train.loop import TrainingStopped
from nested_jax.train.report import Report

ROOT = pathlib.Path(__file__).parents[2]
FILE = f"{ROOT}/experiments/titans/table5.py"
REPORT = Report(300, 1000, 4000, 32, 2.0, {}, "a", "b", "some text")

TABLE = tables.Comparison(
    FILE,
    "tiny",
    {name: Row(name.upper(), "titans-lmm") for name in ("base", "better", "mixed", "worse", "other", "lost")},
    Published(
        source="a paper",
        metric="perplexity",
        values={"base": 10.0, "better": 9.0, "mixed": 9.0, "worse": 9.0, "other": 11.0},
        base="base",
        bases={"other": "worse"},
    ),
)


@pytest.fixture
def measured(tmp_path):
    bits = {
        "base": (2.0, 2.1),
        "better": (1.9, 2.0),
        "mixed": (1.9, 2.2),
        "worse": (2.2, 2.3),
        "other": (2.3, 2.4),
    }
    for row, values in bits.items():
        for seed, value in enumerate(values):
            place = tables.directory(tmp_path, row, seed)
            place.mkdir()
            dataclasses.replace(REPORT, bits_per_byte=value).save(place / "report.json")
    lost = tables.directory(tmp_path, "lost", 0)
    lost.mkdir()
    (lost / tables.STOPPED).write_text("step 3: the loss is not finite\n")
    return tmp_path


def test_signs_are_compared_seed_by_seed(measured):
    found = tables.finished(TABLE, measured)
    lines = {line.title: line for line in tables.lines(TABLE, measured, found)}
    assert {title: line.sign for title, line in lines.items()} == {
        "BASE": "",
        "BETTER": "same",
        "MIXED": "unclear",
        "WORSE": "opposite",
        "OTHER": "same",
        "LOST": "",
    }
    assert lines["BETTER"].changes == pytest.approx((1.9 / 2.0 - 1, 2.0 / 2.1 - 1))
    assert lines["OTHER"].changes == pytest.approx((2.3 / 2.2 - 1, 2.4 / 2.3 - 1))
    assert lines["BETTER"].published_change == pytest.approx(-0.0457575)  # log 9 / log 10 − 1
    assert lines["LOST"].published is None


def test_a_table_is_text_markdown_csv_and_a_picture(measured):
    text = tables.table(TABLE, measured)
    assert "OTHER is compared here with WORSE." in text
    assert "diverged" in text
    with (measured / "table.csv").open() as file:
        rows = {row["row"]: row for row in csv.DictReader(file)}
    assert rows["BETTER"]["change, median"] == "-4.88 %"
    assert rows["BETTER"]["range"] == "-5.00 % to -4.76 %"
    assert rows["LOST"]["seeds"] == "0, 1 diverged"
    assert (measured / "table.md").read_text().count("| ") > 20
    assert (measured / "table.png").stat().st_size > 5000


def test_nothing_run_says_so(tmp_path, capsys):
    assert main(["table", f"--config={FILE}", f"--workdir={tmp_path}"]) == 0
    assert capsys.readouterr().out.count("not run") == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table", f"--config={ROOT}/experiments/quickstart.py"], "is no table: it must define ROWS and RESULT"),
        (["table", f"--config={FILE}:smal"], "size must be one of .* got 'smal'; did you mean 'small'?"),
        (["sweep", f"--config={FILE}:tiny", "--rows=lmm,mga"], "rows must be among lmm, .* got 'mga'"),
    ],
)
def test_bad_input_is_named(arguments, message, capsys, tmp_path):
    assert main([*arguments, f"--workdir={tmp_path}"]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_sweep_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    """Seed by seed; what is finished is not run again, what diverges is marked and the rest goes on."""
    calls = []

    class Fake:
        def __init__(self, experiment, place, say):
            self.experiment, self.place = experiment, place

        def train(self):
            calls.append((self.place.name, self.experiment.seed, self.experiment.data.seed, self.experiment.steps))
            self.place.mkdir()
            if "mal" in self.place.name:
                raise TrainingStopped("step 3: the loss is not finite")
            REPORT.save(self.place / "report.json")
            return REPORT

    monkeypatch.setattr("nested_jax.run.sweep.Run", Fake)
    comparison = tables.load(f"{FILE}:tiny")
    sweep(comparison, {"steps": "7"}, tmp_path, (0, 3), ("lmm", "mal"))
    assert calls == [("lmm-0", 0, 0, 7), ("mal-0", 0, 0, 7), ("lmm-3", 3, 3, 7), ("mal-3", 3, 3, 7)]
    assert tables.diverged(tmp_path, "mal") == 2
    calls.clear()
    sweep(comparison, {"steps": "7"}, tmp_path, (0, 3, 4), ("lmm",))
    assert [name for name, *_ in calls] == ["lmm-4"]
    assert "2.0000 bits/byte" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"data\.seed is what a sweep goes through, see --seeds; got '5'"):
        sweep(comparison, {"data.seed": "5"}, tmp_path, (0,))
    with pytest.raises(ValueError, match="seeds must hold at least one number"):
        sweep(comparison, {}, tmp_path, ())


@pytest.mark.slow
def test_a_sweep_trains(tmp_path, capsys):
    arguments = [f"--config={FILE}:tiny", f"--workdir={tmp_path}"]
    assert main(["sweep", *arguments, "--rows=lmm,linear", "--seeds=1"]) == 0
    printed = capsys.readouterr().out
    assert "2/2 linear, seed 1: step 20/20" in printed
    (line,) = (line for line in printed.splitlines() if line.startswith("Linear memory"))
    assert "%" in line
