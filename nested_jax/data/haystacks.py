"""Haystacks: text to hide things in, its sentences, and the size that fits into a context."""

import json
import os
import pathlib
import re
from collections.abc import Callable

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"')\]”’])\s+|\n\s*\n\s*")


def read_background(background: str | os.PathLike[str] | None, expected: str) -> str:
    """The text of a file or of a folder, or a text given as it is.

    Args:
      background: a path, or a text: a string with a line break in it is a text, any other string is a path. A folder
        stands for all its files, hidden and binary ones left out, joined by line breaks in the order of their paths. A
        file `*.json` holds one object with the text under "text".
      expected: what to say where there is no text: which, from where, and how it is laid out.

    Raises:
      ValueError: if there is no background, no such file, or no text in it.

    Example:
      >>> read_background("One line.\\nAnother.", "")
      'One line.\\nAnother.'
    """
    if background is None:
        raise ValueError(f"background: expected {expected}; got None")
    if isinstance(background, str) and "\n" in background:
        return background
    root = pathlib.Path(background).expanduser()
    if not root.exists():
        raise ValueError(f"background: expected {expected}; no such file or folder: {root}")
    files = [root] if root.is_file() else sorted(path for path in root.rglob("*") if _visible(path, root))
    text = "\n".join(filter(None, map(_read, files)))
    if not text.strip():
        raise ValueError(f"background: expected {expected}; no text in {root} ({len(files)} files)")
    return text


def sentences(text: str) -> list[str]:
    """Sentences of a text: cut behind a full stop, question or exclamation mark, and at empty lines.

    RULER and BABILong use NLTK's punkt, which knows abbreviations; this is a regular expression, our choice.

    Example:
      >>> sentences('He said "No!" and left. Why?\\n\\nNobody knew')
      ['He said "No!"', 'and left.', 'Why?', 'Nobody knew']
    """
    return [found for part in _SENTENCE_END.split(text) if (found := " ".join(part.split()))]


def largest(fits: Callable[[int], bool], start: int = 1) -> int:
    """The largest size that fits, by doubling steps away from `start` and then halving.

    Args:
      fits: true up to some size, false above it.
      start: where to begin, at least 0; the nearer, the fewer calls.

    Returns:
      The size, -1 if not even 0 fits.

    Example:
      >>> largest(lambda size: size <= 1000, start=990)
      1000
    """
    step, low, high = 1, -1, start
    if fits(start):
        low = start
        while fits(high := low + step):
            low, step = high, 2 * step
    else:
        while high > 0 and low < 0:
            lower = max(high - step, 0)
            if fits(lower):
                low = lower
            else:
                high, step = lower, 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _visible(path: pathlib.Path, root: pathlib.Path) -> bool:
    return path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)


def _read(path: pathlib.Path) -> str:
    data = path.read_bytes()
    if path.suffix == ".json":
        try:
            return str(json.loads(data)["text"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'background: expected an object {{"text": ...}} in {path}: {error}') from error
    return "" if b"\0" in data else data.decode("utf-8", "replace")
