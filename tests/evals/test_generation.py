"""What is written is what the model says of the whole text, row by row, however the text was read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nested_jax import Memory, networks
from nested_jax.evals.generation import Generator, generate
from nested_jax.evals.sampling import Sampling
from nested_jax.memory.slots import Level, SlotMemory
from nested_jax.models import AttentionConfig, LanguageModel, MemoryConfig, MemoryLayerState, ModelConfig

GREEDY = Sampling(0)
PROMPTS = [b"d", b"for i in range(1000):", b"import", b"class A:"]
CHUNK = 4
SLOTS = SlotMemory((Level(3, 4, 0.1, content=0.5), Level(6, 8, 0.01)), 4, 8, 8, CHUNK)


@pytest.fixture(autouse=True, scope="module")
def compile_quickly():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


class Built:
    """A model in float64, its generators, and the logits after the last token of a text, from one parallel call."""

    def __init__(self, **options):
        memory = Memory(network=networks.Linear(), chunk_size=CHUNK)
        attention = AttentionConfig(heads=2, window=5)
        self.config = ModelConfig(dim=8, memory=MemoryConfig(memory=memory, heads=2), attention=attention,
                                  dtype="float64", **options)  # fmt: skip
        self.model = LanguageModel(self.config)
        params = jax.jit(self.model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
        draw = np.random.default_rng(0)
        self.params = jax.tree.map(lambda x: np.float32(x + 0.4 * draw.standard_normal(x.shape)), params)
        self.greedy, self.warm, self.frozen = (
            Generator(self.model, self.params, sampling, learn=learn, chunk=2 * CHUNK + 3)
            for sampling, learn in ((GREEDY, True), (Sampling(1.0, top_k=40, top_p=0.95), True), (GREEDY, False))
        )
        self.apply = jax.jit(lambda tokens: self.model.apply({"params": self.params}, tokens)[0][0])

    def logits(self, text):
        """Of the next token after each of a text's; the text is filled up to 32 tokens, so that one program does."""
        tokens = np.zeros((1, 32), np.int32)
        tokens[0, : len(text)] = list(text)
        return self.apply(tokens)[: len(text)]


@pytest.fixture(scope="module")
def mixed():
    with jax.enable_x64(True):
        return Built(layers=2, blocks=("memory", "attention"))


@pytest.fixture(scope="module")
def attention():
    with jax.enable_x64(True):
        return Built(layers=1, blocks=("attention",))


@pytest.fixture(autouse=True)
def wide(x64):
    """Double precision in every test."""


def write(generator, prompts, length, **options):
    """The tokens of each row, and the context after them."""
    rows = [[] for _ in prompts]
    for piece in generator.stream(prompts, length, **{"every": 4, **options}):
        for row, new in zip(rows, piece.tokens, strict=True):
            row += new
    return rows, piece.context


def row(context, number):
    return jax.tree.map(lambda x: x[number : number + 1], context)


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-10), a, b)


@pytest.mark.parametrize("name", [pytest.param("mixed", marks=pytest.mark.slow), "attention"])
def test_greedy_is_the_likeliest_token_of_each_whole_text_so_far(name, request):
    built = request.getfixturevalue(name)
    written, context = write(built.greedy, PROMPTS, 6)
    for prompt, tokens, last in zip(PROMPTS, written, context.logits, strict=True):
        logits = built.logits([*prompt, *tokens])
        assert tokens == jnp.argmax(logits[len(prompt) - 1 : -1], axis=-1).tolist()
        close(last, logits[-1])


@pytest.mark.slow
def test_rows_write_what_they_write_alone(mixed):
    keys = jax.random.split(jax.random.key(5), len(PROMPTS))
    together, context = write(mixed.warm, PROMPTS, 6, key=keys)
    for number, prompt in enumerate(PROMPTS):
        alone, expected = write(mixed.warm, [prompt], 6, key=keys[number : number + 1])
        assert together[number] == alone[0]
        close(row(context, number), expected)
    assert len(set(map(tuple, together))) == len(PROMPTS)


@pytest.mark.slow
def test_one_key_gives_each_row_and_each_token_its_own(mixed):
    key = jax.random.key(3)
    prompts = [b"aa"] * 4
    found, _ = write(mixed.warm, prompts, 8, key=key)
    keys = jnp.stack([jax.random.fold_in(key, b) for b in range(4)])
    assert found == write(mixed.warm, prompts, 8, key=keys)[0]
    for tokens, own in zip(found, keys, strict=True):
        logits = mixed.logits([*b"aa", *tokens])[1:-1]
        drawn = jax.vmap(mixed.warm.sampling)(
            logits, jax.vmap(lambda n, k=own: jax.random.fold_in(k, n))(jnp.arange(8))
        )
        assert tokens == drawn.tolist()


def test_a_context_goes_on_as_one_text(mixed):
    first, context = write(mixed.greedy, PROMPTS, 2)
    assert len(set(mixed.greedy._places(context).tolist())) > 1
    second = [b"return x + y", b"", b"y = 0", b"()"]
    rest, context = write(mixed.greedy, second, 4, context=context)
    again, after = write(mixed.greedy, [b""] * 4, 2, context=context)
    for number, prompt in enumerate(PROMPTS):
        text = [*prompt, *first[number], *second[number]]
        logits = mixed.logits([*text, *rest[number], *again[number]])
        assert rest[number] + again[number] == jnp.argmax(logits[len(text) - 1 : -1], axis=-1).tolist()
        close(after.logits[number], logits[-1])


@pytest.mark.slow
def test_pieces_of_any_size_are_the_same_text(mixed):
    expected, context = write(mixed.warm, PROMPTS, 7, key=jax.random.key(1))
    pieces = list(mixed.warm.stream(PROMPTS, 7, key=jax.random.key(1)))
    assert len(pieces) == 7
    assert all(len(tokens) == 1 for piece in pieces for tokens in piece.tokens)
    assert [[piece.tokens[b][0] for piece in pieces] for b in range(4)] == expected
    close(pieces[-1].context, context)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mag", "mac", "slots"])
def test_hybrids_go_on_from_any_place_in_a_chunk(kind):
    """A prompt in two pieces, cut inside a chunk or segment, is the prompt in one."""
    memory = Memory(network=networks.Linear(), chunk_size=CHUNK)
    config = ModelConfig(dim=8, layers=1, memory=MemoryConfig(memory=memory, heads=2), dtype="float64", blocks=(kind,),
                         attention=AttentionConfig(heads=2, window=2 * CHUNK), slots=SLOTS)  # fmt: skip
    model = LanguageModel(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda x: np.float32(0.4 * draw.standard_normal(x.shape)), shapes)
    generator, text = Generator(model, params, GREEDY, chunk=2 * CHUNK), b"for i in range(1000):"
    for cut in (3, CHUNK + 1):
        pieces = generator.read([text[cut:]], generator.read([text[:cut]]))
        np.testing.assert_allclose(pieces.logits, generator.read([text]).logits, rtol=1e-10, atol=1e-10)


def test_a_text_in_two_calls_is_the_text_in_one(mixed):
    expected, context = write(mixed.warm, PROMPTS, 7, key=jax.random.key(1))
    first, between = write(mixed.warm, PROMPTS, 3, key=jax.random.key(1))
    rest, after = write(mixed.warm, [b""] * 4, 4, key=jax.random.key(1), context=between)
    assert [a + b for a, b in zip(first, rest, strict=True)] == expected
    close(after, context)


def test_the_compiled_step_is_reused(mixed):
    traces = []

    class Counted(Sampling):
        def __call__(self, logits, key=None):
            traces.append(logits.shape)
            return super().__call__(logits, key)

    generator = Generator(mixed.model, mixed.params, Counted(0))
    for prompt, length, stop in ((b"a", 3, b""), (b"some text", 5, b"\n"), (b"b" * 9, 1, b"")):
        _, context = write(generator, [prompt], length, stop=stop, every=1)
        assert traces == [(256,)]
    write(generator, [b"c"], 2, context=context, every=1)
    assert traces == [(256,)]


def test_a_stop_token_ends_its_row_only(mixed):
    whole, _ = write(mixed.greedy, PROMPTS, 8)
    stop = whole[1][2]
    ends = [tokens.index(stop) + 1 if stop in tokens else 8 for tokens in whole]
    assert min(ends) < 4
    assert max(ends) == 8
    found, context = write(mixed.greedy, PROMPTS, 8, stop=[stop])
    assert found == [tokens[:end] for tokens, end in zip(whole, ends, strict=True)]
    for number, prompt in enumerate(PROMPTS):
        close(context.logits[number], mixed.logits([*prompt, *found[number]])[-1])
    pieces = list(mixed.greedy.stream(PROMPTS[1:2], 8, stop=[stop], every=2))
    assert len(pieces) == -(-ends[1] // 2)


def memories(context):
    return [entry.memory for entry in context.state if isinstance(entry, MemoryLayerState)]


def test_without_learning_memories_stay_as_the_prompt_left_them(mixed):
    before = mixed.greedy.read(PROMPTS, every=4)
    written, after = write(mixed.frozen, [b""] * 4, 6, context=before)
    jax.tree.map(np.testing.assert_array_equal, memories(after), memories(before))
    learnt, other = write(mixed.greedy, PROMPTS, 6)
    assert written != learnt
    assert any(jnp.any(a != b) for a, b in zip(*map(jax.tree.leaves, (memories(other), memories(before))), strict=True))
    step = jax.jit(lambda token, state: mixed.model.apply({"params": mixed.params}, token, state, False, method="step"))
    context, expected = row(before, 1), []
    for _ in range(6):
        expected.append(int(jnp.argmax(context.logits[0])))
        logits, state = step(jnp.array(expected[-1:]), context.state)
        context = type(context)(state, logits, context.drawn + 1)
    assert written[1] == expected
    close(row(after, 1), context)


def test_generate_gives_bytes_and_learns_prompts_always(mixed):
    prompts = [b"for i", b"c"]
    texts, context = generate(mixed.model, mixed.params, prompts, 3, sampling=GREEDY, learn=False)
    for number, prompt in enumerate(prompts):
        before = mixed.greedy.read([prompt] * 4, every=4)
        jax.tree.map(np.testing.assert_array_equal, memories(row(context, number)), memories(row(before, 0)))
        rows, _ = write(mixed.frozen, [b""] * 4, 3, context=before)
        assert list(texts[number]) == rows[0]
    more, same = generate(mixed.model, mixed.params, [b"", b""], 0, sampling=GREEDY, context=context)
    assert more == [b"", b""]
    close(same, context)


def test_a_saved_context_goes_on(mixed, tmp_path):
    _, context = write(mixed.greedy, PROMPTS, 3)
    mixed.greedy.save(tmp_path / "state.npz", context)
    assert [path.name for path in tmp_path.iterdir()] == ["state.npz"]
    loaded = mixed.greedy.load(tmp_path / "state.npz")
    jax.tree.map(np.testing.assert_array_equal, loaded, context)
    follow = [b"", b"abc", b"", b"d"]
    assert write(mixed.greedy, follow, 4, context=loaded)[0] == write(mixed.greedy, follow, 4, context=context)[0]


def test_a_context_of_another_model_is_refused(mixed, attention, tmp_path):
    path = tmp_path / "state"
    mixed.greedy.save(path, mixed.greedy.start(1))
    with pytest.raises(ValueError, match=r"config\.layers: 2 != 1"):
        attention.greedy.load(path)
    other = Generator(mixed.model, jax.tree.map(lambda x: x + 1, mixed.params), GREEDY)
    with pytest.raises(ValueError, match="checksum of parameters"):
        other.load(path)


def test_the_alphabet_bounds_what_is_drawn(mixed):
    narrow = Generator(mixed.model, mixed.params, GREEDY, alphabet=5)
    assert max(write(narrow, [b"def "], 8)[0][0]) < 5


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "expected a list of one prompt per row"),
        (b"ab", {}, "expected a list of one prompt per row, got b'ab'"),
        ([b"a", b""], {}, "at least one token where there is no context"),
        (["a"], {}, r"prompts\[0\]: expected bytes or tokens, got a str"),
        ([[1, 256]], {}, r"prompts\[0\]: expected tokens in \[0, 256\), got 1 to 256"),
        ([b"a"], {"length": -1}, "at least 0; got -1"),
        ([b"a"], {"every": 0}, "every is a number of tokens, at least 1; got 0"),
        ([b"a"], {"stop": [300]}, "stop: expected tokens in"),
        ([b"a"], {"key": None}, "key is needed"),
        ([b"a"], {"keys": 3}, r"one for each of 1 rows; got shape \(3,\)"),
        ([b"a"], {"rows": 2}, "expected one per row of the context, 2; got 1"),
    ],
)
def test_bad_arguments_are_refused_at_once(mixed, prompts, options, message):
    options = {"length": 4, "key": jax.random.key(0), **options}
    if "keys" in options:
        options["key"] = jax.random.split(options["key"], options.pop("keys"))
    if "rows" in options:
        options["context"] = mixed.warm.start(options.pop("rows"))
    with pytest.raises(ValueError, match=message):
        mixed.warm.stream(prompts, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"alphabet": 300}, "from 1 to vocab_size=256; got 300"), ({"chunk": 0}, "at least 1; got 0")],
)
def test_bad_generators(mixed, options, message):
    with pytest.raises(ValueError, match=message):
        Generator(mixed.model, mixed.params, **options)
