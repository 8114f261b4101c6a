"""Mirror rules: the retentions of MIRAS other than l2, by a map from an accumulator to the weights (MIRAS §4.3)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from nested_jax.rules._gates import widen
from nested_jax.rules._parts import is_none
from nested_jax.rules._rule import Rule, check_rules, describe_rule


class Map(NamedTuple):
    """An elementwise or arraywise map from accumulators to weights, and back.

    Attributes:
      forward: accumulator -> weights, of one array.
      inverse: weights -> an accumulator that `forward` maps to them.
      name: how it was built.
      settle: accumulator -> one that maps to the same weights, after every step; None for the identity. It matters to a
        decay per channel.
      shifts: whether `settle` only adds what `forward` does not see, whatever a linear rule makes of it: settling at
        the end of a chunk then gives the same weights, and the chunk can be run at once.
    """

    forward: Callable[[jax.Array], jax.Array]
    inverse: Callable[[jax.Array], jax.Array]
    name: str
    settle: Callable[[jax.Array], jax.Array] | None = None
    shifts: bool = False

    def settled(self, accumulator: jax.Array) -> jax.Array:
        """`settle`, where there is one."""
        return accumulator if self.settle is None else self.settle(accumulator)

    def __repr__(self) -> str:
        return self.name


class MirrorState(NamedTuple):
    """What `mirror` carries.

    Attributes:
      accumulator: A, shaped as the weights, in at least float32.
      rule: the inner rule's state.
    """

    accumulator: optax.Params
    rule: optax.OptState


def mirror(rule: optax.GradientTransformation, map: Map) -> Rule:
    r"""Runs a rule on an accumulator A and lets the weights be a map of it.

    .. math::
      A_t = A_{t-1} + r(g_t, A_{t-1}), \qquad W_t = \phi(A_t)

    The gradient is taken at the weights, the rule (its decay, too) acts on the accumulator: mirror descent, or
    follow-the-regularised-leader, of the retention whose dual map is φ. All retentions of MIRAS but l2 have this form.

    Args:
      rule: any optax transformation; it is given A as its `params`.
      map: φ, one of `softmax_map`, `q_norm_map`, `soft_threshold_map`, `sigmoid_map`, or any `Map`.

    Returns:
      A rule with state `MirrorState` that needs `params` and reads the gates of `rule`. It starts from
      :math:`A_0 = \phi^{-1}(W_0)`: initial weights should be in the map's range (`map.forward` of anything is).

    Raises:
      ValueError: if `rule` is not an optax transformation; at `update`, if `params` is missing.

    Example:
      >>> from nested_jax import rules
      >>> rule = mirror(rules.gradient_descent(1.0), softmax_map())
      >>> weights = jnp.array([0.5, 0.25, 0.25])
      >>> step, state = rule.update(jnp.array([jnp.log(4.0), 0.0, 0.0]), rule.init(weights), weights)
      >>> print((weights + step).round(3))
      [0.2 0.4 0.4]

    References:
      Behrouz et al., `MIRAS <https://arxiv.org/abs/2504.13173>`_, 2025, equations (18-23).

    .. note::
      `retention` decays the weights themselves, which is this with the identity for φ.
    """
    check_rules("mirror", (rule,))
    inner = optax.with_extra_args_support(rule)

    def init(params):
        accumulator = jax.tree.map(lambda w: map.inverse(widen(w)), params)
        return MirrorState(accumulator, inner.init(accumulator))

    def update(updates, state, params=None, **extra):
        if params is None:
            raise ValueError("mirror needs params, the weights: call update(updates, state, params), got params=None.")
        wide = jax.tree.map(widen, updates)
        steps, after = inner.update(wide, state.rule, state.accumulator, **extra)

        def move(step, a):
            return a if step is None else map.settled(a + step)

        accumulator = jax.tree.map(move, steps, state.accumulator, is_leaf=is_none)

        def change(update, weight, a):
            return None if update is None else (map.forward(a) - widen(weight)).astype(jnp.result_type(update))

        output = jax.tree.map(change, updates, params, accumulator, is_leaf=is_none)
        return output, MirrorState(accumulator, after)

    return Rule(init, update, f"mirror({describe_rule(rule)}, {map})", mirrored=(rule, map))


def softmax_map(total: float = 1.0, axis: int | None = None) -> Map:
    r"""Weights on a simplex, :math:`W = c\,\mathrm{softmax}(A)`: KL divergence to the old weights, with entropy.

    Args:
      total: c, above 0, what the weights sum to.
      axis: the axis over which they do; None for all entries of an array together. The paper derives the one and
        mentions the other.

    Returns:
      The `Map`. Its inverse is log, of entries clipped to the smallest positive number.

    Raises:
      ValueError: if `total` is not above 0.

    Example:
      >>> print(softmax_map(total=2.0).forward(jnp.zeros([2, 2])))
      [[0.5 0.5]
       [0.5 0.5]]

    References:
      MIRAS, equations (21) and (27).
    """
    if not total > 0:
        raise ValueError(f"total must be above 0, got {total}.")
    return Map(
        lambda a: total * jax.nn.softmax(a, axis=axis),
        lambda w: jnp.log(jnp.maximum(w / total, jnp.finfo(w.dtype).tiny)),
        f"softmax_map(total={total}, axis={axis})",
        lambda a: jax.nn.log_softmax(a, axis=axis),
        shifts=True,
    )


def q_norm_map(q: float = 4.0, *, literal: bool = False) -> Map:
    r"""l_q retention: the minimiser of :math:`-\langle A, W\rangle + \tfrac12\lVert W\rVert_{q'}^2`, 1/q + 1/q' = 1.

    .. math::
      W = \mathrm{sign}(A)\, |A|^{q-1} / \lVert A\rVert_q^{q-2}

    The paper prints :math:`A / \lVert A\rVert_q^{q-2}`, without the power. That is no such minimiser, and beyond q = 3
    it shrinks the weights as the accumulator grows; it is kept as `literal`.

    Args:
      q: at least 2; 2 is the identity.
      literal: whether to leave out the power. At q = 3 its inverse is the identity, as the norm of A is lost.

    Returns:
      The `Map`. Zero maps to zero.

    Raises:
      ValueError: if `q` is below 2.

    Example:
      >>> print(q_norm_map(4.0).forward(jnp.array([0.0, 2.0])), q_norm_map(4.0, literal=True).forward(jnp.array([2.0])))
      [0. 2.] [0.5]

    References:
      MIRAS, equations (24-25) and §4.3 (there q and its dual exponent p change places).
    """
    if q < 2:
        raise ValueError(f"q must be at least 2, got {q}.")
    dual = q / (q - 1)

    def forward(a: jax.Array) -> jax.Array:
        return a * _norm_power(a, q, 2 - q) if literal else _dual_map(a, q)

    def inverse(w: jax.Array) -> jax.Array:
        if not literal:
            return _dual_map(w, dual)
        return w if q == 3 else w * _norm_power(w, q, (q - 2) / (3 - q))

    return Map(forward, inverse, f"q_norm_map(q={q}{', literal=True' if literal else ''})")


def _norm_power(x: jax.Array, q: float, exponent: float) -> jax.Array:
    """‖x‖_q to a power; 1 where the norm is 0."""
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(x)))
    positive = scale > 0
    safe = jnp.where(positive, scale, 1.0)
    total = jnp.sum(_power(x / safe, q))
    return jnp.where(positive, (safe * jnp.where(positive, total, 1.0) ** (1 / q)) ** exponent, 1.0)


def _power(x: jax.Array, exponent: float) -> jax.Array:
    """|x| to a power above 0, with derivative 0 at 0."""
    nonzero = x != 0
    return jnp.where(nonzero, jnp.abs(jnp.where(nonzero, x, 1.0)) ** exponent, 0.0)


def _dual_map(x: jax.Array, q: float) -> jax.Array:
    """The gradient of ½‖x‖_q²."""
    return x if q == 2 else jnp.sign(x) * _power(x, q - 1) * _norm_power(x, q, 2 - q)


def soft_threshold_map(threshold: float) -> Map:
    r"""Weights that are exactly zero near zero, :math:`W = \mathrm{sign}(A)\max(0, |A| - \gamma)`: elastic net.

    With `retention` in the rule this is the l2 + l1 retention, as follow-the-regularised-leader (equation 23). The
    local form (22) is `proximal`.

    Args:
      threshold: γ, at least 0.

    Returns:
      The `Map`. Its inverse moves the entries that are not zero away from zero by γ.

    Raises:
      ValueError: if `threshold` is below 0.

    Example:
      >>> print(soft_threshold_map(1.0).forward(jnp.array([0.5, -3.0])))
      [ 0. -2.]

    References:
      MIRAS, equations (22-23).
    """
    if threshold < 0:
        raise ValueError(f"threshold must be at least 0, got {threshold}.")
    return Map(
        lambda a: jnp.sign(a) * jnp.maximum(jnp.abs(a) - threshold, 0.0),
        lambda w: w + threshold * jnp.sign(w),
        f"soft_threshold_map(threshold={threshold})",
    )


def sigmoid_map() -> Map:
    r"""Weights between 0 and 1, :math:`W = \sigma(A)`: the Bregman divergence of the binary entropy.

    Returns:
      The `Map`. Its inverse is the logit, of entries clipped to the open interval.

    Example:
      >>> print(sigmoid_map().forward(jnp.zeros(2)))
      [0.5 0.5]

    References:
      MIRAS, §4.3.
    """

    def inverse(w: jax.Array) -> jax.Array:
        margin = jnp.finfo(w.dtype).eps
        return jax.scipy.special.logit(jnp.clip(w, margin, 1 - margin))

    return Map(jax.nn.sigmoid, inverse, "sigmoid_map()")


def proximal(map: Callable[[jax.Array], jax.Array] | Map) -> Rule:
    r"""The last link of a chain: maps the weights that the update would give.

    .. math::
      W_t = \phi(W_{t-1} + u_t)

    With the soft threshold after `retention` this is the elastic net of equation (22).

    Args:
      map: φ, of one array; of a `Map` its `forward`.

    Returns:
      A stateless rule without gates that needs `params`.

    Raises:
      ValueError: at `update`, if `params` is missing.

    Example:
      >>> rule, weights = proximal(soft_threshold_map(1.0)), jnp.array([3.0, 0.5])
      >>> step, _ = rule.update(jnp.zeros(2), rule.init(weights), weights)
      >>> print(weights + step)
      [2. 0.]

    References:
      MIRAS, equation (22).

    .. note::
      `mirror` keeps what the map takes away and adds the next update to it; here it is lost.
    """
    apply = map.forward if isinstance(map, Map) else map

    def init(params):
        del params
        return optax.EmptyState()

    def update(updates, state, params=None, **extra):
        del extra
        if params is None:
            raise ValueError(
                "proximal needs params, the weights: call update(updates, state, params), got params=None."
            )

        def change(update, weight):
            if update is None:
                return None
            weight = widen(weight)
            return (apply(weight + widen(update)) - weight).astype(jnp.result_type(update))

        return jax.tree.map(change, updates, params, is_leaf=is_none), state

    return Rule(init, update, f"proximal({map!r})" if isinstance(map, Map) else f"proximal({map.__qualname__})")
