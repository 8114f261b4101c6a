"""Runs on series and on bases: the loss by hand, scores against loops, a run that goes on, tables that ask for data."""

import dataclasses
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from nested_jax import config as configs
from nested_jax.data import SeriesConfig, load_series
from nested_jax.data.dna import Motif
from nested_jax.models import Forecaster, ForecasterConfig, LanguageModel, ModelConfig
from nested_jax.train.experiment import Experiment
from nested_jax.train.loop import train
from nested_jax.train.metrics import read
from nested_jax.train.optimizer import OptimizerConfig
from nested_jax.train.problems import open_model, open_problem
from nested_jax.train.series_problem import squared_error

TITANS = pathlib.Path(__file__).parents[2] / "experiments" / "titans"
DATA = SeriesConfig(dataset="sines", lookback=16, horizons=(4, 8), batch_size=32)


class Repeats(nn.Module):
    """Has the calls of `Forecaster`; says the last step again, times a learned number."""

    example_inputs = jnp.zeros((1, 16, 1))

    @nn.compact
    def __call__(self, inputs):
        factor = self.param("factor", nn.initializers.ones, (1, 1, 1))
        return tuple(factor * jnp.repeat(inputs[:, -1:], horizon, axis=1) for horizon in (4, 8)), None


def experiment(**fields):
    given = {
        "model": ForecasterConfig(linear=True, average=5),
        "data": DATA,
        "optimizer": OptimizerConfig(learning_rate=3e-2, warmup=5),
        "steps": 60,
        "log_every": 20,
        "eval_every": 30,
        "checkpoint_every": 25,
    }
    return Experiment(**given | fields)


def test_the_loss_is_the_mean_over_horizons_of_their_squared_errors():
    """Errors of 1 for four steps, then of 3: means 1 and (4 + 4 · 9) / 8 = 5."""
    targets = np.concatenate([np.full((2, 4, 3), 6.0), np.full((2, 4, 3), 8.0)], axis=1)
    batch = {"inputs": jnp.full((2, 16, 3), 5.0), "targets": jnp.asarray(targets)}
    assert float(squared_error(Repeats(), {"factor": jnp.ones((1, 1, 1))}, batch)) == pytest.approx(3)


def errors(part, horizon, starts=None):
    """Squared and absolute errors of the last step said again, and squares of the targets, window by window."""
    series = load_series(DATA)
    begin, end = {"validation": (840, 960), "test": (960, 1200)}[part]
    found = []
    for first in range(begin, end - horizon + 1) if starts is None else starts:
        targets = series.values[first : first + horizon].astype(float)
        error = series.values[first - 1] - targets
        found.append([np.square(error).mean(), np.abs(error).mean(), np.square(targets).mean()])
    return np.mean(found, axis=0)


def test_scores_against_loops():
    problem = open_problem(experiment(), Repeats())
    params = {"factor": jnp.ones((1, 1, 1))}
    metrics = problem.report(params, 1).metrics
    for part in ("validation", "test"):
        short, long = errors(part, 4), errors(part, 8)
        assert metrics[f"{part}/mse_4"] == pytest.approx(short[0], rel=1e-5)
        assert metrics[f"{part}/mse_8"] == pytest.approx(long[0], rel=1e-5)
        assert metrics[f"{part}/mae_8"] == pytest.approx(long[1], rel=1e-5)
        assert metrics[f"{part}/mse"] == pytest.approx((short[0] + long[0]) / 2, rel=1e-5)
        assert metrics[f"{part}/mae"] == pytest.approx((short[1] + long[1]) / 2, rel=1e-5)
        assert metrics[f"{part}/r2"] == pytest.approx(1 - (short[0] + long[0]) / (short[2] + long[2]), rel=1e-5)
    assert "test windows) 4 (237), 8 (233)" in problem.description


def test_a_validation_in_between_is_of_windows_spread_evenly():
    problem = open_problem(experiment(eval_windows=3), Repeats())
    found = problem.validate({"factor": jnp.ones((1, 1, 1))})
    starts = [840, 840 + 37, 840 + 75]  # 113 windows of horizon 8
    assert found["mse_4"] == pytest.approx(errors("validation", 4, starts)[0], rel=1e-5)
    assert found["mse_8"] == pytest.approx(errors("validation", 8, starts)[0], rel=1e-5)
    assert next(iter(found)) == "mse"


def test_a_single_horizon_has_no_scores_of_its_own():
    one = dataclasses.replace(DATA, horizons=(4,))
    problem = open_problem(experiment(data=one), Repeats())
    metrics = problem.report({"factor": jnp.ones((1, 1, 1))}, 1).metrics
    assert list(metrics) == [f"{part}/{name}" for part in ("validation", "test") for name in ("mse", "mae", "r2")]


def test_sines_are_learned_and_a_run_goes_on_to_the_same_bits(tmp_path):
    whole = train(experiment(), tmp_path / "whole", say=lambda _: None)
    assert whole.metrics["test/r2"] > 0.8
    assert whole.tokens == 32 * 16
    records = read(tmp_path / "whole" / "metrics.jsonl")
    assert [record["step"] for record in records if "validation_mse" in record] == [30, 60]
    assert records[-1]["loss"] == pytest.approx(whole.metrics["validation/mse"], rel=0.5)

    def crash(line):
        if line.startswith("step 40"):
            raise RuntimeError("lost power")

    with pytest.raises(RuntimeError, match="lost power"):
        train(experiment(), tmp_path / "parts", say=crash)
    lines = []
    assert train(experiment(), tmp_path / "parts", say=lines.append) == whole
    assert "continuing from step 25 of 60" in lines
    assert [r["loss"] for r in read(tmp_path / "parts" / "metrics.jsonl")] == [r["loss"] for r in records]


def test_an_experiment_has_the_model_of_its_data():
    assert isinstance(open_model(experiment()), Forecaster)
    text = dataclasses.replace(configs.load(f"{TITANS}/table4.py:tiny"))
    assert isinstance(open_model(text), LanguageModel)
    said = "model must be a ForecasterConfig where data is a SeriesConfig, and only there; got {} and {}"
    with pytest.raises(ValueError, match=said.format("ModelConfig", "SeriesConfig")):
        experiment(model=ModelConfig()).validate()
    with pytest.raises(ValueError, match=said.format("ForecasterConfig", "TaskConfig")):
        dataclasses.replace(text, model=ForecasterConfig()).validate()


class Chance(nn.Module):
    """Says every one of eight symbols with the same probability."""

    @nn.compact
    def __call__(self, tokens, state=None, reset=None):
        zero = self.param("zero", nn.initializers.zeros, (1, 1, 1))
        return jnp.broadcast_to(zero, (*tokens.shape, 8)), jnp.zeros(len(tokens))

    def start(self, batch_size):
        return jnp.zeros(batch_size)

    def step(self, tokens, state, learn=True):
        return jnp.zeros((len(tokens), 8)), state


def test_bits_per_base_of_chance_are_the_logarithm_of_the_symbols(tmp_path):
    (tmp_path / "a.fa").write_text(">x\n" + "ACGTTGCA" * 200)
    genome = configs.load(f"{TITANS}/table4.py:lmm/genome@tiny", {"data.path": str(tmp_path / "a.fa")})
    problem = open_problem(genome, Chance(), lambda _: None)
    params = {"zero": jnp.zeros((1, 1, 1))}
    assert problem.validate(params)["bits_per_byte"] == pytest.approx(3)
    batch = next(problem.batches)["tokens"]
    assert (batch.shape, set(batch.flat)) == ((4, 33), {0, 1, 2, 3})
    with pytest.raises(ValueError, match="at least 5, one per base; got 4"):
        dataclasses.replace(genome, model=dataclasses.replace(genome.model, vocab_size=4)).validate()


TABLES = {
    "table3.py": "git clone https://github.com/zhouhaoyi/ETDataset",
    "table4.py": "pip install genomic-benchmarks",
}


@pytest.mark.parametrize("file", TABLES)
def test_tables_say_how_to_get_their_data(file):
    loaded = configs.module(f"{TITANS}/{file}")[0]
    first = next(iter(loaded.ROWS))
    for arg in (*loaded.ROWS, *(f"{first}/{part}" for part in loaded.PARTS)):
        configs.validate(loaded.get_config(arg))
    with pytest.raises(ValueError, match=TABLES[file]):
        open_problem(loaded.get_config(), Chance())
    assert set(loaded.RESULT.measured) == set(loaded.RESULT.columns)


def test_published_errors_are_those_of_the_horizons_that_are_forecast():
    """The columns are means over four horizons; the best number of each is the memory's, but for one."""
    table3 = configs.module(f"{TITANS}/table3.py")[0]
    assert table3.get_config("lmm/ettm1").data.horizons == (96, 192, 336, 720)
    values = table3.RESULT.values
    best = {column: min(values, key=lambda row: values[row][column]) for column in table3.COLUMNS}
    assert {column: row for column, row in best.items() if row != "lmm"} == {"traffic/mae": "iTransformer"}
    assert table3.RESULT.of("dlinear", "small")["etth1/mse"] == 0.456
    assert table3.get_config("dlinear/etth2").data.dataset == "ETTh2"
    table4 = configs.module(f"{TITANS}/table4.py")[0]
    assert table4.RESULT.of("lmm", "small") == {
        "cohn": 75.2,
        "enhancers": 89.6,
        "regulatory": 89.3,
        "promoters": 96.6,
        "ocr": 79.9,
    }
    tasks = {part: table4.get_config(f"lmm/{part}").data.task for part in table4.PARTS}
    assert {part: task.vocab_size for part, task in tasks.items() if task.vocab_size != 7} == {"regulatory": 8}
    assert all(task.vocab_size <= table4.SYMBOLS for task in (*tasks.values(), Motif()))
