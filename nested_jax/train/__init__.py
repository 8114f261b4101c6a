"""The training program: experiment configs, the loop, checkpoints, metrics and pictures."""

from nested_jax.train.experiment import Experiment, SampleConfig
from nested_jax.train.optimizer import Group, OptimizerConfig
from nested_jax.train.sharding import MeshConfig

__all__ = ["Experiment", "Group", "MeshConfig", "OptimizerConfig", "SampleConfig"]
