"""Questions in words as a task: prompts to read, answers to learn, and tests of their own lengths, depths or hops."""

import dataclasses
import functools

import numpy as np

from nested_jax.data.babilong import Babilong
from nested_jax.data.code_dependencies import CodeDependencies
from nested_jax.data.dependencies import Programs, VariableTracking
from nested_jax.data.examples import Examples
from nested_jax.data.hash_hop import HashHop
from nested_jax.data.niah import Needles
from nested_jax.data.questions import Question, as_examples
from nested_jax.data.tokenizers import Tokenizer, load

Source = Needles | HashHop | Programs | VariableTracking | Babilong | CodeDependencies

_TRAIN, _VALIDATION, _TEST = range(3)
_GRID = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionTask:
    """Benchmarks in words to train on and to test on.

    A sequence is a prompt, a space, its answers and a line break, so that a model learns where an answer ends; answers
    and line break are trained and scored. The score `sequence` is then exact match under greedy decoding: all tokens of
    an answer are the likeliest ones, each given those before it. A set is as long as its longest sequence, rounded up
    to a multiple of 32 (our choice: sets of other seeds mostly have the same shape); what is behind the end of a
    sequence is zeros.

    Attributes:
      trained: where training questions come from, each source giving an equal share.
      tested: name → where the questions of a test come from, as pairs; a test for each.
      validated: where the questions of `validation` come from; () for `trained`. They have a seed of their own, which
        makes generated questions new ones. Real code (`CodeDependencies`) needs other files here, and for each test.
      train_examples: questions to train on, at least one of each source, as are the next.
      validation_examples: questions of `validation`.
      test_examples: questions of each test.
      tokenizer: None for bytes, else what `tokenizers.load` takes.

    Example:
      >>> task = QuestionTask(trained=(Programs(depth=1),), tested=(("deeper", Programs(depth=2)),), test_examples=7)
      >>> found = task.tests()["deeper"]
      >>> found.inputs.shape, bytes(found.targets[0][found.scored[0]].astype("uint8"))
      ((7, 192), b'7\\n')
    """

    trained: tuple[Source, ...]
    tested: tuple[tuple[str, Source], ...]
    validated: tuple[Source, ...] = ()
    train_examples: int = 10_000
    validation_examples: int = 200
    test_examples: int = 500
    tokenizer: str | None = None

    @property
    def vocab_size(self) -> int:
        """Tokens of the tokenizer."""
        return self.encoder.vocab_size

    @functools.cached_property
    def encoder(self) -> Tokenizer:
        """The tokenizer, read once."""
        return load(self.tokenizer)

    def validate(self) -> None:
        """Raise `ValueError` if a field is out of range."""
        for name in ("trained", "tested"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected at least one source of questions, got none")
        names = [name for name, _ in self.tested]
        if len({*names, "validation"}) <= len(names):
            raise ValueError(f"tested: expected different names other than 'validation', got {names}")
        for name, least in (
            ("train_examples", len(self.trained)),
            ("validation_examples", len(self.validated or self.trained)),
            ("test_examples", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")

    def train(self, seed: int) -> Examples:
        """The training set, [train_examples, T]."""
        return self._draw(self.trained, self.train_examples, _TRAIN, seed)

    def tests(self) -> dict[str, Examples]:
        """`validation`, then a set for each of `tested`."""
        validation = self._draw(self.validated or self.trained, self.validation_examples, _VALIDATION, 0)
        tests = {
            name: self._draw((source,), self.test_examples, _TEST, place)
            for place, (name, source) in enumerate(self.tested)
        }
        return {"validation": validation, **tests}

    def _draw(self, sources: tuple[Source, ...], count: int, kind: int, seed: int) -> Examples:
        self.validate()
        found: list[Question] = []
        for place, source in enumerate(sources):
            own = int(np.random.SeedSequence([kind, seed, place]).generate_state(1, np.uint64)[0])
            found += draw(source, self.encoder, len(range(place, count, len(sources))), own)
        ended = [question._replace(answers=(*question.answers[:-1], f"{question.answers[-1]}\n")) for question in found]
        return as_examples(ended, self.encoder, -(-max(map(self._length, ended)) // _GRID) * _GRID)

    def _length(self, question: Question) -> int:
        answer = self.encoder.encode(" ".join(question.answers))
        return len(self.encoder.encode(f"{question.prompt} ")) + len(answer) - 1


def draw(source: Source, tokenizer: Tokenizer, count: int, seed: int) -> list[Question]:
    """Questions of any source.

    Args:
      source: with a method `questions`.
      tokenizer: counts tokens, where the source has a length in tokens.
      count: of questions, at least 1.
      seed: 0 or more.

    Raises:
      ValueError: as the source does.

    Example:
      >>> from nested_jax.data.tokenizers import Bytes
      >>> [len(draw(source, Bytes(), 3, 0)) for source in (HashHop(queries=2), Babilong(length=0))]
      [3, 3]
    """
    if isinstance(source, HashHop):
        return source.questions(-(-count // source.queries), seed)[:count]
    if isinstance(source, Programs | CodeDependencies):
        return source.questions(count, seed)
    return source.questions(tokenizer, count, seed)
