"""Who the processes of a run are: options, variables, schedulers; and how a process that fails leaves the others."""

import argparse
import subprocess
import sys

import jax
import pytest

from nested_jax.run import processes
from nested_jax.run.main import main, parser
from nested_jax.run.processes import Found, Given, found, given

SET = {"NESTED_JAX_COORDINATOR": "10.0.0.1:8476", "NESTED_JAX_PROCESSES": "4", "NESTED_JAX_PROCESS": "3"}
STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
TIMEOUTS = {"initialization_timeout": 300, "heartbeat_timeout_seconds": 30}


def test_options_win_over_variables():
    assert given({}, SET) == Given("10.0.0.1:8476", 4, 3)
    assert given({"process": "0", "processes": None}, SET) == Given("10.0.0.1:8476", 4, 0)
    assert given({"coordinator": "[::1]:80"}, SET) == Given("[::1]:80", 4, 3)


def test_nothing_or_one_process_is_nothing():
    assert given({}, {}) is None
    assert given({"coordinator": None, "contexts": "64"}, {"HOME": "/"}) is None
    assert given({"processes": "1"}, SET) is None
    assert given({}, {"NESTED_JAX_PROCESSES": "1"}) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"NESTED_JAX_COORDINATOR": ""}, r"--coordinator \(or NESTED_JAX_COORDINATOR\) is needed as well"),
        ({"NESTED_JAX_PROCESS": ""}, "--process .* is needed as well, .*: coordinator 10.0.0.1:8476, processes 4"),
        ({"NESTED_JAX_PROCESSES": ""}, "--processes .* is needed as well"),
        ({"NESTED_JAX_COORDINATOR": "10.0.0.1"}, "is HOST:PORT of process 0; got '10.0.0.1'"),
        ({"NESTED_JAX_COORDINATOR": "http://a:80"}, "is HOST:PORT"),
        ({"NESTED_JAX_PROCESSES": "four"}, "at least 1; got 'four'"),
        ({"NESTED_JAX_PROCESSES": "0"}, "at least 1; got '0'"),
        ({"NESTED_JAX_PROCESS": "4"}, "a number from 0 to 3; got '4'"),
        ({"NESTED_JAX_PROCESS": "-1"}, "a number from 0 to 3; got '-1'"),
    ],
)
def test_settings_that_cannot_be_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        given({}, SET | change)


def test_a_step_of_slurm_with_several_tasks_is_found():
    assert found(STEP | {"SLURM_NTASKS": "2"}) == Found("SLURM", 2)
    assert found(STEP | {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "2"}) == Found("SLURM", 2)


def test_a_shell_inside_an_allocation_is_alone():
    """An interactive step and a batch script are one task, however many the job has."""
    assert found(STEP | {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"}) is None
    assert found({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}) is None


def test_hosts_of_tpus_on_gke_are_found():
    assert found({"TPU_WORKER_HOSTNAMES": "a,b,c,d"}) == Found("GKE", 4)
    assert found({"TPU_WORKER_HOSTNAMES": "a,b", "MEGASCALE_NUM_SLICES": "2"}) == Found("GKE", 4)
    assert found({"TPU_PROCESS_ADDRESSES": "a:1,b:1", "TPU_WORKER_HOSTNAMES": "a"}) == Found("GKE", 2)
    assert found({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ML_PLATFORM": "JAX"}) is None


def test_a_tpu_vm_is_told_by_the_mark_that_jax_leaves():
    assert found({"TPU_ML_PLATFORM": "JAX"}) == Found("TPU VM", None)
    assert found({"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"}) is None


def test_a_pod_of_an_indexed_job_needs_the_package_that_jax_asks(monkeypatch):
    pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install \"jax\[k8s\]\", or set NESTED_JAX_PROCESSES=1"):
        found(pod)
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: name)
    assert found(pod) == Found("Kubernetes", None)
    assert found({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) is None


@pytest.fixture
def recorded(monkeypatch):
    """Calls of `initialize` and of `cpu_devices`, in order; nothing is started."""
    calls = []
    for variable in [*SET, *STEP, "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"]:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given, **options: calls.append((given, options)))
    monkeypatch.setattr("nested_jax.run.host.cpu_devices", lambda count: calls.append(count))
    return calls


def start(command="train", devices=8, **options):
    processes.start(command, argparse.Namespace(**options), devices)


def test_alone_nothing_is_started(recorded):
    start()
    assert recorded == [8]


def test_told_which_it_is_a_process_joins_and_looks_no_further(recorded, monkeypatch, capsys):
    for variable, value in {**STEP, "SLURM_NTASKS": "2"}.items():
        monkeypatch.setenv(variable, value)
    start(coordinator="a:1", processes="4", process="3")
    assert recorded == [2, (("a:1", 4, 3), {"cluster_detection_method": "deactivate", **TIMEOUTS})]
    assert "process 3 of 4 waits 300 s at most for the others, who meet at a:1" in capsys.readouterr().err


def test_under_slurm_jax_finds_the_others(recorded, monkeypatch):
    for variable, value in {**STEP, "SLURM_NTASKS": "2"}.items():
        monkeypatch.setenv(variable, value)
    start()
    assert recorded == [4, ((), TIMEOUTS)]
    recorded.clear()
    monkeypatch.setenv("NESTED_JAX_PROCESSES", "1")
    start()
    assert recorded == [8]


def test_others_that_do_not_come_are_named(recorded, monkeypatch):
    def fail(*given, **options):
        raise RuntimeError("DEADLINE_EXCEEDED: 1 of 2\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(ValueError, match=r"not reached \(process 1 of 2, at a:1\): RuntimeError: DEADLINE.* 1 of 2$"):
        start(coordinator="a:1", processes="2", process="1")


def test_a_mesh_is_shared_out_evenly(recorded):
    with pytest.raises(ValueError, match=r"mesh: 8 devices cannot be shared out among 3 processes; .*mesh\.data"):
        start(coordinator="a:1", processes="3", process="1")
    assert recorded == []


@pytest.mark.parametrize("command", ["generate", "sweep", "describe", "table"])
def test_what_runs_in_one_process_says_so(recorded, monkeypatch, command):
    start(command)
    assert recorded == [8]
    for variable, value in SET.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=f"{command} runs in one process; it was started as one of 4"):
        start(command)


def test_train_and_eval_take_the_options():
    for command in processes.COMMANDS:
        options = parser().parse_args([command, "a.py", "--coordinator=h:1", "--processes=2", "--process=1"])
        assert given(vars(options), {}) == Given("h:1", 2, 1)


def test_bad_settings_end_the_command_line(capsys, monkeypatch):
    for variable in SET:
        monkeypatch.delenv(variable, raising=False)
    assert main(["train", "experiments/quickstart.py:tiny", "--processes=2"]) == 2
    assert "nested-jax: --coordinator (or NESTED_JAX_COORDINATOR) is needed" in capsys.readouterr().err


def test_a_broken_connection_is_another_process_that_stopped():
    broken = jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer [10.0.0.2]:1\nmore")
    reason = processes.lost(broken)
    assert reason is not None
    assert "another process has stopped" in reason
    assert "Connection closed by peer [10.0.0.2]:1)" in reason
    assert "by the same command" in reason
    assert processes.lost(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")) is None
    assert processes.lost(ValueError("Gloo")) is None


LEAVE = """
import atexit, importlib.util, sys, types
say = lambda line: print(line, flush=True)
distributed = types.SimpleNamespace(is_initialized=lambda: {joined}, shutdown=lambda: say("with the others"))
sys.modules["jax"] = types.SimpleNamespace(distributed=distributed)
spec = importlib.util.spec_from_file_location("processes", {path!r})
sys.modules["processes"] = processes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(processes)
atexit.register(say, "in the usual way")
sys.exit(processes.leave({code}))
"""


@pytest.mark.parametrize(
    ("joined", "code", "printed"),
    [
        (False, 2, "in the usual way\n"),
        (True, 0, "with the others\nin the usual way\n"),
        (True, 134, ""),
    ],
)
def test_a_process_leaves_with_the_others_or_at_once(joined, code, printed):
    line = [sys.executable, "-c", LEAVE.format(joined=joined, code=code, path=processes.__file__)]
    run = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout) == (code, printed), run.stderr
