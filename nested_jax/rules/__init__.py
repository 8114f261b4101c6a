"""Update rules: what is done with a gradient, as optax transformations."""

from nested_jax.rules._compose import EveryState, add, chain, every
from nested_jax.rules._gates import gates, read_gate, scale
from nested_jax.rules._parts import MomentumState, momentum, newton_schulz, retention, scale_by_learning_rate
from nested_jax.rules._rule import Rule, describe_rule
from nested_jax.rules.recipes import atlas, gated_gradient_descent, gradient_descent, muon, omega, titans

__all__ = [
    "EveryState",
    "MomentumState",
    "Rule",
    "add",
    "atlas",
    "chain",
    "describe_rule",
    "every",
    "gated_gradient_descent",
    "gates",
    "gradient_descent",
    "momentum",
    "muon",
    "newton_schulz",
    "omega",
    "read_gate",
    "retention",
    "scale",
    "scale_by_learning_rate",
    "titans",
]
