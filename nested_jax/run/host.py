"""What the program asks of the computer it runs on: devices for a mesh, memory that stays, and how much there is."""

import ctypes
import os
import pathlib
import sys

import jax

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of `mallopt`'s options in glibc's malloc.h
_FORCED = "xla_force_host_platform_device_count"


def cpu_devices(count: int) -> None:
    """Lets JAX see the CPU as `count` devices, so that a mesh of any shape runs on a computer without accelerators.

    One device per core also uses the cores better than one device for all: XLA runs a batch of small products one by
    one on a device, and a batch split over devices side by side. Does nothing for a count of 1, once JAX has begun to
    use its devices, or where `XLA_FLAGS` says how many there are.

    Args:
      count: devices, at least 1.
    """
    if count == 1 or _FORCED in os.environ.get("XLA_FLAGS", ""):
        return
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        return


def keep_freed_memory(most: int = 2**30) -> bool:
    """Tells glibc to keep freed memory for the next allocation instead of giving it back to the system.

    XLA allocates its temporary memory anew at every call on a CPU, and the system then hands it out page by page. That
    took a fifth of the time of the layer in `bench scan --peers`; where little memory is allocated nothing is gained.

    Args:
      most: larger allocations, in bytes, are still given back at once.

    Returns:
      False where the C library is another one.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    return bool(library.mallopt(_MMAP_THRESHOLD, most)) and bool(library.mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_bytes() -> int | None:
    """The memory that JAX's first device can still allocate: the accelerator's own, or what the system can spare.

    Returns:
      Bytes, None where the system does not say.
    """
    statistics = jax.devices()[0].memory_stats()
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(found[0]) if found else None
