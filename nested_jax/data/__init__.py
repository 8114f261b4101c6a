"""Data: text as bytes, tokens or bases, tasks as examples, and series of numbers, in seeded resumable batches."""

from nested_jax.data.batches import BatchIterator, batches, example_batches, packed_batches
from nested_jax.data.dna import FastaConfig, load_fasta
from nested_jax.data.examples import Examples, Task, TaskConfig, examples
from nested_jax.data.packing import PackedRows
from nested_jax.data.prepared import prepare
from nested_jax.data.series import SeriesConfig, load_series, series_batches
from nested_jax.data.text import Text, TextConfig, load_text
from nested_jax.data.tokenizers import Bytes, HuggingFace, Tokenizer
from nested_jax.data.windows import Windows, validation_windows

__all__ = [
    "BatchIterator",
    "Bytes",
    "Examples",
    "FastaConfig",
    "HuggingFace",
    "PackedRows",
    "SeriesConfig",
    "Task",
    "TaskConfig",
    "Text",
    "TextConfig",
    "Tokenizer",
    "Windows",
    "batches",
    "example_batches",
    "examples",
    "load_fasta",
    "load_series",
    "load_text",
    "packed_batches",
    "prepare",
    "series_batches",
    "validation_windows",
]
