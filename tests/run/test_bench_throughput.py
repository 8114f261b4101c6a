"""`bench throughput`: on a CPU its numbers say nothing; the code path is that of an accelerator."""

import jax
import numpy as np
import pytest

from nested_jax.models.families import count, family
from nested_jax.run import bench_throughput, main
from nested_jax.run.bench_throughput import Speed


@pytest.fixture(scope="module")
def measured():
    return bench_throughput.measure("sliding-window", "tiny", rows=2, tokens=16, calls=2)


def test_speed_is_measured_by_training_steps(measured):
    model = family("sliding-window", "tiny")
    assert (measured.failure, measured.parameters) == ("", count(model))
    assert measured.rate > 0
    assert measured.memory > 3 * 4 * measured.parameters  # they, and Adam's two averages
    assert bench_throughput.mfu(measured) is None
    assert np.isclose(bench_throughput.mfu(Speed("a", "NVIDIA H200", 10**9, 1e5)), 6e14 / 989e12)


def test_no_step_begins_when_time_is_up(monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(bench_throughput.time, "perf_counter", lambda: next(clock))
    found = bench_throughput.measure("sliding-window", "tiny", rows=2, tokens=16, calls=5, within=15)
    assert found.compile_seconds == 10
    assert found.rate == 2 * 16 * 2 / 30  # a step, at 10 s another, at 20 s no more


def test_a_family_that_fails_says_why():
    found = bench_throughput.measure("sliding-window", "tiny", rows=2, tokens=-1, calls=1)
    assert found.rate is None
    assert found.failure.startswith("ValueError: ")
    assert "| – | – | – | 0 s | ValueError: " in bench_throughput.lines([found], "tiny")


def test_a_line_of_each_and_a_table(measured, monkeypatch, capsys):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(bench_throughput, "measure", lambda name, size: measured._replace(family=name))
    assert main.main(["bench", "throughput", "--families=sliding-window,lstm", "--size=tiny"]) == 0
    printed = capsys.readouterr().out
    for name in ("sliding-window", "lstm"):
        assert f"\n{name}  {measured.parameters:,}  " in printed
        assert f"\n| {name} | {measured.parameters:,} | " in printed


def test_without_an_accelerator_nothing_is_measured(capsys):
    assert main.main(["bench", "throughput"]) == 0
    assert capsys.readouterr().out == "tokens/s and MFU at 170m: not run, there is no accelerator here\n"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--families=x", "--families takes names among .*; got 'x'"),
        ("--size=9b", "--size takes one of tiny, .*; got '9b'"),
    ],
)
def test_options_out_of_range_are_named(option, message):
    with pytest.raises(ValueError, match=message):
        bench_throughput.main([option])
