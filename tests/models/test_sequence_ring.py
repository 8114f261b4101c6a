"""Models whose memories send their state from member to member of a split sequence: losses and gradients as on one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from nested_jax import rules
from nested_jax.memory import TNT, Cached, Memory, SelfModifying
from nested_jax.memory.networks import MLP, Linear
from nested_jax.models import AttentionConfig, LanguageModel, LevelConfig, MemoryConfig, ModelConfig, sequence

MEMBERS, LENGTH, VOCAB = 4, 32, 16
DEEP = Memory(MLP(expansion=1), chunk_size=4)
HOPE = Memory(MLP(expansion=1), rule=rules.hope(), chunk_size=4, read="start")
COARSE = Memory(MLP(expansion=1), chunk_size=8, read="start")
LEVELS = LevelConfig(), LevelConfig(period=8), LevelConfig(period=4)

CASES = {
    "mlp": (DEEP, {}),
    "atlas": (Memory(Linear(), rule=rules.atlas(steps=2), chunk_size=4, window=3), {}),
    "tnt": (TNT(COARSE, (DEEP,), 8), {}),
    "cached": (Cached(DEEP, 8, capacity=2), {}),
    "hope": (SelfModifying(HOPE, HOPE), {"levels": LEVELS}),
    "nested levels": (DEEP, {"levels": LEVELS, "topology": "nested"}),
    "gate": (DEEP, {"blocks": ("mag",)}),
}


def build(name: str) -> LanguageModel:
    memory, fields = CASES[name]
    attention = AttentionConfig(heads=2, window=8)
    options = {"layers": 1, "dtype": "float64", "attention": attention} | fields
    return LanguageModel(
        ModelConfig(vocab_size=VOCAB, dim=8, memory=MemoryConfig(memory=memory, heads=2, conv=2), **options)
    )


def place(mesh, tokens, reset):
    return jax.device_put((tokens, reset), NamedSharding(mesh, P(("data", "fsdp"), "sequence")))


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_of_one_device(name):
    model, rng = build(name), np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(VOCAB, size=(2, LENGTH)))
    reset = jnp.zeros((2, LENGTH // model.config.chunk_size), bool).at[0, 1].set(True).at[1, 2].set(True)
    params = jax.jit(model.init)(jax.random.key(0), tokens)
    params = jax.tree.map(lambda x: x + 0.1 * jnp.asarray(rng.normal(size=x.shape)), params)

    @functools.partial(jax.value_and_grad, has_aux=True)
    def losses(params, tokens, reset):
        logits, state = model.apply(params, tokens, None, reset)
        rows = jax.nn.log_softmax(logits)[:, :-1]
        picked = jnp.take_along_axis(rows, tokens[:, 1:, None], axis=-1)
        return -jnp.mean(picked), state

    expected = jax.jit(losses)(params, tokens, reset)
    kinds = (jax.sharding.AxisType.Auto,) * 4
    mesh = jax.make_mesh(
        (1, 1, 1, MEMBERS), ("data", "fsdp", "tensor", "sequence"), kinds, devices=jax.devices()[:MEMBERS]
    )
    with jax.set_mesh(mesh):
        assert sequence.splits(CASES[name][0], LENGTH)
        found = jax.jit(losses)(params, *place(mesh, tokens, reset))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)
