"""Flax (Linen) modules: thin shells that declare parameters and call pure functions."""

from nested_jax.models.attention import AttentionLayer, AttentionState
from nested_jax.models.autoencoder import AutoEncoder, AutoEncoderConfig, build
from nested_jax.models.block import Block, LevelsState
from nested_jax.models.config import AttentionConfig, LevelConfig, MemoryConfig, ModelConfig
from nested_jax.models.continuum_layer import ContinuumLayer
from nested_jax.models.families import FAMILIES, SIZES, Size, count, family
from nested_jax.models.forecaster import Forecaster, ForecasterConfig
from nested_jax.models.gates import Gate, gate_table
from nested_jax.models.language_model import LanguageModel, parameter_count, state_bytes
from nested_jax.models.layer_stack import in_stack, stack_layers, stack_states, unstack_layers, unstack_states
from nested_jax.models.level_layer import LevelLayer
from nested_jax.models.memory_layer import MemoryLayer, MemoryLayerState
from nested_jax.models.slot_layer import SlotLayer
from nested_jax.models.stacking import stack_levels
from nested_jax.models.state_file import load_state, save_state, saved_rows

__all__ = [
    "FAMILIES",
    "SIZES",
    "AttentionConfig",
    "AttentionLayer",
    "AttentionState",
    "AutoEncoder",
    "AutoEncoderConfig",
    "Block",
    "ContinuumLayer",
    "Forecaster",
    "ForecasterConfig",
    "Gate",
    "LanguageModel",
    "LevelConfig",
    "LevelLayer",
    "LevelsState",
    "MemoryConfig",
    "MemoryLayer",
    "MemoryLayerState",
    "ModelConfig",
    "Size",
    "SlotLayer",
    "build",
    "count",
    "family",
    "gate_table",
    "in_stack",
    "load_state",
    "parameter_count",
    "save_state",
    "saved_rows",
    "stack_layers",
    "stack_levels",
    "stack_states",
    "state_bytes",
    "unstack_layers",
    "unstack_states",
]
