"""Strict settings for every test: eight CPU devices, full precision, no silent rank promotion, quick compiles.

Tests run on the CPU, whatever else there is, unless JAX_PLATFORMS says otherwise (see CONTRIBUTING.md).
"""

import importlib.metadata
import os
import pathlib

if os.environ.setdefault("JAX_PLATFORMS", "cpu") == "cpu":
    quick = ["--xla_backend_optimization_level=0"]
    if importlib.metadata.version("jax").startswith("0.10."):  # 0.11 knows no such flag
        quick.append("--xla_cpu_use_fusion_emitters=false")
    os.environ.setdefault("XLA_FLAGS", " ".join(quick))

import jax
import pytest

ROOT = pathlib.Path(__file__).parent.parent

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield
