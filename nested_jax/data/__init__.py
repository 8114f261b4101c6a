"""Data: text as bytes, in seeded resumable batches."""

from nested_jax.data.batches import BatchIterator, batches, validation_windows
from nested_jax.data.text import Text, TextConfig, load_text

__all__ = ["BatchIterator", "Text", "TextConfig", "batches", "load_text", "validation_windows"]
