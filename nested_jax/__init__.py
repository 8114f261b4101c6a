"""Nested Learning and test-time memory in JAX: optimizers and in-context memories share one type."""

import importlib

from nested_jax import memory, rules, scan
from nested_jax.memory import Memory, MemoryState, explain, features, networks, objectives, surprise
from nested_jax.rules import chain, gates

__all__ = [
    "Memory",
    "MemoryState",
    "chain",
    "explain",
    "features",
    "gates",
    "memory",
    "models",
    "networks",
    "objectives",
    "rules",
    "scan",
    "surprise",
]


def __getattr__(name: str):
    """Loads `nested_jax.models` on first use, so that rules and memories need no Flax."""
    if name == "models":
        return importlib.import_module("nested_jax.models")
    raise AttributeError(f"module 'nested_jax' has no attribute {name!r}")
