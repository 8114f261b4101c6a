"""LaCT's rules: gradient descent, momentum or Muon, and weights that keep their norms (LaCT §3.2, Algorithm 1)."""

import jax
import jax.numpy as jnp
import optax

from nested_jax.rules._compose import chain
from nested_jax.rules._gates import widen
from nested_jax.rules._parts import is_none, newton_schulz, scale_by_learning_rate
from nested_jax.rules._parts import momentum as momentum_rule
from nested_jax.rules._rule import Rule, call_text

VARIANTS = ("gradient_descent", "momentum", "muon")


def keep_norms() -> Rule:
    r"""Rescales every column of a stepped matrix to the norm it had before the step.

    .. math::
      W_t[:, j] = \frac{W_{t-1}[:, j] + u_t[:, j]}{\lVert W_{t-1}[:, j] + u_t[:, j]\rVert}\, \lVert W_{t-1}[:, j]\rVert

    A column [D_in] is what makes one output, y = x W. Step after step these are the norms of the initial weights. A
    column of zeros stays zero, so that this is no rule for `nj.networks.Linear`, which begins there.

    Returns:
      A stateless rule without gates that needs `params`, for arrays [..., D_in, D_out]; leading axes are batch. Vectors
      and scalars pass unchanged (our choice: they have no inputs).

    Raises:
      ValueError: at `update`, if `params` is missing.

    Example:
      >>> rule, weights = keep_norms(), jnp.array([[3.0, 1.0], [4.0, 0.0]])
      >>> step, state = rule.update(jnp.array([[1.0, 0.0], [-4.0, 1.0]]), rule.init(weights), weights)
      >>> print((weights + step).round(3))
      [[5.    0.707]
       [0.    0.707]]

    References:
      Zhang et al., `Test-Time Training Done Right <https://arxiv.org/abs/2505.23884>`_, 2025, Algorithm 1.

    .. note::
      `retention` bounds weights by forgetting; this keeps their length and changes only directions. Put it last.
    """

    def update(updates, state, params=None, **extra):
        del extra
        if params is None:
            raise ValueError(
                "keep_norms needs params, the weights: call update(updates, state, params), got params=None."
            )

        def rescale(update, weight):
            if update is None or jnp.ndim(update) < 2:
                return update
            before = widen(weight)
            after = before + widen(update)
            kept, grown = (jnp.sum(jnp.square(w), axis=-2, keepdims=True) for w in (before, after))
            alive = (kept > 0) & (grown > 0)
            scale = jnp.sqrt(jnp.where(alive, kept, 1.0) / jnp.where(alive, grown, 1.0))
            return (jnp.where(kept > 0, after * scale, 0.0) - before).astype(jnp.result_type(update))

        return jax.tree.map(rescale, updates, params, is_leaf=is_none), state

    return Rule(lambda params: optax.EmptyState(), update, call_text("keep_norms", {}))


def lact(
    learning_rate: jax.typing.ArrayLike | None = None,
    momentum: jax.typing.ArrayLike | None = None,
    *,
    variant: str = "muon",
) -> Rule:
    r"""The update of LaCT's fast weights, once per large chunk.

    .. math::
      g = \textstyle\sum_i \eta_i \nabla \ell_i, \qquad M = \bar\beta M + g, \qquad
      W = \mathrm{norm}\big(W - \mathrm{NewtonSchulz}(M)\big)

    with :math:`\bar\beta` the mean of the chunk's β. The variant "momentum" subtracts M itself, "gradient_descent" g.
    The norms of the columns stay those of the initial weights, see `keep_norms`. The paper's memory is

        nj.Memory(
            nj.networks.GatedMLP(activation=jax.nn.silu, residual=False), nj.objectives.dot_product, nj.rules.lact(),
            chunk_size=2048, step_per="chunk", read="start",
        )

    whose w1, w2, w3 are the paper's W_1, W_3, W_2: a query is answered before its chunk is written. One learning rate
    per token is for all three, where the paper has three (deviation).

    Args:
      learning_rate: η, at least 0; None if it is given at every step.
      momentum: β in [0, 1]; None if it is given at every step. Not used by "gradient_descent".
      variant: "gradient_descent", "momentum" or "muon".

    Returns:
      `scale_by_learning_rate` → `momentum` → `newton_schulz` → `keep_norms`, or without the links that the variant does
      not have. With Newton-Schulz, for weights that are matrices.

    Raises:
      ValueError: for a constant out of range, an unknown variant, or a momentum where there is none.

    Example:
      >>> lact(0.01, 0.9)
      chain(scale_by_learning_rate(learning_rate=0.01), momentum(momentum=0.9), newton_schulz(), keep_norms())

    References:
      Zhang et al., `Test-Time Training Done Right <https://arxiv.org/abs/2505.23884>`_, 2025, §3.2 and Algorithm 1.

    .. note::
      `muon` orthogonalises first and then scales by the learning rate; here the learning rates weigh the gradients in
      the sum, and Newton-Schulz takes their common size away.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {VARIANTS}, got {variant!r}.")
    if variant == "gradient_descent":
        if momentum is not None:
            raise ValueError(f"momentum must be None with variant='gradient_descent', got {momentum}.")
        return chain(scale_by_learning_rate(learning_rate), keep_norms())
    orthogonal = (newton_schulz(),) if variant == "muon" else ()
    return chain(scale_by_learning_rate(learning_rate), momentum_rule(momentum), *orthogonal, keep_norms())
