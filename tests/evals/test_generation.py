import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nested_jax import Memory, networks
from nested_jax.evals.generation import generate, read_chunks
from nested_jax.models import LanguageModel, MemoryConfig, ModelConfig


@pytest.fixture(autouse=True, scope="module")
def compile_quickly():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def trained():
    memory = Memory(network=networks.Linear(), chunk_size=4)
    model = LanguageModel(ModelConfig(dim=8, layers=1, memory=MemoryConfig(memory=memory, heads=2)))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    return model, jax.tree.map(lambda leaf: 2.0 * leaf, params)


def test_greedy_is_the_likeliest_byte_of_the_whole_text_so_far(trained):
    model, params = trained
    text = b"def f(x):"
    written = generate(model, params, text, 6, temperature=0, chunk=8)
    assert len(written) == 6
    whole = jnp.asarray(np.frombuffer(text + written, np.uint8).astype(np.int32))
    logits, _ = jax.jit(model.apply)({"params": params}, whole[None])
    likeliest = np.asarray(jnp.argmax(logits[0], axis=-1))
    assert bytes(likeliest[len(text) - 1 : -1].tolist()) == written


@pytest.mark.parametrize("length", [8, 19])
def test_prompts_of_any_length(trained, length):
    model, params = trained
    prompt = b"for i in range(1000):"[:length]
    tokens = jnp.asarray(np.frombuffer(prompt, np.uint8).astype(np.int32))
    logits, _ = jax.jit(model.apply)({"params": params}, tokens[None])
    assert generate(model, params, prompt, 1, temperature=0, chunk=8)[0] == int(jnp.argmax(logits[0, -1]))


def test_chunks_end_in_the_state_of_one_piece(trained):
    model, params = trained
    tokens = np.frombuffer(b"for i in range(1000):", np.uint8)[:16]
    found = read_chunks(model, params, tokens, 8)
    _, expected = jax.jit(model.apply)({"params": params}, jnp.asarray(tokens[None].astype(np.int32)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


def test_a_seed_gives_the_same_text_and_temperature_spreads(trained):
    model, params = trained
    one, two, other = (
        generate(model, params, b"a", 24, temperature=1.0, key=jax.random.key(seed)) for seed in (1, 1, 2)
    )
    assert one == two
    assert one != other
    assert generate(model, params, b"a", 12, temperature=1e-6, key=jax.random.key(1)) == generate(
        model, params, b"a", 12, temperature=0
    )
    assert generate(model, params, b"a", 0, temperature=0) == b""


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (b"", {}, "at least one byte"),
        (b"a", {"length": -1}, "at least 0; got -1"),
        (b"a", {"temperature": -1.0}, "temperature must be at least 0; got -1"),
        (b"a", {"temperature": 1.0}, "key is needed"),
    ],
)
def test_bad_arguments(trained, prompt, options, message):
    with pytest.raises(ValueError, match=message):
        generate(*trained, prompt, **{"length": 4, **options})
