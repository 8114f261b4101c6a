"""TNT, cached memories and LaCT as the memory of a layer: gates, laws, generation, description."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_language_model import LENGTH, Built, close, obeys_the_laws, tokens

from nested_jax import rules
from nested_jax.config import override
from nested_jax.data import TextConfig
from nested_jax.evals.generation import Generator
from nested_jax.evals.sampling import Sampling
from nested_jax.memory import TNT, Cached, Memory, objectives
from nested_jax.memory.networks import MLP, GatedMLP, Linear
from nested_jax.models import AttentionConfig, LanguageModel, MemoryConfig, ModelConfig, gate_table
from nested_jax.models.gates import Gates
from nested_jax.run.describe import describe_model
from nested_jax.train.experiment import Experiment

PART = Memory(Linear(), rule=rules.gated_gradient_descent(), chunk_size=2, implementation="scan")
DEEP = Memory(MLP(expansion=2), rule=rules.titans(), chunk_size=2)
LACT = Memory(
    GatedMLP(expansion=2, activation=jax.nn.silu, residual=False), objectives.dot_product, rules.lact(), chunk_size=4,
    step_per="chunk", read="start",
)  # fmt: skip
COARSE = dataclasses.replace(PART, chunk_size=4, read="start")
MEMORIES = {
    "tnt": TNT(COARSE, (PART,), 4),
    "cached": Cached(PART, 4, "ssc", top_k=1, capacity=2),
    "deep tnt": TNT(dataclasses.replace(DEEP, chunk_size=8, read="start"), (DEEP, PART), (4, 8)),
    "soup": Cached(DEEP, 4, "soup", capacity=2),
    "residual": Cached(DEEP, 4, "residual", capacity=2, restart=True),
    "lact": LACT,
}


def config(name: str) -> ModelConfig:
    memory = MemoryConfig(memory=MEMORIES[name], heads=2, conv=2)
    attention = AttentionConfig(heads=2, window=8)
    blocks = ("mag",) if name == "deep tnt" else ("memory",)
    return ModelConfig(
        vocab_size=16, dim=8, layers=1, blocks=blocks, memory=memory, attention=attention, dtype="float64"
    )


@functools.cache
def build(name: str) -> Built:
    return Built(config(name))


def test_largest_learning_rates_may_be_given_for_every_part():
    given = dataclasses.replace(config("deep tnt").memory, max_learning_rate=(None, 0.25, 0.75))
    given.validate()
    rates = [gate.maximum for gate in gate_table(given).values() if gate.kind == "learning_rate"]
    assert rates == [1 / 8, 0.25, 0.75]
    with pytest.raises(ValueError, match=r"one for each of \['global', 'local1', 'local2'\].* got \(0.1,\)"):
        dataclasses.replace(given, max_learning_rate=(0.1,)).validate()


def test_gates_of_parts_have_their_own_learning_rates():
    table = gate_table(config("deep tnt").memory)
    rates = {name: gate.maximum for name, gate in table.items() if gate.kind == "learning_rate"}
    assert rates == {"global_learning_rate": 1 / 8, "local1_learning_rate": 1 / 2, "local2_learning_rate": 1 / 2}
    assert {gate.part for gate in table.values()} == {"global", "local1", "local2"}
    assert "local2_momentum" not in table
    assert list(gate_table(config("cached").memory)) == ["learning_rate", "decay"]
    module, inputs = Gates(table, 2), jnp.ones((1, 8))
    found = module.apply(module.init(jax.random.key(0), inputs), inputs)
    starts = {name: 0.5 * rate * (1 if name.startswith("local2") else 0.5) for name, rate in rates.items()}
    for name, start in starts.items():
        np.testing.assert_allclose(found[name], start, rtol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", MEMORIES)
def test_obeys_the_laws(name, x64):
    obeys_the_laws(build(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tnt", "cached", "lact"])
def test_a_context_is_what_the_model_says(name, x64):
    """Prompts of different lengths in two parts, in parallel and by steps; without learning nothing is written."""
    built, given = build(name), tokens()
    whole, _ = built.parallel(given)
    generator = Generator(built.model, built.variables["params"], Sampling(0), chunk=1)
    context = generator.read([given[0, :2].tolist(), given[1, :3].tolist()])
    context = generator.read([given[0, 2:15].tolist(), given[1, 3:10].tolist()], context)
    close(context.logits, jnp.stack([whole[0, 14], whole[1, 9]]))
    logits, after = built.model.apply(built.variables, given[:, 0], context.state, False, method="step")
    assert jnp.isfinite(logits).all()
    jax.tree.map(np.testing.assert_array_equal, after[0].memory, context.state[0].memory)


@pytest.mark.slow
@pytest.mark.parametrize("name", MEMORIES)
def test_gradients_reach_every_parameter(name, x64):
    built, given = build(name), jnp.asarray(tokens())
    loss = lambda variables: jnp.sum(jnp.sin(built.model.apply(variables, given)[0]))
    found = jax.jit(jax.grad(loss))(built.variables)
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        assert jnp.isfinite(leaf).all(), path
        assert jnp.any(leaf != 0), path


def test_is_described_diagnosed_and_overridden():
    model = dataclasses.replace(config("tnt"), dtype="float32")
    text = describe_model(Experiment(model=model, data=TextConfig(), steps=1))
    assert "local memories begin anew every 4 tokens" in text
    assert "global: network Linear()" in text
    assert "local1: network Linear()" in text
    assert override(model, {"memory.memory.shard_size": "8"}).chunk_size == 8


@pytest.mark.parametrize("name", ["cached", pytest.param("tnt", marks=pytest.mark.slow)])
def test_runs_in_a_layer(name):
    """Shapes alone: whole sequences and steps carry one and the same state."""
    model = LanguageModel(dataclasses.replace(config(name), dtype="float32"))
    first = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    start = jax.eval_shape(lambda variables: model.apply(variables, 2, method="start"), first)
    logits, state = jax.eval_shape(model.apply, first, tokens())
    assert logits.shape == (2, LENGTH, 16)
    one, after = jax.eval_shape(lambda *xs: model.apply(*xs, method="step"), first, tokens()[:, 0], state)
    assert one.shape == (2, 16)
    for found in (state, after):
        assert jax.tree.map(lambda x: (x.shape, x.dtype), found) == jax.tree.map(lambda x: (x.shape, x.dtype), start)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tnt", "cached"])
def test_diagnostics_are_the_gates(name, x64):
    built = build(name)
    _, found = built.model.apply(built.variables, tokens(), mutable=["diagnostics"])
    assert set(found["diagnostics"]["blocks_0"]["mixer"]) == set(gate_table(built.config.memory))
