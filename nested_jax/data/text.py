"""Text as bytes: a file, a folder, or the Python standard library's own sources, split into train and validation."""

import dataclasses
import hashlib
import os
import pathlib
import platform
import sysconfig
from collections.abc import Iterator

import numpy as np

_STDLIB_SKIPPED = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test"} | {"encodings", "pydoc_data"}  # generated tables
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Which text to read and how it is cut.

    Attributes:
      path: A text file or a folder of them. None reads the `*.py` files of the running interpreter's standard library
        without installed packages, without its test suites (some distributions leave those out) and without
        `encodings` and `pydoc_data` (generated tables, a fifth of the rest).
      sequence_length: Tokens (bytes) that a model sees per row; a row holds one more, the last target.
      batch_size: Rows per batch, over all processes.
      validation_fraction: Share of the text held out, in (0, 1).
      seed: Seed of the batch order; the split does not depend on it.
      max_bytes: Read at most so many bytes in all; None reads everything. Of a folder this takes whole files (the
        last one cut) in the order of a hash of their paths, a fixed sample.
    """

    path: str | None = None
    sequence_length: int = 256
    batch_size: int = 16
    validation_fraction: float = 0.1
    seed: int = 0
    max_bytes: int | None = None

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


@dataclasses.dataclass(frozen=True)
class Text:
    """A corpus as bytes.

    Attributes:
      train: uint8 [N], the training files one after the other in the order of their paths.
      validation: uint8 [M], likewise.
      files: Number of files read.
      description: One line for people: where the text came from, how much, and how it was split.
    """

    train: np.ndarray
    validation: np.ndarray
    files: int
    description: str


def load_text(config: TextConfig) -> Text:
    """Read a corpus and split it into train and validation.

    Files of a folder are found by a sorted walk. Hidden files and folders, `__pycache__`, links to folders, empty
    files and binary files (those with a NUL byte) are left out; any other bytes, UTF-8 or not, are text. Bytes are
    kept as they are and files are joined without a separator.

    A file of a folder belongs to validation if the SHA-256 of its path relative to the folder (POSIX spelling), read
    as a fraction of 1, is below `validation_fraction`; so a file keeps its side when others come and go. A
    single file, or a folder whose files do not come out within a factor of two of `validation_fraction` that way (there
    are few, or one is huge), is split by position instead: the last `validation_fraction` of each file is validation.
    The description says which.

    Args:
      config: What to read; see `TextConfig`.

    Returns:
      The text, `train` with at least `batch_size * sequence_length + 1` bytes and `validation` with at least
      `sequence_length + 1`.

    Raises:
      ValueError: If the path does not exist, holds no text, has a file that cannot be read, or has too few bytes.
    """
    config.validate()
    if config.path is None:
        root, source = (
            pathlib.Path(sysconfig.get_path("stdlib")),
            f"Python {platform.python_version()} standard library",
        )
    else:
        source, root = config.path, pathlib.Path(config.path).expanduser()
    if not root.exists():
        raise ValueError(f"data.path: no such file or folder: {root}")
    names = [root.name] if root.is_file() else list(_walk(root, stdlib=config.path is None))
    files = _read(root, names, config.max_bytes)
    if not files:
        raise ValueError(
            f"data.path: no text in {root}: looked at {len(names)} files; hidden, empty and binary ones (with a NUL "
            "byte) are left out"
        )
    train, validation = _split_by_path(files, config.validation_fraction)
    how = "by file"
    share = len(validation) / (len(train) + len(validation)) / config.validation_fraction
    if root.is_file() or not 0.5 <= share <= 2 or not _enough(train, validation, config):
        train, validation = _split_by_position(files, config.validation_fraction)
        how = "by position within each file"
    if not _enough(train, validation, config):
        need = config.batch_size * config.sequence_length + 1
        raise ValueError(
            f"data: {root} has {len(train):,} training and {len(validation):,} validation bytes; batches of "
            f"{config.batch_size} rows of {config.sequence_length} + 1 bytes need at least {need:,} and "
            f"{config.sequence_length + 1:,}"
        )
    description = (
        f"{source}: {len(files):,} files, {len(train):,} bytes train, {len(validation):,} validation, split {how}"
    )
    return Text(train, validation, len(files), description)


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


def _read(root: pathlib.Path, names: list[str], max_bytes: int | None) -> dict[str, np.ndarray]:
    """The text files among `names`, by relative path in sorted order."""
    files, left = {}, max_bytes
    if max_bytes is not None:
        names = sorted(names, key=lambda name: _digest(name)[8:])
    for name in names:
        path = root if root.is_file() else root / name
        try:
            with path.open("rb") as file:
                data = file.read(-1 if left is None else left)
        except OSError as error:
            raise ValueError(f"data.path: cannot read {path}: {error.strerror}") from error
        if not data or b"\0" in data:
            continue
        files[name] = np.frombuffer(data, np.uint8)
        if left is not None:
            left -= len(files[name])
            if left == 0:
                break
    return dict(sorted(files.items()))


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()


def _split_by_path(files: dict[str, np.ndarray], fraction: float) -> tuple[np.ndarray, np.ndarray]:
    held_out = {name for name in files if int.from_bytes(_digest(name)[:8], "big") / 2**64 < fraction}
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
