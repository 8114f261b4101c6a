"""The CPU as several devices, and what the program asks of the C library."""

import os
import platform
import subprocess
import sys
import types

from nested_jax.run import host


def devices_seen(code: str, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    command = f"from nested_jax.run import host; import jax; {code}; print(len(jax.devices()))"
    run = subprocess.run(
        [sys.executable, "-c", command], env=clean | environment, capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


def test_a_cpu_is_as_many_devices_as_a_mesh_needs():
    assert devices_seen("host.cpu_devices(3)") == "3"
    assert devices_seen("host.cpu_devices(1)") == "1"


def test_devices_already_in_use_or_given_by_the_user_stay():
    assert devices_seen("jax.devices(); host.cpu_devices(3)") == "1"
    assert devices_seen("host.cpu_devices(3)", XLA_FLAGS="--xla_force_host_platform_device_count=2") == "2"


def test_freed_memory_is_kept_where_the_c_library_is_glibc():
    assert host.keep_freed_memory() == (platform.libc_ver()[0] == "glibc")


def test_memory_of_an_accelerator_is_its_own(monkeypatch):
    device = lambda statistics: types.SimpleNamespace(memory_stats=lambda: statistics)
    monkeypatch.setattr(host.jax, "devices", lambda: [device({"bytes_limit": 100, "bytes_in_use": 30})])
    assert host.available_bytes() == 70


def test_memory_of_a_cpu_is_the_systems():
    if platform.system() == "Linux":
        assert 2**20 < host.available_bytes() < 2**50
