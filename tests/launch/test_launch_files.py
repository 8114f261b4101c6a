"""What lies in launch/: that it is well formed, that its commands exist, and that it holds no hyperparameters."""

import importlib.util
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

from nested_jax.run.main import parser, split_overrides

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
FILES = sorted(path.name for path in LAUNCH.iterdir() if path.is_file())
SCRIPTS = (
    *("slurm.sbatch", "tpu_vm.sh"),
    *("../tests/launch/slurm_node.sh", "../experiments/benchmarks/accelerator.sh"),
)


def read(name):
    return (LAUNCH / name).read_text()


@pytest.fixture(scope="module")
def local():
    spec = importlib.util.spec_from_file_location("local", LAUNCH / "local.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def jobset():
    return yaml.safe_load(read("gke_jobset.yaml"))


def skypilot():
    return yaml.safe_load(read("skypilot.yaml"))


def container():
    job = jobset()["spec"]["replicatedJobs"][0]["template"]["spec"]
    return job, job["template"]["spec"]["containers"][0]


def test_all_launchers_are_here_and_in_the_readme():
    assert FILES == ["README.md", "gke_jobset.yaml", "local.py", "skypilot.yaml", "slurm.sbatch", "tpu_vm.sh"]
    for name in FILES[1:]:
        assert f"launch/{name}" in read("README.md")


@pytest.mark.parametrize("name", FILES)
def test_no_hyperparameter_is_set(name):
    """Only the mesh (the size) and, in the README, fields that are known to be free to change."""
    assert set(re.findall(r"--config\.([a-z_]+)", read(name))) <= {"mesh"}
    assert not re.search(r"learning_rate|batch_size|steps=|XLA_FLAGS|LIBTPU_INIT_ARGS", read(name))


def commands():
    """The `nested_jax` command lines of every file, placeholders and shell variables filled in."""
    for name in FILES:
        text = re.sub(r"\\\n\s*(# +)?", " ", read(name))
        for line in re.findall(r"-m nested_jax ([a-z][^\n`|&#]*)", text):
            line = line.split(" # ")[0].strip().removesuffix("&").rstrip("\"'. ")
            yield pytest.param(line, id=f"{name}: {line[:50]}")


@pytest.mark.parametrize("line", list(commands()))
def test_commands_are_those_of_the_command_line(line):
    line = re.sub(r'"\$@"?|\$line|\$OPTIONS', "", line)
    if line.count('"') % 2:
        line += '"'
    words, _ = split_overrides(shlex.split(line))
    if words != ["train"]:  # the script adds the rest
        parser().parse_args(words)
    assert words[0] in ("train", "eval")


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_valid_bash_and_strict(name):
    assert "set -euo pipefail" in read(name)
    assert subprocess.run(["bash", "-n", LAUNCH / name], capture_output=True).returncode == 0


@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_has_nothing_to_say(name):
    found = shutil.which("shellcheck")
    if found is None:
        pytest.skip("pip install 'nested_jax[test]' brings shellcheck, which runs it")
    run = subprocess.run([found, LAUNCH / name], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


def run_with_stubs(tmp_path, name, stub, *arguments, **environment):
    """A script's exit code, and the command lines it gave to a stand-in for a program."""
    log = tmp_path / "log"
    program = tmp_path / stub
    program.write_text(f'#!/bin/bash\nprintf "%s\\n" "$*" >> {log}\n')
    program.chmod(0o755)
    paths = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)}
    run = subprocess.run(
        ["bash", LAUNCH / name, *arguments], env=paths | environment, capture_output=True, text=True, cwd=LAUNCH.parent
    )
    return run.returncode, log.read_text().splitlines() if log.exists() else [], run.stderr


def test_slurm_starts_a_task_per_process(tmp_path):
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b/report.json").touch()
    arguments = ("experiments/a.py:tiny", f"{tmp_path}/a b", "--config.mesh.data=2")
    code, lines, _ = run_with_stubs(tmp_path, "slurm.sbatch", "srun", *arguments, PYTHON="python3")
    assert code == 0
    assert lines == [
        "--kill-on-bad-exit=1 --label python3 -u -m nested_jax train experiments/a.py:tiny "
        f"--workdir={tmp_path}/a b --config.mesh.data=2"
    ]
    code, lines, error = run_with_stubs(tmp_path / "..", "slurm.sbatch", "srun", "experiments/a.py")
    assert code == 2
    assert "usage: sbatch" in error


@pytest.mark.parametrize(("when", "finished", "again"), [("2026-11-25", 0, 1), ("2026-11-25", 1, 0), ("None", 0, 0)])
def test_slurm_is_asked_to_queue_a_preempted_job_again(tmp_path, when, finished, again):
    log = tmp_path / "asked"
    for name, does in {"srun": "exit 0", "scontrol": f'echo "$*" >> {log}; echo "PreemptTime={when}"'}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    if finished:
        (tmp_path / "report.json").touch()
    variables = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
    run = subprocess.run(["bash", LAUNCH / "slurm.sbatch", "a.py", tmp_path], env=variables, capture_output=True)
    assert run.returncode == 0, run.stderr
    assert ("requeue 7" in log.read_text() if log.exists() else False) == bool(again)


def test_a_tpu_slice_is_asked_for_in_the_queue(tmp_path):
    code, lines, _ = run_with_stubs(tmp_path, "tpu_vm.sh", "gcloud", "create", "mine", "v6e-16", ZONE="z", SPOT="1")
    assert code == 0
    assert lines == [
        "compute tpus queued-resources create mine --zone=z --node-id=mine --accelerator-type=v6e-16 "
        "--runtime-version=v2-alpha-tpuv6e --spot"
    ]


def test_training_runs_on_all_workers_of_a_slice(tmp_path):
    code, lines, _ = run_with_stubs(
        tmp_path, "tpu_vm.sh", "gcloud", "train", "mine", "experiments/a.py", "/runs/a b", "--config.mesh.data=16"
    )
    assert code == 0
    assert lines[0].startswith("compute tpus tpu-vm ssh mine --worker=all --command=cd nested_jax && exec")
    assert lines[0].endswith(r"-m nested_jax train experiments/a.py --workdir=/runs/a\ b --config.mesh.data=16")


@pytest.mark.parametrize("arguments", [[], ["create", "mine"], ["train", "mine", "experiments/a.py"], ["fly", "mine"]])
def test_a_tpu_script_that_is_called_wrongly_says_how(tmp_path, arguments):
    code, lines, error = run_with_stubs(tmp_path, "tpu_vm.sh", "gcloud", *arguments)
    assert (code, lines) == (2, [])
    assert "launch/tpu_vm.sh create  NAME TYPE" in error
    assert "SPOT=1" in error


def test_a_tpu_type_without_a_known_image_asks_for_it(tmp_path):
    code, _, error = run_with_stubs(tmp_path, "tpu_vm.sh", "gcloud", "create", "mine", "v9-8")
    assert code != 0
    assert "set RUNTIME, the VM image of v9-8" in error


def test_the_jobset_is_one_slice_whose_sizes_agree():
    whole = jobset()
    assert (whole["apiVersion"], whole["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert whole["spec"]["failurePolicy"]["maxRestarts"] > 0
    job, train = container()
    topology = job["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    rows, columns = map(int, topology.split("x"))
    chips = int(train["resources"]["limits"]["google.com/tpu"])
    assert job["parallelism"] == job["completions"] == rows * columns // chips
    assert f"--config.mesh.data={rows * columns}" in train["args"][0]
    assert job["backoffLimit"] == 0
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    mounts = {mount["name"] for mount in train["volumeMounts"]}
    assert mounts == {volume["name"] for volume in job["template"]["spec"]["volumes"]}


@pytest.mark.parametrize(("finishes", "code"), [(True, 0), (False, 1)])
def test_a_pod_that_is_asked_to_stop_passes_it_on_and_is_started_again(tmp_path, finishes, code):
    """The pod's shell with a stand-in for Python that saves and ends well when it gets SIGTERM."""
    _, train = container()
    python = tmp_path / "python"
    report = f"touch {tmp_path}/report.json;" if finishes else ""
    trap = f"trap 'sleep 0.3; {report} echo saved; exit 0' TERM"
    python.write_text(f"#!/bin/bash\n{trap}\necho ready\nwhile :; do sleep 0.05; done\n")
    python.chmod(0o755)
    script = train["args"][0].replace("WORKDIR", str(tmp_path))
    pod = subprocess.Popen(
        [*train["command"], script],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        text=True,
    )
    with pod:
        assert pod.stdout.readline() == "ready\n"
        time.sleep(0.2)  # until the shell waits
        pod.send_signal(signal.SIGTERM)
        assert pod.stdout.read() == "saved\n"
    assert pod.returncode == code


def test_a_node_of_skypilot_knows_which_it_is(tmp_path):
    task = skypilot()
    assert set(task) == {"name", "workdir", "num_nodes", "resources", "envs", "file_mounts", "setup", "run"}
    venv = tmp_path / "venv/bin"
    venv.mkdir(parents=True)
    python = venv / "python"
    python.write_text('#!/bin/bash\necho "$NESTED_JAX_COORDINATOR $NESTED_JAX_PROCESSES $NESTED_JAX_PROCESS | $*"\n')
    python.chmod(0o755)
    variables = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
    asked = {"EXPERIMENT": "a.py", "RUN": "mine", "OPTIONS": "--config.mesh.data=8 --config.mesh.fsdp=2"}
    run = subprocess.run(
        ["bash", "-c", task["run"]],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **variables, **asked},
        capture_output=True,
        text=True,
    )
    assert run.stdout == (
        "10.0.0.1:8476 2 1 | -u -m nested_jax train a.py --workdir=/runs/mine --config.mesh.data=8 "
        "--config.mesh.fsdp=2\n"
    )
    assert run.returncode == 1, "a run without its report is not at its end"


def test_local_tells_each_process_who_it_is(local, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert local.environment(1, 2, 1234, 4) == {
        "NESTED_JAX_COORDINATOR": "127.0.0.1:1234",
        "NESTED_JAX_PROCESSES": "2",
        "NESTED_JAX_PROCESS": "1",
        "PYTHONUNBUFFERED": "1",
        "JAX_LOCAL_DEVICE_IDS": "4,5,6,7",
    }
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    assert local.environment(0, 2, 1234)["no_proxy"] == "127.0.0.1,localhost"


def test_local_trains_unless_told_otherwise(local):
    assert local.command(["a.py"])[1:] == ["-m", "nested_jax", "train", "a.py"]
    assert local.command(["eval", "a.py"])[1:] == ["-m", "nested_jax", "eval", "a.py"]


def group(local, monkeypatch, program, count=2):
    monkeypatch.setattr(local, "command", lambda arguments: [sys.executable, "-c", program])
    return local.Group([], count, None)


RANK = "import os, sys, time, signal; rank = int(os.environ['NESTED_JAX_PROCESS'])\n"


def test_output_comes_by_rank_and_all_end_well(local, monkeypatch, capsys):
    assert group(local, monkeypatch, RANK + "print('I am', rank)").wait() == 0
    printed = capsys.readouterr().out
    assert "[0] I am 0\n" in printed
    assert "[1] I am 1\n" in printed


def test_they_die_as_one(local, monkeypatch, capsys):
    monkeypatch.setattr(local, "GRACE", 0.3)
    code = group(local, monkeypatch, RANK + "sys.exit(5) if rank == 1 else time.sleep(30)").wait()
    assert code == 5
    printed = capsys.readouterr().out
    assert "[local] process 1 ended with exit code 5; the others stop as well" in printed
    assert "[local] process 0 was killed by SIGKILL" in printed


def test_a_signal_reaches_all(local, monkeypatch, tmp_path):
    ready = f"open(f'{tmp_path}/{{rank}}', 'w').close(); time.sleep(10); sys.exit(1)"
    both = group(local, monkeypatch, RANK + "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); " + ready)
    until = time.monotonic() + 20
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    both.stop(signal.SIGTERM)
    assert both.wait() == 0
