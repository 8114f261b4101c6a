"""Tables of published and measured numbers, the sweeps that fill them, and the document of all of them."""

import csv
import dataclasses
import pathlib
import re
import shlex

import pytest
from matplotlib import image

from nested_jax.evals.zero_shot import table_columns
from nested_jax.models import SIZES
from nested_jax.run import ablation, records, score_table
from nested_jax.run.again import command
from nested_jax.run.comparison import ROWS_FILE, Comparison, load
from nested_jax.run.main import main
from nested_jax.run.records import Record
from nested_jax.run.results import found, write
from nested_jax.run.sweep import sweep
from nested_jax.run.table import Laid, Panel, lay, picture, table
from nested_jax.train.comparison import Published, Row, Sweep
from nested_jax.train.loop import TrainingStopped
from nested_jax.train.report import Report

ROOT = pathlib.Path(__file__).parents[2]
FILE = f"{ROOT}/experiments/titans/table5.py"
REPORT = Report(300, 64, 1000, {"bits_per_byte": 2.0}, "4,000 bytes", "some text")
RECORD = Record(
    row="base",
    size="tiny",
    seed=0,
    steps=300,
    tokens=64,
    parameters=1000,
    scored="4,000 bytes",
    seconds=1.0,
    device="2 × a processor",
    versions={"python": "3.11.7"},
    date="2026-11-25",
    command="python -m nested_jax train experiments/a/b.py:base@tiny",
)
PRINTED = {"base": 10.0, "better": 9.0, "mixed": 9.0, "worse": 9.0, "other": 11.0}
ABLATION = Comparison(
    FILE,
    "tiny",
    {name: Row(name.upper(), "titans-lmm") for name in ("base", "better", "mixed", "worse", "other", "lost")},
    Published(
        source="a paper",
        columns={"perplexity": "perplexity", "accuracy": "accuracy in %"},
        values={row: {"perplexity": value, "accuracy": 10 * value} for row, value in PRINTED.items()},
        measured={"accuracy": "average"},
        base="base",
        bases={"other": "worse"},
    ),
)
SCORES = Comparison(
    FILE,
    "small",
    {"one": Row("One", "lstm"), "two": Row("Two", "lstm")},
    Published(
        source="a paper",
        columns={"a0": "A, bin 0", "a1": "A, bin 1", "b0": "B"},
        values={"one": {"a0": 100.0, "a1": 50.0, "b0": 7.0}, "elsewhere": {"a0": 1.0}, "big@1.3b": {"a0": 2.0}},
        measured={"a0": "a:bin0/sequence", "a1": "a:bin1/sequence"},
        unit=100,
    ),
    ("a", "b"),
    Sweep(
        grid={"optimizer.learning_rate": ("1e-3", "3e-3")},
        select="validation/sequence",
        select_published="bin0/sequence+bin1/sequence",
    ),
)


def run(row, seed, **fields):
    return dataclasses.replace(RECORD, row=row, seed=seed, **fields)


@pytest.fixture
def ablated():
    bits = {
        "base": (2.0, 2.1),
        "better": (1.9, 2.0),
        "mixed": (1.9, 2.2),
        "worse": (2.2, 2.3),
        "other": (2.3, 2.4),
    }
    done = [
        run(row, seed, metrics={"bits_per_byte": value} | ({"average": 25.0 * value} if row == "worse" else {}))
        for row, values in bits.items()
        for seed, value in enumerate(values)
    ]
    return [*done, run("lost", 0, stopped="step 3: the loss is not finite")]


@pytest.fixture
def scored():
    """Row one: the second rate is better by validation, the first by the tests; one seed of row two is lost."""

    def one(row, rate, seed, validation, bins, **fields):
        metrics = {"validation/sequence": validation, "bin0/sequence": bins[0], "bin1/sequence": bins[1]}
        settings = {"optimizer.learning_rate": rate}
        return run(row, seed, size="small", part="a", settings=settings, metrics=metrics, **fields)

    done = [one("one", "1e-3", seed, 0.8, (1.0, 1.0)) for seed in range(3)]
    done += [one("one", "3e-3", seed, 0.9, (0.9 + seed / 100, 0.2)) for seed in range(3)]
    done += [one("two", "1e-3", 0, 0.5, (0.5, 0.0))]
    lost = {"optimizer.learning_rate": "1e-3"}
    return [*done, run("two", 1, size="small", part="a", settings=lost, stopped="step 2: lost")]


def test_signs_are_compared_seed_by_seed(ablated):
    lines = {line.title: line for line in ablation.lines(ABLATION, ablated)}
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
    assert lines["BASE"].others == ((100, None),)
    assert lines["WORSE"].others == ((10 * PRINTED["worse"], pytest.approx(56.25)),)
    assert lines["LOST"].others == ((None, None),)


def test_a_picture_leaves_out_columns_without_numbers(tmp_path):
    zeros, empty = Panel("zeros", ("a",), (0.0,), ((),)), Panel("empty", ("a",), (None,), ((),))

    def width(*panels):
        picture(Laid("table", (), (), (), (), panels, (), True), tmp_path / "table.png")
        return image.imread(tmp_path / "table.png").shape[1]

    assert width(zeros, empty, zeros) == width(zeros, zeros) < width(zeros, zeros, zeros) == width(empty, empty, empty)


def test_an_ablation_is_text_markdown_csv_and_a_picture(ablated, tmp_path):
    for record in ablated:
        records.append(tmp_path / ROWS_FILE, record)
    text = table(ABLATION, tmp_path)
    assert "OTHER is compared here with WORSE" in text
    assert "diverged" in text
    assert "measured on 2 × a processor (python 3.11.7); 2026-11-25" in text
    with (tmp_path / "table.csv").open() as file:
        rows = {row["row"]: row for row in csv.DictReader(file)}
    assert rows["BETTER"]["bits/byte"] == "1.9500 (1.9000 to 2.0000)"
    assert rows["BETTER"]["change, median"] == "-4.88 %"
    assert rows["BETTER"]["range"] == "-5.00 % to -4.76 %"
    assert rows["LOST"]["seeds"] == "0, 1 diverged"
    further = {title: row["accuracy in % (here)"] for title, row in rows.items()}
    assert (further["BASE"], further["WORSE"]) == ("100 (–)", f"{10 * PRINTED['worse']:g} (56.25)")
    again = "python -m nested_jax sweep experiments/titans/table5.py:tiny --rows=lost --again --seeds=0"
    assert text.splitlines()[-5] == f"LOST: {again}"
    assert f"- LOST: `{again}`" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "table.md").read_text().count("| ") > 20
    assert (tmp_path / "table.png").stat().st_size > 5000


def test_settings_are_chosen_by_validation_and_by_the_published_protocol(scored):
    one, two, other = score_table.lines(SCORES, scored)
    assert (one.title, two.title, other.title) == ("One", "Two", "elsewhere")
    assert one.cells["a0"].settings == (("optimizer.learning_rate", "3e-3"),)
    assert one.cells["a0"].values == pytest.approx((90, 91, 92))
    assert one.cells["a1"].difference == pytest.approx(20 - 50)
    assert one.as_published["a0"].values == pytest.approx((100, 100, 100))
    assert (one.cells["b0"].published, one.cells["b0"].values) == (7, ())
    assert (two.cells["a0"].values, two.cells["a0"].diverged) == ((50,), 1)
    assert other.cells["a0"].published == 1


def test_a_run_that_stopped_is_never_chosen(scored):
    rate = {"optimizer.learning_rate": "3e-3"}
    lost = [run("one", seed, size="small", part="a", settings=rate, stopped="lost") for seed in range(2)]
    kept = [record for record in scored if record.row == "one" and record.settings != rate]
    found = score_table.chosen([*lost, *kept], SCORES.sweep, "validation/sequence")
    assert found == (("optimizer.learning_rate", "1e-3"),)


def test_a_metric_that_no_run_has_chooses_nothing(scored):
    """A slip of the pen, or the default, would else take the grid's first settings and say that it chose."""
    for select in ("validation/sequenc", "-bits_per_byte"):
        sweep = dataclasses.replace(SCORES.sweep, select=select)
        with pytest.raises(ValueError, match=rf"SWEEP.select: expected metrics of the runs, .*, got '{select}'"):
            score_table.lines(dataclasses.replace(SCORES, sweep=sweep), scored)


def test_a_column_is_of_a_part_that_there_is(tmp_path):
    text = pathlib.Path(FILE).with_name("table4.py").read_text()
    (tmp_path / "mine.py").write_text(text + "\nRESULT.measured['x'] = 'shrt:test/sequence'\n")
    with pytest.raises(
        ValueError, match=r"RESULT.measured\['x'\]: expected a part before the colon, .* got 'shrt:test/sequence'"
    ):
        load(str(tmp_path / "mine.py"))


def test_settings_of_fewer_seeds_and_numbers_that_are_none_never_win(scored):
    rates = [(("optimizer.learning_rate", rate),) for rate in ("1e-3", "3e-3")]
    one = [record for record in scored if record.row == "one"]
    fewer = [record for record in one if record.settings["optimizer.learning_rate"] == "1e-3" or record.seed == 0]
    assert score_table.chosen(fewer, SCORES.sweep, "validation/sequence") == rates[0]
    none = [dataclasses.replace(record, metrics={"validation/sequence": float("nan")}) for record in one[:3]]
    assert score_table.chosen([*none, *one[3:]], SCORES.sweep, "validation/sequence") == rates[1]
    equal = [dataclasses.replace(record, metrics={"validation/sequence": 0.5}) for record in reversed(one)]
    assert score_table.chosen(equal, SCORES.sweep, "validation/sequence") == rates[0]


def test_runs_with_other_overrides_are_of_another_table(scored, tmp_path):
    other = [dataclasses.replace(record, settings={**record.settings, "steps": "10"}) for record in scored]
    placed = dataclasses.replace(scored[0], seed=7, settings={**scored[0].settings, "data.path": "elsewhere"})
    for record in [*scored, *other, placed]:
        records.append(tmp_path / ROWS_FILE, record)
    assert SCORES.records(tmp_path) == [*scored, placed]
    assert dataclasses.replace(SCORES, overrides={"steps": "10"}).records(tmp_path) == other


def test_the_least_can_be_asked_for_and_what_a_run_does_not_measure_is_not_run(scored):
    one = [record for record in scored if record.row == "one"]
    found = score_table.chosen(one, SCORES.sweep, "-validation/sequence")
    assert found == (("optimizer.learning_rate", "1e-3"),)
    bare = [dataclasses.replace(record, metrics={"validation/sequence": 1.0}) for record in one]
    cells = score_table.lines(SCORES, bare)[0].cells
    assert (cells["a0"].values, cells["a0"].diverged) == ((), 0)


def test_scores_are_laid_out(scored):
    laid = lay(SCORES, scored)
    rows = [list(row) for row in laid.rows]
    assert rows[0][:3] == ["One", "published", "100"]
    assert rows[1][1:] == ["here", "91 (90 to 92)", "20", "not run"] or rows[1][2] == "91 (90 to 92)"
    assert rows[2][1:3] == ["here, settings by test", "100 (100 to 100)"]
    assert rows[3][1:4] == ["difference", "-9", "-30"]
    assert ["Two", "here", "50, 1 diverged", "0, 1 diverged", "not run"] in rows
    assert rows[-1] == ["elsewhere", "published, no model here", "1", "", ""]
    assert [row[1] for row in map(list, lay(SCORES, []).rows)] == ["published, not run", "not run", *rows[-1][1:2]]
    with_heads = [dict(zip(laid.full[0], row, strict=True)) for row in laid.full[1:]]
    every = [row for row in with_heads if row["row"] == "One" and row["column"] == "a0"]
    assert [row["here"] for row in every] == ["100", "100", "100", "90", "91", "92"]
    assert [row["chosen"] for row in every] == ["no"] * 3 + ["yes"] * 3
    assert (every[4]["difference"], every[4]["seed"]) == ("-9", "1")
    assert every[4]["settings"] == "optimizer.learning_rate=3e-3"
    assert (every[0]["tier"], every[0]["steps"], every[0]["command"]) == ("small", "300", RECORD.command)
    assert [row["here"] for row in with_heads if row["row"] == "Two" and row["column"] == "a0"] == ["50", "stopped"]
    assert any("among 1e-3, 3e-3 (planned: 1e-3, 3e-3); in 1 of 2 cells only those" in note for note in laid.notes)
    assert not any("cells only" in note for note in lay(SCORES, scored[:6]).notes)


def test_a_mean_of_columns_is_of_ours_where_all_were_run(scored):
    def mean(*columns):
        published = dataclasses.replace(SCORES.published, means={"b0": columns})
        return score_table.lines(dataclasses.replace(SCORES, published=published), scored)[0].cells["b0"]

    assert (mean("a0", "a1").values, mean("a0", "a1").difference) == (((91 + 20) / 2,), (91 + 20) / 2 - 7)
    assert mean("a0", "b0").values == ()


def test_records_are_replaced_and_a_torn_line_is_left_out(tmp_path):
    file = tmp_path / "rows.jsonl"
    records.append(file, run("base", 0, metrics={"x": 1.0}))
    records.append(file, run("base", 1, metrics={"x": 2.0}))
    records.append(file, run("base", 0, metrics={"x": 3.0}))
    assert [(record.seed, record.metrics["x"]) for record in records.read(file)] == [(1, 2.0), (0, 3.0)]
    whole = file.read_text()
    file.write_text(whole + whole[:20])
    assert len(records.read(file)) == 2
    file.write_text("{}\n" + whole)
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 1: expected a record of a run"):
        records.read(file)


def test_a_size_has_a_tier():
    tiers = {size: load(f"{FILE}:{size}").tier for size in SIZES}
    assert tiers == {**dict.fromkeys(SIZES, "paper"), "tiny": "unit", "small": "small", "20m": "slot"}


def test_a_table_of_ones_own_is_named_as_it_is_reached(tmp_path, monkeypatch):
    """Its commands can be copied; of a folder elsewhere no path of the machine is recorded."""
    monkeypatch.chdir(tmp_path)
    names = [dataclasses.replace(SCORES, file=str(tmp_path / file)).name for file in ("mine.py", "configs/mine.py")]
    assert names == ["mine.py", "configs/mine.py"]
    assert SCORES.name == "experiments/titans/table5.py"
    monkeypatch.chdir(ROOT)
    assert dataclasses.replace(SCORES, file=str(tmp_path / "mine.py")).name == f"{tmp_path.name}/mine.py"


def test_nothing_run_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Comparison, "records", lambda *_: [])
    assert main(["table", FILE, f"--workdir={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("not run") == 9
    assert "nothing was run" in printed


def test_all_tables_are_one_document(tmp_path, scored):
    folder = tmp_path / "experiments"
    (folder / "titans").mkdir(parents=True)
    (folder / "titans" / "table5.py").write_text(pathlib.Path(FILE).read_text())
    (folder / "titans" / "none.py").write_text("")
    (only,) = found(folder)
    assert (only.name, only.size) == ("experiments/titans/table5.py", "small")
    for seed in range(2):
        done = run("lmm", seed, metrics={"bits_per_byte": 2.0 + seed})
        records.append(folder / "titans" / "table5.jsonl", done)
    assert "1 tables, 1 of them with runs" in write(folder)
    text = (folder / "RESULTS.md").read_text()
    assert "## experiments/titans/table5.py, tiny" in text
    assert "2.5000" in text
    assert "| [experiments/titans/table5.py, tiny](#experimentstitanstable5py-tiny) | unit | 1 of 9 | 2 |" in text
    assert (folder / "titans" / "table5-tiny.png").exists()
    assert "(titans/table5-tiny.png)" in text
    with pytest.raises(ValueError, match="found none"):
        write(tmp_path / "experiments" / "titans")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table", f"--config={ROOT}/experiments/quickstart.py"], "is no table: it must define ROWS and RESULT"),
        (["table", f"{FILE}:smal"], "size must be one of .* got 'smal'; did you mean 'small'?"),
        (["table"], "table takes one experiment file"),
        (["table", FILE, "--all"], "table --all is of every experiment as it is"),
        (["sweep", f"--config={FILE}:tiny", "--rows=lmm,mga"], "rows must be among lmm, .* got 'mga'"),
        (["sweep", f"--config={FILE}:tiny", "--parts=x"], "parts must be among .* got 'x'"),
    ],
)
def test_bad_input_is_named(arguments, message, capsys, tmp_path):
    assert main([*arguments, f"--workdir={tmp_path}"]) == 2
    assert re.search(message, capsys.readouterr().err)


def faked(monkeypatch):
    """A stand-in for runs, and what it was called with: place, seeds and steps."""
    calls = []

    class Fake:
        interrupted, trained, report = False, True, REPORT

        def __init__(self, experiment, place, say):
            self.experiment, self.place = experiment, place

        def train(self):
            calls.append((self.place.name, self.experiment.seed, self.experiment.data.seed, self.experiment.steps))
            if "mal" in self.place.name:
                raise TrainingStopped("step 3: the loss is not finite")
            return self.report

    monkeypatch.setattr("nested_jax.run.sweep.Run", Fake)
    return Fake, calls


def test_a_sweep_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    """Seed by seed; what is finished is not run again, what diverges is marked and the rest goes on."""
    Fake, calls = faked(monkeypatch)
    comparison = load(f"{FILE}:tiny", {"steps": "7"})
    sweep(comparison, tmp_path, (0, 3), ("lmm", "mal"))
    names = ["lmm-steps=7-0", "mal-steps=7-0", "lmm-steps=7-3", "mal-steps=7-3"]
    assert calls == [(name, int(name[-1]), int(name[-1]), 7) for name in names]
    done = comparison.records(tmp_path)
    assert [record.stopped for record in done if record.row == "mal"] == ["step 3: the loss is not finite"] * 2
    again = "python -m nested_jax train experiments/titans/table5.py:lmm@tiny"
    assert done[0].config == done[2].config != done[1].config
    changed = load(f"{FILE}:tiny", {"steps": "7", "model.dim": "48"})
    assert done[0].config != changed.digest("lmm", "", changed.overrides)
    elsewhere = {**comparison.overrides, "data.path": "x", "log_every": "1"}
    assert done[0].config == comparison.digest("lmm", "", elsewhere)
    assert done[0].command == f"{again} --config.seed=0 --config.data.seed=0 --config.steps=7"
    calls.clear()
    sweep(comparison, tmp_path, (0, 3, 4), ("lmm",))
    assert [name for name, *_ in calls] == ["lmm-steps=7-4"]
    assert "bits_per_byte 2.0000" in capsys.readouterr().out
    monkeypatch.setattr(Fake, "interrupted", True)
    sweep(comparison, tmp_path, (5, 6), ("lmm",))
    assert [name for name, *_ in calls] == ["lmm-steps=7-4", "lmm-steps=7-5"]
    assert "interrupted" in capsys.readouterr().out
    calls.clear()
    monkeypatch.setattr(Fake, "interrupted", False)
    elsewhere = load(f"{FILE}:tiny", {"steps": "7", "mesh.data": "1", "log_every": "1", "questions.asked": "()"})
    assert elsewhere.records(tmp_path) == comparison.records(tmp_path)
    sweep(elsewhere, tmp_path, (0, 3), ("lmm", "mal"))
    assert calls == []
    assert load(f"{FILE}:tiny", {"steps": "7", "final_bytes": "90"}).records(tmp_path) == []
    columns = {**REPORT.metrics, **dict.fromkeys(table_columns(), 1.0)}
    monkeypatch.setattr(Fake, "report", dataclasses.replace(REPORT, metrics=columns))
    monkeypatch.setattr(Fake, "trained", False)
    monkeypatch.setattr(records, "device", lambda: "another")
    scored = load(f"{FILE}:tiny", {"steps": "7", "zero_shot": "benchmarks"})
    sweep(scored, tmp_path, (0,), ("lmm", "mal"))
    assert [name for name, *_ in calls] == ["lmm-steps=7-0"]
    assert "1/2: recorded without a score that is asked for" in capsys.readouterr().out
    (again,) = (record for record in comparison.records(tmp_path) if record.key == done[0].key)
    assert (again.settings, again.metrics) == ({"steps": "7", "zero_shot": "benchmarks"}, columns)
    assert (again.device, again.seconds) == (done[0].device, done[0].seconds) != ("another", again.seconds)
    calls.clear()
    sweep(scored, tmp_path, (0,), ("lmm", "mal"))
    assert calls == []
    monkeypatch.setattr(Fake, "trained", True)
    calls.clear()
    monkeypatch.setattr(Comparison, "digest", lambda self, row, part, settings: f"{row} as changed")
    sweep(comparison, tmp_path, (0, 3), ("lmm",))
    assert [name for name, *_ in calls] == ["lmm-steps=7-0", "lmm-steps=7-3"]
    assert "recorded with another config of experiments/titans/table5.py" in capsys.readouterr().out
    notes = lay(comparison, comparison.records(tmp_path)).notes
    assert "4 runs are of an earlier config of the file and will be run again: mal, lmm" in notes
    with pytest.raises(ValueError, match=r"data\.seed is what a sweep goes through, give --seeds; got '5'"):
        sweep(load(f"{FILE}:tiny", {"data.seed": "5"}), tmp_path, (0,))


def test_the_command_beside_a_row_runs_it_again(tmp_path, monkeypatch):
    """What is recorded beside the file, with its parts, seeds and settings; once per directory."""
    Fake, calls = faked(monkeypatch)
    scores = {"validation/macro": 1.0, "test/macro": 1.0}
    monkeypatch.setattr(Fake, "report", dataclasses.replace(REPORT, metrics=scores))
    file = tmp_path / "mine.py"
    file.write_text(pathlib.Path("experiments/atlas/table4.py").read_text())
    settings = {"optimizer.learning_rate": "5e-4", "optimizer.weight_decay": "0.0"}
    for part in ("selective-copying", "compression"):
        done = run("titans", 4, size="small", part=part, settings=settings, metrics=scores)
        records.append(file.with_suffix(".jsonl"), done)
    monkeypatch.chdir(tmp_path)
    (line,) = (each for each in lay(load("mine.py"), load("mine.py").records(None)).commands if each[0] == "Titans")
    words = shlex.split(line[1])
    assert words[:6] == ["python", "-m", "nested_jax", "sweep", "mine.py:small", "--rows=titans"]
    assert words[6:9] == ["--again", "--parts=compression,selective-copying", "--seeds=4"]
    assert words[9:] == [f"--config.{field}={value}" for field, value in settings.items()]
    for _ in range(2):
        assert main([*words[3:], "--workdir=runs"]) == 0
    assert [name.split("-")[1] for name, *_ in calls] == ["compression", "selective"]
    assert main([word for word in [*words[3:], "--workdir=others"] if word != "--again"]) == 0
    assert len(calls) == 2
    elsewhere = dataclasses.replace(done, settings={"data.path": "a b"})
    assert command(load("mine.py"), "titans", [elsewhere]).endswith(" --config.data.path='a b'")
    assert command(load("mine.py"), "titans", [elsewhere, done]).endswith(" --seeds=4")


def test_a_field_of_the_grid_may_be_set(tmp_path, monkeypatch):
    """It is tried at that value alone, one of the grid or another; the runs are of the table."""
    _, calls = faked(monkeypatch)
    file, field = "experiments/atlas/table4.py", "optimizer.learning_rate"
    set_to = lambda value: load(f"{file}:tiny", {field: value})
    sweep(set_to("5e-4"), tmp_path, (0,), ("titans",), ("compression",))
    place = "titans-compression-learning_rate={}-weight_decay={}-0"
    assert [name for name, *_ in calls] == [place.format("5e-4", decay) for decay in ("0.0", "0.1")]
    sweep(set_to("7e-4"), tmp_path, (0,), ("titans",), ("compression",))
    sweep(load(f"{file}:tiny"), tmp_path, (0,), ("titans",), ("compression",))
    rates = [name.split("=")[1].removesuffix("-weight_decay") for name, *_ in calls]
    assert rates == ["5e-4"] * 2 + ["7e-4"] * 2 + ["1e-3"] * 2 + ["1e-4"] * 2
    assert len(set_to("5e-4").records(tmp_path)) == len(load(f"{file}:tiny").records(tmp_path)) == 8


def test_an_override_need_only_suit_what_is_run(tmp_path, monkeypatch):
    """Of compression 128 rows in 32 parts, where copying, which is recorded, has 16."""
    _, calls = faked(monkeypatch)
    arguments = ["sweep", "experiments/atlas/table4.py", f"--workdir={tmp_path}", "--rows=titans", "--seeds=9"]
    arguments += ["--config.optimizer.learning_rate=5e-4", "--config.optimizer.weight_decay=0.0"]
    for part, microbatches in (("selective-copying", 16), ("compression", 32)):
        assert main([*arguments, f"--parts={part}", f"--config.microbatches={microbatches}"]) == 0
    assert [name.split("-")[1] for name, *_ in calls] == ["selective", "compression"]


@pytest.mark.slow
def test_a_sweep_trains(tmp_path, capsys):
    arguments = [f"{FILE}:tiny", f"--workdir={tmp_path}"]
    assert main(["sweep", *arguments, "--rows=lmm,linear", "--seeds=1"]) == 0
    printed = capsys.readouterr().out
    assert "2/2 linear, seed 1: step 20/20" in printed
    (line,) = (line for line in printed.splitlines() if line.startswith("Linear memory "))
    assert "%" in line
