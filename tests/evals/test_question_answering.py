"""Answers are what the model writes greedily after each prompt alone, cut at the stop, and scored."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from nested_jax.data.questions import Question
from nested_jax.data.tokenizers import Bytes
from nested_jax.evals.answers import by_group, string_match_all
from nested_jax.evals.generation import Generator
from nested_jax.evals.question_answering import answer, write
from nested_jax.evals.sampling import Sampling
from nested_jax.models import AttentionConfig, LanguageModel, ModelConfig

GREEDY = Sampling(0)


@pytest.fixture(autouse=True, scope="module")
def compile_quickly():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


class Bigram(nn.Module):
    """The next token depends on the last alone."""

    config: ModelConfig

    def start(self, rows):
        return (jnp.zeros(rows),)

    def __call__(self, tokens, state=None):
        return self._logits(tokens), state

    def step(self, tokens, state, learn=True):
        return self._logits(tokens), state

    def _logits(self, tokens):
        return self.scope.variables()["params"]["table"][tokens]


def chain(*texts, **options):
    """A generator that writes each text once it has read its first letter."""
    table = np.zeros((256, 256), np.float32)
    for text in texts:
        for before, after in zip(text.encode(), text.encode()[1:], strict=False):
            table[before, after] = 1.0
    model = Bigram(ModelConfig(blocks=("lstm",)))
    return Generator(model, {"table": table}, GREEDY, chunk=4, **options)


shared = functools.cache(chain)  # for tests that leave it as it is: its programs are compiled once


def ask(prompt, *answers, **about):
    return Question(prompt, answers, about)


QUESTIONS = [ask("somewhat longer: a", "bc", depth=0), ask("x", "yz", depth=1), ask("a", "d", depth=0)]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_hand_worked_answers(batch_size):
    generator = shared("abc!", "xyz!")
    found = answer(generator, Bytes(), QUESTIONS, string_match_all, 5, stop=["!"], separator="", batch_size=batch_size)
    assert [(each.output, each.score) for each in found] == [("bc", 1.0), ("yz", 1.0), ("bc", 0.0)]
    assert [each.question for each in found] == QUESTIONS
    assert by_group([each.score for each in found], QUESTIONS, "depth") == {(0,): 0.5, (1,): 1.0}


def test_the_budget_ends_an_answer():
    outputs = write(shared("abcdefghij"), Bytes(), [Bytes().encode("a"), Bytes().encode("..c")], 3, every=2)
    assert outputs == ["bcd", "def"]


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize(("stop", "expected"), [(["de"], "bc"), (["g", "ef"], "bcd"), (["h"], "bcdefg"), (["bc"], "")])
def test_the_first_stop_ends_an_answer(stop, expected, every):
    assert write(shared("abcdefghij"), Bytes(), [Bytes().encode("a")], 6, stop=stop, every=every) == [expected]


def test_rows_stop_each_at_their_own():
    generator = chain("abcd!", "x!", "mn")
    outputs = write(generator, Bytes(), [Bytes().encode(each) for each in "axm"], 6, stop=["!"], every=1)
    assert outputs == ["bcd", "", "n\0\0\0\0\0"]


def test_nothing_is_written_once_all_have_stopped():
    generator, pieces = chain("ab!ab"), []
    stream = generator.stream

    def counted(*args, **options):
        for piece in stream(*args, **options):
            pieces.append(piece)
            yield piece

    generator.stream = counted
    assert write(generator, Bytes(), [Bytes().encode("a")], 40, stop=["!"], every=2) == ["b"]
    assert len(pieces) == 1


class Ending(Bytes):
    end = ord("$")


def test_the_end_token_ends_an_answer_and_is_no_text():
    assert write(shared("ab$cd"), Ending(), [Bytes().encode("a")], 4, every=1) == ["b"]
    assert write(shared("ab$cd"), Ending(), [Bytes().encode("a")], 4) == ["b"]
    assert write(shared("ab$cd"), Bytes(), [Bytes().encode("a")], 4) == ["b$cd"]


def test_the_separator_is_read():
    generator = chain("= 5", "=7")
    generator.params["table"][ord("="), ord(" ")] = 0
    found = [
        answer(generator, Bytes(), [ask("=", "5")], string_match_all, 1, **options)[0]
        for options in ({}, {"separator": ""})
    ]
    assert [each.output for each in found] == ["5", "7"]
    assert [each.score for each in found] == [1.0, 0.0]


def test_a_model_answers_each_question_as_if_alone():
    model = LanguageModel(ModelConfig(dim=16, layers=1, blocks=("lstm",)))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda x: np.float32(0.4 * draw.standard_normal(x.shape)), shapes)
    generator = Generator(model, params, GREEDY, chunk=4)
    apply = jax.jit(lambda tokens: model.apply({"params": params}, tokens)[0][0])
    prompts = ["to be, or not to be", "that", "is the question", "whether", "'tis nobler"]
    outputs = write(generator, Bytes(), [Bytes().encode(prompt) for prompt in prompts], 4, batch_size=2, every=4)
    for prompt, output in zip(prompts, outputs, strict=True):
        tokens = [*prompt.encode()]
        for _ in range(4):
            filled = np.zeros((1, 32), np.int32)
            filled[0, : len(tokens)] = tokens
            tokens.append(int(apply(filled)[len(tokens) - 1].argmax()))
        assert output == Bytes().decode(np.array(tokens[-4:]))
    assert len(set(outputs)) > 1


def test_one_program_for_all_batches():
    traced = []

    class Counted(Sampling):
        def __call__(self, logits, key=None):
            traced.append(logits.shape)
            return super().__call__(logits, key)

    generator = chain("ab")
    generator.sampling = Counted(0)
    write(generator, Bytes(), [Bytes().encode("a" * n) for n in (1, 2, 3, 1, 3)], 2, batch_size=2)
    assert len(traced) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": Sampling(0.5)}, "generator: expected a temperature of 0, got 0.5"),
        ({"tokenizer_size": 100}, "an alphabet of at most 100, the tokens of bytes, got 256"),
        ({"stop": "ab"}, "stop: expected a list of texts that are not empty, got 'ab'"),
        ({"stop": ["a", ""]}, r"stop: expected a list of texts that are not empty, got \['a', ''\]"),
        ({"length": 0}, "length: expected at least 1, got 0"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"every": 0}, "every: expected at least 1, got 0"),
        ({"prompts": ["a", ""]}, r"prompts\[1\]: expected 1 to any number of tokens before 2 written ones, got 0"),
        ({"max_length": 5}, r"prompts\[0\]: expected 1 to 3 tokens before 2 written ones, got 4"),
    ],
)
def test_bad_arguments(options, message):
    generator, tokenizer = chain("ab"), Bytes()
    generator.sampling = options.pop("sampling", GREEDY)
    tokenizer.vocab_size = options.pop("tokenizer_size", 256)
    if "max_length" in options:
        attention = AttentionConfig(max_length=options.pop("max_length"))
        generator.model = Bigram(ModelConfig(blocks=("attention",), attention=attention))
    prompts = [Bytes().encode(prompt) for prompt in options.pop("prompts", ["abcd"])]
    with pytest.raises(ValueError, match=message):
        write(generator, tokenizer, prompts, **{"length": 2, **options})
