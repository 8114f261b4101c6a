"""How rules are put together: one after the other, side by side, and by the clock (Nested Learning 71, 75)."""

import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from nested_jax.rules._gates import widen
from nested_jax.rules._parts import is_none
from nested_jax.rules._rule import Rule, check_rules, describe_rule


def chain(*rules: optax.GradientTransformation) -> Rule:
    """Applies rules one after the other, and remembers them as `.links`.

    Args:
      *rules: at least one optax transformation. A chain among them stays one link.

    Returns:
      A rule whose state is the tuple of its links' states, exactly as that of `optax.chain`. Every link is given all
      gates and reads its own.

    Raises:
      ValueError: without rules, or for an argument that is not an optax transformation.

    Example:
      >>> from nested_jax import rules
      >>> rule = chain(rules.momentum(0.9), rules.scale_by_learning_rate(0.1))
      >>> rule
      chain(momentum(momentum=0.9), scale_by_learning_rate(learning_rate=0.1))
      >>> len(rule.links)
      2

    .. note::
      It computes what `optax.chain` computes. That one forgets its links, so that it can only be analysed as a whole.
    """
    check_rules("chain", rules)
    stock = optax.chain(*rules)
    return Rule(stock.init, stock.update, f"chain({', '.join(map(describe_rule, rules))})", links=rules)


def add(*rules: optax.GradientTransformation) -> Rule:
    r"""Gives the same updates to several rules and adds up what they make of them.

    .. math::
      u_t = \sum_i r_i(g_t)

    Args:
      *rules: at least one optax transformation.

    Returns:
      A rule whose state is the tuple of the terms' states. Every term is given all gates and reads its own; rename one
      of two equal gates (`momentum(gate="slow_momentum")`) to give them different values.

    Raises:
      ValueError: without rules, or for an argument that is not an optax transformation.

    Example:
      A quick and a slow memory of the gradient, as in M3:

      >>> from nested_jax import rules
      >>> rule = add(rules.momentum(0.5), rules.every(2, rules.momentum(0.9)))
      >>> state = rule.init(jnp.zeros(1))
      >>> for _ in range(2):
      ...     step, state = rule.update(jnp.ones(1), state)
      ...     print(step)
      [1.]
      [3.5]

    References:
      Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025, equation (75) and Algorithm 1.
    """
    check_rules("add", rules)
    terms = tuple(optax.with_extra_args_support(rule) for rule in rules)

    def init(params):
        return tuple(term.init(params) for term in terms)

    def update(updates, state, params=None, **extra):
        results = [term.update(updates, s, params, **extra) for term, s in zip(terms, state, strict=True)]
        outputs, states = zip(*results, strict=True)

        def total(first, *others):
            if first is None:
                return None
            return sum(map(widen, others), widen(first)).astype(jnp.result_type(first))

        return jax.tree.map(total, *outputs, is_leaf=is_none), states

    return Rule(init, update, f"add({', '.join(map(describe_rule, rules))})")


class EveryState(NamedTuple):
    """What `every` carries.

    Attributes:
      count: int32, the calls since the inner rule last stepped, in [0, period).
      total: the sum of the updates of those calls, in at least float32.
      inner: the inner rule's state.
      held: with `hold`, the inner rule's last output; else None.
    """

    count: jax.Array
    total: optax.Updates
    inner: optax.OptState
    held: Any = None


def every(period: int, rule: optax.GradientTransformation, *, hold: bool = False) -> Rule:
    r"""A level: steps a rule once in `period` calls, on the sum of their updates.

    .. math::
      u_t = r\Big(\sum_{i=t-f+1}^{t} g_i\Big) \;\text{ if } t \equiv 0 \bmod f, \qquad u_t = 0 \;\text{ otherwise}

    Calls are counted from 1, so the first step comes with call `period`. In between, the inner rule's state does not
    change. The inner rule reads the gates, and the weights, of the call at which it steps. What is weighed call by call
    comes before: `chain(scale_by_learning_rate(), every(f, ...))` has the learning rate inside the sum.

    Args:
      period: f, calls per step, a positive integer.
      rule: any optax transformation.
      hold: whether the output of a step is given out again and again, at each of the next `period` calls, instead of
        once at the call of the step (the slow momentum of M3). Nothing is given out during the first `period` calls.

    Returns:
      A rule with state `EveryState`. The clock selects with `jnp.where`: the inner rule is computed at every call, and
      what is linear and elementwise stays so once the count is known.

    Raises:
      ValueError: if `period` is not an integer of at least 1, or `rule` not an optax transformation.

    Example:
      >>> from nested_jax import rules
      >>> rule = every(3, rules.gradient_descent(0.5))
      >>> state = rule.init(jnp.zeros(2))
      >>> for _ in range(3):
      ...     step, state = rule.update(jnp.array([1.0, 2.0]), state)
      ...     print(step)
      [0. 0.]
      [0. 0.]
      [-1.5 -3. ]

    References:
      Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025, equation (71): a level of the
      continuum memory; Algorithm 1: the slow momentum of M3.

    .. note::
      `optax.MultiSteps` feeds the *mean* of the updates, and branches.
    """
    calls = _check_period(period)
    check_rules("every", (rule,))
    slow = optax.with_extra_args_support(rule)

    def init(params):
        return EveryState(
            count=jnp.zeros([], jnp.int32),
            total=jax.tree.map(lambda leaf: jnp.zeros_like(widen(leaf)), params),
            inner=slow.init(params),
            held=jax.tree.map(jnp.zeros_like, params) if hold else None,
        )

    def update(updates, state, params=None, **extra):
        fires = state.count == calls - 1

        def accumulate(update, total):
            return total if update is None else total + jnp.asarray(update, total.dtype)

        def feed(update, total):
            return None if update is None else total.astype(jnp.result_type(update))

        total = jax.tree.map(accumulate, updates, state.total, is_leaf=is_none)
        fed = jax.tree.map(feed, updates, total, is_leaf=is_none)
        output, inner = slow.update(fed, state.inner, params, **extra)
        if hold:
            given, held = _fill(updates, state.held), _select(fires, _keep(output, state.held), state.held)
        else:
            given, held = _select(fires, output, jax.tree.map(jnp.zeros_like, output)), None
        return given, EveryState(
            count=lax.rem(state.count + 1, jnp.int32(calls)),
            total=_select(fires, jax.tree.map(jnp.zeros_like, total), total),
            inner=_select(fires, inner, state.inner),
            held=held,
        )

    return Rule(init, update, f"every({calls}, {describe_rule(rule)}{', hold=True' if hold else ''})")


class RunningMeanState(NamedTuple):
    """What `running_mean` carries.

    Attributes:
      count: calls since the mean began, int32 in [0, period).
      mean: of the updates so far, shaped as the weights.
    """

    count: jax.Array
    mean: optax.Updates


def running_mean(period: int) -> Rule:
    r"""Moves the weights by the mean of the updates so far, begun anew after every `period` calls.

    .. math::
      u_t = m_t - m_{t-1}, \qquad m_t = \tfrac1i \sum_{s=t-i+1}^{t} g_s, \quad m_{t-i} = 0

    with i the place of the call in its period, from 1. After the i-th call the weights are those before the period plus
    the mean of i updates, not their sum.

    This is the second of the two conventions for the learning rate η in TTT layers. As the paper prints them, token s
    is written with its own rate, :math:`W_t = W_0 - \sum_{s \le t} \eta_s \nabla\ell_s`: `gradient_descent` in
    chunks of the mini-batch. Public code also divides by the place i of the token that reads,
    :math:`W_t = W_0 - \tfrac1i \sum_{s \le t} \eta_s \nabla\ell_s`: the same with this link behind it.

    Args:
      period: calls until the mean begins anew, a positive integer; in a memory its `chunk_size`.

    Returns:
      A rule without gates, with state `RunningMeanState`. Weights whose update is None keep their mean.

    Raises:
      ValueError: if `period` is not an integer of at least 1.

    Example:
      >>> rule, weights = running_mean(2), jnp.zeros(1)
      >>> state = rule.init(weights)
      >>> for gradient in (4.0, 2.0, 4.0):
      ...     step, state = rule.update(jnp.array([gradient]), state)
      ...     weights = weights + step
      ...     print(weights)
      [4.]
      [3.]
      [7.]

    References:
      Sun et al., `Learning to (Learn at Test Time) <https://arxiv.org/abs/2407.04620>`_, 2024, §2.4 and §2.7; the
      division is in the public code only.

    .. note::
      `average` forgets by a gate and does not begin anew; it gives out the average itself, not its change.
    """
    calls = _check_period(period)

    def init(params):
        return RunningMeanState(
            jnp.zeros([], jnp.int32), jax.tree.map(lambda leaf: jnp.zeros_like(widen(leaf)), params)
        )

    def update(updates, state, params=None, **extra):
        del params, extra
        place = (state.count + 1).astype(float)

        def begun(mean):
            return jnp.where(state.count == 0, jnp.zeros_like(mean), mean)

        def move(update, mean):
            if update is None:
                return None
            return (widen(update) - begun(mean)) / place.astype(mean.dtype)

        moves = jax.tree.map(move, updates, state.mean, is_leaf=is_none)
        mean = jax.tree.map(lambda m, d: m if d is None else begun(m) + d, state.mean, moves, is_leaf=is_none)
        count = lax.rem(state.count + 1, jnp.int32(calls))
        given = jax.tree.map(
            lambda u, d: None if u is None else d.astype(jnp.result_type(u)), updates, moves, is_leaf=is_none
        )
        return given, RunningMeanState(count, mean)

    return Rule(init, update, f"running_mean({calls})")


def _check_period(period: Any) -> int:
    try:
        calls = operator.index(period)
    except TypeError:
        calls = 0
    if calls < 1 or isinstance(period, bool):
        raise ValueError(f"period must be an integer of at least 1, got {period!r}.")
    return calls


def _fill(updates: Any, held: Any) -> Any:
    """What is held, in the dtypes of the updates and None where they are."""
    return jax.tree.map(
        lambda u, h: None if u is None else h.astype(jnp.result_type(u)), updates, held, is_leaf=is_none
    )


def _keep(output: Any, held: Any) -> Any:
    """A new output in the dtypes of the held one, which stays where the new one is None."""
    return jax.tree.map(lambda o, h: h if o is None else o.astype(h.dtype), output, held, is_leaf=is_none)


def _select(condition: jax.Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
