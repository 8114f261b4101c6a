"""What the language model means: causal, row by row, and the same in parallel, in pieces and token by token."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nested_jax import rules
from nested_jax.memory import Memory
from nested_jax.memory.features import Polynomial
from nested_jax.memory.networks import MLP, Linear
from nested_jax.memory.slots import Level, SlotMemory
from nested_jax.models import (
    AttentionConfig,
    LanguageModel,
    LevelConfig,
    MemoryConfig,
    ModelConfig,
    SlotLayer,
    parameter_count,
    state_bytes,
)

VOCAB, LENGTH, CHUNK, CUT = 16, 18, 4, 8


def config(memory=None, window=6, persistent=0, **options):
    memory = memory or MemoryConfig(memory=Memory(network=MLP(2, expansion=2), chunk_size=CHUNK), heads=2)
    attention = AttentionConfig(heads=2, window=window, max_length=LENGTH, persistent=persistent)
    options = {"dtype": "float64", "layers": 1} | options
    return ModelConfig(vocab_size=VOCAB, dim=16, memory=memory, attention=attention, **options)


STACKS = {
    "memory and window": lambda: config(blocks=("memory", "attention"), layers=2),
    "attention": lambda: config(blocks=("attention",), window=None),
    "linear, no convolution": lambda: config(
        MemoryConfig(memory=Memory(Linear(), rule=rules.gated_gradient_descent(), chunk_size=1), heads=2, conv=0)
    ),
    "gate": lambda: config(blocks=("mag",), persistent=2),
    "layer": lambda: config(blocks=("mal",), persistent=2),
    "context": lambda: config(blocks=("mac",), window=2 * CHUNK, persistent=2),
    "lstm": lambda: config(blocks=("lstm",)),
    "levels": lambda: config(blocks=("attention",), levels=(LevelConfig(), LevelConfig(period=2))),
    "nested levels": lambda: config(
        blocks=("attention",),
        levels=(LevelConfig(), LevelConfig(period=CUT), LevelConfig(period=2)),
        topology="nested",
    ),
    "independent levels": lambda: config(
        blocks=("attention",),
        levels=(LevelConfig(period=2, rule=rules.titans()), LevelConfig(), LevelConfig(period=4)),
        topology="independent",
    ),
    "levels in turn": lambda: config(
        blocks=("attention", "memory"),
        layers=3,
        levels=(LevelConfig(period=CUT, rule=rules.titans()), LevelConfig(period=2)),
        levels_per_block=1,
    ),
    "omega over features": lambda: config(
        MemoryConfig(
            memory=Memory(MLP(2, expansion=2, residual=False), rule=rules.omega(), chunk_size=CHUNK, window=3),
            heads=2,
            head_dim=3,
            features=Polynomial(2),
        )
    ),
}


class Built:
    """A model with random parameters, and its compiled calls."""

    def __init__(self, model_config):
        self.config, self.model = model_config, LanguageModel(model_config)
        shapes = jax.eval_shape(self.model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
        draw = np.random.default_rng(0)
        self.variables = jax.tree.map(lambda x: np.float32(0.3 * np.abs(draw.standard_normal(x.shape))), shapes)
        self.run = jax.jit(functools.partial(self.model.apply, self.variables))
        self.step = jax.jit(functools.partial(self.model.apply, self.variables, method="step"))

    def parallel(self, tokens, reset=None):
        """The whole sequence at once, as one program with and without resets."""
        chunks = -(-LENGTH // self.config.chunk_size)
        return self.run(tokens, None, np.zeros((2, chunks), bool) if reset is None else reset)

    def start(self, rows):
        return self.model.apply(self.variables, rows, method="start")

    def steps(self, tokens, state):
        logits = []
        for token in tokens.T:
            one, state = self.step(token, state)
            logits.append(one)
        return jnp.stack(logits, axis=1), state


@functools.cache
def build(name):
    return Built(STACKS[name]())


QUICK = ("memory and window", "attention", "linear, no convolution", "lstm")


def tokens():
    return np.random.default_rng(7).integers(0, VOCAB, (2, LENGTH))


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-10), a, b)


def obeys_the_laws(built):
    """Causal; row by row; the same in parallel, in pieces and token by token; packed documents are separate ones."""
    given = tokens()
    whole, last = built.parallel(given)
    assert jnp.isfinite(whole).all()
    for place in (CUT - 1, CUT, LENGTH - 1):
        other = given.copy()
        other[0, place] = (other[0, place] + 1) % 16
        after, _ = built.parallel(other)
        np.testing.assert_array_equal(after[0, :place], whole[0, :place])
        np.testing.assert_array_equal(after[1], whole[1])
        assert jnp.any(after[0, place] != whole[0, place])
    first, state = built.steps(given[:, :CUT], built.start(2))
    close(first, whole[:, :CUT])
    rest, end = built.run(given[:, CUT:], state)
    close(rest, whole[:, CUT:])
    assert jax.tree.map(jnp.shape, end) == jax.tree.map(jnp.shape, last)
    close(built.steps(given[:, CUT:], state)[0], rest)
    chunk = built.config.chunk_size
    reset = np.zeros((2, -(-LENGTH // chunk)), bool)
    reset[0, CUT // chunk] = True
    packed, _ = built.parallel(given, reset)
    alone, _ = built.run(given[:, CUT:], built.start(2))
    close(packed, jnp.stack([jnp.concatenate([whole[0, :CUT], alone[0]]), whole[1]]))


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in STACKS])
def stack(request, x64):
    """Each stack, in float64."""
    return build(request.param)


@pytest.fixture
def mixed(x64):
    """The stack of both kinds of block, in float64."""
    return build("memory and window")


def test_causal(stack):
    given = tokens()
    before, _ = stack.parallel(given)
    for place in (0, CHUNK - 1, CHUNK, LENGTH - 1):
        other = given.copy()
        other[:, place] = (other[:, place] + 1) % VOCAB
        after, _ = stack.parallel(other)
        np.testing.assert_array_equal(after[:, :place], before[:, :place])
        assert jnp.all(jnp.any(after[:, place] != before[:, place], axis=-1))


def test_rows_do_not_meet(stack):
    given, other = tokens(), tokens()
    other[1] = (other[1] + 1) % VOCAB
    before, after = stack.parallel(given)[0], stack.parallel(other)[0]
    np.testing.assert_array_equal(after[0], before[0])
    assert jnp.any(after[1] != before[1])


def test_in_pieces_and_token_by_token_is_in_parallel(stack):
    given = tokens()
    whole, last = stack.parallel(given)
    first, state = stack.steps(given[:, :CUT], stack.start(2))
    close(first, whole[:, :CUT])
    rest, end = stack.run(given[:, CUT:], state)
    close(rest, whole[:, CUT:])
    assert jax.tree.map(jnp.shape, end) == jax.tree.map(jnp.shape, last)
    close(stack.steps(given[:, CUT:], state)[0], rest)
    assert state_bytes(stack.start(2)) == state_bytes(state) == state_bytes(last)


def test_pieces_hand_their_state_on(mixed):
    given = tokens()
    whole, _ = mixed.parallel(given)
    first, state = mixed.run(given[:, :CUT])
    rest, _ = mixed.run(given[:, CUT:], state)
    close(jnp.concatenate([first, rest], axis=1), whole)


@pytest.mark.parametrize("prompt", [1, CHUNK + 1])
def test_steps_go_on_from_a_prompt_of_any_length(mixed, prompt):
    given = tokens()
    whole, _ = mixed.parallel(given)
    first, state = mixed.run(given[:, :prompt])
    rest, _ = mixed.steps(given[:, prompt:], state)
    close(jnp.concatenate([first, rest], axis=1), whole)


def test_packed_documents_are_separate_ones(stack):
    given, chunk = tokens(), stack.config.chunk_size
    reset = np.zeros((2, -(-LENGTH // chunk)), bool)
    reset[0, CUT // chunk] = True
    packed, state = stack.parallel(given, reset)
    whole, unbroken = stack.parallel(given)
    alone, fresh = stack.run(given[:, CUT:], stack.start(2))
    close(packed, jnp.stack([jnp.concatenate([whole[0, :CUT], alone[0]]), whole[1]]))
    assert jnp.max(jnp.abs(packed[0, CUT:] - whole[0, CUT:])) > 1e-6
    following, expected, other = (stack.step(given[:, 0], s)[0] for s in (state, fresh, unbroken))
    close(following, jnp.stack([expected[0], other[1]]))


def test_a_reset_at_the_start_forgets_the_carried_state(mixed):
    given = tokens()
    _, state = mixed.parallel(given)
    reset = np.zeros((2, -(-LENGTH // CHUNK)), bool)
    reset[0, 0] = True
    again, _ = mixed.run(given, state, reset)
    fresh, _ = mixed.parallel(given)
    close(again[0], fresh[0])
    assert jnp.max(jnp.abs(again[1] - fresh[1])) > 1e-3


def test_diagnostics_are_recorded_when_asked_for(mixed):
    run = jax.jit(functools.partial(mixed.model.apply, mutable=["diagnostics"]))
    (logits, _), recorded = run(mixed.variables, tokens())
    close(logits, mixed.parallel(tokens())[0])
    assert set(recorded["diagnostics"]) == {"blocks_0"}
    found = recorded["diagnostics"]["blocks_0"]["mixer"]
    assert set(found) == {"learning_rate", "momentum", "decay", "inner_loss", "inner_loss_after"}
    assert all(value.shape == () and jnp.isfinite(value) for value in found.values())
    assert 0 < found["inner_loss_after"] < found["inner_loss"]


def test_double_precision_needs_x64():
    model = LanguageModel(config())
    with pytest.raises(ValueError, match="jax_enable_x64"):
        model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))


def test_initialisation_makes_float32_parameters_only(x64):
    model = LanguageModel(config(blocks=("memory", "attention"), layers=2))
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    assert set(variables) == {"params"}
    leaves = jax.tree.leaves(variables)
    assert all(leaf.dtype == jnp.float32 for leaf in leaves)
    assert parameter_count(variables["params"]) == sum(np.prod(leaf.shape) for leaf in leaves)


def test_initial_parameters_do_not_depend_on_how_many_tokens_are_given():
    model = LanguageModel(config(blocks=("mac",), window=2 * CHUNK, dtype="float32"))
    init = jax.jit(model.init)
    one, many = (init(jax.random.key(0), jnp.zeros((1, length), jnp.int32)) for length in (1, 11))
    chex.assert_trees_all_equal(one, many)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda m: m.run(tokens()[0]), r"tokens must be integers of shape \[B, T\]"),
        (lambda m: m.run(tokens().astype(np.float32)), "got float32"),
        (lambda m: m.run(tokens()[:, :0]), "not empty"),
        (lambda m: m.step(tokens(), m.start(2)), r"tokens must be integers of shape \[B\]"),
        (lambda m: m.run(tokens(), None, np.zeros((2, 3), bool)), r"reset must be bool of shape .* = \(2, 5\)"),
        (lambda m: m.run(tokens(), None, np.zeros((2, 5), int)), "reset must be bool"),
        (lambda m: m.run(tokens(), m.start(3)), "state must be of 2 rows"),
        (lambda m: m.run(tokens(), m.start(2)[:1]), "one per block of this model"),
    ],
)
def test_bad_input_is_named(mixed, bad, message):
    with pytest.raises(ValueError, match=message):
        bad(mixed)


def test_slots_are_read_before_they_are_written(x64):
    levels = Level(3, 4, 0.1, content=0.5), Level(6, 8, 0.01)
    built = Built(config(blocks=("slots",), layers=1, slots=SlotMemory(levels, 4, 8, 8, chunk_size=CHUNK)))
    given = tokens()
    _, state = built.run(given[:, : CHUNK + 1])
    logits, after = built.step(given[:, CHUNK + 1], state)
    frozen = jax.jit(lambda token, state: built.model.apply(built.variables, token, state, learn=False, method="step"))
    read, same = frozen(given[:, CHUNK + 1], state)
    close(read, logits)
    jax.tree.map(np.testing.assert_array_equal, same, state)
    assert jnp.any(after[0].levels[0].values.codes != state[0].levels[0].values.codes)


def test_a_slot_layer_normalises_and_gates_what_slots_answer(x64):
    memory = SlotMemory((Level(3, 4, 0.1),), 4, 8, 6, chunk_size=CHUNK)
    layer, inputs = SlotLayer(memory, 5, jnp.bfloat16), jnp.asarray(np.random.default_rng(0).normal(size=(1, 6, 5)))
    params = jax.jit(layer.init)(jax.random.key(0), inputs)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(layer.apply({"params": params}, 1, method="start"))} == {
        jnp.dtype("float32"),
        jnp.dtype("int32"),
    }
    layer = SlotLayer(memory, 5, jnp.float64)
    params = jax.tree.map(jnp.float64, params)
    slots = params["slots"]
    read = jax.jit(memory.scan)(slots, memory.start(slots), inputs[0])[0]
    read /= np.sqrt(np.mean(np.square(read), axis=-1, keepdims=True) + 1e-6)
    gate = inputs[0] @ params["gate"]["kernel"]
    expected = (read * gate / (1 + np.exp(-gate))) @ params["output"]["kernel"]
    np.testing.assert_allclose(jax.jit(layer.apply)({"params": params}, inputs)[0][0], expected, rtol=1e-6)


def test_a_bad_config_is_refused_when_used():
    model = LanguageModel(config(blocks=("mamba",), dtype="float32"))
    with pytest.raises(ValueError, match="mamba"):
        model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))


def test_a_step_without_learning_is_one_whose_memory_is_put_back(x64):
    memory = Memory(Linear(), chunk_size=CHUNK, window=2)
    before = dataclasses.replace(memory, read="before")  # the read of a memory that has not written its token
    built, reference = (
        Built(config(MemoryConfig(memory=m, heads=2), blocks=("memory", "attention"), layers=2))
        for m in (memory, before)
    )
    frozen = jax.jit(lambda token, state: built.model.apply(built.variables, token, state, learn=False, method="step"))
    given = tokens()
    _, state = built.run(given[:, : CHUNK + 1])
    memories, expected = state[0].memory, state
    for token in given.T[CHUNK + 1 :]:
        logits, state = frozen(token, state)
        wanted, expected = reference.step(token, expected)
        assert any(jnp.any(a != b) for a, b in zip(*map(jax.tree.leaves, (expected[0].memory, memories)), strict=True))
        expected = (expected[0]._replace(memory=memories), expected[1])
        close(logits, wanted)
        close(state, expected)
        jax.tree.map(np.testing.assert_array_equal, state[0].memory, memories)
