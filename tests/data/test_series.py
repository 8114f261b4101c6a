"""Series: rows by hand, what windows may see, batches that go on exactly, and what is said where data is missing."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from nested_jax.data import SeriesConfig, load_series, series_batches

SINES = SeriesConfig(dataset="sines", lookback=16, horizons=(4, 8), batch_size=4, seed=3)


def write(path, columns, names=("a", "b")):
    lines = [",".join(("date", *names))]
    lines += [f"2016-07-01 {row:02}:00,{','.join(map(str, values))}" for row, values in enumerate(columns)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_rows_by_hand(tmp_path):
    """Ten rows, 7, 1 and 2 of a part; deviations are those of the population."""
    rows = [(row, 5) for row in (0, 2, 0, 2, 0, 2, 1, 7, 8, 9)]
    series = load_series(
        SeriesConfig(dataset="mine", path=write(tmp_path / "mine.csv", rows), lookback=2, horizons=(1,))
    )
    assert (series.ends, series.channels) == ((7, 8, 10), ("a", "b"))
    np.testing.assert_allclose(series.mean, [1, 5])
    np.testing.assert_allclose(series.deviation, [(6 / 7) ** 0.5, 1])
    np.testing.assert_allclose(series.values[:, 0], (np.array(rows)[:, 0] - 1) / (6 / 7) ** 0.5, rtol=1e-6)
    np.testing.assert_array_equal(series.values[:, 1], 0)
    starts = {part: series.starts(part, 2, 1).tolist() for part in ("train", "validation", "test")}
    assert starts == {"train": [0, 1, 2, 3, 4], "validation": [5], "test": [6, 7]}
    inputs, targets = series.windows(np.array([6]), 2, 1)
    np.testing.assert_array_equal(inputs[0], series.values[6:8])
    np.testing.assert_array_equal(targets[0], series.values[8:9])
    assert "2 channels; 7 rows to train, 1 to validate, 2 to test" in series.description


@pytest.mark.parametrize(("dataset", "months"), [("ETTh1", 720), ("ETTm2", 2880)])
def test_months_of_the_protocol(dataset, months, tmp_path):
    """12, 4 and 4 months of 30 days; later rows are left out; so many test windows as in the literature."""
    values = np.arange(20 * months + 5)
    path = tmp_path / f"{dataset}.csv"
    path.write_text("date,OT\n" + "".join(f"x,{value}\n" for value in values))
    series = load_series(SeriesConfig(dataset=dataset, path=str(tmp_path)))
    assert series.ends == (12 * months, 16 * months, 20 * months)
    assert len(series.values) == 20 * months
    assert series.mean[0] == (12 * months - 1) / 2
    for horizon in (96, 720):
        starts = series.starts("test", 96, horizon)
        assert len(starts) == 4 * months - horizon + 1
        assert starts[0] + 96 == 16 * months
        assert starts[-1] + 96 + horizon == 20 * months
        assert series.starts("train", 96, horizon)[-1] + 96 + horizon == 12 * months


def test_what_is_held_out_does_not_scale_what_is_trained_on(tmp_path):
    rows = np.random.default_rng(0).normal(size=(40, 2))
    config = SeriesConfig(dataset="mine", path=write(tmp_path / "mine.csv", rows), lookback=2, horizons=(1,))
    before = load_series(config)
    rows[28:] += 100
    write(tmp_path / "mine.csv", rows)
    after = load_series(config)
    np.testing.assert_array_equal(before.values[:28], after.values[:28])
    assert after.values[28:].min() > 50
    assert before.digest() == after.digest()


@pytest.mark.parametrize("backend", ["numpy", "grain"])
def test_every_epoch_has_every_window_once(backend):
    series = load_series(SINES)
    stream = series_batches(series, dataclasses.replace(SINES, batch_size=5), backend=backend)
    assert stream.windows == len(series.starts("train", 16, 8)) == 840 - 16 - 8 + 1
    place = {row.tobytes(): number for number, row in enumerate(series.values)}
    seen = []
    for _ in range(stream.windows * 2 // 5):
        batch = next(stream)
        assert (batch["inputs"].shape, batch["targets"].shape) == ((5, 16, 3), (5, 8, 3))
        whole = np.concatenate([batch["inputs"], batch["targets"]], axis=1)
        rows = np.array([[place[row.tobytes()] for row in window] for window in whole])
        np.testing.assert_array_equal(np.diff(rows, axis=1), 1)
        seen += rows[:, 0].tolist()
    first, second = seen[: stream.windows], seen[stream.windows : 2 * stream.windows]
    assert sorted(first) == list(range(stream.windows))
    assert first != second != sorted(second)


def test_batches_go_on_are_shared_out_and_stay_as_they_are():
    series = load_series(SINES)
    stream = series_batches(series, SINES, backend="numpy")
    whole = [next(stream)["targets"] for _ in range(6)]
    state = json.loads(json.dumps(series_batches(series, SINES).get_state())) | {"next_batch": 4}
    again = series_batches(series, SINES, backend="grain")
    again.set_state(state)
    np.testing.assert_array_equal(next(again)["targets"], whole[4])
    halves = [series_batches(series, SINES, process_index=index, process_count=2) for index in range(2)]
    np.testing.assert_array_equal(np.concatenate([next(half)["targets"] for half in halves]), whole[0])
    for field, value in (("seed", 4), ("lookback", 12), ("horizons", (4, 9)), ("batch_size", 8)):
        other = series_batches(series, dataclasses.replace(SINES, **{field: value}))
        with pytest.raises(ValueError, match=f"its {field.rstrip('s')} is"):
            other.set_state(state)
    rounded = np.round(np.stack(whole).astype(np.float64), 4) + 0.0
    assert hashlib.sha256(rounded.tobytes()).hexdigest()[:16] == "aa9a307dc60d4a9c"


def test_sines_need_no_file():
    series = load_series(SINES)
    assert series.values.shape == (1200, 3)
    assert "for tests only" in series.description
    with pytest.raises(ValueError, match="path: expected None for generated sines, got 'x'"):
        dataclasses.replace(SINES, path="x").validate()


@pytest.mark.parametrize(
    ("dataset", "path", "said"),
    [
        ("ETTh1", None, "data.path: expected a file with the series ETTh1, got None"),
        ("ETTh1", "nothing.csv", "no such file: .*nothing.csv"),
        ("Weather", ".", r"no such file: .*weather\.csv"),
        ("ETTh2", ".", r"no such file: .*ETTh2\.csv"),
    ],
)
def test_missing_data_is_explained(dataset, path, said, tmp_path):
    given = None if path is None else str(tmp_path / path)
    with pytest.raises(ValueError, match=said) as error:
        load_series(SeriesConfig(dataset=dataset, path=given))
    assert "date,HUFL,HULL,MUFL,MULL,LUFL,LULL,OT\n" in str(error.value)
    assert "git clone https://github.com/zhouhaoyi/ETDataset" in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has 0 channels|is no table"),
        ("date,a\n", "has 1 channels and 0 rows|is no table"),
        ("date,a\nx,1\nx,blue\n", "is no table of numbers: .*blue"),
        ("date,a\nx,1\nx,\n", "is no table of numbers"),
        ("date,a,b\nx,1,2\nx,1,nan\n", "has no number of b in line 3"),
        ("date,a\n" + "x,1\n" * 100, r"ETTh1 is split \(8640, 2880, 2880\), .* has 100 rows"),
    ],
)
@pytest.mark.filterwarnings("ignore:loadtxt")
def test_a_bad_file_is_named(text, said, tmp_path):
    path = tmp_path / "ETTh1.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=said) as error:
        load_series(SeriesConfig(path=str(path)))
    assert str(path) in str(error.value)


def test_a_part_without_a_window_is_named():
    series = load_series(SINES)
    with pytest.raises(ValueError, match="its 120 rows to validation have no window of lookback 16 and horizon 121"):
        series.starts("validation", 16, 121)
    assert len(series.starts("validation", 16, 120)) == 1
    with pytest.raises(ValueError, match="have no window of lookback 841"):
        series.starts("validation", 841, 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [("lookback", 0), ("batch_size", 0), ("seed", -1), ("horizons", ()), ("horizons", (8, 4)), ("horizons", (0, 4))],
)
def test_a_field_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=f"^{field}: expected"):
        dataclasses.replace(SINES, **{field: value}).validate()
