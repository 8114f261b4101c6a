"""`bench rules` at sizes that say nothing about speed: its tables, and that its candidates compute the same."""

import dataclasses

import jax
import numpy as np
import pytest

from nested_jax.run import bench_rules, main
from nested_jax.run.bench_scan import layer


@pytest.mark.slow
def test_the_tables_have_a_row_for_every_candidate_and_correlation(capsys, monkeypatch):
    one = "delta gradient descent"
    monkeypatch.setattr(bench_rules, "FORMS", {one: bench_rules.FORMS[one]})
    assert main.main(["bench", "rules", "--tokens=16", "--dim=8", "--rounds=1", "--batch=1", "--heads=1"]) == 0
    text = capsys.readouterr().out
    assert "B1 H1 T16 d8 f32" in text
    for what in ("forward", "forward+backward"):
        for name in ("delta", "scan", "textbook scan", "textbook, checkpointed"):
            assert any(line.split()[:-5] == ["gated", "delta", what, *name.split()] for line in text.splitlines())
    for name in bench_rules.FORMS:
        for what in ("forward", "forward+backward"):
            for implementation in ("auto", "scan"):
                start = [*name.split(), what, implementation]
                assert any(line.split()[: len(start)] == start for line in text.splitlines())
    errors = {line.split()[0]: line.split()[-2:] for line in text.splitlines() if line.lstrip()[:2] in ("0.", "1.")}
    assert set(errors) == {"0.0", "0.5", "0.9", "1.0"}
    assert all(float(ladder) <= 1e-5 for ladder, _ in errors.values())
    assert float(errors["0.9"][1]) > 1


def test_all_candidates_compute_the_gated_delta_rule(x64):
    weights = {"w": jax.random.normal(jax.random.key(0), (8, 8))}
    data = bench_rules.data(2, 16, 8)
    candidates = [layer(bench_rules.gated_delta_rule(name)) for name in bench_rules.IMPLEMENTATIONS]
    candidates += [bench_rules.textbook(None), bench_rules.textbook(8)]
    first, *others = (jax.jit(function)(weights, data) for function in candidates)
    for other in others:
        assert np.allclose(other, first, rtol=1e-10, atol=1e-10)


def test_tokens_that_do_not_fill_the_checkpoints_are_refused(capsys):
    with pytest.raises(SystemExit):
        bench_rules.arguments_of(["--tokens=100"])
    assert "--tokens: expected at most 64 or a multiple of it, got 100" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", bench_rules.FORMS)
def test_every_form_is_the_scan(name):
    options = bench_rules.arguments_of(["--tokens=64", "--dim=32", "--batch=1", "--heads=1"])
    memory, data = bench_rules.FORMS[name], bench_rules.form_data(name, options)
    weights = memory.init(jax.random.key(1), 32)
    fast, scan = (
        jax.jit(layer(dataclasses.replace(memory, implementation=implementation)))(weights, data)
        for implementation in ("auto", "scan")
    )
    assert np.allclose(fast, scan, atol=1e-4)
