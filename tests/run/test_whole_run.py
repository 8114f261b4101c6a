"""The tiny quickstart as a user runs it: killed, terminated, resumed, finished, evaluated, and asked to write."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import jax
import pytest

from nested_jax.run.main import main

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = f"--config={ROOT}/experiments/quickstart.py:tiny"
LONGER = ["--config.steps=150", "--config.log_every=5", "--config.checkpoint_every=25"]


def start(workdir, *arguments):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "nested_jax", "train", CONFIG, f"--workdir={workdir}", *LONGER, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
    )


def finish(process):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output


def interrupt(process, number, step):
    """Sends a signal as soon as the progress line of `step` is out; returns the output and the exit code."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.split()[:2] == ["step", f"{step}/150"]:
            process.send_signal(number)
    process.wait(timeout=300)
    process.stdout.close()
    process.stderr.close()
    return "".join(lines), process.returncode


def losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [(record["step"], record["loss"]) for record in map(json.loads, lines)]


@pytest.fixture(autouse=True, scope="module")
def compile_quickly():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    base = tmp_path_factory.mktemp("runs")
    output = finish(start(base / "whole"))
    return base, output


def test_a_run_ends_with_its_table_a_sample_and_its_files(runs):
    base, output = runs
    for part in (
        "parameters",
        "tokens/s",
        "left",
        "bits per byte on",
        "this model",
        "bigram",
        "trigram",
        "xz",
        "sample",
    ):
        assert part in output
    for path in ("metrics.jsonl", "checkpoints/150", "training.png"):
        assert str(base / "whole" / path) in output
        assert (base / "whole" / path).exists()
    records = [json.loads(line) for line in (base / "whole" / "metrics.jsonl").read_text().splitlines()]
    for gate in ("learning_rate", "momentum", "decay", "inner_loss"):
        assert sum(f"blocks_0/mixer/{gate}" in record for record in records) == 31
    report = json.loads((base / "whole" / "report.json").read_text())
    assert report["metrics"]["bits_per_byte"] < report["baselines"]["unigram"]


def test_killed_then_terminated_then_finished_to_the_same_bits(runs):
    base, _ = runs
    output, code = interrupt(start(base / "parts"), signal.SIGKILL, 45)
    assert code == -signal.SIGKILL
    assert "stopped after" not in output

    output, code = interrupt(start(base / "parts"), signal.SIGTERM, 90)
    assert code == 0
    assert "continuing from step" in output
    assert "SIGTERM: stopped after step" in output
    assert "resume with the same command" in output

    output = finish(start(base / "parts"))
    assert "continuing from step" in output
    assert losses(base / "parts") == losses(base / "whole")
    assert [step for step, _ in losses(base / "parts")] == list(range(1, 151))


def test_finished_means_finished(runs, capsys):
    base, _ = runs
    before = losses(base / "whole")
    assert main(["train", CONFIG, f"--workdir={base}/whole", *LONGER]) == 0
    printed = capsys.readouterr().out
    assert "is finished (150 of 150 steps)" in printed
    assert "this model" in printed
    assert losses(base / "whole") == before


def test_another_config_in_the_same_directory(runs, capsys):
    base, _ = runs
    before = {path: path.stat().st_mtime_ns for path in (base / "whole").rglob("*")}
    for command in ("train", "generate"):
        assert main([command, CONFIG, f"--workdir={base}/whole", *LONGER, "--config.model.dim=64"]) == 2
        assert "model.dim: 32 != 64" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (base / "whole").rglob("*")} == before


def test_a_truncated_checkpoint(runs, capsys):
    base, _ = runs
    victim = max((base / "parts/checkpoints/150/state").rglob("*"), key=lambda path: path.stat().st_size)
    content = victim.read_bytes()
    victim.write_bytes(content[: len(content) // 2])
    try:
        assert main(["generate", CONFIG, f"--workdir={base}/parts", *LONGER]) == 2
        error = capsys.readouterr().err
        assert f"{base}/parts/checkpoints/150 cannot be read" in error
        assert "step 125" in error
    finally:
        victim.write_bytes(content)


@pytest.mark.slow
def test_generate(runs, capsys, tmp_path):
    base, _ = runs
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("import os\n" * 60)
    command = ["generate", CONFIG, f"--workdir={base}/whole", *LONGER, f"--prompt-file={prompt}", "--length=5"]
    assert main([*command, "--seed=3"]) == 0
    first = capsys.readouterr().out
    assert first.startswith("import os\n" * 60)
    assert main([*command, "--seed=3"]) == 0
    assert capsys.readouterr().out == first


@pytest.mark.slow
def test_generate_goes_on_from_a_state(runs, capsys, tmp_path):
    base, _ = runs
    command = ["generate", CONFIG, f"--workdir={base}/whole", *LONGER, "--temperature=0", "--no-learn"]
    state = tmp_path / "state"

    def written(*options):
        assert main([*command, *options]) == 0
        return capsys.readouterr().out

    def texts(printed, rows):
        parts = re.split(r"== (\d) of \d ==\n", printed)
        assert parts[0] == ""
        assert parts[1::2] == [str(number + 1) for number in range(rows)]
        return [part.removesuffix("\n") for part in parts[2::2]]

    whole = texts(written("--prompt=import os", "--prompt=def ", "--length=12"), 2)
    assert [text[:9] for text in whole] == ["import os", "def " + whole[1][4:9]]
    first = texts(written("--prompt=import os", "--prompt=def ", "--length=5", f"--state-out={state}"), 2)
    rest = texts(written(f"--state-in={state}", "--length=7"), 2)
    assert [a + b for a, b in zip(first, rest, strict=True)] == whole
    stop = whole[1][6]
    alone = written("--prompt=def ", "--length=12", "--top-k=3", "--top-p=0.5", f"--stop={stop}")
    assert alone == whole[1][: whole[1].index(stop, 4) + 1] + "\n"

    assert main([*command, "--prompt=a", f"--state-in={state}"]) == 2
    assert "expected one per row of the context, 2; got 1" in capsys.readouterr().err
    state.write_bytes(state.read_bytes()[:1000])
    assert main([*command, f"--state-in={state}"]) == 2
    assert f"{state} is not a saved state, or damaged" in capsys.readouterr().err


@pytest.mark.slow
def test_eval(runs, capsys):
    base, _ = runs
    command = ["eval", CONFIG, f"--workdir={base}/whole", *LONGER]
    assert main([*command, "--contexts=16,64", "--bytes=2000"]) == 0
    printed = capsys.readouterr().out
    assert "1,984 validation bytes" in printed
    assert [line.split()[0] for line in printed.splitlines()[-2:]] == ["16", "64"]
    assert main([*command, "--stream=120000", "--chunk=1000"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"the context is the [\d,]+ validation bytes, then training bytes", printed)
    assert "time per token, last" in printed
    assert "state carried from chunk to chunk" in printed
    assert main([*command, "--stream=300000"]) == 2
    assert "asks for more than the 199,999 bytes" in capsys.readouterr().err
    assert main([*command, "--contexts=16,x"]) == 2
    assert "whole numbers separated by commas" in capsys.readouterr().err
