"""Recipes known as optimizers: Adam, AdaGrad, M3 and the momenta of Nested Learning, each a composition of parts.

A gate is a constant here or given at every step, as in :mod:`nested_jax.rules.recipes`. All raise ValueError for a
constant out of range.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from nested_jax.rules._adaptive import accumulate, average, divide_by_root
from nested_jax.rules._compose import add, chain, every
from nested_jax.rules._parts import momentum as momentum_rule
from nested_jax.rules._parts import newton_schulz, scale_by_learning_rate
from nested_jax.rules._rule import Rule

Gate = jax.typing.ArrayLike | None


def adam(
    learning_rate: Gate = None,
    momentum: Gate = None,
    second_moment: Gate = None,
    *,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    debias: bool = True,
    outer_product: bool = False,
) -> Rule:
    r"""Adam: the average gradient over the root of the average squared gradient.

    .. math::
      W_t = W_{t-1} - \theta_t\, \hat M_t \oslash (\sqrt{\hat V_t} + \epsilon)

    As a memory: the best element-wise map from gradients to a target of the size of :math:`\sqrt{\sum g^2}`.

    Args:
      learning_rate: θ, at least 0; None if it is given at every step.
      momentum: β1 in [0, 1] (usually 0.9); None if it is given at every step.
      second_moment: β2 in [0, 1] (usually 0.999), the gate `second_moment`; None if it is given at every step.
      eps: added to the root, at least 0.
      eps_root: added under the root, at least 0.
      debias: whether both averages are divided by their total weight.
      outer_product: whether the second moment is the average of gᵀg, a matrix, and its root a matrix root
        (Shampoo's right factor with exponent 1/2); it needs `eps_root`.

    Returns:
      `divide_by_root(average, average)` → `scale_by_learning_rate`.

    Example:
      >>> rule, weights = adam(0.1, 0.9, 0.999), jnp.zeros(2)
      >>> step, state = rule.update(jnp.array([3.0, -0.01]), rule.init(weights))
      >>> [f"{x:.3f}" for x in step]
      ['-0.100', '0.100']

    References:
      Kingma & Ba, `Adam <https://arxiv.org/abs/1412.6980>`_, 2014. Behrouz et al., `Nested Learning
      <https://arxiv.org/abs/2512.24695>`_, 2025, equations (100-105); (106-111) for outer products.

    .. note::
      With constants this is `optax.adam`.
    """
    return chain(
        divide_by_root(
            average(momentum, debias=debias),
            average(second_moment, debias=debias, gate="second_moment"),
            eps=eps,
            eps_root=eps_root,
            outer_product=outer_product,
        ),
        scale_by_learning_rate(learning_rate),
    )


def adagrad(
    learning_rate: Gate = None, momentum: Gate = None, *, eps: float = 1e-7, outer_product: bool = False
) -> Rule:
    r"""AdaGrad with momentum: summed gradients over the root of the summed squared gradients.

    .. math::
      S_t = \eta_t S_{t-1} + g_t, \qquad W_t = W_{t-1} - \theta_t\, S_t \oslash \sqrt{\textstyle\sum_{i\le t} g_i^2 +
      \epsilon}

    Args:
      learning_rate: θ, at least 0; None if it is given at every step.
      momentum: η in [0, 1], 0 for AdaGrad itself and 1 for equation (105); None if it is given at every step.
      eps: added under the root, at least 0.
      outer_product: whether the second moment is the sum of gᵀg and its root a matrix root: AdaGrad's full form for
        vectors, Shampoo's right factor for matrices.

    Returns:
      `divide_by_root(momentum, momentum(1))` → `scale_by_learning_rate`.

    Example:
      >>> rule, weights = adagrad(1.0, 0.0, eps=0.0), jnp.zeros(1)
      >>> state = rule.init(weights)
      >>> for gradient in (3.0, 4.0):
      ...     step, state = rule.update(jnp.array([gradient]), state)
      >>> print(step)
      [-0.8]

    References:
      Duchi et al., `AdaGrad <https://jmlr.org/papers/v12/duchi11a.html>`_, 2011. Behrouz et al., `Nested Learning
      <https://arxiv.org/abs/2512.24695>`_, 2025, equation (105); (106-111) for outer products.

    .. note::
      `optax.scale_by_rss` starts its sum at 0.1, here it starts at 0.
    """
    return chain(
        divide_by_root(
            momentum_rule(momentum), momentum_rule(1.0, gate=None), eps=0.0, eps_root=eps, outer_product=outer_product
        ),
        scale_by_learning_rate(learning_rate),
    )


def m3(
    learning_rate: Gate = None,
    momentum: Gate = None,
    slow_momentum: Gate = None,
    second_moment: Gate = None,
    *,
    form: Literal["ema", "additive"] = "ema",
    slow_weight: float = 0.1,
    period: int = 10,
    coefficients: str | Sequence[Sequence[float]] = "muon",
    steps: int = 5,
    eps: float = 1e-8,
) -> Rule:
    r"""Multi-scale momentum Muon: a quick and a slow orthogonalised momentum over the root of the second moment.

    .. math::
      W_t = W_{t-1} - \theta_t\, \frac{\mathrm{NS}(M^{(1)}_t) + \alpha\, \mathrm{NS}(M^{(2)}_t)}{\sqrt{V_t + \epsilon}}

    :math:`M^{(2)}` steps once in `period` calls, on the sum of their gradients, and is used in the next `period` calls.

    Two conventions, since public implementations disagree: `"additive"` is the algorithm as printed, where no moment
    forgets (:math:`M^{(1)} \mathrel{+}= \beta_1 g`, :math:`V \mathrel{+}= \beta_2 g^2`), so that steps shrink as
    :math:`1/\sqrt t`; `"ema"`, the default and our choice, averages as Adam does, with V debiased. An orthogonalised
    matrix has entries of about :math:`1/\sqrt{\max(m, n)}` whatever the gradient's size, which the division by
    :math:`\sqrt V` then undoes: steps grow as gradients shrink, and the learning rate has to know their size.

    Args:
      learning_rate: θ, at least 0; None if it is given at every step.
      momentum: β1 in [0, 1]; None if it is given at every step. The paper prints no values; 0.95 is usual.
      slow_momentum: β3 in [0, 1], e.g. 0.9; None if it is given at every step.
      second_moment: β2 in [0, 1], e.g. 0.999; None if it is given at every step.
      form: `"ema"` or `"additive"`.
      slow_weight: α, the weight of the slow momentum.
      period: f, calls per step of the slow momentum.
      coefficients: of the Newton-Schulz iteration, see `newton_schulz`.
      steps: Newton-Schulz iterations, at least 1.
      eps: added under the root.

    Returns:
      For matrices `divide_by_root(add(momentum → newton_schulz, every(period, momentum → newton_schulz) → scale),
      second moment)`, for other weights `adam` with the same β1 and β2, by `optax.partition`;
      → `scale_by_learning_rate`.

    Raises:
      ValueError: for an unknown `form`.

    Example:
      >>> rule, weights = m3(0.1, 0.95, 0.9, 0.999), {"w": jnp.eye(2), "b": jnp.ones(2)}
      >>> step, state = rule.update(weights, rule.init(weights), weights)
      >>> [f"{x:.3f}" for x in step["b"]]
      ['-0.100', '-0.100']

    References:
      Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025, Algorithm 1, equation (75).

    .. note::
      `muon` is the quick momentum alone, without the division.
    """
    if form not in ("ema", "additive"):
        raise ValueError(f"form must be 'ema' or 'additive', got {form!r}.")
    moment = average if form == "ema" else accumulate
    squares = average(second_moment, debias=True, gate="second_moment")
    if form == "additive":
        squares = accumulate(second_moment, gate="second_moment")
    orthogonal = newton_schulz(coefficients, steps)
    quick = chain(moment(momentum), orthogonal)
    slow = every(period, chain(moment(slow_momentum, gate="slow_momentum"), orthogonal), hold=True)
    matrices = divide_by_root(add(quick, chain(slow, optax.scale(slow_weight))), squares, eps=0.0, eps_root=eps)
    others = adam(1.0, momentum, second_moment, eps=eps).links[0]
    return chain(
        optax.partition({"matrix": matrices, "other": others}, matrix_or_other), scale_by_learning_rate(learning_rate)
    )


def matrix_or_other(params: optax.Params) -> optax.Params:
    """Labels weights with at least two axes "matrix", the others "other"."""
    return jax.tree.map(lambda leaf: "matrix" if jnp.ndim(leaf) >= 2 else "other", params)


def preconditioned_momentum(
    preconditioner: optax.GradientTransformation | None = None, learning_rate: Gate = None, momentum: Gate = None
) -> Rule:
    r"""Momentum of preconditioned gradients: a memory with the objective :math:`\langle S g^\top, P\rangle`.

    .. math::
      S_t = \eta_t S_{t-1} - \theta_t\, P_t(g_t), \qquad W_t = W_{t-1} + S_t

    Args:
      preconditioner: P, any optax transformation, itself a memory where it has a state: `divide_by_root(...)`,
        `optax.scale_by_rms()`, `newton_schulz()`; None for the identity.
      learning_rate: θ, at least 0; None if it is given at every step.
      momentum: η in [0, 1]; None if it is given at every step.

    Returns:
      `preconditioner` → `scale_by_learning_rate` → `momentum`.

    Example:
      >>> preconditioned_momentum(optax.scale(2.0), 0.1, 0.9).links[1]
      scale_by_learning_rate(learning_rate=0.1)

    References:
      Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025, equations (38-41), (46-47).
    """
    first = () if preconditioner is None else (preconditioner,)
    return chain(*first, scale_by_learning_rate(learning_rate), momentum_rule(momentum))


def hebbian_momentum(preconditioner: optax.GradientTransformation | None = None, learning_rate: Gate = None) -> Rule:
    r"""Momentum that never forgets: the bare dot-product memory of gradients.

    .. math::
      S_t = S_{t-1} - \theta_t\, P_t(g_t), \qquad W_t = W_{t-1} + S_t

    Each write is an outer product that nothing takes away again; `momentum` adds the decay, `delta_momentum` the
    correction.

    Args:
      preconditioner: P, the value that a gradient is stored with; None for the identity.
      learning_rate: θ, at least 0; None if it is given at every step.

    Returns:
      `preconditioner` → `scale_by_learning_rate` → `momentum(1)`.

    Example:
      >>> rule = hebbian_momentum(learning_rate=0.5)
      >>> state = rule.init(jnp.zeros(1))
      >>> for _ in range(3):
      ...     step, state = rule.update(jnp.ones(1), state)
      >>> print(step)
      [-1.5]

    References:
      Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025, equations (11-13), (34).
    """
    first = () if preconditioner is None else (preconditioner,)
    return chain(*first, scale_by_learning_rate(learning_rate), momentum_rule(1.0, gate=None))
