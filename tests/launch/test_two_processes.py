"""The tiny quickstart on two real processes of this host: killed, terminated, continued, and moved to one process."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
LOCAL = str(ROOT / "launch/local.py")
CONFIG = f"{ROOT}/experiments/quickstart.py:tiny"
LONGER = ["--config.steps=60", "--config.log_every=5", "--config.checkpoint_every=20", "--config.eval_every=30"]
CLOSE = 1e-5  # reduction order

pytestmark = pytest.mark.slow


def environment():
    """Variables for quick compilation, of one device per process and in full precision."""
    dropped = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")
    return {name: value for name, value in os.environ.items() if name not in dropped} | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONUNBUFFERED": "1",
    }


def start(line):
    return subprocess.Popen(
        [sys.executable, *line],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        cwd=ROOT,
    )


def two(workdir, *arguments):
    mesh = "--config.mesh.data=2"
    return start([LOCAL, "-n", "2", CONFIG, f"--workdir={workdir}", mesh, *LONGER, *arguments])


def one(workdir, *arguments, command="train"):
    return start(["-m", "nested_jax", command, CONFIG, f"--workdir={workdir}", *LONGER, *arguments])


def watched(process, step=None, do=None):
    """The output of a process; `do` is called with the pids of its ranks when the line of a step appears."""
    lines, pids, called = [], {}, None
    with process:
        for line in process.stdout:
            lines.append(line)
            if found := re.match(r"\[local\] process (\d) of 2: pid (\d+)", line):
                pids[int(found[1])] = int(found[2])
            if called is None and step is not None and re.match(rf"\[0\] step +{step}/60 ", line):
                called = time.monotonic()
                do(pids)
    took = None if called is None else time.monotonic() - called
    return "".join(lines), process.returncode, took


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir):
    found = records(workdir)
    assert [record["step"] for record in found] == list(range(1, len(found) + 1))
    return np.array([record["loss"] for record in found])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same run in one process and on one device."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    output, code, _ = watched(one(workdir))
    assert code == 0, output
    return workdir


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run in two processes of which one was killed: directory, output, seconds until the other had ended."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    output, code, took = watched(two(workdir), 25, lambda pids: os.kill(pids[1], signal.SIGKILL))
    return workdir, output, code, took


def test_one_is_killed_and_the_other_stops_with_a_reason(killed):
    workdir, output, code, took = killed
    assert code == 128 + signal.SIGKILL
    assert took < 60
    assert "[local] process 1 was killed by SIGKILL; the others stop as well" in output
    assert re.search(r"\[0\] .*(another process has stopped|another task died)", output)
    assert (workdir / "checkpoints/20").is_dir()
    assert not (workdir / "checkpoints/40").exists()


def test_the_first_is_killed_and_the_second_stops_with_a_reason(tmp_path):
    output, code, took = watched(two(tmp_path / "run"), 5, lambda pids: os.kill(pids[0], signal.SIGKILL))
    assert code == 128 + signal.SIGKILL
    assert took < 60
    assert re.search(r"\[1\] .*(another process has stopped|another task died)", output)


@pytest.fixture(scope="module")
def terminated(killed):
    """The killed run, started again and asked to stop by a signal to its second process alone."""
    output, code, _ = watched(two(killed[0]), 35, lambda pids: os.kill(pids[1], signal.SIGTERM))
    return killed[0], output, code


def test_a_signal_to_one_stops_both_after_the_same_step(terminated):
    workdir, output, code = terminated
    assert code == 0, output
    assert "[0] continuing from step 20 of 60" in output
    found = re.search(r"\[0\] SIGTERM: stopped after step (\d+), saved (\S+); resume with the same command", output)
    assert found is not None, output
    assert 35 <= int(found[1]) < 60
    assert found[2] == str(workdir / "checkpoints" / found[1])
    assert len(losses(workdir)) == int(found[1])


def test_two_processes_then_one_to_the_losses_of_one(alone, terminated):
    workdir, _, _ = terminated
    before = len(losses(workdir))
    output, code, _ = watched(one(workdir, "--config.mesh.data=4"))
    assert code == 0, output
    assert f"continuing from step {before} of 60" in output
    np.testing.assert_allclose(losses(workdir), losses(alone), rtol=CLOSE)
    mine, theirs = (records(directory)[-1]["validation_bits_per_byte"] for directory in (workdir, alone))
    np.testing.assert_allclose(mine, theirs, rtol=CLOSE)


def test_the_second_process_is_silent_and_writes_no_line_twice(terminated):
    assert not re.search(r"^\[1\] (step|data|model|evaluating)", terminated[1], re.MULTILINE)


def test_evaluation_by_two_is_that_of_one(alone):
    line = [LOCAL, "-n", "2", "eval", CONFIG, f"--workdir={alone}", *LONGER, "--contexts=16,32", "--bytes=2000"]
    both, code, _ = watched(start([*line, "--config.mesh.fsdp=2"]))
    assert code == 0, both
    single, code, _ = watched(one(alone, "--contexts=16,32", "--bytes=2000", command="eval"))
    assert code == 0, single
    table = [[float(cell) for cell in re.findall(r"\d\.\d{4}", text)] for text in (both, single)]
    assert len(table[0]) == 2
    np.testing.assert_allclose(table[0], table[1], atol=1e-4)
    assert both.count("context ") == single.count("context ")


def test_rows_shared_by_processes_that_split_parameters(alone, tmp_path):
    """With the parameters and not the rows split over two processes, both read all rows: the losses are the same."""
    line = [LOCAL, "-n", "2", CONFIG, f"--workdir={tmp_path / 'run'}", *LONGER, "--config.mesh.tensor=2"]
    output, code, _ = watched(start(line), 5, lambda pids: os.kill(pids[0], signal.SIGTERM))
    assert code == 0, output
    found = losses(tmp_path / "run")
    assert len(found) >= 5
    np.testing.assert_allclose(found, losses(alone)[: len(found)], rtol=CLOSE)


def test_a_mesh_that_cannot_be_shared_out_is_refused(tmp_path):
    output, code, _ = watched(start([LOCAL, "-n", "2", CONFIG, f"--workdir={tmp_path / 'run'}", *LONGER]))
    assert code == 2
    assert "mesh: 1 devices cannot be shared out among 2 processes" in output
    assert not (tmp_path / "run").exists()
