"""Text: files, JSON lines, Parquet tables or the standard library's own sources as tokens, to train and to validate."""

import dataclasses
import os
import pathlib
from collections.abc import Callable

import numpy as np

from nested_jax.data.documents import FORMATS, Corpus, find, fraction, unreadable
from nested_jax.data.prepared import prepare
from nested_jax.data.tokenizers import Bytes, Tokenizer, load


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Which text to read and how it is cut.

    Attributes:
      path: A file or a folder of them: text, JSON lines or Parquet. None reads the `*.py` files of the running
        interpreter's standard library without installed packages, without its test suites (some distributions leave
        those out) and without `encodings` and `pydoc_data` (generated tables, a fifth of the rest).
      sequence_length: Tokens that a model sees per row; a row holds one more, the last target.
      batch_size: Rows per batch, over all processes.
      validation_fraction: Share of the text held out, in (0, 1).
      seed: Seed of the batch order; the split does not depend on it.
      max_bytes: Read at most so many bytes of text in all; None reads everything. Of a folder of text files this takes
        whole files (the last one cut) in the order of a hash of their paths, a fixed sample; of JSON lines and Parquet
        the first documents.
      format: "text", "jsonl" or "parquet"; "auto" goes by the names of the files, see `documents.find`.
      field: The field of a JSON object, or the column of a Parquet table, that holds the text.
      tokenizer: None for bytes, else a `tokenizer.json` of Hugging Face or a folder with one.
      end_token: The tokenizer's token that ends a document, if it is not the one that `HuggingFace` finds.
      packed: Documents begin on the model's chunk grid, where its memories are reset, and what is between them counts
        for nothing. False joins them, each with its end token, and rows are windows of that.
      cache: Folder for tokens that are kept on disk (all text but plain files as bytes). None is `nested_jax` in
        `$XDG_CACHE_HOME` or `~/.cache`.
    """

    path: str | None = None
    sequence_length: int = 256
    batch_size: int = 16
    validation_fraction: float = 0.1
    seed: int = 0
    max_bytes: int | None = None
    format: str = "auto"
    field: str = "text"
    tokenizer: str | None = None
    end_token: str | None = None
    packed: bool = False
    cache: str | None = None

    def validate(self) -> None:
        """Raise `ValueError` if a field is out of range."""
        for name in ("sequence_length", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction: expected a number in (0, 1), got {self.validation_fraction}")
        if self.seed < 0:
            raise ValueError(f"seed: expected 0 or more, got {self.seed}")
        if self.max_bytes is not None and self.max_bytes < 1:
            raise ValueError(f"max_bytes: expected None or at least 1, got {self.max_bytes}")
        for name in ("path", "cache"):
            check_path(name, getattr(self, name))
        if self.format not in FORMATS:
            raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {self.format!r}")
        if self.end_token is not None and self.tokenizer in (None, Bytes.name):
            raise ValueError(
                f"end_token: expected None for bytes, none of which ends a document, got {self.end_token!r}"
            )

    def encoder(self) -> Tokenizer:
        """The tokenizer that `tokenizer` names."""
        return load(self.tokenizer, self.end_token)

    def read(self, say: Callable[[str], None] = print) -> "Text":
        """The text, as `load_text` reads it."""
        return load_text(self, say=say)


def check_path(name: str, path: str | os.PathLike[str] | None) -> None:
    """Raises a `ValueError` for the address of a bucket: all files are read and written as files.

    Example:
      >>> check_path("workdir", "gs://mine/runs")
      Traceback (most recent call last):
      ValueError: workdir: expected a folder or file, got 'gs://mine/runs'; mount the bucket and give the path there
    """
    if path is not None and "://" in os.fspath(path):
        raise ValueError(
            f"{name}: expected a folder or file, got {os.fspath(path)!r}; mount the bucket and give the path there"
        )


@dataclasses.dataclass(frozen=True)
class Text:
    """A corpus as tokens.

    Attributes:
      train: uint8, uint16 or uint32 [N], the training documents one after the other; may be mapped from a file.
      validation: [M], likewise.
      files: Number of files read.
      description: One line for people: where the text came from, how much, and how it was split.
      tokenizer: Whose tokens they are.
      bytes_per_token: Bytes of the validation text per token of it, end tokens counted: bits per byte are bits per
        token divided by this. 1 for bytes.
      train_begins: int64 [D + 1], where each training document begins, and N; None for plain files as bytes.
      validation_begins: The same of the validation documents.
      digest: 16 hexadecimal digits, the same for the same training tokens; None for plain files as bytes.
    """

    train: np.ndarray
    validation: np.ndarray
    files: int
    description: str
    tokenizer: Tokenizer = dataclasses.field(default_factory=Bytes)
    bytes_per_token: float = 1.0
    train_begins: np.ndarray | None = None
    validation_begins: np.ndarray | None = None
    digest: str | None = None


def load_text(config: TextConfig, *, say: Callable[[str], None] = print) -> Text:
    """Read a corpus and split it into train and validation.

    Files of a folder are found by a sorted walk. Hidden files and folders, `__pycache__`, links to folders, empty
    files and binary files (those with a NUL byte) are left out; any other bytes, UTF-8 or not, are text.

    Plain text files as bytes, unpacked, are read into memory, bytes kept as they are and files joined without a
    separator. Everything else is tokenized once into a cache on disk and mapped from there: see `prepared.prepare`.

    A file of a folder belongs to validation if the SHA-256 of its path relative to the folder (POSIX spelling), read
    as a fraction of 1, is below `validation_fraction`; so a file keeps its side when others come and go. For JSON
    lines and Parquet it is the SHA-256 of the document's text, so that copies are on one side. A single text file, or a
    corpus that does not come out within a factor of two of `validation_fraction` that way (there are few documents, or
    one is huge), is split by position instead: the last `validation_fraction` of each file or document is validation.
    The description says which.

    Args:
      config: What to read; see `TextConfig`.
      say: Takes the lines on how a preparation goes.

    Returns:
      The text, `train` with at least `batch_size * sequence_length + 1` tokens and `validation` with at least
      `sequence_length + 1`.

    Raises:
      ValueError: If the path does not exist, holds no text, has a file that cannot be read, or has too few tokens; if
        a field, a column, a tokenizer or a package is missing.
    """
    config.validate()
    tokenizer = config.encoder()
    sample = config.max_bytes is not None
    corpus = find(config.path, field=config.field, format=config.format, sample=sample)
    plain = corpus.kind == "text" and isinstance(tokenizer, Bytes) and not config.packed
    text = _in_memory(corpus, config) if plain else _from_cache(corpus, tokenizer, config, say)
    if not _enough(text.train, text.validation, config):
        unit = "bytes" if isinstance(tokenizer, Bytes) else "tokens"
        need = config.batch_size * config.sequence_length + 1
        raise ValueError(
            f"data: {corpus.path} has {len(text.train):,} training and {len(text.validation):,} validation {unit}; "
            f"batches of {config.batch_size} rows of {config.sequence_length} + 1 {unit} need at least {need:,} and "
            f"{config.sequence_length + 1:,}"
        )
    return text


def _from_cache(corpus: Corpus, tokenizer: Tokenizer, config: TextConfig, say: Callable[[str], None]) -> Text:
    caches = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "nested_jax")
    found = prepare(
        corpus,
        tokenizer,
        caches if config.cache is None else config.cache,
        validation_fraction=config.validation_fraction,
        max_bytes=config.max_bytes,
        say=say,
    )
    train, validation = found.train, found.validation
    bytes_per_token = validation.bytes / max(len(validation.tokens), 1)
    how = "document" if found.split == "document" else "position within each document"
    description = (
        f"{corpus.source}: {len(corpus.files):,} {corpus.kind} files, tokenizer {tokenizer.name}; train "
        f"{len(train.begins) - 1:,} documents, {len(train.tokens):,} tokens, {train.bytes:,} bytes; validation "
        f"{len(validation.begins) - 1:,}, {len(validation.tokens):,}, {validation.bytes:,}; split by {how}; "
        f"in {found.folder}"
    )
    return Text(
        train.tokens,
        validation.tokens,
        len(corpus.files),
        description,
        tokenizer,
        bytes_per_token,
        train.begins,
        validation.begins,
        train.digest[:16],
    )


def _in_memory(corpus: Corpus, config: TextConfig) -> Text:
    files = _read(corpus, config.max_bytes)
    if not files:
        raise ValueError(
            f"data.path: no text in {corpus.path}: looked at {len(corpus.files)} files; hidden, empty and binary ones "
            "(with a NUL byte) are left out"
        )
    train, validation = _split_by_path(files, config.validation_fraction)
    how = "by file"
    share = len(validation) / (len(train) + len(validation)) / config.validation_fraction
    if corpus.path.is_file() or not 0.5 <= share <= 2 or not _enough(train, validation, config):
        train, validation = _split_by_position(files, config.validation_fraction)
        how = "by position within each file"
    description = (
        f"{corpus.source}: {len(files):,} files, {len(train):,} bytes train, {len(validation):,} validation, "
        f"split {how}"
    )
    return Text(train, validation, len(files), description)


def _read(corpus: Corpus, max_bytes: int | None) -> dict[str, np.ndarray]:
    """The text files, by relative path in sorted order."""
    files, left = {}, max_bytes
    for name in corpus.files:
        path = corpus.file(name)
        try:
            with path.open("rb") as file:
                data = file.read(-1 if left is None else left)
        except OSError as error:
            raise unreadable(path, error) from error
        if not data or b"\0" in data:
            continue
        files[name] = np.frombuffer(data, np.uint8)
        if left is not None:
            left -= len(files[name])
            if left == 0:
                break
    return dict(sorted(files.items()))


def _split_by_path(files: dict[str, np.ndarray], share: float) -> tuple[np.ndarray, np.ndarray]:
    held_out = {name for name in files if fraction(name) < share}
    return (
        _join([data for name, data in files.items() if name not in held_out]),
        _join([data for name, data in files.items() if name in held_out]),
    )


def _split_by_position(files: dict[str, np.ndarray], fraction: float) -> tuple[np.ndarray, np.ndarray]:
    cuts = {name: len(data) - round(len(data) * fraction) for name, data in files.items()}
    return (
        _join([data[: cuts[name]] for name, data in files.items()]),
        _join([data[cuts[name] :] for name, data in files.items()]),
    )


def _join(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, np.uint8)


def _enough(train: np.ndarray, validation: np.ndarray, config: TextConfig) -> bool:
    length = config.sequence_length
    return len(train) >= config.batch_size * length + 1 and len(validation) >= length + 1
