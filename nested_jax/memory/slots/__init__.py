"""Levels of content-addressable slots that fade, each at its own pace."""

from nested_jax.memory.slots import theorems
from nested_jax.memory.slots.level import Event, Level, LevelState
from nested_jax.memory.slots.memory import SlotMemory, SlotState
from nested_jax.memory.slots.rows import Rows
from nested_jax.memory.slots.upkeep import Footprint, Kept, footprint, idle, important, merge, replay

__all__ = [
    "Event",
    "Footprint",
    "Kept",
    "Level",
    "LevelState",
    "Rows",
    "SlotMemory",
    "SlotState",
    "footprint",
    "idle",
    "important",
    "merge",
    "replay",
    "theorems",
]
