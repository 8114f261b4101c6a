"""Tokenizers: text to token numbers and back."""

import hashlib
import importlib
import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

_SURROGATE = re.compile("[\ud800-\udfff]")
_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")

OBTAINED = """\
A tokenizer is "bytes", a tokenizer.json of Hugging Face or a folder with one. For example GPT-2's, 50,257 tokens:
  pip install 'nested_jax[tokenizers]' huggingface_hub
  hf download openai-community/gpt2 tokenizer.json tokenizer_config.json --local-dir gpt2
and the tokenizer is gpt2."""


class Tokenizer(Protocol):
    """What everything that reads or writes text asks of a tokenizer.

    Attributes:
      name: for people and for the identity of prepared data, e.g. "bytes".
      vocab_size: token numbers are below it.
      end: number of the token that ends a document, None if there is none.
    """

    name: str
    vocab_size: int
    end: int | None

    def encode(self, text: str) -> np.ndarray:
        """int32 [N]; nothing is added before or after the text."""
        ...

    def decode(self, tokens: np.ndarray) -> str:
        """The text of tokens [N]; what is no text comes back as replacement characters."""
        ...


class Bytes:
    """UTF-8: a token is a byte, and no token ends a document. A surrogate escape is the byte that it stands for.

    Example:
      >>> Bytes().encode("é").tolist(), Bytes().decode(np.array([104, 105]))
      ([195, 169], 'hi')
    """

    name = "bytes"
    vocab_size = 256
    end: int | None = None

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8).astype(np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        return bytes(np.asarray(tokens, np.uint8)).decode("utf-8", "replace")


class HuggingFace:
    """A tokenizer of the package `tokenizers`, from its `tokenizer.json`.

    Only text becomes tokens: what the file says of truncation, padding and tokens around a text is left aside, the
    spelling of a special token within a text is text, and bytes that are no UTF-8 are replacement characters. Decoding
    spells special tokens out.

    Args:
      path: the file, or a folder with a file of that name.
      end: spelling of the token that ends a document. None asks `tokenizer_config.json` beside the file for its
        `eos_token`; where that says nothing, it is the first of `<|endoftext|>`, `<|end_of_text|>`, `</s>` and `<eos>`
        that is a special token; where there is none, no token ends a document.

    Raises:
      ValueError: if there is no such file, it cannot be read, it has no such token, or the package is missing.
    """

    def __init__(self, path: str | os.PathLike[str], end: str | None = None):
        file = pathlib.Path(path).expanduser()
        file = file / "tokenizer.json" if file.is_dir() else file
        if not file.is_file():
            raise ValueError(f"tokenizer: no such file: {file}\n{OBTAINED}")
        data = file.read_bytes()
        self._tokenizer = _parse(data, file)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        numbers = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(numbers.values()) + 1
        end = _end(file, self._tokenizer) if end is None else end
        if end is not None and end not in numbers:
            raise ValueError(f"end: expected a token of {file}, which has {len(numbers):,}, got {end!r}")
        self.end: int | None = None if end is None else numbers[end]
        self.name = f"{file.parent.name or file.stem}-{hashlib.sha256(data).hexdigest()[:12]}"

    def encode(self, text: str) -> np.ndarray:
        return self.encode_each([text])[0]

    def encode_each(self, texts: Sequence[str]) -> list[np.ndarray]:
        """int32 [N] for each text, encoded on all cores."""
        found = self._tokenizer.encode_batch_fast(
            [_SURROGATE.sub("\ufffd", text) for text in texts], add_special_tokens=False
        )
        return [np.asarray(one.ids, np.int32) for one in found]

    def decode(self, tokens: np.ndarray) -> str:
        return self._tokenizer.decode(np.asarray(tokens).tolist(), skip_special_tokens=False)


def load(name_or_path: str | None, end: str | None = None) -> Tokenizer:
    """A tokenizer by name or file.

    Args:
      name_or_path: "bytes" (also None), or what `HuggingFace` takes.
      end: as for `HuggingFace`; bytes have no such token.

    Raises:
      ValueError: as `HuggingFace`, or if bytes are to have a token that ends a document.

    Example:
      >>> load("bytes").vocab_size
      256
    """
    if name_or_path is not None and name_or_path != Bytes.name:
        return HuggingFace(name_or_path, end)
    if end is not None:
        raise ValueError(f"end: expected None for bytes, of which none ends a document, got {end!r}")
    return Bytes()


def encode_each(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """`tokenizer.encode` of each text, on all cores where the tokenizer can.

    Example:
      >>> [tokens.tolist() for tokens in encode_each(Bytes(), ["a", "bc"])]
      [[97], [98, 99]]
    """
    if isinstance(tokenizer, HuggingFace):
        return tokenizer.encode_each(texts)
    return [tokenizer.encode(text) for text in texts]


def _parse(data: bytes, file: pathlib.Path) -> Any:
    try:
        tokenizers = importlib.import_module("tokenizers")
    except ImportError as error:
        raise ValueError(f"tokenizer: {file} needs the package: pip install 'nested_jax[tokenizers]'") from error
    try:
        return tokenizers.Tokenizer.from_buffer(data)
    except Exception as error:  # the package raises nothing narrower
        raise ValueError(f"tokenizer: {file} is no tokenizer.json: {error}") from error


def _end(file: pathlib.Path, tokenizer: Any) -> str | None:
    config = file.with_name("tokenizer_config.json")
    if config.is_file():
        found = json.loads(config.read_text("utf-8")).get("eos_token")
        found = found.get("content") if isinstance(found, dict) else found
        if found:
            return found
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    return next((name for name in _ENDS if name in special), None)
