"""Momenta that remember more than a sum: delta momentum and windows (Nested Learning 46-49, Atlas 9)."""

import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nested_jax.rules._gates import check_constant, fit, read_gate, widen
from nested_jax.rules._parts import MomentumState, is_none
from nested_jax.rules._rule import Rule, call_text

FORMS = ("derived", "literal")


def delta_momentum(
    learning_rate: jax.typing.ArrayLike | None = None,
    momentum: jax.typing.ArrayLike | None = None,
    *,
    erase: float = 1.0,
    form: str = "derived",
) -> Rule:
    r"""Momentum by the delta rule: what it already says along a gradient is taken out before the gradient goes in.

    A gradient step on :math:`\tfrac12\lVert g_t^\top S + I\rVert^2` instead of a sum. With :math:`g` [m, n] and
    :math:`S` as the weights,

    .. math::
      S_t = \eta_t S_{t-1} - \kappa\, \theta'_t\, g_t g_t^\top S_{t-1} - \theta'_t\, g_t, \qquad
      \theta'_t = \frac{\theta_t}{1 + \kappa\, \theta_t \lVert g_t\rVert_F^2}

    The output :math:`S_t` descends. The step :math:`\theta'` is our choice where the paper is silent: the printed
    gradient step diverges once :math:`\theta\lVert g\rVert^2` exceeds 2; with :math:`\theta'` the eigenvalues of
    :math:`\kappa\theta' g g^\top` stay below 1 for any gradient, and for a gradient of rank one and η = 1 this is the
    exact proximal step.

    Args:
      learning_rate: θ, at least 0; None if it is given at every step.
      momentum: η in [0, 1]; None if it is given at every step.
      erase: κ, at least 0: the strength of what is taken out; 0 leaves plain momentum, :math:`S = \eta S - \theta g`.
      form: `"derived"` as above, or `"literal"`, as printed in equation (49): :math:`S_t = \eta_t S_{t-1} - g_t
        g_t^\top S_{t-1} - \theta_t g_t`, where nothing scales what is taken out and nothing bounds it.

    Returns:
      A rule with state `MomentumState`, that reads two gates, scalars. Leading axes [..., m, n] are batch, a vector
      [n] counts as one row (our choice), a scalar as [1, 1].

    Raises:
      ValueError: for a constant out of range or an unknown `form`; at `update`, if a gate has no value or is no
        scalar.

    Example:
      >>> rule = delta_momentum(1.0, 1.0)
      >>> state = rule.init(jnp.zeros([1, 1]))
      >>> for _ in range(3):
      ...     step, state = rule.update(jnp.array([[1.0]]), state)
      ...     print(step)
      [[-0.5]]
      [[-0.75]]
      [[-0.875]]

    References:
      Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025, equations (48-49), there transposed
      and with the preconditioner P, here a link before this one.

    .. note::
      `momentum` sums gradients without end; this one answers :math:`g^\top S \approx -I`, so a gradient that keeps
      coming does not pile up.
    """
    check_constant("learning_rate", learning_rate)
    check_constant("momentum", momentum, high=1.0)
    check_constant("erase", erase)
    if form not in FORMS:
        raise ValueError(f"form must be one of {FORMS}, got {form!r}.")

    def init(params):
        return MomentumState(trace=jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params=None, **extra):
        del params
        theta = read_gate(extra, "learning_rate", learning_rate, scalar=True)
        eta = read_gate(extra, "momentum", momentum, scalar=True)

        def accumulate(update, trace):
            if update is None:
                return trace
            g, s = jnp.atleast_2d(widen(update)), jnp.atleast_2d(widen(trace))
            rate, kept = fit(theta, g), fit(eta, g)
            taken = erase * (g @ (g.mT @ s))
            if form == "derived":
                rate = rate / (1 + erase * rate * jnp.sum(g * g, axis=(-2, -1), keepdims=True))
                taken = rate * taken
            return (kept * s - taken - rate * g).reshape(trace.shape).astype(trace.dtype)

        trace = jax.tree.map(accumulate, updates, state.trace, is_leaf=is_none)
        output = jax.tree.map(
            lambda u, s: None if u is None else s.astype(jnp.result_type(u)), updates, trace, is_leaf=is_none
        )
        return output, MomentumState(trace=trace)

    defaults = {"erase": 1.0, "form": "derived"}
    arguments = {"learning_rate": learning_rate, "momentum": momentum, "erase": erase, "form": form}
    return Rule(init, update, call_text("delta_momentum", defaults, **arguments))


class WindowState(NamedTuple):
    """What `window` carries: the last c - 1 updates, newest first, each shaped as the weights."""

    past: tuple[optax.Updates, ...]


def window(size: int, weights: Sequence[float] | None = None) -> Rule:
    r"""Sums the last c updates: the Omega rule of an optimizer.

    .. math::
      u_t \mapsto \sum_{i=0}^{c-1} \gamma_i\, u_{t-i}

    Args:
      size: c, at least 1.
      weights: γ, newest first, c numbers; ones by default.

    Returns:
      A rule without gates with state `WindowState`: c - 1 copies of the weights.

    Raises:
      ValueError: if `size` is not an integer of at least 1, or `weights` are not c numbers.

    Example:
      >>> rule = window(2, weights=[1.0, 0.5])
      >>> state = rule.init(jnp.zeros(1))
      >>> for gradient in (1.0, 2.0, 3.0):
      ...     step, state = rule.update(jnp.array([gradient]), state)
      ...     print(step)
      [1.]
      [2.5]
      [4.]

    References:
      Behrouz et al., `Atlas <https://arxiv.org/abs/2505.23735>`_, 2025, equation (9).

    .. note::
      A memory with the option `window` takes the gradients of the last c tokens anew at its present weights; an
      optimizer cannot go back to past batches, so their gradients stay as they were.
    """
    try:
        count = operator.index(size)
    except TypeError:
        count = 0
    if count < 1 or isinstance(size, bool):
        raise ValueError(f"size must be an integer of at least 1, got {size!r}.")
    gammas = (1.0,) * count if weights is None else tuple(float(w) for w in np.asarray(weights).ravel())
    if len(gammas) != count:
        raise ValueError(f"weights must be {count} numbers, one for each update of the window, got {len(gammas)}.")

    def init(params):
        return WindowState(tuple(jax.tree.map(jnp.zeros_like, params) for _ in range(count - 1)))

    def update(updates, state, params=None, **extra):
        del params, extra

        def total(update, *past):
            if update is None:
                return None
            terms = [gamma * widen(u) for gamma, u in zip(gammas, (update, *past), strict=True)]
            return sum(terms[1:], terms[0]).astype(jnp.result_type(update))

        def enter(update, old):
            return old if update is None else jnp.asarray(update, old.dtype)

        output = jax.tree.map(total, updates, *state.past, is_leaf=is_none)
        if not state.past:
            return output, state
        newest = jax.tree.map(enter, updates, state.past[0], is_leaf=is_none)
        return output, WindowState((newest, *state.past[:-1]))

    return Rule(init, update, call_text("window", {}, size=count, weights=weights))
