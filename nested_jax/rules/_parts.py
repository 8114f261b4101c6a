"""The parts that rules are made of: learning rate, momentum (Titans 10, 14), retention (Titans 13), Newton-Schulz."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nested_jax import kernels
from nested_jax.kernels.newton_schulz import polynomials
from nested_jax.rules._gates import check_constant, fit, read_gate, recording, scale, widen
from nested_jax.rules._rule import Rule, call_text


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _no_state(params: optax.Params) -> optax.EmptyState:
    del params
    return optax.EmptyState()


def scale_by_learning_rate(learning_rate: jax.typing.ArrayLike | None = None, *, gate: str = "learning_rate") -> Rule:
    check_constant("learning_rate", learning_rate)

    def update(updates, state, params=None, **extra):
        del params
        return scale(-read_gate(extra, gate, learning_rate), updates), state

    description = call_text("scale_by_learning_rate", {"gate": "learning_rate"}, learning_rate=learning_rate, gate=gate)
    return Rule(_no_state, update, description)


class MomentumState(NamedTuple):
    """What `momentum` carries."""

    trace: optax.Updates


def momentum(momentum: jax.typing.ArrayLike | None = None, *, nesterov: bool = False, gate: str = "momentum") -> Rule:
    check_constant("momentum", momentum, high=1.0)

    def init(params):
        return MomentumState(trace=jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params=None, **extra):
        del params
        eta = read_gate(extra, gate, momentum)

        def accumulate(update, trace):
            if update is None:
                return trace
            return (fit(eta, trace) * widen(trace) + widen(update)).astype(trace.dtype)

        def output(update, trace):
            if update is None:
                return None
            if nesterov:
                trace = fit(eta, trace) * widen(trace) + widen(update)
            return trace.astype(jnp.result_type(update))

        trace = jax.tree.map(accumulate, updates, state.trace, is_leaf=_is_none)
        updates = jax.tree.map(output, updates, trace, is_leaf=_is_none)
        return updates, MomentumState(trace=trace)

    defaults = {"nesterov": False, "gate": "momentum"}
    return Rule(init, update, call_text("momentum", defaults, momentum=momentum, nesterov=nesterov, gate=gate))


def retention(decay: jax.typing.ArrayLike | None = None, *, gate: str = "decay") -> Rule:
    check_constant("decay", decay, high=1.0)

    def update(updates, state, params=None, **extra):
        alpha = read_gate(extra, gate, decay)
        if params is None:
            raise ValueError(
                "retention needs the weights it decays: call update(updates, state, params), got params=None."
            )

        def forget(update, weight):
            if update is None:
                return None
            return (widen(update) - fit(alpha, weight) * widen(weight)).astype(jnp.result_type(update))

        return jax.tree.map(forget, updates, params, is_leaf=_is_none), state

    return Rule(_no_state, update, call_text("retention", {"gate": "decay"}, decay=decay, gate=gate))


def newton_schulz(coefficients: str | Sequence[Sequence[float]] = "muon", steps: int = 5, eps: float = 1e-7) -> Rule:
    polynomials(coefficients, steps)

    def orthogonalize(path, update):
        if jnp.ndim(update) < 2:
            if recording():
                return update
            raise ValueError(
                "newton_schulz takes matrices, [..., m, n], but the update at "
                f"{jax.tree_util.keystr(path) or 'the root'} has shape {jnp.shape(update)}. "
                "Give vectors and scalars to another rule with optax.partition, or leave them out with optax.masked."
            )
        return kernels.orthogonalize(update, coefficients, steps, eps)

    def update(updates, state, params=None, **extra):
        del params, extra
        return jax.tree_util.tree_map_with_path(orthogonalize, updates), state

    defaults = {"coefficients": "muon", "steps": 5, "eps": 1e-7}
    description = call_text("newton_schulz", defaults, coefficients=coefficients, steps=steps, eps=eps)
    return Rule(_no_state, update, description)
