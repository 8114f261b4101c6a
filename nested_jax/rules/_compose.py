"""How rules are put together: one after the other, side by side, and at a slower clock."""

import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from nested_jax.rules._gates import widen
from nested_jax.rules._rule import Rule, describe_rule


def _check_rules(function: str, rules: tuple[Any, ...]) -> None:
    if not rules:
        raise ValueError(f"{function} takes at least one rule, got none.")
    for position, rule in enumerate(rules):
        if not isinstance(rule, optax.GradientTransformation):
            raise ValueError(f"{function} takes optax transformations, got {rule!r} at position {position}.")


def chain(*rules: optax.GradientTransformation) -> Rule:
    _check_rules("chain", rules)
    stock = optax.chain(*rules)
    return Rule(stock.init, stock.update, f"chain({', '.join(map(describe_rule, rules))})", links=rules)


def add(*rules: optax.GradientTransformation) -> Rule:
    _check_rules("add", rules)
    terms = tuple(optax.with_extra_args_support(rule) for rule in rules)

    def init(params):
        return tuple(term.init(params) for term in terms)

    def update(updates, state, params=None, **extra):
        outputs, states = zip(
            *(term.update(updates, s, params, **extra) for term, s in zip(terms, state, strict=True)), strict=True
        )

        def total(first, *others):
            if first is None:
                return None
            return sum(map(widen, others), widen(first)).astype(jnp.result_type(first))

        return jax.tree.map(total, *outputs, is_leaf=lambda leaf: leaf is None), states

    return Rule(init, update, f"add({', '.join(map(describe_rule, rules))})")


class EveryState(NamedTuple):
    """What `every` carries."""

    count: jax.Array
    total: optax.Updates
    inner: optax.OptState


def every(period: int, rule: optax.GradientTransformation) -> Rule:
    try:
        calls = operator.index(period)
    except TypeError:
        calls = 0
    if calls < 1 or isinstance(period, bool):
        raise ValueError(f"period must be an integer of at least 1, got {period!r}.")
    _check_rules("every", (rule,))
    slow = optax.with_extra_args_support(rule)

    def init(params):
        return EveryState(
            count=jnp.zeros([], jnp.int32),
            total=jax.tree.map(lambda leaf: jnp.zeros_like(widen(leaf)), params),
            inner=slow.init(params),
        )

    def update(updates, state, params=None, **extra):
        fires = state.count == calls - 1
        total = jax.tree.map(
            lambda update, total: total if update is None else total + update.astype(total.dtype),
            updates,
            state.total,
            is_leaf=lambda leaf: leaf is None,
        )
        fed = jax.tree.map(
            lambda update, total: None if update is None else total.astype(update.dtype),
            updates,
            total,
            is_leaf=lambda leaf: leaf is None,
        )
        output, inner = slow.update(fed, state.inner, params, **extra)
        return _where(fires, output, jax.tree.map(jnp.zeros_like, output)), EveryState(
            count=lax.rem(state.count + 1, jnp.int32(calls)),
            total=_where(fires, jax.tree.map(jnp.zeros_like, total), total),
            inner=_where(fires, inner, state.inner),
        )

    return Rule(init, update, f"every({calls}, {describe_rule(rule)})")


def _where(condition: jax.Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
