"""A stand-in model with the calls of `LanguageModel`, and a run that takes a second."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from nested_jax.data import TextConfig
from nested_jax.models import ModelConfig
from nested_jax.train.experiment import Experiment, SampleConfig
from nested_jax.train.optimizer import OptimizerConfig


class Averager(nn.Module):
    """Predicts from a running average of embeddings; the average is its state."""

    dim: int = 16
    config = SimpleNamespace(chunk_size=1)

    def setup(self):
        self.embedding = self.param("embedding", nn.initializers.normal(0.1), (256, self.dim))
        self.head = self.param("head", nn.initializers.normal(0.1), (self.dim, 256))

    def start(self, batch_size):
        return jnp.zeros((batch_size, self.dim))

    def step(self, tokens, state):
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


@pytest.fixture
def model():
    return Averager()


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {n}: {n * n} is the square of {n}\n" for n in range(1500)))
    return path


@pytest.fixture
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
