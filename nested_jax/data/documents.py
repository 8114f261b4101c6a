"""Documents: one after another out of text files, JSON lines and Parquet tables, in a fixed order, from any place."""

import dataclasses
import gzip
import hashlib
import importlib
import io
import json
import os
import pathlib
import platform
import re
import sysconfig
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

FORMATS = ("auto", "text", "jsonl", "parquet")

_PACKED = ("", ".gz", ".zst")
_JSON = tuple(f".json{packed}" for packed in _PACKED)
_SUFFIXES = {"jsonl": tuple(f".jsonl{packed}" for packed in _PACKED), "parquet": (".parquet",)}
_STDLIB_SKIPPED = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test"} | {"encodings", "pydoc_data"}  # generated tables
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_ROWS, _BUFFER = 256, 1 << 20  # of a Parquet table: rows decoded, bytes read at a time

LAYOUTS = """\
Text is read from
  a file, or a folder of files              each file is a document
  x.jsonl (.gz, .zst), or a folder of them  each line is a JSON object, its text in "text"
  x.parquet, or a folder of them            each row is a document, its text in the column "text"
For example tiny Shakespeare, one file of 1.1 MB:
  curl -LO https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt
or FineWeb-Edu, 10 billion tokens in 14 files of 2 GB:
  pip install 'nested_jax[parquet]' huggingface_hub
  hf download HuggingFaceFW/fineweb-edu --repo-type dataset --include 'sample/10BT/*' --local-dir fineweb-edu
and the path is fineweb-edu/sample/10BT, with 000_00000.parquet to 013_00000.parquet in it.
Another field or column is named by data.field, a format that the names do not show by data.format."""


class Document(NamedTuple):
    """One document of a corpus.

    Attributes:
      text: what it says, never empty; bytes that are no UTF-8 as surrogate escapes.
      place: number of its file and of its record (line or row, 0 in a text file), both from 0 in the corpus' order.
      read: bytes of the corpus' files read by the end of it, about.
      fraction: in [0, 1), from the SHA-256 of a text file's relative path or of a record's text: the document has the
        same one wherever it stands, and copies of a record have the same one.
    """

    text: str
    place: tuple[int, int]
    read: int
    fraction: float


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The files that hold a corpus.

    Attributes:
      path: the file, or the folder they are in.
      files: path relative to the folder (POSIX spelling) → bytes, in the order in which they are read.
      kind: "text", "jsonl" or "parquet".
      field: the field or column with the text; unused by text files.
      source: for people: the path as it was given, or which standard library.
    """

    path: pathlib.Path
    files: dict[str, int]
    kind: str
    field: str
    source: str

    def file(self, name: str) -> pathlib.Path:
        """Where one of `files` is."""
        return self.path / name if self.path.is_dir() else self.path

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with the name, size or modification time of any file."""
        lines = (f"{name}\0{size}\0{self.file(name).stat().st_mtime_ns}\n" for name, size in self.files.items())
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def find(path: str | None, *, field: str = "text", format: str = "auto", sample: bool = False) -> Corpus:
    """The files of a corpus and what they are.

    Files of a folder are found by a sorted walk that leaves out hidden files and folders, `__pycache__` and links to
    folders.

    Args:
      path: a file or a folder; None for the `*.py` files of the running interpreter's standard library.
      field: where JSON objects and Parquet tables have their text.
      format: "text", "jsonl" (of a folder also its `.json` files) or "parquet". "auto" goes by the names; of a folder
        with several kinds it takes the kind with the most bytes, so that neither a README beside tables nor a table
        among sources counts.
      sample: text files come in the order of a hash of their paths instead, so that any first part is a fair sample.

    Raises:
      ValueError: if there is no such file or folder, or no file of the format in it.
    """
    if format not in FORMATS:
        raise ValueError(f"data.format: expected one of {', '.join(FORMATS)}, got {format!r}")
    if path is None:
        source, root = f"Python {platform.python_version()} standard library", sysconfig.get_path("stdlib")
    else:
        source, root = path, path
    root = pathlib.Path(root).expanduser()
    if not root.exists():
        raise ValueError(f"data.path: no such file or folder: {root}\n{LAYOUTS}")
    alone = not root.is_dir()
    names = [root.name] if alone else list(_walk(root, stdlib=path is None))
    files = {name: (root if alone else root / name).stat().st_size for name in names}
    kind = format if format != "auto" else "text" if path is None else _kind(files)
    if kind != "text" and not alone:
        suffixes = _SUFFIXES[kind] + (_JSON if format == "jsonl" else ())
        files = {name: size for name, size in files.items() if name.lower().endswith(suffixes)}
        if not files:
            raise ValueError(
                f"data.path: no {kind} file ({', '.join(suffixes)}) among {len(names)} files in {root}\n{LAYOUTS}"
            )
    if sample and kind == "text":
        files = dict(sorted(files.items(), key=lambda item: digest(item[0])[8:]))
    return Corpus(root, files, kind, field, source)


def read(corpus: Corpus, start: tuple[int, int] = (0, 0)) -> Iterator[Document]:
    """The documents of a corpus in order; only a small part of a file is in memory at a time, unless it is a text file.

    Records without text (an empty one, null), empty text files and binary ones (with a NUL byte) are left out.

    Args:
      corpus: from `find`.
      start: the place to begin at: number of a file, and of a record in it.

    Raises:
      ValueError: if a file cannot be read, or a record has no such field or something else than text in it.
    """
    reader = {"text": _text, "jsonl": _jsonl, "parquet": _parquet}[corpus.kind]
    before = 0
    for number, (name, size) in enumerate(corpus.files.items()):
        if number >= start[0]:
            path = corpus.file(name)
            first = start[1] if number == start[0] else 0
            for record, text, part in reader(path, corpus.field, first):
                seed = name if corpus.kind == "text" else text
                yield Document(text, (number, record), before + round(part * size), fraction(seed))
        before += size


def documents(path: str | None, *, field: str = "text", format: str = "auto") -> Iterator[Document]:
    """The documents of a file or folder: `read(find(path, ...))`.

    Example:
      >>> import tempfile
      >>> with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
      ...     _ = file.write('{"text": "one"}\\n{"text": "two"}\\n')
      ...     file.flush()
      ...     [document.text for document in documents(file.name)]
      ['one', 'two']
    """
    return read(find(path, field=field, format=format))


def digest(name: str) -> bytes:
    """SHA-256 of a text, its surrogate escapes as the bytes they stand for."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()


def fraction(name: str) -> float:
    """The first 64 bits of `digest` as a fraction of 1."""
    return int.from_bytes(digest(name)[:8], "big") / 2**64


def pyarrow(module: str, path: pathlib.Path) -> Any:
    """A module of PyArrow.

    Raises:
      ValueError: if it is not installed; says what for.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"data.path: {path} needs PyArrow: pip install 'nested_jax[parquet]'") from error


def unreadable(path: pathlib.Path, error: Exception) -> ValueError:
    """The error for a file that cannot be read."""
    return ValueError(f"data.path: cannot read {path}: {getattr(error, 'strerror', None) or error}")


def _walk(root: pathlib.Path, *, stdlib: bool) -> Iterator[str]:
    """Relative POSIX paths of the visible regular files below `root`, in a fixed order."""

    def refuse(error: OSError) -> None:
        raise ValueError(f"data.path: cannot read folder {error.filename}: {error.strerror}") from error

    for folder, folders, names in os.walk(root, onerror=refuse):
        skipped = _STDLIB_SKIPPED if stdlib else frozenset()
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__pycache__" and f not in skipped)
        for name in sorted(names):
            path = pathlib.Path(folder, name)
            if not name.startswith(".") and path.is_file() and (not stdlib or path.suffix == ".py"):
                yield path.relative_to(root).as_posix()


def _kind(files: dict[str, int]) -> str:
    """The format with the most bytes, by the names."""
    sizes = Counter[str]()
    for name, size in files.items():
        kinds = [kind for kind, suffixes in _SUFFIXES.items() if name.lower().endswith(suffixes)]
        sizes[kinds[0] if kinds else "text"] += max(size, 1)
    return max(sizes, key=lambda kind: sizes[kind], default="text")


def _text(path: pathlib.Path, field: str, first: int) -> Iterator[tuple[int, str, float]]:
    try:
        data = path.read_bytes() if first == 0 else b""
    except OSError as error:
        raise unreadable(path, error) from error
    if data and b"\0" not in data:
        yield 0, data.decode("utf-8", "surrogateescape"), 1.0


def _jsonl(path: pathlib.Path, field: str, first: int) -> Iterator[tuple[int, str, float]]:
    try:
        with path.open("rb") as raw:
            size = max(path.stat().st_size, 1)
            for record, line in enumerate(_lines(raw, path)):
                if record >= first and line.strip():
                    text = _field(line, field, f"{path}, line {record + 1}")
                    if text:
                        yield record, text, raw.tell() / size
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error) from error


def _lines(raw: Any, path: pathlib.Path) -> Iterator[bytes]:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=raw)
    if suffix == ".zst":
        return io.BufferedReader(pyarrow("pyarrow", path).input_stream(raw, compression="zstd"))
    return raw


def _field(line: bytes, field: str, where: str) -> str | None:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"data.path: {where}: expected a JSON object on a line of its own: {error}") from error
    if not isinstance(record, dict) or field not in record:
        found = f"the fields {', '.join(record)}" if isinstance(record, dict) else f"a {type(record).__name__}"
        raise ValueError(f"data.field: {where}: expected an object with the field {field!r}, got {found}\n{LAYOUTS}")
    text = record[field]
    if text is not None and not isinstance(text, str):
        raise ValueError(f"data.field: {where}: expected text in {field!r}, got a {type(text).__name__}")
    return text and _SURROGATE.sub("\ufffd", text)


def _parquet(path: pathlib.Path, field: str, first: int) -> Iterator[tuple[int, str, float]]:
    arrow, parquet = pyarrow("pyarrow", path), pyarrow("pyarrow.parquet", path)
    try:
        with parquet.ParquetFile(path, buffer_size=_BUFFER) as file:
            _check_column(file.schema_arrow, field, path, arrow)
            total, record = max(file.metadata.num_rows, 1), 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if record + rows <= first:
                    record += rows
                    continue
                for batch in file.iter_batches(_ROWS, row_groups=[group], columns=[field], use_threads=False):
                    for data in batch.column(0).cast(arrow.large_binary()).to_pylist():
                        if record >= first and data:
                            yield record, data.decode("utf-8", "surrogateescape"), (record + 1) / total
                        record += 1
    except (OSError, arrow.ArrowException) as error:
        raise unreadable(path, error) from error


def _check_column(schema: Any, field: str, path: pathlib.Path, arrow: Any) -> None:
    if field not in schema.names:
        columns = ", ".join(f"{one.name} ({one.type})" for one in schema)
        raise ValueError(f"data.field: {path}: expected a column {field!r}, got the columns {columns}\n{LAYOUTS}")
    kind = schema.field(field).type
    if not (arrow.types.is_string(kind) or arrow.types.is_large_string(kind)):
        raise ValueError(f"data.field: {path}: expected text in the column {field!r}, got {kind}")
