"""Tokenizers: text to token numbers and back."""

from typing import Protocol

import numpy as np


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
    """UTF-8: a token is a byte, and no token ends a document.

    Example:
      >>> Bytes().encode("é").tolist(), Bytes().decode(np.array([104, 105]))
      ([195, 169], 'hi')
    """

    name = "bytes"
    vocab_size = 256
    end: int | None = None

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        return bytes(np.asarray(tokens, np.uint8)).decode("utf-8", "replace")
