"""`bench scan` at sizes that say nothing about speed: its tables, its timing and its errors."""

import builtins
import itertools

import pytest

from nested_jax.run import bench_peers, main, timing


@pytest.mark.slow
def test_the_table_has_a_row_for_every_implementation_and_pass(capsys):
    sizes = ["--tokens=16", "--dim=4", "--chunk=8", "--rounds=1", "--batch=1", "--heads=1"]
    sizes.append("--memory=linear")
    assert main.main(["bench", "scan", *sizes]) == 0
    text = capsys.readouterr().out
    rows = [line.split() for line in text.splitlines()]
    for what in ("forward", "forward+backward"):
        for name in ("dual", "response", "scan", "materialize"):
            assert ["linear", what, name] in [row[:3] for row in rows]
    assert "B1 H1 T16 d4 C8 f32" in text


def test_rounds_are_interleaved_after_a_warm_up():
    calls = []
    candidates = {name: lambda name=name: calls.append(name) for name in "ab"}
    measured = timing.interleave(candidates, 3)
    assert "".join(calls) == "ab" * 4
    assert [len(m.seconds) for m in measured.values()] == [3, 3]


@pytest.mark.parametrize(("within", "calls", "counted"), [(0.5, 1, 1), (1.5, 3, 2), (2.5, 4, 3), (9.0, 6, 5)])
def test_rounds_end_with_the_time_for_them(within, calls, counted, monkeypatch):
    clock, made = itertools.count(), []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))  # every call takes one second
    measured = timing.interleave({"a": lambda: made.append("a")}, 5, within)
    assert (len(made), measured["a"].seconds) == (calls, (1,) * counted)


def test_ratios_are_formed_round_by_round():
    slow, fast = timing.Measured((2.0, 9.0, 4.0)), timing.Measured((1.0, 3.0, 1.0))
    assert timing.ratio(slow, fast) == (3.0, 2.0, 4.0)
    assert slow.median == 4.0


def test_a_missing_peer_says_how_to_get_it(monkeypatch):
    found = builtins.__import__

    def refuse(name, *arguments, **options):
        if name in ("titans_pytorch", "torch"):
            raise ImportError(f"No module named {name!r}")
        return found(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[peers\]'"):
        bench_peers.peer(1)
