"""Update rules: what is done with a gradient, as optax transformations."""

from nested_jax.rules._adaptive import AverageState, DivideByRootState, accumulate, average, divide_by_root
from nested_jax.rules._compose import EveryState, RunningMeanState, add, chain, every, running_mean
from nested_jax.rules._deep import DeepMomentumState, deep_momentum, unit_rows
from nested_jax.rules._delta_descent import delta_gradient_descent
from nested_jax.rules._gates import gates, read_gate, reads_inputs, scale
from nested_jax.rules._lact import keep_norms, lact
from nested_jax.rules._mirror import (
    Map,
    MirrorState,
    mirror,
    proximal,
    q_norm_map,
    sigmoid_map,
    soft_threshold_map,
    softmax_map,
)
from nested_jax.rules._momenta import WindowState, delta_momentum, window
from nested_jax.rules._parts import MomentumState, momentum, newton_schulz, retention, scale_by_learning_rate
from nested_jax.rules._rule import Rule, describe_rule
from nested_jax.rules.miras import hope, memora, moneta, yaad
from nested_jax.rules.optimizers import adagrad, adam, hebbian_momentum, m3, preconditioned_momentum
from nested_jax.rules.recipes import atlas, gated_gradient_descent, gradient_descent, muon, omega, titans

__all__ = [
    "AverageState",
    "DeepMomentumState",
    "DivideByRootState",
    "EveryState",
    "Map",
    "MirrorState",
    "MomentumState",
    "Rule",
    "RunningMeanState",
    "WindowState",
    "accumulate",
    "adagrad",
    "adam",
    "add",
    "atlas",
    "average",
    "chain",
    "deep_momentum",
    "delta_gradient_descent",
    "delta_momentum",
    "describe_rule",
    "divide_by_root",
    "every",
    "gated_gradient_descent",
    "gates",
    "gradient_descent",
    "hebbian_momentum",
    "hope",
    "keep_norms",
    "lact",
    "m3",
    "memora",
    "mirror",
    "momentum",
    "moneta",
    "muon",
    "newton_schulz",
    "omega",
    "preconditioned_momentum",
    "proximal",
    "q_norm_map",
    "read_gate",
    "reads_inputs",
    "retention",
    "running_mean",
    "scale",
    "scale_by_learning_rate",
    "sigmoid_map",
    "soft_threshold_map",
    "softmax_map",
    "titans",
    "unit_rows",
    "window",
    "yaad",
]
