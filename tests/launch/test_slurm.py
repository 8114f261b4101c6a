"""launch/slurm.sbatch on a real Slurm of one node: two tasks train, stop on a signal and go on; limits and preemption.

`apt-get install slurm-wlm munge`, then `python -m pytest -m slurm -n 0`.
"""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
NODE = ROOT / "tests/launch/slurm_node.sh"
BATCH = ROOT / "launch/slurm.sbatch"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL")
TINY = (f"{ROOT}/experiments/quickstart.py:tiny", "--config.mesh.data=2", "--config.steps=60", "--config.log_every=5")
STAND_IN = """#!/bin/bash
# Takes the place of Python: saves and ends well when it gets SIGTERM.
trap 'echo "saved $SLURM_PROCID"; exit 0' TERM
echo "begins, restart ${SLURM_RESTART_COUNT:-0}"
for _ in {1..1200}; do sleep 0.1; done
"""

pytestmark = [pytest.mark.slow, pytest.mark.slurm]


class Slurm:
    """A cluster of one node and what is asked of it."""

    def __init__(self, folder):
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}

    def call(self, *words, **variables):
        run = subprocess.run(
            words, env=self.environment | variables, capture_output=True, text=True, cwd=ROOT, timeout=60
        )
        assert run.returncode == 0, run.stderr
        return run.stdout

    def submit(self, log, *words, **variables):
        """Number of a job of two tasks that writes to `log`."""
        printed = self.call("sbatch", "--ntasks=2", f"--output={log}", *words, **variables)
        return re.fullmatch(r"Submitted batch job (\d+)\n", printed)[1]

    def job(self, number):
        """The fields of a job."""
        fields = self.call("scontrol", "--oneliner", "show", "job", number).split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def wait(self, number, *states, seconds):
        """The fields of a job as soon as it is in one of some states."""
        until = time.monotonic() + seconds
        while (job := self.job(number))["JobState"] not in states:
            assert time.monotonic() < until, job
            time.sleep(0.3)
        return job


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Slurm, while the tests of this file run; afterwards no process of it is left."""
    folder = tmp_path_factory.mktemp("slurm")
    node = subprocess.Popen(
        [NODE, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with node:
        if not node.stdout.readline().startswith("idle"):
            pytest.skip(f"Slurm does not start here (apt-get install slurm-wlm munge): {node.stderr.read().strip()}")
        yield Slurm(folder)
        node.stdin.close()
        assert node.wait(timeout=60) == 0
    assert left(folder) == []


def left(folder):
    """Command lines of the running processes that know a folder by their environment."""
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text())
        except OSError:
            continue  # it has ended, or is another user's
    return found


def wait_for(log, pattern, seconds):
    """The first match of a pattern in a log that is being written."""
    until = time.monotonic() + seconds
    while True:
        text = log.read_text() if log.exists() else ""
        if found := re.search(pattern, text, re.MULTILINE):
            return found
        assert time.monotonic() < until, text
        time.sleep(0.2)


@pytest.fixture(scope="module")
def stopped(slurm, tmp_path_factory):
    """A run that was stopped by `scancel --signal=TERM` and went on by the same command: its directory and two logs."""
    folder = tmp_path_factory.mktemp("run")
    experiment, *options = TINY
    variables = {
        "PYTHON": sys.executable,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    logs = folder / "first.log", folder / "second.log"
    for log in logs:
        number = slurm.submit(log, BATCH, experiment, folder / "workdir", *options, **variables)
        if log == logs[0]:
            wait_for(log, r"^0: step 15/60 ", 600)
            slurm.call("scancel", "--signal=TERM", number)
        job = slurm.wait(number, *ENDED, seconds=600)
        assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0"), log.read_text()
    return folder / "workdir", *(log.read_text() for log in logs)


def test_a_signal_by_scancel_saves_and_ends_well(stopped):
    workdir, first, _ = stopped
    found = re.search(r"^0: SIGTERM: stopped after step (\d+), saved (\S+); resume with the same command", first, re.M)
    assert found is not None, first
    assert 15 <= int(found[1]) < 60
    assert found[2] == str(workdir / "checkpoints" / found[1])


def test_the_same_command_goes_on_to_the_end(stopped):
    workdir, first, second = stopped
    step = re.search(r"stopped after step (\d+)", first)[1]
    assert f"0: continuing from step {step} of 60" in second
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 61))
    assert json.loads((workdir / "report.json").read_text())["steps"] == 60


def test_both_tasks_take_part_and_only_the_first_speaks(stopped):
    workdir, *logs = stopped
    parts = {path.name for path in (workdir / "checkpoints/60").rglob("ocdbt.process_*")}
    assert parts == {"ocdbt.process_0", "ocdbt.process_1"}
    for log in logs:
        assert not re.search(r"^1: (step|data|model|evaluating)", log, re.M)


@pytest.fixture
def stand_in(tmp_path):
    """A program in the place of Python, and a folder."""

    def write(text=STAND_IN):
        program = tmp_path / "python"
        program.write_text(text)
        program.chmod(0o755)
        return {"PYTHON": str(program)}

    return write


def both(line):
    """Pattern of a line that both tasks have printed."""
    return rf"(?s)(0: {line}.*1: {line}|1: {line}.*0: {line})"


def test_one_that_fails_takes_the_other_along(slurm, tmp_path, stand_in):
    fails = stand_in('#!/bin/bash\n[ "$SLURM_PROCID" = 0 ] || exit 5\nsleep 100\n')
    number = slurm.submit(tmp_path / "log", BATCH, "a.py", tmp_path, **fails)
    job = slurm.wait(number, *ENDED, seconds=40)
    assert job["JobState"] == "FAILED"
    assert "task 1: Exited with exit code 5" in (tmp_path / "log").read_text()


def test_before_the_time_limit_both_are_told(slurm, tmp_path, stand_in):
    limit = ("--time=1", "--signal=TERM@50")  # the file's 180 s are longer than a test
    number = slurm.submit(tmp_path / "log", *limit, BATCH, "a.py", tmp_path, **stand_in())
    job = slurm.wait(number, *ENDED, seconds=120)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "0")
    assert re.search(both("saved"), (tmp_path / "log").read_text())


@pytest.mark.parametrize("finished", [False, True])
def test_a_preempted_job_is_queued_again_unless_it_is_finished(slurm, tmp_path, stand_in, finished):
    log = tmp_path / "log"
    if finished:
        (tmp_path / "report.json").touch()
    number = slurm.submit(log, BATCH, "a.py", tmp_path, **stand_in())
    wait_for(log, both("begins, restart 0"), 30)
    slurm.submit(tmp_path / "urgent", "--partition=urgent", "--wrap=true")
    job = slurm.wait(number, "PENDING", *ENDED, seconds=60)
    assert re.search(both("saved"), log.read_text())
    if finished:
        assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "0")
        return
    assert (job["JobState"], job["Restarts"]) == ("PENDING", "1")
    slurm.call("scontrol", "update", f"JobId={number}", "StartTime=now")  # Slurm lets two minutes pass
    wait_for(log, both("begins, restart 1"), 60)
    slurm.call("scancel", "--signal=TERM", number)
    assert slurm.wait(number, *ENDED, seconds=40)["JobState"] == "COMPLETED"


def test_a_node_that_is_asked_to_stop_leaves_nothing(tmp_path):
    node = subprocess.Popen([NODE, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with node:
        if not node.stdout.readline().startswith("idle"):
            pytest.skip("Slurm does not start here (apt-get install slurm-wlm munge)")
        slurm = Slurm(tmp_path)
        slurm.wait(slurm.submit(tmp_path / "job.log", "--wrap=srun sleep 1000"), "RUNNING", seconds=60)
        assert any("slurmctld" in line for line in left(tmp_path))
        node.send_signal(signal.SIGTERM)
        assert node.wait(timeout=60) == 143
    assert left(tmp_path) == []
