"""Recipes of MIRAS: Moneta, Yaad, Memora, and Hope's rule, as compositions (MIRAS 24-27, Nested Learning 88).

MIRAS prints the fraction kept, α; `decay` here is the fraction forgotten. The objectives belong to the memory: pass
`nj.objectives.lp(3)`, `nj.objectives.huber(...)` or `nj.objectives.l2` with them. The paper normalises weights once per
chunk, with a nonlinear step for each chunk's first token, so that the recursion inside is linear; here every token's
weights are normalised, which for Memora is the same (softmax does not see the difference) without that extra step.
"""

import jax

from nested_jax.rules._compose import chain
from nested_jax.rules._delta_descent import delta_gradient_descent
from nested_jax.rules._mirror import mirror, q_norm_map, softmax_map
from nested_jax.rules._parts import retention
from nested_jax.rules._rule import Rule
from nested_jax.rules.recipes import gated_gradient_descent

Gate = jax.typing.ArrayLike | None


def moneta(learning_rate: Gate = None, decay: Gate = None, *, q: float = 4.0) -> Rule:
    r"""Moneta: an l_q retention; its objective is `nj.objectives.lp(3)`.

    .. math::
      A_t = (1 - \alpha_t) A_{t-1} - \eta_t\, g_t, \qquad W_t = A_t / \lVert A_t\rVert_q^{q-2}

    Args:
      learning_rate: η, at least 0; None if it is given at every step.
      decay: α in [0, 1], the fraction forgotten; None if it is given at every step.
      q: at least 2; the paper's is 4.

    Returns:
      `mirror(gated_gradient_descent, q_norm_map(q))`.

    Example:
      >>> moneta(0.1, 0.0, q=2)
      mirror(chain(scale_by_learning_rate(learning_rate=0.1), retention(decay=0.0)), q_norm_map(q=2))

    References:
      Behrouz et al., `MIRAS <https://arxiv.org/abs/2504.13173>`_, 2025, equations (24-25), which print η twice.
    """
    return mirror(gated_gradient_descent(learning_rate, decay), q_norm_map(q))


def yaad(learning_rate: Gate = None, decay: Gate = None) -> Rule:
    r"""Yaad: l2 retention; what is special is its objective, `nj.objectives.huber(kind="mixture")`.

    .. math::
      W_t = (1 - \alpha_t) W_{t-1} - \eta_t\, g_t

    Args:
      learning_rate: η, at least 0; None if it is given at every step.
      decay: α in [0, 1], the fraction forgotten; None if it is given at every step.

    Returns:
      `gated_gradient_descent`.

    Example:
      >>> yaad(0.1)
      chain(scale_by_learning_rate(learning_rate=0.1), retention())

    References:
      Behrouz et al., `MIRAS <https://arxiv.org/abs/2504.13173>`_, 2025, equation (26).
    """
    return gated_gradient_descent(learning_rate, decay)


def memora(learning_rate: Gate = None, decay: Gate = None, *, total: float = 1.0, axis: int | None = None) -> Rule:
    r"""Memora: KL retention, weights on a simplex; its objective is `nj.objectives.l2`.

    .. math::
      W_t = c\,\mathrm{softmax}\big((1 - \alpha_t)\log W_{t-1} - \eta_t\, g_t\big)

    Args:
      learning_rate: η, at least 0; None if it is given at every step.
      decay: α in [0, 1], the fraction forgotten; None if it is given at every step.
      total: c, what the weights sum to, above 0.
      axis: over which axis; None for a whole array, as the paper derives it. It gives neither c nor the axis it used.

    Returns:
      `mirror(gated_gradient_descent, softmax_map)`. Initial weights must be positive and sum to `total`:
      `softmax_map(total, axis).forward` of any weights is.

    Example:
      >>> memora(0.1, 0.0)
      mirror(chain(scale_by_learning_rate(learning_rate=0.1), retention(decay=0.0)), softmax_map(total=1.0, axis=None))

    References:
      Behrouz et al., `MIRAS <https://arxiv.org/abs/2504.13173>`_, 2025, equations (21) and (27).
    """
    return mirror(gated_gradient_descent(learning_rate, decay), softmax_map(total, axis))


def hope(learning_rate: Gate = None, decay: Gate = None, *, form: str = "proximal") -> Rule:
    r"""The rule of Hope's self-modifying memories: delta gradient descent that forgets.

    .. math::
      W_t = (1 - \alpha_t)\, W_{t-1} - \theta'_t\, x_t^\top x_t\, W_{t-1} - \theta'_t\, g_t

    Args:
      learning_rate: θ, at least 0; θ' is that of `delta_gradient_descent`. None if it is given at every step.
      decay: α in [0, 1], the fraction forgotten; None if it is given at every step.
      form: of `delta_gradient_descent`: "proximal", our choice, or "explicit" as printed, for θ below 2 over the
        squared norm of a layer's input.

    Returns:
      `delta_gradient_descent` → `retention`. Momentum, which the paper ablates but does not print, goes between them.

    Example:
      >>> hope(0.1)
      chain(delta_gradient_descent(learning_rate=0.1), retention())

    References:
      Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025, equation (88).
    """
    return chain(delta_gradient_descent(learning_rate, form=form), retention(decay))
