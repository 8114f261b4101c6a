"""`bench newton_schulz` at sizes that say nothing about speed: its table, and that its candidates compute the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nested_jax.run import bench_newton_schulz, main

CASES = {
    "square": (bench_newton_schulz.square(kernels=False), [(3, 8, 8)]),
    "window": (bench_newton_schulz.window(), [(3, 2, 8), (3, 2, 8), (3, 8)]),
}


@pytest.mark.slow
def test_the_table_has_a_row_for_every_case_implementation_and_pass(capsys):
    assert main.main(["bench", "newton_schulz", "--scale=16", "--rounds=1"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    expected = {
        "square 32×4×4 float32": ("xla", "optax"),
        "square 8×8×8 float32": ("xla", "optax"),
        "wide 32×1×4 float32": ("xla", "gram"),
        "wide 32×2×8 float32": ("xla", "gram"),
        "wide 1×32×128 float32": ("xla", "gram"),
        "window 32×1×4 float32": ("full", "low rank"),
    }
    for title, names in expected.items():
        for name in names:
            for what in ("forward", "forward+backward"):
                wanted = [*title.split(), what, *name.split()]
                assert wanted in [row[: len(wanted)] for row in rows]


@pytest.mark.parametrize("case", CASES)
def test_candidates_compute_the_same(case, x64):
    candidates, shapes = CASES[case]
    keys = jax.random.split(jax.random.key(0), len(shapes))
    arguments = [jax.random.normal(key, shape, jnp.float64) for key, shape in zip(keys, shapes, strict=True)]
    first, *others = (jax.jit(candidate)(*arguments) for candidate in candidates.values())
    assert first.dtype == jnp.float64
    for other in others:
        np.testing.assert_allclose(other, first, atol=1e-10)


@pytest.mark.parametrize(("backend", "kernel"), [("tpu", "pallas_tpu"), ("gpu", "mosaic_gpu")])
def test_an_accelerator_adds_its_kernel(backend, kernel, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert list(bench_newton_schulz.square(kernels=True)) == ["xla", kernel, "optax"]
