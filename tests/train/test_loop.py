"""Runs of a stand-in model from beginning to end, interrupted in every way, refused and stopped."""

import dataclasses
import json
import math
import shutil
import signal
import threading
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from nested_jax.data import TextConfig
from nested_jax.models import LanguageModel, MemoryConfig, ModelConfig
from nested_jax.train import loop, metrics
from nested_jax.train.experiment import Experiment, SampleConfig
from nested_jax.train.loop import Run, TrainingStopped, train
from nested_jax.train.optimizer import OptimizerConfig, make_optimizer
from nested_jax.train.sharding import MeshConfig, make_mesh
from nested_jax.train.step import place


class Averager(nn.Module):
    """Has the calls of `LanguageModel`; predicts from a running average of embeddings; the average is its state."""

    dim: int = 16
    config = SimpleNamespace(chunk_size=1, vocab_size=256, dtype="float32")

    def setup(self):
        self.embedding = self.param("embedding", nn.initializers.normal(0.1), (256, self.dim))
        self.head = self.param("head", nn.initializers.normal(0.1), (self.dim, 256))

    def start(self, batch_size):
        return jnp.zeros((batch_size, self.dim))

    def step(self, tokens, state, learn=True):
        state = 0.5 * state + self.embedding[tokens]
        return state @ self.head, state

    def __call__(self, tokens, state=None, reset=None):
        state = self.start(len(tokens)) if state is None else state

        def one(state, embedded):
            state = 0.5 * state + embedded
            return state, state

        state, states = jax.lax.scan(one, state, jnp.swapaxes(self.embedding[tokens], 0, 1))
        self.sow("diagnostics", "inner_loss", jnp.mean(states**2))
        return jnp.swapaxes(states, 0, 1) @ self.head, state


@pytest.fixture(scope="module")
def model():
    return Averager()


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"line {n}: {n * n} is the square of {n}\n" for n in range(1500)))
    return path


@pytest.fixture(scope="module")
def experiment(text_file):
    return Experiment(
        model=ModelConfig(dim=16, layers=1),
        data=TextConfig(path=str(text_file), sequence_length=16, batch_size=4, validation_fraction=0.1),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup=3),
        steps=12,
        log_every=4,
        eval_every=6,
        eval_windows=4,
        checkpoint_every=5,
        sample=SampleConfig(prompt="line", length=8),
    )


def losses(workdir):
    records = metrics.read(workdir / "metrics.jsonl")
    return [(record["step"], record["loss"]) for record in records]


def quiet(line):
    del line


@pytest.fixture(scope="module")
def whole(experiment, model, tmp_path_factory):
    """Directory, lines and report of a run that nothing interrupted."""
    directory, lines = tmp_path_factory.mktemp("whole"), []
    return directory, lines, train(experiment, directory, model=model, say=lines.append)


def contents(directory):
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*")}


def test_a_run_from_beginning_to_end(whole):
    directory, lines, report = whole
    records = metrics.read(directory / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, 13))
    assert records[-1]["loss"] < records[0]["loss"]
    assert all(math.isclose(r["bits_per_byte"], r["loss"] / math.log(2), rel_tol=1e-6) for r in records)
    assert [r["step"] for r in records if "validation_bits_per_byte" in r] == [6, 12]
    assert [r["step"] for r in records if "inner_loss/0" in r] == [1, 4, 8, 12]
    assert list(report.baselines) == ["unigram", "bigram", "trigram", "xz"]
    assert len(report.sample.encode("utf-8", "surrogateescape")) >= 1
    assert (directory / "training.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((directory / "config.json").read_text())["steps"] == 12
    text = "\n".join(lines)
    for part in (
        "step  4/12",
        "tokens/s",
        "left",
        "validation bits/byte",
        "unigram",
        "metrics.jsonl",
        "checkpoints/12",
    ):
        assert part in text
    assert sorted(int(path.name) for path in (directory / "checkpoints").iterdir()) == [5, 10, 12]


def test_a_finished_run_says_so_and_does_nothing(experiment, model, whole):
    before, lines = contents(whole[0]), []
    report = train(dataclasses.replace(experiment, log_every=2, keep=1), whole[0], model=model, say=lines.append)
    assert "is finished (12 of 12 steps)" in lines[0]
    assert report == whole[2]
    assert contents(whole[0]) == before


def test_a_second_process_waits_for_the_first(experiment, model, whole, tmp_path):
    """Started while the first has its first update before it, it finds the run finished."""
    lines = []
    second = threading.Thread(target=lambda: train(experiment, tmp_path / "run", model=model, say=lines.append))

    def say(line):
        if line.startswith("compiling"):
            second.start()
            deadline = time.monotonic() + 20
            while not lines and time.monotonic() < deadline:
                time.sleep(0.01)

    train(experiment, tmp_path / "run", model=model, say=say)
    second.join()
    assert lines[0] == f"{tmp_path / 'run'}: another process trains here; waiting for it to end"
    assert "is finished (12 of 12 steps)" in lines[1]
    assert losses(tmp_path / "run") == losses(whole[0])


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_and_the_next_start_continues_to_the_same_bits(experiment, model, whole, tmp_path, name):
    lines = []

    def interrupt(line):
        lines.append(line)
        if line.startswith("step  4/12"):
            signal.raise_signal(signal.Signals[name])

    assert train(experiment, tmp_path, model=model, say=interrupt) is None
    assert f"{name}: stopped after step 5" in lines[-1]
    assert "resume with the same command" in lines[-1]
    assert losses(tmp_path) == losses(whole[0])[:5]

    assert train(experiment, tmp_path, model=model, say=quiet) == whole[2]
    assert metrics.read(tmp_path / "metrics.jsonl") == metrics.read(whole[0] / "metrics.jsonl")


def test_a_crash_goes_back_to_the_last_checkpoint(experiment, model, whole, tmp_path):

    def crash(line):
        if line.startswith("step  8/12"):
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train(experiment, tmp_path, model=model, say=crash)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')
    lines = []
    train(experiment, tmp_path, model=model, say=lines.append)
    assert "continuing from step 5 of 12" in lines
    assert losses(tmp_path) == losses(whole[0])


def test_killed_before_the_report_only_the_report_is_made(experiment, model, whole, tmp_path):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "report.json").unlink()
    lines = []
    again = train(experiment, tmp_path, model=model, say=lines.append)
    assert again == whole[2]
    assert not any("compiling" in line for line in lines)


def test_another_config_is_refused_with_its_differences(experiment, model, whole):
    before = contents(whole[0])
    other = dataclasses.replace(
        experiment, seed=3, optimizer=dataclasses.replace(experiment.optimizer, learning_rate=0.5)
    )
    with pytest.raises(ValueError, match="another config") as caught:
        train(other, whole[0], model=model, say=quiet)
    assert "optimizer.learning_rate: 0.01 != 0.5" in str(caught.value)
    assert "seed: 0 != 3" in str(caught.value)
    assert "--workdir" in str(caught.value)
    assert contents(whole[0]) == before


def test_tokens_may_be_cached_elsewhere_when_a_run_goes_on(experiment, model, whole):
    elsewhere = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, cache="elsewhere"))
    assert train(elsewhere, whole[0], model=model, say=quiet) == whole[2]


@pytest.mark.parametrize("field", ["workdir", "parameters_from", "data.cache", "data.path"])
def test_addresses_of_buckets_are_refused_before_anything_is_made(experiment, model, tmp_path, monkeypatch, field):
    monkeypatch.chdir(tmp_path)
    address = "gs://bucket/mine"
    if field.startswith("data."):
        experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, **{field[5:]: address}))
    elif field == "parameters_from":
        experiment = dataclasses.replace(experiment, parameters_from=address)
    told = field.replace(".", ": ")
    with pytest.raises(ValueError, match=rf"{told}: expected a folder or file, got '{address}'; mount the bucket"):
        train(experiment, address if field == "workdir" else "w", model=model, say=quiet)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_steps_on_a_mesh_leave_every_array_where_the_table_puts_it(experiment, tmp_path, monkeypatch):
    """Before the first and after the last, with parameters that are drawn and that are given.

    A step whose results lie elsewhere than its arguments is compiled a second time, and cannot reuse their memory.
    """
    model = ModelConfig(dim=16, layers=1, memory=MemoryConfig(heads=2))
    options = {"model": model, "mesh": MeshConfig(fsdp=2, tensor=2)}
    first = dataclasses.replace(experiment, **options, steps=3, eval_every=0)
    found = []

    class Watched(loop._Updates):
        def run(self, done):
            found.append(self._state)
            found.append(super().run(done))
            return found[-1]

    monkeypatch.setattr(loop, "_Updates", Watched)
    train(first, tmp_path / "first", say=quiet)
    again = dataclasses.replace(first, parameters_from=str(tmp_path / "first"))
    train(again, tmp_path / "again", say=quiet)
    optimizer, mesh = make_optimizer(first.optimizer, 3), make_mesh(first.mesh)
    expected = jax.tree.map(lambda leaf: leaf.sharding, place(LanguageModel(model), optimizer, 0, mesh))
    assert len(found) == 4
    for state in found:
        same = jax.tree.map(lambda leaf, at: leaf.sharding.is_equivalent_to(at, leaf.ndim), state, expected)
        assert all(jax.tree.leaves(same))


def test_a_run_begins_with_the_parameters_of_another(experiment, model, whole, tmp_path):
    """Trained by another rule, and continued after an interruption without asking for them again."""
    _, trained = Run(experiment, whole[0], model=model).restore_params()
    sgd = OptimizerConfig(rule="optax.sgd", arguments={}, learning_rate=1e-3, warmup=0, clip_norm=None)
    second = dataclasses.replace(experiment, parameters_from=str(whole[0]), optimizer=sgd, steps=1)
    lines = []
    train(second, tmp_path / "second", model=model, say=lines.append)
    assert any("checkpoints/12" in line for line in lines if line.startswith("begin"))
    run = Run(second, tmp_path / "second", model=model)
    with run.checkpoints:
        shapes = place(model, make_optimizer(sgd, 1), 0, make_mesh(MeshConfig()))
        begun, _ = run.checkpoints.restore(0, shapes)
    jax.tree.map(np.testing.assert_array_equal, begun.params, trained)
    assert not np.array_equal(run.restore_params()[1]["embedding"], trained["embedding"])


def test_parameters_that_are_not_there_leave_no_trace(experiment, model, whole, tmp_path):
    for source, other, message in (
        (tmp_path / "nowhere", model, "parameters_from: there is no checkpoint in .*nowhere"),
        (whole[0], Averager(32), r"another model's: embedding is \(256, 16\) there, \(256, 32\) here; head"),
    ):
        begun = dataclasses.replace(experiment, parameters_from=str(source))
        with pytest.raises(ValueError, match=message):
            train(begun, tmp_path / "run", model=other, say=quiet)
    assert not (tmp_path / "run").exists()


def test_unusable_data_leaves_no_trace(experiment, model, tmp_path):
    (tmp_path / "empty").mkdir()
    empty = dataclasses.replace(experiment.data, path=str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="empty"):
        train(dataclasses.replace(experiment, data=empty), tmp_path / "run", model=model, say=quiet)
    assert not (tmp_path / "run").exists()


def exploding(learning_rate):
    """Turns the parameters into NaN at the eighth update."""

    def update(updates, state, params=None):
        del params
        factor = jnp.where(state == 7, jnp.nan, -learning_rate)
        return jax.tree.map(lambda leaf: factor * leaf, updates), state + 1

    return optax.GradientTransformation(lambda params: jnp.int32(0), update)


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(experiment, model, tmp_path, monkeypatch):
    bad = dataclasses.replace(experiment, optimizer=OptimizerConfig(rule=exploding, arguments={}))
    with pytest.raises(TrainingStopped, match=r"step 9: the loss is not finite .*checkpoints/5"):
        train(bad, tmp_path, model=model, say=quiet)
    run = Run(bad, tmp_path, model=model)
    assert run.checkpoints.latest == 5
    monkeypatch.setattr(run.checkpoints, "restore", None)  # what trained the parameters is not read
    step, params = run.restore_params()
    assert step == 5
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert losses(tmp_path)[-1] == (9, None)
    assert all(math.isfinite(loss) for _, loss in losses(tmp_path)[:-1])


def test_too_large_a_gradient_stops_the_run(experiment, model, tmp_path):
    bad = dataclasses.replace(experiment, optimizer=dataclasses.replace(experiment.optimizer, halt_norm=1e-3))
    with pytest.raises(TrainingStopped, match=r"step 1: the gradient norm is above optimizer.halt_norm = 0.001"):
        train(bad, tmp_path, model=model, say=quiet)


def test_a_mesh_gives_the_losses_of_one_device(experiment, model, whole, tmp_path):
    meshed = dataclasses.replace(experiment, mesh=MeshConfig(data=2, fsdp=2, tensor=2))
    train(meshed, tmp_path, model=model, say=quiet)
    one, eight = (np.array(losses(directory))[:, 1] for directory in (whole[0], tmp_path))
    np.testing.assert_allclose(eight, one, rtol=1e-5)


def test_a_run_moves_to_another_mesh(experiment, model, whole, tmp_path):
    def stop(line):
        if line.startswith("step  4/12"):
            signal.raise_signal(signal.SIGTERM)

    train(experiment, tmp_path, model=model, say=stop)
    moved = dataclasses.replace(experiment, mesh=MeshConfig(data=2, fsdp=2))
    train(moved, tmp_path, model=model, say=quiet)
    found, expected = (np.array(losses(directory))[:, 1] for directory in (tmp_path, whole[0]))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"eval_every": -1}, "eval_every must be at least 0; got -1"),
        ({"writers": ("tensorbord",)}, "writers takes any of tensorboard, wandb; got 'tensorbord'"),
        ({"mesh": MeshConfig(data=3)}, "batch_size must be a multiple .* 3; got 4"),
        ({"mesh": MeshConfig(tensor=0)}, "mesh: tensor is a number of devices, at least 1; got 0"),
        ({"final_bytes": 16}, "final_bytes must be above data.sequence_length"),
    ],
)
def test_configs_out_of_range(experiment, model, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        Run(dataclasses.replace(experiment, **change), tmp_path, model=model)


def test_more_devices_than_there_are(experiment, model, tmp_path):
    large = dataclasses.replace(
        experiment, mesh=MeshConfig(data=4, tensor=4), data=dataclasses.replace(experiment.data)
    )
    with pytest.raises(ValueError, match="needs 16 devices; there are 8"):
        train(large, tmp_path, model=model, say=quiet)
