"""DNA: FASTA files base by base as text for a language model, and GenomicsBenchmarks, to say what a sequence is."""

import dataclasses
import functools
import gzip
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from nested_jax.data.examples import Examples, examples
from nested_jax.data.text import Text, TextConfig
from nested_jax.data.tokenizers import Tokenizer

BASES = "ACGTN"
UNKNOWN = "RYSWKMBDHVUN"  # IUPAC codes of several bases; U is in no DNA
GAP = 100
_CODES = np.full(256, 255, np.uint8)
for _letter in BASES[:4] + UNKNOWN:
    _CODES[[ord(_letter), ord(_letter.lower())]] = BASES.find(_letter) if _letter in BASES else BASES.index("N")

FASTA = """\
A FASTA file (.gz, too) has a line `>NAME` before the lines of each sequence:
  >chr1
  TAACCCTAACCCTAACCCTAACCCTAACCC
The human genome, 3.1 billion bases:
  curl -O https://hgdownload.soe.ucsc.edu/goldenPath/hg38/bigZips/hg38.fa.gz"""

BENCHMARK = """\
A dataset of GenomicsBenchmarks is a folder with a file for each sequence, in folders for each class:
  human_enhancers_cohn/train/positive/0.txt, human_enhancers_cohn/train/negative/0.txt, ...
  human_enhancers_cohn/test/positive/0.txt, ...
To get it, into ~/.genomic_benchmarks:
  pip install genomic-benchmarks
  python -c "from genomic_benchmarks.loc2seq import download_dataset; download_dataset('human_enhancers_cohn')"
and data.task.path is that folder, or the one that it is in."""


class Bases:
    """A token is a base, in either case: A, C, G, T, and N for what is not known; no token ends a document.

    Example:
      >>> Bases().encode("gaTRn").tolist(), Bases().decode(np.array([2, 0, 3, 4]))
      ([2, 0, 3, 4, 4], 'GATN')
    """

    name = "bases"
    vocab_size = len(BASES)
    end: int | None = None

    def encode(self, text: str) -> np.ndarray:
        return _encode(text.encode(), "text").astype(np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        return "".join(BASES[token] if token < len(BASES) else "?" for token in np.asarray(tokens))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FastaConfig(TextConfig):
    """A FASTA file as text of which a token is a base; a base is also a byte, so bits per byte are bits per base.

    Stretches of 100 or more unknown bases, the gaps of an assembly, are left out (our choice). The last
    `validation_fraction` of every sequence is validation.

    Attributes:
      path: the file.
      max_bytes: bases read at most; None reads everything.
      tokenizer: always "bases".
    """

    tokenizer: str | None = Bases.name

    def validate(self) -> None:
        """Raise `ValueError` if a field is out of range."""
        super().validate()
        for name, only in (("format", "auto"), ("tokenizer", Bases.name), ("packed", False)):
            if getattr(self, name) != only:
                raise ValueError(f"{name}: expected {only!r} for bases, got {getattr(self, name)!r}")

    def encoder(self) -> Tokenizer:
        """The bases."""
        return Bases()

    def read(self, say: Callable[[str], None] = print) -> Text:
        """The text, as `load_fasta` reads it."""
        return load_fasta(self, say=say)


def load_fasta(config: FastaConfig, *, say: Callable[[str], None] = print) -> Text:
    """Read a FASTA file and split it into train and validation.

    Args:
      config: What to read.
      say: Takes the line on how that goes.

    Returns:
      The bases, uint8, one sequence after the other.

    Raises:
      ValueError: If there is no such file, it is no FASTA, or has too few bases.
    """
    config.validate()
    if config.path is None or not pathlib.Path(config.path).expanduser().is_file():
        raise ValueError(f"data.path: expected a FASTA file, got {config.path!r}\n{FASTA}")
    path, left = pathlib.Path(config.path).expanduser(), config.max_bytes
    say(f"reading {path}")
    train: list[np.ndarray] = []
    validation: list[np.ndarray] = []
    for name, data in _records(path):
        bases = _without_gaps(_encode(data, f"{path}, sequence {name!r}"))[:left]
        cut = len(bases) - round(len(bases) * config.validation_fraction)
        train.append(bases[:cut])
        validation.append(bases[cut:])
        if left is not None:
            left -= len(bases)
            if left == 0:
                break
    sizes, length = [sum(map(len, parts)) for parts in (train, validation)], config.sequence_length
    if sizes[0] < config.batch_size * length + 1 or sizes[1] < length + 1:
        raise ValueError(
            f"data: {path} has {sizes[0]:,} training and {sizes[1]:,} validation bases; batches of {config.batch_size} "
            f"rows of {length} + 1 need at least {config.batch_size * length + 1:,} and {length + 1:,}"
        )
    description = (
        f"{path}: {len(train):,} sequences, {sizes[0]:,} bases train, {sizes[1]:,} validation, split by position "
        "within each sequence"
    )
    return Text(np.concatenate(train), np.concatenate(validation), 1, description, Bases())


class _Sequences(NamedTuple):
    """Sequences cut to one length: uint8 [N, length] with zeros behind the end, int64 [N] lengths and classes."""

    bases: np.ndarray
    lengths: np.ndarray
    classes: np.ndarray

    def asked(self, rows: np.ndarray) -> Examples:
        """What each of some sequences is, asked for at its last base."""
        inputs, scored = self.bases[rows], np.zeros((len(rows), self.bases.shape[1]), bool)
        scored[np.arange(len(rows)), self.lengths[rows] - 1] = True
        return examples(inputs, np.where(scored, len(BASES) + self.classes[rows][:, None], 0), scored)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenomicsBenchmark:
    """A dataset of GenomicsBenchmarks (Grešová et al. 2023): at the last base of a sequence, its class is the answer.

    Symbols are the five of `Bases`, then one for each class, in the order of their folders' names. Validation is a
    seeded sample of the training sequences, which are not trained on (our choice: the source has none).

    Attributes:
      dataset: name of its folder.
      path: that folder, or the one that it is in.
      classes: number of classes.
      length: bases that are read of a sequence; the rest of a longer one is left out.
      validation_fraction: share of the training sequences that is validation, in (0, 1).
    """

    dataset: str = "human_enhancers_cohn"
    path: str | None = None
    classes: int = 2
    length: int = 500
    validation_fraction: float = 0.1

    def __post_init__(self) -> None:
        for name, least in (("classes", 2), ("length", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction: expected a number in (0, 1), got {self.validation_fraction}")

    @property
    def vocab_size(self) -> int:
        """Five bases and the classes."""
        return len(BASES) + self.classes

    def train(self, seed: int) -> Examples:
        """The training sequences but those of validation; the same for every seed.

        Raises:
          ValueError: if they are not there or are no DNA.
        """
        del seed
        return self._read("train").asked(self._order()[self._held_out :])

    def tests(self) -> dict[str, Examples]:
        """`validation` and `test`.

        Raises:
          ValueError: if they are not there or are no DNA.
        """
        test = self._read("test")
        return {
            "validation": self._read("train").asked(self._order()[: self._held_out]),
            "test": test.asked(np.arange(len(test.bases))),
        }

    @property
    def _held_out(self) -> int:
        return max(round(len(self._read("train").bases) * self.validation_fraction), 1)

    def _order(self) -> np.ndarray:
        return np.random.default_rng(0).permutation(len(self._read("train").bases))

    def _read(self, part: str) -> _Sequences:
        if self.path is None:
            raise ValueError(f"data.task.path: expected the folder of {self.dataset}, got None\n{BENCHMARK}")
        path = pathlib.Path(self.path).expanduser()
        folder = next((one / part for one in (path / self.dataset, path) if (one / part).is_dir()), None)
        if folder is None:
            raise ValueError(f"data.task.path: no {part} sequences of {self.dataset} in {path}\n{BENCHMARK}")
        return _sequences(folder, self.classes, self.length)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Motif:
    """Random DNA, for tests only: at the last base, whether TATA is in it; it is put into every other sequence.

    Attributes:
      length: bases per sequence.
      train_examples: sequences to train on.
      test_examples: sequences of each test.

    Example:
      >>> found = Motif(length=8, train_examples=2).train(0)
      >>> [Bases().decode(row) for row in found.inputs], found.targets[:, -1].tolist()
      (['TGGTATAA', 'ATGTGGTG'], [6, 5])
    """

    length: int = 24
    train_examples: int = 64
    test_examples: int = 32
    vocab_size: int = len(BASES) + 2

    def train(self, seed: int) -> Examples:
        """The training set, [train_examples, length]."""
        return self._draw([0, seed], self.train_examples)

    def tests(self) -> dict[str, Examples]:
        """`validation` and `test`, drawn like the training set."""
        return {"validation": self._draw([1, 0], self.test_examples), "test": self._draw([2, 0], self.test_examples)}

    def _draw(self, seed: list[int], count: int) -> Examples:
        rng, motif = np.random.default_rng(seed), Bases().encode("TATA")
        bases = rng.integers(0, 4, (count, self.length))
        places = rng.integers(0, self.length - len(motif) + 1, count)
        for row in range(0, count, 2):
            bases[row, places[row] : places[row] + len(motif)] = motif
        has = (np.lib.stride_tricks.sliding_window_view(bases, len(motif), axis=1) == motif).all(axis=2).any(axis=1)
        lengths = np.full(count, self.length)
        return _Sequences(bases, lengths, has.astype(np.int64)).asked(np.arange(count))


def _encode(data: bytes, source: str) -> np.ndarray:
    codes = _CODES[np.frombuffer(data, np.uint8)]
    if (codes == 255).any():
        place = int(np.argmax(codes == 255))
        raise ValueError(f"{source}: expected bases, one of {BASES[:4]}{UNKNOWN}, got {data[place : place + 1]!r}")
    return codes


def _without_gaps(codes: np.ndarray) -> np.ndarray:
    """Bases without stretches of `GAP` or more unknown ones."""
    unknown = np.concatenate([[False], codes == BASES.index("N"), [False]])
    begins, ends = np.flatnonzero(np.diff(unknown.astype(np.int8))).reshape(-1, 2).T
    kept = np.ones(len(codes), bool)
    for begin, end in zip(begins, ends, strict=True):
        if end - begin >= GAP:
            kept[begin:end] = False
    return codes[kept]


def _records(path: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    """Name and letters of each sequence."""
    name, lines = None, []
    try:
        with _open(path) as file:
            for line in file:
                if not line.startswith(b">"):
                    if name is None and line.strip():
                        raise ValueError(f"data.path: {path} begins with {line[:20]!r}, not with >\n{FASTA}")
                    lines.append(line.strip())
                    continue
                if name is not None:
                    yield name, b"".join(lines)
                name, lines = line[1:].split(maxsplit=1)[0].decode("utf-8", "replace") if line[1:].strip() else "", []
    except (OSError, EOFError) as error:
        raise ValueError(f"data.path: {path} cannot be read: {error}") from error
    if name is not None:
        yield name, b"".join(lines)


def _open(path: pathlib.Path) -> Any:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


@functools.lru_cache(maxsize=2)
def _sequences(folder: pathlib.Path, classes: int, length: int) -> _Sequences:
    names = sorted(one.name for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))
    if len(names) != classes:
        raise ValueError(f"data.task.path: expected {classes} folders of classes in {folder}, got {names}\n{BENCHMARK}")
    files = [
        (number, file)
        for number, name in enumerate(names)
        for file in sorted((folder / name).glob("*.txt"), key=_number)
    ]
    found = _Sequences(*(np.zeros((len(files), *shape), np.int64) for shape in ((), (), ())))
    found = found._replace(bases=np.zeros((len(files), length), np.uint8))
    for row, (number, file) in enumerate(files):
        codes = _encode(b"".join(file.read_bytes().split()), str(file))[:length]
        if not len(codes):
            raise ValueError(f"data.task.path: expected a sequence in {file}, got an empty one")
        found.bases[row, : len(codes)] = codes
        found.lengths[row], found.classes[row] = len(codes), number
    missing = set(range(classes)) - set(found.classes.tolist())
    if missing or not files:
        raise ValueError(
            f"data.task.path: no *.txt in {[str(folder / names[place]) for place in missing]}\n{BENCHMARK}"
        )
    return found


def _number(file: pathlib.Path) -> tuple[int, str]:
    digits = re.match(r"\d+", file.name)
    return (int(digits[0]) if digits else -1, file.name)
