"""Memories: network × objective × rule over a sequence."""

from nested_jax.memory import features, networks, objectives, slots
from nested_jax.memory.any_memory import AnyMemory
from nested_jax.memory.caching import Cached, CachedState
from nested_jax.memory.continuum import Continuum, ContinuumState
from nested_jax.memory.explain import explain
from nested_jax.memory.memory import Memory
from nested_jax.memory.self_modifying import SelfModifying, SelfModifyingState
from nested_jax.memory.surprise import surprise
from nested_jax.memory.tnt import TNT, TNTState
from nested_jax.scan.state import MemoryState

__all__ = [
    "TNT",
    "AnyMemory",
    "Cached",
    "CachedState",
    "Continuum",
    "ContinuumState",
    "Memory",
    "MemoryState",
    "SelfModifying",
    "SelfModifyingState",
    "TNTState",
    "explain",
    "features",
    "networks",
    "objectives",
    "slots",
    "surprise",
]
