"""Every family, trained on eight devices: losses and gradients are those of one, with memories that learn (law 10)."""

import functools

import jax
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding

from nested_jax.models import LanguageModel
from nested_jax.models.families import FAMILIES, family
from nested_jax.train.optimizer import OptimizerConfig, make_optimizer
from nested_jax.train.sharding import AXES, BATCH, MeshConfig, make_mesh
from nested_jax.train.step import initial_state, make_step, place

STEPS = 20
CLOSE = 1e-5  # float32 sums in another order
CLOSE_64 = 1e-8  # in float64, but for the loss, which rounds logits to float32
IN_FLOAT64 = {"lact", "memora", "memora-h"}
"""Families that amplify rounding: on one device, parameters rounded anew (6e-8) change LaCT's gradient by 4e-4 of its
largest entries (Newton-Schulz lifts what is small in a chunk's gradient) and Memora's by 3e-5 (a softmax of sums)."""
ONE, DATA, FSDP, CUBE, SEQUENCE = (1, 1, 1, 1), (8, 1, 1, 1), (1, 8, 1, 1), (2, 2, 2, 1), (1, 1, 1, 8)
DEFAULT = [("gated-deltanet", CUBE)]


@pytest.fixture(autouse=True, scope="module")
def compile_quickly():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def keep_gradient():
    """Leaves gradients as they are, and the last one in its state."""

    def init(params):
        return optax.tree.zeros_like(params)

    def update(updates, state, params=None):
        return updates, updates

    return optax.GradientTransformation(init, update)


@functools.lru_cache(maxsize=1)
def one_device(name):
    return train(name, ONE)


def train(name, sizes):
    """The losses of all steps and the gradient of the first."""
    wide = name in IN_FLOAT64
    with jax.enable_x64(wide):
        return run(name, sizes, "float64" if wide else "float32")


def run(name, sizes, dtype):
    model = LanguageModel(family(name, layers=len(set(family(name).kinds)), dtype=dtype))  # each kind of block once
    config = OptimizerConfig(learning_rate=1e-3, warmup=0)
    optimizer = optax.chain(keep_gradient(), make_optimizer(config, STEPS))
    mesh = make_mesh(MeshConfig(**dict(zip(AXES, sizes, strict=True))))
    tokens = jax.random.randint(jax.random.key(5), (8, 65), 0, 256)
    losses, gradient = [], None

    def begin():
        state = initial_state(model, optimizer, 0)
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), state.params)
        return state._replace(params=params, optimizer=optimizer.init(params))

    state = jax.jit(begin)()  # on one device: in pieces, the last bit of a random number may be another one
    with jax.set_mesh(mesh):
        placed = jax.tree.map(lambda leaf: leaf.sharding, place(model, optimizer, 0, mesh))
        state = jax.device_put(state, placed)
        batch = {"tokens": jax.device_put(tokens, NamedSharding(mesh, BATCH))}
        step = jax.jit(make_step(model, optimizer, config, STEPS), donate_argnums=0)
        for _ in range(STEPS):
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
            gradient = jax.device_get(state.optimizer[0]) if gradient is None else gradient
    return losses, gradient


def case(name, sizes):
    marks = () if (name, sizes) in DEFAULT else pytest.mark.slow
    return pytest.param(name, sizes, marks=marks, id=f"{name}-{'x'.join(map(str, sizes))}")


@pytest.mark.parametrize(
    ("name", "sizes"), [case(name, sizes) for name in FAMILIES for sizes in (DATA, FSDP, CUBE, SEQUENCE)]
)
def test_losses_and_gradients_are_those_of_one_device(name, sizes):
    (expected, one), (losses, many) = one_device(name), train(name, sizes)
    assert expected[-1] < expected[0]
    np.testing.assert_allclose(losses, expected, rtol=CLOSE)
    close = CLOSE_64 if name in IN_FLOAT64 else CLOSE
    for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=close * float(np.max(np.abs(b))))
