"""Stacked layers: the numbers of layers written out, in a program that does not grow with depth."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nested_jax.data import TextConfig
from nested_jax.evals.generation import Generator
from nested_jax.evals.sampling import Sampling
from nested_jax.memory import Memory
from nested_jax.memory.networks import Linear
from nested_jax.models import (
    FAMILIES,
    SIZES,
    AttentionConfig,
    Forecaster,
    ForecasterConfig,
    LanguageModel,
    LevelConfig,
    MemoryConfig,
    ModelConfig,
    count,
    family,
    parameter_count,
    stack_layers,
    stack_levels,
    stack_states,
    unstack_layers,
    unstack_states,
)
from nested_jax.run.describe import describe_model
from nested_jax.train.experiment import Experiment
from nested_jax.train.step import make_diagnosis

LENGTH, CUT = 18, 8
TOKENS = np.random.default_rng(7).integers(0, 16, (2, LENGTH))


def config(**fields):
    memory = MemoryConfig(memory=Memory(Linear(), chunk_size=4), heads=2)
    fields = {"dtype": "float64", "layers": 4, "blocks": ("memory", "attention")} | fields
    return ModelConfig(vocab_size=16, dim=8, memory=memory, attention=AttentionConfig(heads=2, window=6), **fields)


def drawn(model, inputs=TOKENS[:1, :1]):
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)["params"]
    draw = np.random.default_rng(0)
    return jax.tree.map(lambda x: np.float32(0.3 * np.abs(draw.standard_normal(x.shape))), shapes)


def close(a, b, tolerance=1e-10):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


class Pair:
    """A model with layers written out, and the same one stacked."""

    def __init__(self, written):
        self.written, self.stacked = LanguageModel(written), LanguageModel(dataclasses.replace(written, stacked=True))
        self.config = written
        self.params = drawn(self.written)
        self.stack = stack_layers(self.params, written)

    def check(self):
        """Starts, logits, states and steps, then gradients."""
        self.check_values()
        gradient, found = self.gradient(self.written, self.params), self.gradient(self.stacked, self.stack)
        assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradient["embedding"]))
        close(unstack_layers(found, self.config), gradient, 1e-9)

    def check_values(self):
        (logits, states), (same, others) = self.run(self.written, self.params), self.run(self.stacked, self.stack)
        close(same, logits)
        for state, other in zip(states, others, strict=True):
            close(unstack_states(other, self.config), state)
            close(stack_states(state, self.config), other)

    def run(self, model, params):
        """From the start two pieces, the second with a reset, and a step: all logits and all states."""
        reset = np.zeros((2, -(-(LENGTH - CUT) // model.config.chunk_size)), bool)
        reset[0, 0] = True

        @jax.jit
        def each(params):
            variables = {"params": params}
            start = model.apply(variables, 2, method="start")
            first, before = model.apply(variables, TOKENS[:, :CUT])
            second, after = model.apply(variables, TOKENS[:, CUT:], before, reset)
            third, last = model.apply(variables, TOKENS[:, 0], after, method="step")
            return (first, second, third), (start, before, after, last)

        return each(params)

    def gradient(self, model, params):
        weights = np.random.default_rng(1).standard_normal((2, LENGTH, 16))
        params = jax.tree.map(np.float64, params)
        return jax.jit(jax.grad(lambda p: jnp.sum(weights * model.apply({"params": p}, TOKENS)[0])))(params)


STACKS = {
    "quick": lambda: config(blocks=("lstm",), layers=2),
    "two kinds": lambda: config(blocks=("lstm", "attention")),
    "memory and window": lambda: config(),
    "levels in turn": lambda: config(
        blocks=("attention",), levels=(LevelConfig(), LevelConfig(period=2)), levels_per_block=1
    ),
    "independent levels": lambda: config(
        blocks=("lstm",), levels=(LevelConfig(), LevelConfig(period=2)), topology="independent"
    ),
    "one turn": lambda: config(layers=2),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "quick")) for name in STACKS])
def test_a_stack_has_the_numbers_of_layers_written_out(name, x64):
    pair = Pair(STACKS[name]())
    if name == "quick":
        pair.check_values()
    else:
        pair.check()


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_can_be_stacked(name, x64):
    Pair(family(name, vocab_size=16, dtype="float64", layers=4)).check()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_size_of_a_family_has_whole_turns(name):
    for size in SIZES.values():
        fields = FAMILIES[name](size)
        ModelConfig(dim=size.dim, layers=size.layers, stacked=True, **fields).validate()


def test_patterns():
    assert config().pattern == 2
    assert config(blocks=("memory", "memory")).pattern == 1
    levels = tuple(LevelConfig(period=period) for period in (8, 4, 2))
    assert config(layers=6, levels=levels, levels_per_block=2).pattern == 6
    assert config(layers=6, levels=levels, levels_per_block=2, blocks=("memory",)).pattern == 3
    with pytest.raises(ValueError, match=r"layers must be a multiple of the 2 blocks .* are stacked, got 3"):
        config(dtype="float32", layers=3, stacked=True).validate()


@pytest.mark.parametrize("method", ["init", "gradient", "step"])
def test_programs_do_not_grow_with_depth(method):
    def size(layers):
        model = LanguageModel(config(dtype="float32", layers=layers, stacked=True, blocks=("lstm", "attention")))
        params = jax.eval_shape(model.init, jax.random.key(0), TOKENS[:1, :1])["params"]
        if method == "init":
            lowered = jax.jit(model.init).lower(jax.random.key(0), TOKENS[:1, :1])
        elif method == "gradient":
            lowered = jax.jit(jax.grad(lambda p: jnp.sum(model.apply({"params": p}, TOKENS)[0]))).lower(params)
        else:
            state = jax.eval_shape(lambda p: model.apply({"params": p}, 2, method="start"), params)
            step = jax.jit(functools.partial(model.apply, method="step"))
            lowered = step.lower({"params": params}, TOKENS[:, 0], state)
        return len(lowered.as_text().splitlines())

    assert size(4) == size(12)


def test_conversions_are_inverse_for_whatever_holds_parameters():
    written = config(dtype="float32", layers=6)
    params = drawn(LanguageModel(written))
    stacked = stack_layers(params, written)
    deep = LanguageModel(dataclasses.replace(written, stacked=True))
    shapes = jax.eval_shape(deep.init, jax.random.key(0), TOKENS[:1, :1])
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, shapes["params"])
    assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes)} == {"float32"}
    np.testing.assert_array_equal(
        stacked["stack"]["blocks_1"]["mlp"]["up"]["kernel"][2], params["blocks_5"]["mlp"]["up"]["kernel"]
    )
    held = (params, {"mu": params, "count": np.int32(3)}, None)
    jax.tree.map(np.testing.assert_array_equal, unstack_layers(stack_layers(held, written), written), held)
    for tree in ({"blocks_0": {}}, params | {"blocks_6": params["blocks_0"]}):
        with pytest.raises(ValueError, match="tree: expected blocks_0 to blocks_5, got"):
            stack_layers(tree, written)
    with pytest.raises(ValueError, match="states: expected one for each of 6 blocks, got 3"):
        stack_states((0, 0, 0), written)


def test_a_state_of_another_depth_is_named():
    deep, shallow = (
        LanguageModel(config(dtype="float32", layers=layers, stacked=True, blocks=("lstm", "attention")))
        for layers in (6, 4)
    )
    params = drawn(shallow)
    state = deep.apply({"params": drawn(deep)}, 2, method="start")
    with pytest.raises(ValueError, match=r"state must have the 2 turns of the stack as second axis, got .*\(2, 3,"):
        shallow.apply({"params": params}, TOKENS, state)
    with pytest.raises(ValueError, match="one per block of this model"):
        shallow.apply({"params": params}, TOKENS, state[:1])


def test_what_is_said_of_a_model_does_not_depend_on_it():
    written = config(dtype="float32")
    stacked = dataclasses.replace(written, stacked=True)
    texts = [describe_model(Experiment(model=each, data=TextConfig(), steps=1)) for each in (written, stacked)]
    assert texts[0] == texts[1]
    assert count(stacked) == parameter_count(drawn(LanguageModel(stacked)))
    with pytest.raises(ValueError, match="expected layers that are not stacked"):
        stack_levels({}, stacked, (LevelConfig(),), jax.random.key(0))


def test_diagnostics_name_every_layer():
    pair = Pair(config(dtype="float32"))
    batch = {"inputs": TOKENS, "targets": TOKENS}
    written = jax.eval_shape(make_diagnosis(pair.written), pair.params, batch)
    assert "blocks_2/mixer/inner_loss" in written
    assert jax.eval_shape(make_diagnosis(pair.stacked), pair.stack, batch) == written


@pytest.mark.slow
def test_diagnostics_are_those_of_each_layer():
    pair = Pair(config(dtype="float32"))
    batch = {"inputs": jnp.asarray(TOKENS), "targets": jnp.asarray(TOKENS)}
    written, stacked = (
        make_diagnosis(model)(params, batch)
        for model, params in ((pair.written, pair.params), (pair.stacked, pair.stack))
    )
    close({**stacked}, {**written}, 1e-5)


@pytest.mark.slow
def test_generation_from_a_stack():
    pair = Pair(config(dtype="float32"))
    prompts = [[1, 2, 3, 4, 5, 6], [7, 8, 9]]
    found = [
        [piece.tokens for piece in Generator(model, params, Sampling(0.0), alphabet=16).stream(prompts, 5)]
        for model, params in ((pair.written, pair.params), (pair.stacked, pair.stack))
    ]
    assert len(found[0]) == 5
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_forecaster_can_be_stacked(x64):
    plain = ForecasterConfig(dim=8, layers=2, blocks=("lstm",), dtype="float64")
    written, stacked = (
        Forecaster(dataclasses.replace(plain, stacked=stacked), lookback=8, horizons=(2, 4))
        for stacked in (False, True)
    )
    params = drawn(written, written.example_inputs)
    inputs = np.random.default_rng(0).standard_normal((3, 8, 2))
    close(
        stacked.apply({"params": stack_layers(params, plain)}, inputs)[0],
        written.apply({"params": params}, inputs)[0],
        1e-6,
    )


@pytest.mark.parametrize("stacked", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_what_is_not_kept_is_computed_again(stacked):
    """Gradients stay; the less is kept, the less a stack holds between the passes and the more layers compute.

    Work is counted where layers are written out: of a loop the counter sees one turn. Memory is compared in a stack:
    where layers are written out, XLA's schedule for CPUs holds as much with every policy.
    """

    def compiled(remat):
        fields = {"dtype": "float32", "blocks": ("attention",), "layers": 3, "remat": remat, "stacked": stacked}
        model = LanguageModel(config(**fields))
        tokens = np.tile(TOKENS, (4, 4))
        params = drawn(model, TOKENS)
        gradient = jax.jit(jax.grad(lambda p: jnp.mean(jnp.square(model.apply({"params": p}, tokens)[0]))))
        program = gradient.lower(params).compile()
        held, work = program.memory_analysis().temp_size_in_bytes, program.cost_analysis()["flops"]
        return program(params), -held if stacked else work

    found = {remat: compiled(remat) for remat in (False, "dots", "dots_no_batch", True)}
    costs = [cost for _, cost in found.values()]
    assert costs == sorted(set(costs)), costs
    for gradient, _ in found.values():
        close(gradient, found[False][0], 1e-5)


@pytest.mark.parametrize("remat", ["full", "none", None, 2])
def test_unknown_policies_are_named(remat):
    with pytest.raises(ValueError, match=r"remat must be one of .* got"):
        config(dtype="float32", remat=remat).validate()
