import dataclasses
import json
import math

import pytest

from nested_jax.train.metrics import JsonLines, open_writers, read
from nested_jax.train.picture import draw
from nested_jax.train.progress import Progress
from nested_jax.train.report import Report, excerpt, table


def test_each_step_appears_once_after_a_restart(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = JsonLines(path)
    for step in range(1, 6):
        writer.scalars(step, {"loss": step / 10})
    writer.close()
    with path.open("a") as file:
        file.write('{"step": 6, "lo')
    again = JsonLines(path, step=3)
    again.scalars(4, {"loss": math.nan})
    again.close()
    assert [record["step"] for record in read(path)] == [1, 2, 3, 4]
    assert read(path)[-1]["loss"] is None
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_no_file_no_records(tmp_path):
    assert read(tmp_path / "none.jsonl") == []


def test_missing_packages_and_unknown_names_are_said(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ValueError, match=r'pip install "nested_jax\[tensorboard\]"'):
        open_writers(("tensorboard",), tmp_path, 0, {})
    with pytest.raises(ValueError, match=r'pip install "nested_jax\[wandb\]"'):
        open_writers(("wandb",), tmp_path, 0, {})
    with pytest.raises(ValueError, match="writers takes any of tensorboard, wandb; got 'x'"):
        open_writers(("x",), tmp_path, 0, {})
    assert list(tmp_path.iterdir()) == []


def test_progress_line():
    progress = Progress(steps=1000, tokens_per_step=2000)
    assert progress.rates(1, now=50.0) == (None, None)
    speed, left = progress.rates(101, now=60.0)
    assert speed == pytest.approx(20_000)
    assert left == pytest.approx(89.9)
    line = progress.line(101, 1.25, {"bits/byte": 1.8034}, speed, left)
    assert line == "step  101/1000  loss 1.2500  bits/byte 1.803  20.0k tokens/s  1 min 30 s left"


def test_what_is_no_step_takes_no_tokens_per_second(monkeypatch):
    now = iter([50.0, 55.0, 85.0, 90.0])
    monkeypatch.setattr("nested_jax.train.progress.time.monotonic", lambda: next(now))
    progress = Progress(steps=1000, tokens_per_step=2000)
    progress.rates(1)
    with progress.aside():
        pass
    speed, left = progress.rates(101)
    assert speed == pytest.approx(20_000)
    assert left == pytest.approx(899 * 40 / 100)


def test_picture_of_a_run_without_memories(tmp_path):
    writer = JsonLines(tmp_path / "m.jsonl")
    writer.scalars(1, {"bits_per_byte": 2.0, "validation_bits_per_byte": 2.1})
    writer.close()
    draw(tmp_path / "m.jsonl", tmp_path / "p.png", {"bigram": 3.5})
    text = (tmp_path / "p.png").stat().st_size
    writer = JsonLines(tmp_path / "t.jsonl")
    writer.scalars(1, {"loss": 2.0, "validation_sequence": 0.5})
    writer.close()
    draw(tmp_path / "t.jsonl", tmp_path / "t.svg", {})
    assert text > 1000
    assert (tmp_path / "t.svg").stat().st_size > 1000


def test_report_survives_the_file_and_sorts_its_table(tmp_path):
    report = Report(
        steps=3,
        tokens=64,
        parameters=10,
        metrics={"bits_per_byte": 2.4},
        scored="1,234 validation bytes (context 16)",
        data="t",
        baselines={"bigram": 3.5, "xz": 1.7},
        sample="ab\n",
    )
    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == report
    assert Report.load(tmp_path / "none.json") is None
    lines = table(report).splitlines()
    assert "1,234" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["bigram", "this", "xz"]
    scored = dataclasses.replace(report, metrics={"bits_per_byte": 2.4, "piqa/acc": 61.5})
    assert table(scored).splitlines()[-1].split() == ["piqa/acc", "61.500"]


def test_excerpt_of_everything():
    import numpy as np

    text = np.arange(10)
    assert excerpt(text, None) is text
    assert excerpt(text, 10) is text
    assert len(excerpt(np.arange(1000), 160)) == 160
