"""Several processes as one run: who they are, when `jax.distributed` is started, and how one leaves the others.

SLURM, Kubernetes and TPU VMs tell JAX which processes there are. Elsewhere each is told: `--coordinator=HOST:PORT
--processes=N --process=I`, or `NESTED_JAX_COORDINATOR`, `NESTED_JAX_PROCESSES` and `NESTED_JAX_PROCESS` in its
environment. A single process starts nothing. On CPUs the processes talk by Gloo, which is JAX's default.

A process that fails leaves at once: leaving politely would wait minutes for the others, which wait for it. They notice
by a broken connection, or `HEARTBEAT` seconds after its last sign of life, and end as well.
"""

import argparse
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass

COMMANDS = ("train", "eval")
COORDINATOR, PROCESSES, PROCESS = "NESTED_JAX_COORDINATOR", "NESTED_JAX_PROCESSES", "NESTED_JAX_PROCESS"
HEARTBEAT = 30
JOIN = 300  # seconds, after which JAX ends a process that is still alone
LOST = 134  # exit code of a process that stops because another did: what the end that JAX itself brings has, too

_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
_LOST = re.compile(r"gloo|nccl|peer|coordination service|coordination_service|heartbeat|barrier|distributed", re.I)


_CHOOSE = "choose its axes by --config.mesh.data=... and so on"


@dataclass(frozen=True)
class Given:
    """Which process this is, said by the user.

    Attributes:
      coordinator: HOST:PORT of process 0, which serves the others.
      count: processes in all, at least 2.
      index: this one, in `range(count)`.
    """

    coordinator: str
    count: int
    index: int


@dataclass(frozen=True)
class Found:
    """A scheduler whose processes JAX finds by itself.

    Attributes:
      scheduler: its name.
      count: processes in all, None if only JAX can tell.
    """

    scheduler: str
    count: int | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say which of several processes this is."""
    group = parser.add_argument_group("several processes", "found by themselves under SLURM, GKE and on TPU VMs")
    group.add_argument("--coordinator", metavar="HOST:PORT", help=f"address of process 0 (or {COORDINATOR})")
    group.add_argument("--processes", metavar="N", help=f"how many there are (or {PROCESSES})")
    group.add_argument("--process", metavar="I", help=f"which this is, from 0 (or {PROCESS})")


def given(options: Mapping[str, str | None], environment: Mapping[str, str]) -> Given | None:
    """What options and environment say, an option before its variable; None for nothing, or a single process.

    Args:
      options: may hold "coordinator", "processes" and "process".
      environment: may hold the variables.

    Raises:
      ValueError: if only a part is said, or a number is out of range.

    Example:
      >>> given({"coordinator": "10.0.0.1:8476", "processes": "4"}, {"NESTED_JAX_PROCESS": "3"})
      Given(coordinator='10.0.0.1:8476', count=4, index=3)
    """
    names = {"coordinator": COORDINATOR, "processes": PROCESSES, "process": PROCESS}
    said = {name: options.get(name) or environment.get(variable) for name, variable in names.items()}
    if said["processes"] == "1" or not any(said.values()):
        return None
    for name, value in said.items():
        if not value:
            raise ValueError(f"--{name} (or {names[name]}) is needed as well, as others are given: {_shown(said)}")
    address, count, index = said["coordinator"] or "", said["processes"] or "", said["process"] or ""
    if not re.fullmatch(r"(\[[^]]+\]|[^:\s]+):\d{1,5}", address):
        raise ValueError(f"--coordinator (or {COORDINATOR}) is HOST:PORT of process 0; got {address!r}")
    if not count.isdecimal() or int(count) < 1:
        raise ValueError(f"--processes (or {PROCESSES}) is a number of processes, at least 1; got {count!r}")
    if not index.isdecimal() or int(index) >= int(count):
        raise ValueError(f"--process (or {PROCESS}) is a number from 0 to {int(count) - 1}; got {index!r}")
    return Given(address, int(count), int(index))


def _shown(said: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name} {value}" for name, value in said.items() if value)


def found(environment: Mapping[str, str]) -> Found | None:
    """The scheduler that started this process together with others; None if it seems to be alone.

    Args:
      environment: the process's variables, once JAX has been imported (it leaves a mark on a TPU VM).

    Raises:
      ValueError: in a Kubernetes job where the package that JAX asks there is missing.

    Example:
      >>> step = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "a,b", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
      >>> found({**step, "SLURM_STEP_NUM_TASKS": "2"})
      Found(scheduler='SLURM', count=2)
    """
    if all(name in environment for name in _SLURM):
        tasks = int(environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS") or 1)
        return Found("SLURM", tasks) if tasks > 1 else None
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if hosts is not None:
        count = len(hosts.split(",")) * int(environment.get("MEGASCALE_NUM_SLICES") or 1)
        return Found("GKE", count) if count > 1 else None
    if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
        if importlib.util.find_spec("kubernetes") is None:
            raise ValueError(
                "this is a pod of an indexed Kubernetes job, of whose processes JAX learns by the package kubernetes: "
                f'pip install "jax[k8s]", or set {PROCESSES}=1 if there is no other'
            )
        return Found("Kubernetes", None)
    if environment.get("TPU_ML_PLATFORM") == "JAX" and "TPU_SKIP_MDS_QUERY" not in environment:
        return Found("TPU VM", None)
    return None


def start(command: str, options: argparse.Namespace, devices: int) -> None:
    """Joins the other processes of this run, if there are any; to be called before JAX uses a device.

    From then on only process 0 prints.

    Args:
      command: the subcommand.
      options: its options.
      devices: of the mesh, over all processes. Where processes run on CPUs, each has an equal share of them.

    Raises:
      ValueError: if the command takes one process, the settings are wrong, the others are not reached, or the mesh is
        not made of the devices of all processes.
    """
    import jax

    from nested_jax.run import host

    said = given(vars(options), os.environ)
    there = None if said is not None or os.environ.get(PROCESSES) == "1" else found(os.environ)
    count = said.count if said is not None else there.count if there is not None else 1
    if command not in COMMANDS:
        if count is not None and count > 1:
            raise ValueError(f"{command} runs in one process; it was started as one of {count}")
        return host.cpu_devices(devices)
    if count is not None:
        if devices % count:
            raise ValueError(
                f"mesh: {devices} devices cannot be shared out among {count} processes; {_CHOOSE}"
                f" (product {count}, or a multiple)"
            )
        host.cpu_devices(devices // count)
    if said is None and there is None:
        return
    timeouts = {"initialization_timeout": JOIN, "heartbeat_timeout_seconds": HEARTBEAT}
    try:
        if said is not None:
            print(
                f"nested-jax: process {said.index} of {said.count} waits {JOIN} s at most for the others, who meet at "
                f"{said.coordinator}",
                file=sys.stderr,
            )
            jax.distributed.initialize(
                said.coordinator, said.count, said.index, cluster_detection_method="deactivate", **timeouts
            )
        else:
            jax.distributed.initialize(**timeouts)
    except Exception as error:
        who = f"process {said.index} of {said.count}, at {said.coordinator}" if said else f"found by {there}"
        raise ValueError(f"the other processes were not reached ({who}): {_line(error)}") from error
    if jax.process_count() > 1 and jax.device_count() != devices:
        raise ValueError(
            f"mesh: it has {devices} devices, and {jax.process_count()} processes have {jax.device_count()} together; "
            f"{_CHOOSE} (product {jax.device_count()})"
        )
    if jax.process_index() > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def several() -> bool:
    """Whether this process has joined others."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def name() -> str:
    """This process for a message, nothing if it is alone.

    Example:
      >>> name()
      ''
    """
    if not several():
        return ""
    import jax

    return f" (process {jax.process_index()} of {jax.process_count()})"


def lost(error: BaseException) -> str | None:
    """Why a process stopped that did nothing wrong, for people; None if the error is its own."""
    import jax

    if not isinstance(error, jax.errors.JaxRuntimeError) or not _LOST.search(str(error)):
        return None
    return (
        f"another process has stopped, see its own words for why ({_line(error)}). Start all of them again by the same "
        "command: the run goes on from its newest checkpoint"
    )


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"


def failed(error: Exception) -> int:
    """Prints why this process of several stops; returns its exit code."""
    reason = lost(error)
    if reason is None:
        traceback.print_exception(error)
        return 1
    print(f"nested-jax{name()}: {reason}", file=sys.stderr)
    return LOST


def leave(code: int) -> int:
    """Ends the part in several processes: with the others if all is well, else at once and without them.

    Args:
      code: exit code of the process.

    Returns:
      The same, if the process is to end in the usual way.
    """
    if not several():
        return code
    import jax

    sys.stdout.flush()
    sys.stderr.flush()
    if code == 0:
        jax.distributed.shutdown()
        return 0
    os._exit(code)
