"""Every experiment file: documented, valid in its variants, and a model that builds and steps by shapes alone."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from nested_jax import config as configs
from nested_jax.models import LanguageModel
from nested_jax.train.optimizer import make_optimizer
from nested_jax.train.step import initial_state, make_step

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted(ROOT.glob("experiments/**/*.py"))


def test_there_are_experiments():
    assert ROOT / "experiments" / "quickstart.py" in FILES


@pytest.mark.parametrize("variant", ["", "tiny"])
@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_builds_and_steps_abstractly(file, variant):
    experiment = configs.load(f"{file}:{variant}" if variant else str(file))
    model = LanguageModel(experiment.model)
    optimizer = make_optimizer(experiment.optimizer, experiment.steps)
    step = make_step(model, optimizer, experiment.optimizer, experiment.steps)
    state = jax.eval_shape(lambda: initial_state(model, optimizer, experiment.seed))
    shape = (experiment.data.batch_size, experiment.data.sequence_length + 1)
    after, metrics = jax.eval_shape(step, state, jax.ShapeDtypeStruct(shape, jnp.int32))
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, state)
    assert metrics["loss"].shape == ()


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_says_how_to_run_it(file):
    documentation = file.read_text().split('"""')[1]
    assert f"python -m nested_jax train --config={file.relative_to(ROOT).as_posix()}" in documentation


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_an_unknown_variant_is_named(file):
    with pytest.raises(ValueError, match="no-such-variant"):
        configs.load(f"{file}:no-such-variant")
