"""Several processes of one run on this host: ports and environment set, output by rank, and they die as one.

    python launch/local.py -n 2 experiments/quickstart.py --workdir=runs/two --config.mesh.data=2

What follows -n goes to `python -m nested_jax train`, or to `eval` if that is named first. Ctrl-C or SIGTERM
asks all of them to save and stop; a second Ctrl-C kills them.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time

GRACE = 45.0  # seconds in which the others find out and say why, after one has ended badly: heartbeats take 30


def free_port() -> int:
    """A TCP port of this host that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(rank: int, count: int, port: int, devices: int | None = None) -> dict[str, str]:
    """The variables of one process.

    Args:
      rank: which one, from 0.
      count: of how many.
      port: where process 0 serves the others.
      devices: how many of the host's GPUs each process gets; None leaves them all to each.
    """
    added = {
        "NESTED_JAX_COORDINATOR": f"127.0.0.1:{port}",
        "NESTED_JAX_PROCESSES": str(count),
        "NESTED_JAX_PROCESS": str(rank),
        "PYTHONUNBUFFERED": "1",
    }
    if any(name.lower() in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy") for name in os.environ):
        for name in ("no_proxy", "NO_PROXY"):
            added[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1", "localhost")))
        added["JAX_CHECK_PROXY_ENVS"] = "false"  # it warns of any such variable, and these keep the proxy out
    if devices is not None:
        added["JAX_LOCAL_DEVICE_IDS"] = ",".join(str(rank * devices + place) for place in range(devices))
    return added


def command(arguments: list[str]) -> list[str]:
    """The command line of every process."""
    subcommand = [] if arguments[:1] and arguments[0] in ("train", "eval") else ["train"]
    return [sys.executable, "-m", "nested_jax", *subcommand, *arguments]


def ending(code: int) -> str:
    """An exit code in words."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


class Group:
    """Processes that were started together."""

    def __init__(self, arguments: list[str], count: int, devices: int | None):
        port, line = free_port(), command(arguments)
        self._stopping = 0
        self.processes = [
            subprocess.Popen(
                line,
                env=os.environ | environment(rank, count, port, devices),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            for rank in range(count)
        ]
        self._readers = [
            threading.Thread(target=self._relay, args=(rank,), daemon=True) for rank in range(len(self.processes))
        ]
        for rank, process in enumerate(self.processes):
            say(f"process {rank} of {count}: pid {process.pid}")
        for reader in self._readers:
            reader.start()

    def _relay(self, rank: int) -> None:
        pipe = self.processes[rank].stdout
        assert pipe is not None
        with pipe:
            for line in pipe:
                print(f"[{rank}] {line}", end="" if line.endswith("\n") else "\n", flush=True)

    def stop(self, number: int, frame: object = None) -> None:
        """Handles a signal: the first asks all to save and stop, a second Ctrl-C kills them."""
        self._stopping += 1
        kill = self._stopping > 1 and number == signal.SIGINT
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)

    def wait(self) -> int:
        """Waits until all have ended, killing what outlives a bad end too long; returns the exit code of that end."""
        worst, until = 0, float("inf")
        while any(process.poll() is None for process in self.processes):
            bad = [(rank, code) for rank, process in enumerate(self.processes) if (code := process.poll())]
            if bad and worst == 0:
                worst, until = bad[0][1], time.monotonic() + GRACE
                say(f"process {bad[0][0]} {ending(worst)}; the others stop as well")
            if time.monotonic() > until:
                say(f"killing what still runs {GRACE:.0f} s later")
                for process in self.processes:
                    process.kill()
                until = float("inf")
            time.sleep(0.1)
        for reader in self._readers:
            reader.join(timeout=5)
        codes = [process.returncode for process in self.processes]
        for rank, code in enumerate(codes):
            say(f"process {rank} {ending(code)}")
        worst = worst or next(filter(None, codes), 0)
        return 128 - worst if worst < 0 else worst


def say(line: str) -> None:
    """Prints a line of the launcher's own."""
    print(f"[local] {line}", flush=True)


def main() -> int:
    """Starts the processes and sees them to their end."""
    parser = argparse.ArgumentParser(description="Several processes of one run on this host.")
    parser.add_argument("-n", type=int, required=True, metavar="N", help="processes")
    parser.add_argument("--gpus-per-process", type=int, metavar="N", help="GPUs of this host for each (default: all)")
    options, arguments = parser.parse_known_args()
    if options.n < 1 or not arguments:
        parser.error("-n is at least 1, and an experiment file follows")
    group = Group(arguments, options.n, options.gpus_per_process)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, group.stop)
    return group.wait()


if __name__ == "__main__":
    sys.exit(main())
