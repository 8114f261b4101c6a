"""What the language model means: causal, row by row, and the same in parallel, in pieces and token by token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nested_jax import rules
from nested_jax.memory import Memory
from nested_jax.memory.features import Polynomial
from nested_jax.memory.networks import MLP, Linear
from nested_jax.models import (
    AttentionConfig,
    LanguageModel,
    MemoryConfig,
    ModelConfig,
    parameter_count,
    state_bytes,
)

VOCAB, LENGTH, CHUNK = 16, 18, 4

STACKS = {
    "memory": dict(blocks=("memory",), layers=2),
    "memory and window": dict(blocks=("memory", "attention"), layers=2),
    "attention": dict(blocks=("attention",), layers=1),
}


def titans(**options):
    return Memory(network=MLP(depth=2, expansion=2), rule=rules.titans(), chunk_size=CHUNK, **options)


def config(stack="memory", memory=None, **options):
    window = 6 if stack == "memory and window" else None
    return ModelConfig(
        vocab_size=VOCAB,
        dim=16,
        memory=memory or MemoryConfig(memory=titans(), heads=2),
        attention=AttentionConfig(heads=2, window=window, max_length=2 * LENGTH),
        **{"dtype": "float64"} | STACKS[stack] | options,
    )


class Built:
    """A model with its parameters away from their start, and its compiled calls."""

    def __init__(self, model_config):
        self.config, self.model = model_config, LanguageModel(model_config)
        self.variables = self.model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
        leaves, tree = jax.tree.flatten(self.variables)
        keys = jax.random.split(jax.random.key(1), len(leaves))
        moved = [x + 0.1 * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys, strict=True)]
        self.variables = jax.tree.unflatten(tree, moved)
        self.run = jax.jit(functools.partial(self.model.apply, self.variables))
        self.step = jax.jit(functools.partial(self.model.apply, self.variables, method="step"))

    def start(self, rows):
        return self.model.apply(self.variables, rows, method="start")

    def steps(self, tokens, state):
        logits = []
        for token in tokens.T:
            one, state = self.step(token, state)
            logits.append(one)
        return jnp.stack(logits, axis=1), state


def tokens(rows=2, length=LENGTH):
    return jax.random.randint(jax.random.key(7), (rows, length), 0, VOCAB)


def close(a, b, tolerance=1e-10):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


@pytest.fixture(params=STACKS)
def stack(request, x64):
    """A model of each kind, in float64."""
    return Built(config(request.param))


@pytest.fixture
def built(x64):
    """A model of memory blocks, in float64."""
    return Built(config())


def test_causal(stack):
    given = tokens()
    before, _ = stack.run(given)
    for place in (0, CHUNK, LENGTH // 2, LENGTH - 1):
        after, _ = stack.run(given.at[:, place].add(1) % VOCAB)
        np.testing.assert_array_equal(after[:, :place], before[:, :place])
        assert jnp.all(jnp.any(after[:, place] != before[:, place], axis=-1))


def test_rows_do_not_meet(stack):
    given = tokens()
    before, after = stack.run(given)[0], stack.run(given.at[1].add(1) % VOCAB)[0]
    np.testing.assert_array_equal(after[0], before[0])
    assert jnp.any(after[1] != before[1])


def test_in_pieces_is_in_parallel(stack):
    given = tokens()
    whole, last = stack.run(given)
    first, state = stack.run(given[:, : 2 * CHUNK])
    middle, state = stack.run(given[:, 2 * CHUNK : 3 * CHUNK], state)
    end, state = stack.run(given[:, 3 * CHUNK :], state)
    close(jnp.concatenate([first, middle, end], axis=1), whole)
    assert jax.tree.structure(state) == jax.tree.structure(last)


def test_token_by_token_is_in_parallel(stack):
    given = tokens()
    whole, _ = stack.run(given)
    stepped, _ = stack.steps(given, stack.start(2))
    close(stepped, whole)


@pytest.mark.parametrize("prompt", [1, CHUNK - 1, 2 * CHUNK + 1])
def test_steps_go_on_from_a_prompt_of_any_length(built, prompt):
    given = tokens()
    whole, _ = built.run(given)
    first, state = built.run(given[:, :prompt])
    rest, _ = built.steps(given[:, prompt:], state)
    close(jnp.concatenate([first, rest], axis=1), whole)


def test_packed_documents_are_separate_ones(stack):
    given, chunk = tokens(), stack.config.chunk_size
    starts = np.array([8, 12])
    reset = np.zeros((2, -(-LENGTH // chunk)), bool)
    reset[np.arange(2), starts // chunk] = True
    packed, state = stack.run(given, None, reset)
    next_packed, _ = stack.step(given[:, 0], state)
    for row, start in enumerate(starts):
        alone, state = stack.run(given[row : row + 1, start:])
        next_alone, _ = stack.step(given[row : row + 1, 0], state)
        close(packed[row, start:], alone[0])
        close(next_packed[row], next_alone[0])
    close(packed[:, :8], stack.run(given)[0][:, :8])


def test_a_reset_at_the_start_forgets_the_carried_state(built):
    given = tokens()
    _, state = built.run(given[:, :CHUNK])
    again, _ = built.run(given[:, :CHUNK], state, np.array([[True], [False]]))
    fresh, _ = built.run(given[:, :CHUNK])
    close(again[0], fresh[0])
    assert jnp.max(jnp.abs(again[1] - fresh[1])) > 1e-3


MEMORIES = {
    "linear, exact": MemoryConfig(
        memory=Memory(network=Linear(), rule=rules.gated_gradient_descent(), chunk_size=1), heads=2, conv=0
    ),
    "omega with features": MemoryConfig(
        memory=Memory(network=MLP(depth=2, residual=False), rule=rules.omega(), chunk_size=CHUNK, window=3),
        heads=2,
        head_dim=4,
        features=Polynomial(2),
    ),
    "once per chunk": MemoryConfig(memory=titans(step_per="chunk", read="start"), heads=1),
}


@pytest.mark.parametrize("name", MEMORIES)
def test_other_memories_run_in_three_ways(x64, name):
    built, given = Built(config(memory=MEMORIES[name], layers=1)), tokens()
    whole, _ = built.run(given)
    first, state = built.run(given[:, : 2 * CHUNK])
    rest, _ = built.run(given[:, 2 * CHUNK :], state)
    close(jnp.concatenate([first, rest], axis=1), whole)
    close(built.steps(given[:, 2 * CHUNK :], state)[0], rest)


def test_diagnostics_are_recorded_when_asked_for(built):
    given = tokens()
    (logits, _), recorded = built.model.apply(built.variables, given, mutable=["diagnostics"])
    close(logits, built.run(given)[0])
    for block in ("blocks_0", "blocks_1"):
        found = recorded["diagnostics"][block]["mixer"]
        assert set(found) == {"learning_rate", "momentum", "decay", "inner_loss", "inner_loss_after"}
        assert all(value.shape == () and jnp.isfinite(value) for value in found.values())
        assert 0 < found["inner_loss_after"] < found["inner_loss"]


def test_initialisation_makes_parameters_only():
    model = LanguageModel(config(dtype="float32"))
    variables = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    assert set(variables) == {"params"}
    leaves = jax.tree.leaves(variables)
    assert all(leaf.dtype == jnp.float32 for leaf in leaves)
    assert parameter_count(variables["params"]) == sum(np.size(leaf) for leaf in leaves)


def test_the_state_is_a_tree_of_constant_size(built):
    _, short = built.run(tokens(length=CHUNK))
    _, long = built.run(tokens(length=4 * CHUNK), short)
    assert state_bytes(short) == state_bytes(long) == state_bytes(built.start(2))
    assert state_bytes(jax.eval_shape(lambda: built.start(2))) == state_bytes(short)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda m: m.run(tokens()[0]), r"tokens must be integers of shape \[B, T\]"),
        (lambda m: m.run(tokens().astype(jnp.float32)), "got float32"),
        (lambda m: m.run(tokens(length=0)), "not empty"),
        (lambda m: m.step(tokens(), m.start(2)), r"tokens must be integers of shape \[B\]"),
        (lambda m: m.run(tokens(), None, np.zeros((2, 3), bool)), r"reset must be bool of shape .* = \(2, 5\)"),
        (lambda m: m.run(tokens(), None, np.zeros((2, 5), int)), "reset must be bool"),
        (lambda m: m.run(tokens(), m.start(3)), "state must be of 2 rows"),
        (lambda m: m.run(tokens(), m.start(2)[:1]), "one per block of this model"),
    ],
)
def test_bad_input_is_named(built, bad, message):
    with pytest.raises(ValueError, match=message):
        bad(built)


def test_a_bad_config_is_refused_when_used():
    model = LanguageModel(config(blocks=("mamba",)))
    with pytest.raises(ValueError, match="mamba"):
        model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
