"""Prepared data: a corpus tokenized once into files that are mapped into memory, by a preparation that may be killed.

A finished cache is a folder that never changes:

    index.json           what it was made from and how, counts, digests
    train.tokens         the documents one after the other, each with its end token; little-endian
    train.begins         int64 [documents + 1], where each begins
    validation.tokens, validation.begins

The token files are plain: a window or a packed row of any length begins at any token, so one cache serves all of them,
where a file of records would hold rows of one length. While it is prepared the folder is called `.partial`, and its
`progress.json` says how far the files are good.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np

from nested_jax.data.documents import Corpus, Document, read
from nested_jax.data.lock import locked
from nested_jax.data.pace import Pace, total
from nested_jax.data.packing import join
from nested_jax.data.tokenizers import Tokenizer, encode_each

FORMAT = 1
HALVES = ("train", "validation")
BLOCK = 1 << 23  # bytes of text between two savings of the progress


@dataclasses.dataclass(frozen=True)
class Half:
    """The training or the validation documents.

    Attributes:
      tokens: uint8, uint16 or uint32 [N], mapped from a file.
      begins: int64 [D + 1], where each document begins, and N; mapped likewise.
      bytes: of their text in UTF-8, end tokens left out.
      digest: SHA-256 of the documents' tokens, chained: the same for the same tokens.
    """

    tokens: np.ndarray
    begins: np.ndarray
    bytes: int
    digest: str


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A finished cache.

    Attributes:
      folder: where it is.
      train: the training documents.
      validation: the others.
      split: how they were told apart: "document" or "position".
      identity: what the cache was made from and how.
    """

    folder: pathlib.Path
    train: Half
    validation: Half
    split: str
    identity: dict[str, Any]


def prepare(
    corpus: Corpus,
    tokenizer: Tokenizer,
    cache: str | os.PathLike[str],
    *,
    validation_fraction: float,
    max_bytes: int | None = None,
    say: Callable[[str], None] = print,
) -> Prepared:
    """Tokenizes a corpus, or finds that it has been.

    A document belongs to validation if its `fraction` is below `validation_fraction`. If the bytes do not come out
    within a factor of two of it that way (there are few documents, or one is huge), all is done once more and the last
    `validation_fraction` of each document is validation: both parts then count as documents.

    Killed at any moment, it goes on from the last block of 8 MiB; the files come out the same. Several processes may
    ask for one cache: one prepares it, the others wait. A corpus any of whose files has another name, size or time gets
    a cache of its own, as do another tokenizer and other settings; old ones stay until they are deleted.

    Args:
      corpus: from `documents.find`.
      tokenizer: of all documents; numbers of up to 256 symbols are kept as uint8, up to 65,536 as uint16.
      cache: the folder of all caches; made if it is missing.
      validation_fraction: in (0, 1).
      max_bytes: stop after so many bytes of text, the last document cut; None takes everything.
      say: takes a line every few seconds: documents, tokens, MB of text per second, time left.

    Returns:
      The cache, opened.

    Raises:
      ValueError: if the corpus holds no text or cannot be read, or the cache is damaged.

    Example:
      >>> import tempfile
      >>> from nested_jax.data.documents import find
      >>> from nested_jax.data.tokenizers import Bytes
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = pathlib.Path(folder, "a.txt").write_text("hello")
      ...     found = prepare(find(f"{folder}/a.txt"), Bytes(), folder, validation_fraction=0.2, say=lambda line: None)
      ...     bytes(found.train.tokens), bytes(found.validation.tokens), found.split
      (b'hell', b'o', 'position')
    """
    identity = {
        "format": FORMAT,
        "kind": corpus.kind,
        "field": None if corpus.kind == "text" else corpus.field,
        "files": corpus.fingerprint(),
        "tokenizer": tokenizer.name,
        "end": tokenizer.end,
        "validation_fraction": validation_fraction,
        "max_bytes": max_bytes,
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    name = re.sub(r"[^\w.-]+", "-", f"{corpus.path.name}-{tokenizer.name}-{key}")
    folder = pathlib.Path(cache).expanduser() / name
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f"{name}.lock")
        with locked(lock, lambda: say(f"waiting for another process that prepares the same data ({lock})")):
            if not folder.exists():
                partial = folder.with_name(f"{name}.partial")
                _Preparation(partial, corpus, tokenizer, identity, say).run()
                partial.rename(folder)
                (folder / "progress.json").unlink(missing_ok=True)
                say(f"prepared in {folder}")
    return open_prepared(folder, identity)


def open_prepared(folder: str | os.PathLike[str], identity: dict[str, Any] | None = None) -> Prepared:
    """Opens a finished cache; nothing of it is read before it is used.

    Args:
      folder: of the cache.
      identity: what it should have been made from and how; None takes what there is.

    Raises:
      ValueError: if it is no cache, is damaged, or was made from something else.
    """
    folder = pathlib.Path(folder)
    try:
        index = json.loads((folder / "index.json").read_text())
        found, sizes = index["identity"], index["halves"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"data.cache: {folder} is no prepared data, delete it: {error}") from error
    if found["format"] != FORMAT or (identity is not None and found != identity):
        raise ValueError(f"data.cache: {folder} was made from {found}, expected {identity or {'format': FORMAT}}")
    halves = {}
    for name in HALVES:
        half = sizes[name]
        tokens = _mapped(folder / f"{name}.tokens", np.dtype(index["dtype"]), half["tokens"])
        begins = _mapped(folder / f"{name}.begins", np.dtype("<i8"), half["documents"] + 1)
        halves[name] = Half(tokens, begins, half["bytes"], half["digest"])
    return Prepared(folder, split=index["split"], identity=found, **halves)


class _Preparation:
    """The work on one folder, from its beginning or from where it was left."""

    def __init__(
        self,
        folder: pathlib.Path,
        corpus: Corpus,
        tokenizer: Tokenizer,
        identity: dict[str, Any],
        say: Callable[[str], None],
    ):
        self._folder, self._corpus, self._tokenizer = folder, corpus, tokenizer
        self._identity, self._say = identity, say
        sizes = {"u1": 1 << 8, "<u2": 1 << 16, "<u4": 1 << 32}
        self._dtype = np.dtype(next(name for name, size in sizes.items() if tokenizer.vocab_size <= size))
        self._progress: dict[str, Any] = {}

    def run(self) -> None:
        self._folder.mkdir(exist_ok=True)
        self._say(
            f"preparing {self._corpus.source}: {len(self._corpus.files):,} {self._corpus.kind} files, "
            f"{sum(self._corpus.files.values()) / 1e6:,.1f} MB, tokenizer {self._tokenizer.name}"
        )
        self._progress = self._saved() or self._begin("document")
        if self._progress["next"] != [0, 0]:
            self._say(f"going on after {total(self._progress, 'documents'):,} documents")
        self._write()
        if not self._balanced() and self._progress["split"] == "document":
            self._progress = self._begin("position")
            _replace(self._folder / "progress.json", self._progress)
            self._write()
        index = {name: self._progress[name] for name in ("identity", "split", "halves")}
        _replace(self._folder / "index.json", {**index, "dtype": self._dtype.str, "source": str(self._corpus.path)})

    def _saved(self) -> dict[str, Any] | None:
        path = self._folder / "progress.json"
        return json.loads(path.read_text()) if path.exists() else None

    def _begin(self, split: str) -> dict[str, Any]:
        empty = {"tokens": 0, "documents": 0, "bytes": 0, "digest": hashlib.sha256().hexdigest()}
        halves = {name: dict(empty) for name in HALVES}
        return {"identity": self._identity, "split": split, "next": [0, 0], "read": 0, "halves": halves}

    def _balanced(self) -> bool:
        train, validation = (self._progress["halves"][name]["bytes"] for name in HALVES)
        if train + validation == 0:
            raise ValueError(
                f"data.path: no text in {self._corpus.path}: looked at {len(self._corpus.files):,} {self._corpus.kind} "
                "files; empty documents and binary text files (with a NUL byte) are left out"
            )
        share = validation / (train + validation) / self._identity["validation_fraction"]
        return train > 0 and 0.5 <= share <= 2

    def _write(self) -> None:
        """Everything from the place where the progress stands."""
        fraction, split = self._identity["validation_fraction"], self._progress["split"]
        pace = Pace(self._say, sum(self._corpus.files.values()), self._identity["max_bytes"], self._progress)
        with contextlib.ExitStack() as stack:
            halves = {
                name: stack.enter_context(_Growing(self._folder / name, self._dtype, self._progress["halves"][name]))
                for name in HALVES
            }
            texts: dict[str, list[str]] = {name: [] for name in HALVES}
            size, last = 0, None
            for document in self._remaining():
                for name, text in _split(document, fraction, split):
                    texts[name].append(text)
                size, last = size + len(document.text), document
                if size >= BLOCK:
                    self._save(halves, texts, document)
                    pace.say(self._progress)
                    size, last = 0, None
            if last is not None:
                self._save(halves, texts, last)

    def _remaining(self) -> Iterator[Document]:
        file, record = self._progress["next"]
        documents = read(self._corpus, (file, record))
        limit = self._identity["max_bytes"]
        if limit is None:
            return documents
        return _limited(documents, limit - total(self._progress, "bytes"))

    def _save(self, halves: dict[str, "_Growing"], texts: dict[str, list[str]], last: Document) -> None:
        for name, half in halves.items():
            half.add(encode_each(self._tokenizer, texts[name]), self._tokenizer, sum(map(_bytes, texts[name])))
            texts[name].clear()
        file, record = last.place
        self._progress["next"], self._progress["read"] = [file, record + 1], last.read
        _replace(self._folder / "progress.json", self._progress)


class _Growing:
    """The two files of one half, cut to what is known to be good and then written on.

    Args:
      stem: their path without the suffix.
      dtype: of the tokens.
      state: the counts and the digest of what is good; kept up to date.
    """

    def __init__(self, stem: pathlib.Path, dtype: np.dtype, state: dict[str, Any]):
        self._stem, self._dtype, self._state = stem, dtype, state
        self._files = contextlib.ExitStack()

    def __enter__(self) -> "_Growing":
        with contextlib.ExitStack() as files:
            size, documents = self._state["tokens"] * self._dtype.itemsize, self._state["documents"]
            self._tokens = files.enter_context(_cut(self._stem.with_suffix(".tokens"), size))
            begins = _cut(self._stem.with_suffix(".begins"), (documents + 1) * 8 if documents else 0)
            self._begins = files.enter_context(begins)
            if not documents:
                self._begins.write(np.zeros(1, "<i8").tobytes())
            self._files = files.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def add(self, documents: list[np.ndarray], tokenizer: Tokenizer, size: int) -> None:
        tokens, begins = join(documents, tokenizer.end, self._dtype)
        highest = max((int(one.max()) for one in documents if len(one)), default=0)
        if highest >= tokenizer.vocab_size:
            raise ValueError(f"tokenizer: expected tokens below its vocab_size {tokenizer.vocab_size}, got {highest}")
        chain = bytes.fromhex(self._state["digest"])
        for begin, end in itertools.pairwise(begins.tolist()):
            chain = hashlib.sha256(chain + tokens[begin:end].tobytes()).digest()
        self._tokens.write(tokens.tobytes())
        self._begins.write((begins[1:] + self._state["tokens"]).astype("<i8").tobytes())
        for file in (self._tokens, self._begins):
            file.flush()
            os.fsync(file.fileno())
        self._state["tokens"] += len(tokens)
        self._state["documents"] += len(documents)
        self._state["bytes"] += size
        self._state["digest"] = chain.hex()


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogateescape"))


def _limited(documents: Iterator[Document], left: int) -> Iterator[Document]:
    """The documents with the first so many bytes of text, the last one cut."""
    for document in documents:
        if left <= 0:
            return
        data = document.text.encode("utf-8", "surrogateescape")
        yield document if len(data) <= left else document._replace(text=data[:left].decode("utf-8", "surrogateescape"))
        left -= len(data)


def _split(document: Document, fraction: float, split: str) -> list[tuple[str, str]]:
    """Which text of a document goes to which half; a cut by position falls between characters."""
    if split == "document":
        return [("validation" if document.fraction < fraction else "train", document.text)]
    data = document.text.encode("utf-8", "surrogateescape")
    cut = len(data) - round(len(data) * fraction)
    for _ in range(3):  # a character has at most three bytes after its first
        cut -= 0 < cut < len(data) and data[cut] & 0xC0 == 0x80
    parts = zip(HALVES, (data[:cut], data[cut:]), strict=True)
    return [(half, part.decode("utf-8", "surrogateescape")) for half, part in parts if part]


def _cut(path: pathlib.Path, size: int) -> BinaryIO:
    """A file open for writing on after its first bytes, the others cut off."""
    found = path.stat().st_size if path.exists() else 0
    if found < size:
        raise ValueError(f"data.cache: {path}: expected {size:,} bytes or more, got {found:,}: delete {path.parent}")
    file = path.open("r+b" if path.exists() else "w+b")
    file.truncate(size)
    file.seek(size)
    return file


def _mapped(path: pathlib.Path, dtype: np.dtype, count: int) -> np.ndarray:
    size = path.stat().st_size if path.exists() else None
    if size != count * dtype.itemsize:
        raise ValueError(
            f"data.cache: {path}: expected {count * dtype.itemsize:,} bytes, got {size}: delete {path.parent}"
        )
    return np.memmap(path, dtype, "r") if count else np.zeros(0, dtype)


def _replace(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file at once or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
