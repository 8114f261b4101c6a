"""Averages and division by the root of a second moment: Adam and AdaGrad as memories (Nested Learning 100-111)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nested_jax.rules._gates import check_constant, fit, read_gate, scale, widen
from nested_jax.rules._parts import is_none
from nested_jax.rules._parts import momentum as momentum_rule
from nested_jax.rules._rule import Rule, call_text, check_rules, describe_rule


class AverageState(NamedTuple):
    """What `average` carries.

    Attributes:
      average: the weighted sum of past updates, shaped as the weights.
      total: the sum of those weights, a scalar in [0, 1]; None without `debias`.
    """

    average: optax.Updates
    total: Any


def average(momentum: jax.typing.ArrayLike | None = None, *, debias: bool = False, gate: str = "momentum") -> Rule:
    r"""The exponential average of updates.

    .. math::
      M_t = \eta_t M_{t-1} + (1 - \eta_t)\, u_t

    With `debias` the output is :math:`M_t / w_t`, where :math:`w_t = \eta_t w_{t-1} + (1 - \eta_t)` is the weight that
    all updates have together; for a constant η that is :math:`1 - \eta^t`.

    As a memory this is the minimiser of :math:`-\langle M, u_t\rangle + \tfrac12\lVert M\rVert^2` approached by
    gradient steps of size :math:`1 - \eta`: a dot-product objective with l2 retention.

    Args:
      momentum: η in [0, 1]; None if it is given at every step.
      debias: whether to divide by the total weight.
      gate: the keyword of `update` that overrides the constant.

    Returns:
      A rule with state `AverageState`, that reads one gate, a scalar or, without `debias`, a vector [D] of channels
      (see `scale`).

    Raises:
      ValueError: if `momentum` is a number outside [0, 1]; at `update`, if the gate has no value or does not fit.

    Example:
      >>> rule = average(0.75, debias=True)
      >>> state = rule.init(jnp.zeros(1))
      >>> for gradient in (7.0, 7.0):
      ...     step, state = rule.update(jnp.array([gradient]), state)
      >>> print(state.average, step)
      [3.0625] [7.]

    References:
      Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025, equations (33-34), Appendix B.

    .. note::
      With a constant this is `optax.ema`; `momentum` sums instead. The gate makes the average depend on the step.
    """
    check_constant("momentum", momentum, high=1.0)

    def init(params):
        return AverageState(jax.tree.map(jnp.zeros_like, params), jnp.zeros([], float) if debias else None)

    def update(updates, state, params=None, **extra):
        del params
        eta = read_gate(extra, gate, momentum, scalar=debias)
        constant = momentum is not None and extra.get(gate) is None
        rest = 1 - (momentum if constant else eta)  # 1 - 0.999 in float32 would be off by 5e-5

        def accumulate(update, mean):
            if update is None:
                return mean
            return (fit(eta, mean) * widen(mean) + fit(rest, mean) * widen(update)).astype(mean.dtype)

        mean = jax.tree.map(accumulate, updates, state.average, is_leaf=is_none)
        total = state.total
        if total is not None:
            total = (fit(eta, total) * total + fit(rest, total)).astype(total.dtype)

        def output(update, mean):
            if update is None:
                return None
            out = widen(mean)
            if total is not None:
                out = out / jnp.where(total > 0, total, 1.0).astype(out.dtype)
            return out.astype(jnp.result_type(update))

        return jax.tree.map(output, updates, mean, is_leaf=is_none), AverageState(mean, total)

    defaults = {"debias": False, "gate": "momentum"}
    return Rule(init, update, call_text("average", defaults, momentum=momentum, debias=debias, gate=gate))


def accumulate(momentum: jax.typing.ArrayLike | None = None, *, gate: str = "momentum") -> Rule:
    r"""The weighted sum of updates, without forgetting: how Nested Learning prints the moments of Adam and M3.

    .. math::
      M_t = M_{t-1} + \beta_t\, u_t

    Args:
      momentum: β, at least 0; None if it is given at every step.
      gate: the keyword of `update` that overrides the constant.

    Returns:
      A rule with state `MomentumState`, that reads one gate, a scalar or a vector [D] of channels (see `scale`).

    Raises:
      ValueError: if `momentum` is a number below 0; at `update`, if the gate has no value or does not fit.

    Example:
      >>> rule = accumulate(0.5)
      >>> state = rule.init(jnp.zeros(1))
      >>> for _ in range(3):
      ...     step, state = rule.update(jnp.ones(1), state)
      >>> print(step)
      [1.5]

    References:
      Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025, equation (100), Algorithm 1.

    .. note::
      `average` weighs the past by η and the new update by 1 - η.
    """
    check_constant("momentum", momentum)
    total = momentum_rule(1.0, gate=None)

    def update(updates, state, params=None, **extra):
        return total.update(scale(read_gate(extra, gate, momentum), updates), state, params)

    return Rule(total.init, update, call_text("accumulate", {"gate": "momentum"}, momentum=momentum, gate=gate))


class DivideByRootState(NamedTuple):
    """What `divide_by_root` carries: the states of the rule and of the accumulator of squares."""

    rule: optax.OptState
    accumulator: optax.OptState


def divide_by_root(
    rule: optax.GradientTransformation,
    accumulator: optax.GradientTransformation,
    *,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    outer_product: bool = False,
) -> Rule:
    r"""What a rule makes of a gradient, divided by the root of the gradient's second moment.

    .. math::
      u_t = r(g_t) \oslash \left(\sqrt{a(g_t^2) + \epsilon_{root}} + \epsilon\right)

    or, with `outer_product`, for matrices :math:`g` [m, n],

    .. math::
      u_t = r(g_t)\,\left(a(g_t^\top g_t) + \epsilon_{root} I\right)^{-1/2}

    Both solve a regression: the element-wise (or linear) map from gradients to a target that grows as the root of
    their second moment, applied to the first moment. `adam` and `adagrad` are this with different accumulators.

    Args:
      rule: makes the numerator: `momentum`, `average`, an orthogonalised momentum (M3), any optax transformation.
      accumulator: a linear rule that is fed the squares: `average(0.999)` (Adam), `optax.trace(1.0)` (AdaGrad's sum).
      eps: added to the root, at least 0. Not used with `outer_product`.
      eps_root: added under the root, at least 0. With `outer_product` it should not be 0 while the accumulated matrix
        may be singular.
      outer_product: whether the second moment is a matrix over the last axis. Vectors count as one row.

    Returns:
      A rule with state `DivideByRootState`. Gates go to both rules; rename one of two equal ones.

    Raises:
      ValueError: if `rule` or `accumulator` is not an optax transformation, or for a negative `eps` or `eps_root`.

    Example:
      >>> adagrad = divide_by_root(optax.identity(), optax.trace(1.0), eps=0.0)
      >>> state = adagrad.init(jnp.zeros(2))
      >>> for gradient in (jnp.array([3.0, -1.0]), jnp.array([4.0, 0.0])):
      ...     step, state = adagrad.update(gradient, state)
      >>> print(step)
      [0.8 0. ]

    References:
      Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025, equations (100-105) and, for outer
      products, (106-111), there with g transposed.

    .. note::
      `optax.scale_by_rms` divides the gradient itself. Where the second moment is zero and there is no eps, the result
      is zero.
    """
    check_rules("divide_by_root", (rule, accumulator))
    check_constant("eps", eps)
    check_constant("eps_root", eps_root)
    above, below = optax.with_extra_args_support(rule), optax.with_extra_args_support(accumulator)

    def squares(leaf):
        leaf = widen(leaf)
        if not outer_product:
            return leaf * leaf
        rows = jnp.atleast_2d(leaf)
        return rows.mT @ rows

    def divide(numerator, square):
        if numerator is None:
            return None
        top = widen(numerator)
        if outer_product:
            shifted = square + eps_root * jnp.eye(square.shape[-1], dtype=square.dtype)
            out = (jnp.atleast_2d(top) @ inverse_root(shifted)).reshape(top.shape)
        else:
            under = square + eps_root
            positive = under > 0
            out = top * jnp.where(positive, 1.0 / (jnp.sqrt(jnp.where(positive, under, 1.0)) + eps), 0.0)
        return out.astype(jnp.result_type(numerator))

    def init(params):
        return DivideByRootState(above.init(params), below.init(jax.tree.map(squares, params)))

    def update(updates, state, params=None, **extra):
        top, above_state = above.update(updates, state.rule, params, **extra)
        second, below_state = below.update(jax.tree.map(squares, updates), state.accumulator, None, **extra)
        return jax.tree.map(divide, top, second, is_leaf=is_none), DivideByRootState(above_state, below_state)

    text = f"divide_by_root({describe_rule(rule)}, {describe_rule(accumulator)}"
    defaults = {"eps": 1e-8, "eps_root": 0.0, "outer_product": False}
    options = call_text("", defaults, eps=eps, eps_root=eps_root, outer_product=outer_product)[1:-1]
    return Rule(init, update, f"{text}{', ' if options else ''}{options})")


def inverse_root(matrix: jax.Array, steps: int = 30) -> jax.Array:
    """The inverse square root of symmetric positive definite matrices [..., n, n], by coupled Newton-Schulz steps.

    Products alone, so that it can be differentiated to any order, also where eigenvalues coincide. 30 steps reach
    eigenvalues down to about 1e-8 of the trace; directions below that come out too small, as finite numbers.
    """
    trace = jnp.trace(matrix, axis1=-2, axis2=-1)[..., None, None]
    positive = trace > 0
    trace = jnp.where(positive, trace, 1.0)
    identity = jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=matrix.dtype), matrix.shape)

    def step(pair, _):
        root, inverse = pair
        factor = 1.5 * identity - 0.5 * inverse @ root
        return (root @ factor, factor @ inverse), None

    (_, inverse), _ = jax.lax.scan(step, (matrix / trace, identity), length=steps)
    return jnp.where(positive, inverse * jax.lax.rsqrt(trace), 0.0)
