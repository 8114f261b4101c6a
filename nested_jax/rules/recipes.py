"""The named rules: each is a composition of parts, with the equations of the paper it comes from."""

from collections.abc import Sequence

import jax

from nested_jax.rules._compose import chain
from nested_jax.rules._parts import momentum as momentum_rule
from nested_jax.rules._parts import newton_schulz, retention, scale_by_learning_rate
from nested_jax.rules._rule import Rule

Gate = jax.typing.ArrayLike | None
Coefficients = str | Sequence[Sequence[float]]


def gradient_descent(learning_rate: Gate = None) -> Rule:
    return chain(scale_by_learning_rate(learning_rate))


def gated_gradient_descent(learning_rate: Gate = None, decay: Gate = None) -> Rule:
    return chain(scale_by_learning_rate(learning_rate), retention(decay))


def titans(learning_rate: Gate = None, momentum: Gate = None, decay: Gate = None) -> Rule:
    return chain(scale_by_learning_rate(learning_rate), momentum_rule(momentum), retention(decay))


def muon(
    learning_rate: Gate = None,
    momentum: Gate = None,
    *,
    nesterov: bool = False,
    coefficients: Coefficients = "muon",
    steps: int = 5,
) -> Rule:
    return chain(
        momentum_rule(momentum, nesterov=nesterov),
        newton_schulz(coefficients, steps),
        scale_by_learning_rate(learning_rate),
    )


def omega(learning_rate: Gate = None, momentum: Gate = None, decay: Gate = None) -> Rule:
    return chain(momentum_rule(momentum), scale_by_learning_rate(learning_rate), retention(decay))


def atlas(
    learning_rate: Gate = None,
    momentum: Gate = None,
    decay: Gate = None,
    *,
    coefficients: Coefficients = "muon",
    steps: int = 5,
) -> Rule:
    return chain(
        momentum_rule(momentum),
        newton_schulz(coefficients, steps),
        scale_by_learning_rate(learning_rate),
        retention(decay),
    )
