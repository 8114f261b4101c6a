"""Memories: network × objective × rule over a sequence."""

from nested_jax.memory import features, networks, objectives
from nested_jax.memory.continuum import Continuum, ContinuumState
from nested_jax.memory.memory import Memory, explain
from nested_jax.memory.self_modifying import SelfModifying, SelfModifyingState
from nested_jax.memory.surprise import surprise
from nested_jax.scan.state import MemoryState

__all__ = [
    "Continuum",
    "ContinuumState",
    "Memory",
    "MemoryState",
    "SelfModifying",
    "SelfModifyingState",
    "explain",
    "features",
    "networks",
    "objectives",
    "surprise",
]
