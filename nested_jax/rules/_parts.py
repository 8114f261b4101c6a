"""The parts that rules are made of: learning rate, momentum (Titans 10, 14), retention (Titans 13), Newton-Schulz."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nested_jax import kernels
from nested_jax.kernels.newton_schulz import polynomials
from nested_jax.rules._gates import check_constant, fit, read_gate, recording, scale, widen
from nested_jax.rules._rule import Rule, call_text


def is_none(leaf: Any) -> bool:
    """Whether a leaf stands for a weight without a gradient."""
    return leaf is None


def _no_state(params: optax.Params) -> optax.EmptyState:
    del params
    return optax.EmptyState()


def scale_by_learning_rate(learning_rate: jax.typing.ArrayLike | None = None, *, gate: str = "learning_rate") -> Rule:
    r"""Turns a gradient into a descent step.

    .. math::
      u_t = -\theta_t\, g_t

    Args:
      learning_rate: θ, at least 0; None if it is given at every step.
      gate: the keyword of `update` that overrides the constant.

    Returns:
      A stateless rule that reads one gate, a scalar or a vector [D] of channels (see `scale`).

    Raises:
      ValueError: if `learning_rate` is a number below 0; at `update`, if the gate has no value or does not fit.

    Example:
      >>> rule = scale_by_learning_rate(0.5)
      >>> step, state = rule.update(jnp.array([2.0, -4.0]), rule.init(jnp.zeros(2)))
      >>> print(step)
      [-1.  2.]

    References:
      Behrouz et al., `Titans <https://arxiv.org/abs/2501.00663>`_, 2025, equation (8).

    .. note::
      `optax.scale_by_learning_rate` takes its rate at construction only, as a number or a schedule; this one also takes
      one at every step.
    """
    check_constant("learning_rate", learning_rate)

    def update(updates, state, params=None, **extra):
        del params
        return scale(-read_gate(extra, gate, learning_rate), updates), state

    defaults = {"gate": "learning_rate"}
    description = call_text("scale_by_learning_rate", defaults, learning_rate=learning_rate, gate=gate)
    return Rule(_no_state, update, description)


class MomentumState(NamedTuple):
    """What `momentum` carries: the decayed sum of past updates, shaped as the weights."""

    trace: optax.Updates


def momentum(
    momentum: jax.typing.ArrayLike | None = None, *, nesterov: bool = False, gate: str | None = "momentum"
) -> Rule:
    r"""Adds a decayed sum of past updates to the present one.

    .. math::
      S_t = \eta_t S_{t-1} + u_t

    The output is :math:`S_t`, or :math:`u_t + \eta_t S_t` with Nesterov's look-ahead.

    Args:
      momentum: η in [0, 1]; None if it is given at every step.
      nesterov: whether to look ahead.
      gate: the keyword of `update` that overrides the constant; None for a constant that nothing overrides.

    Returns:
      A rule with state `MomentumState`, that reads one gate, a scalar or a vector [D] of channels (see `scale`).
      Weights whose update is None keep their trace.

    Raises:
      ValueError: if `momentum` is a number outside [0, 1], or None without a gate; at `update`, if the gate has no
        value or does not fit.

    Example:
      >>> rule = momentum(0.5)
      >>> state = rule.init(jnp.zeros(2))
      >>> for _ in range(2):
      ...     step, state = rule.update(jnp.array([1.0, -2.0]), state)
      >>> print(step)
      [ 1.5 -3. ]

    References:
      Behrouz et al., `Titans <https://arxiv.org/abs/2501.00663>`_, 2025, equations (10) and (14): past and momentary
      surprise. Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025, equation (33).

    .. note::
      With a constant this is `optax.trace`; the gate makes the decay depend on the step. `optax.ema` instead weighs the
      new update by 1 - η and corrects the bias.
    """
    check_constant("momentum", momentum, high=1.0)
    if momentum is None and gate is None:
        raise ValueError("momentum must be a number in [0, 1] where gate is None, got None.")

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

        trace = jax.tree.map(accumulate, updates, state.trace, is_leaf=is_none)
        return jax.tree.map(output, updates, trace, is_leaf=is_none), MomentumState(trace=trace)

    defaults = {"nesterov": False, "gate": "momentum"}
    return Rule(init, update, call_text("momentum", defaults, momentum=momentum, nesterov=nesterov, gate=gate))


def retention(decay: jax.typing.ArrayLike | None = None, *, gate: str = "decay") -> Rule:
    r"""Forgets a fraction of the weights: l2 decay towards zero.

    .. math::
      u_t \mapsto u_t - \alpha_t W_{t-1}, \qquad \text{so that} \quad W_t = (1 - \alpha_t) W_{t-1} + u_t

    Args:
      decay: α in [0, 1], the fraction forgotten: 0 keeps everything, 1 clears the weights. None if it is given at every
        step. Atlas, MIRAS and Nested Learning print the fraction kept, 1 - α.
      gate: the keyword of `update` that overrides the constant.

    Returns:
      A stateless rule that needs `params`, and reads one gate, a scalar or a vector [D] of channels (see `scale`).

    Raises:
      ValueError: if `decay` is a number outside [0, 1]; at `update`, if `params` is missing, or the gate has no value
        or does not fit.

    Example:
      >>> rule, weights = retention(), jnp.array([2.0, -4.0])
      >>> step, state = rule.update(jnp.ones(2), rule.init(weights), weights, decay=0.5)
      >>> print(weights + step)
      [ 2. -1.]

    References:
      Behrouz et al., `Titans <https://arxiv.org/abs/2501.00663>`_, 2025, equation (13).

    .. note::
      `optax.add_decayed_weights` comes *before* the learning rate and its sign, so there the fraction forgotten is
      θ times `weight_decay`. Here it is the gate itself: put `retention` last.
    """
    check_constant("decay", decay, high=1.0)

    def update(updates, state, params=None, **extra):
        alpha = read_gate(extra, gate, decay)
        if params is None:
            raise ValueError(
                "retention needs params, the weights it decays: call update(updates, state, params), got params=None."
            )

        def forget(update, weight):
            if update is None:
                return None
            return (widen(update) - fit(alpha, weight) * widen(weight)).astype(jnp.result_type(update))

        return jax.tree.map(forget, updates, params, is_leaf=is_none), state

    return Rule(_no_state, update, call_text("retention", {"gate": "decay"}, decay=decay, gate=gate))


def newton_schulz(
    coefficients: str | Sequence[Sequence[float]] = "muon",
    steps: int = 5,
    eps: float = 1e-7,
    implementation: str = "auto",
) -> Rule:
    r"""Orthogonalises updates that are matrices: singular values near 1, singular vectors kept.

    See `nested_jax.kernels.orthogonalize` for the iteration, the coefficients and how near to 1.

    Args:
      coefficients: `"cubic"`, `"muon"`, `"polar_express"`, or a sequence of triples (a, b, c), the last of which
        repeats.
      steps: iterations, at least 1. Atlas calls it a knob for compute at test time.
      eps: added to the Frobenius norm by which the input is divided.
      implementation: of `nested_jax.kernels.orthogonalize`: `"auto"`, `"xla"`, `"gram"` or a kernel's name.

    Returns:
      A stateless rule without gates, for arrays [..., m, n]; leading axes are batch. Its `update` takes a keyword
      `spread`, a function `(orthogonalize, updates) -> updates` that says where matrices are orthogonalised: it calls
      `orthogonalize` on arrays [..., m, n] that hold those of `updates`, each once (`nested_jax.train.spread` has one
      for a mesh). Chains pass it on, as they pass gates.

    Raises:
      ValueError: for unknown coefficients or implementation or fewer than one step; at `update`, for an array with
        fewer than two axes (our choice: there is no standard way to orthogonalise a vector).

    Example:
      >>> rule = newton_schulz("polar_express", steps=8)
      >>> step, state = rule.update(jnp.array([[0.0, -7.0], [0.1, 0.0]]), optax.EmptyState())
      >>> print(jnp.round(step, 4))
      [[ 0. -1.]
       [ 1.  0.]]

    References:
      Behrouz et al., `Atlas <https://arxiv.org/abs/2505.23735>`_, 2025, equation (32). Behrouz et al., `Nested Learning
      <https://arxiv.org/abs/2512.24695>`_, 2025, equations (42-44).

    .. note::
      `optax.contrib.scale_by_muon` holds the momentum and the orthogonalisation in one; here they are two links.
    """
    polynomials(coefficients, steps)
    kernels.check_implementation(implementation)

    def orthogonalize(matrices):
        return kernels.orthogonalize(matrices, coefficients, steps, eps, implementation)

    def check(path, update):
        if jnp.ndim(update) < 2:
            raise ValueError(
                "newton_schulz takes matrices, [..., m, n], but the update at "
                f"{jax.tree_util.keystr(path) or 'the root'} has shape {jnp.shape(update)}. "
                "Give vectors and scalars to another rule with optax.partition, or leave them out with optax.masked."
            )

    def update(updates, state, params=None, *, spread=None, **extra):
        del params, extra
        if recording():
            return jax.tree.map(lambda leaf: orthogonalize(leaf) if jnp.ndim(leaf) >= 2 else leaf, updates), state
        jax.tree_util.tree_map_with_path(check, updates)
        if spread is None:
            return jax.tree.map(orthogonalize, updates), state
        return spread(orthogonalize, updates), state

    defaults = {"coefficients": "muon", "steps": 5, "eps": 1e-7, "implementation": "auto"}
    given = {"coefficients": coefficients, "steps": steps, "eps": eps, "implementation": implementation}
    description = call_text("newton_schulz", defaults, **given)
    factored = functools.partial(kernels.low_rank_orthogonalize, coefficients=coefficients, steps=steps, eps=eps)
    return Rule(_no_state, update, description, factored=factored)
