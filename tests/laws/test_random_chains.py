"""Law 2 on chains nobody wrote down: random links in random order, dual against the token-by-token definition."""

import random

import memory_table as table
import optax
import pytest
from test_implementations_agree import TOLERANCE, assert_close, everything

from nested_jax import rules

pytestmark = pytest.mark.usefixtures("x64")

LINKS = (
    lambda: rules.momentum(0.7),
    lambda: rules.momentum(0.5, nesterov=True),
    lambda: rules.retention(0.05),
    lambda: rules.add(optax.scale(0.5), rules.momentum(0.3)),
    lambda: rules.every(3, rules.momentum(0.4)),
    lambda: rules.newton_schulz(),
    lambda: rules.chain(rules.momentum(0.2), optax.clip(0.1)),
    lambda: optax.trace(0.6, nesterov=True),
    lambda: optax.ema(0.7),
    lambda: optax.scale_by_schedule(optax.linear_schedule(1.0, 0.25, 8)),  # exact in float32, in which optax computes
    lambda: optax.add_decayed_weights(0.02),
    lambda: optax.masked(rules.momentum(0.5), lambda tree: {name: name == "w1" for name in tree}),
)


def random_case(seed: int) -> table.Case:
    chance = random.Random(seed)
    links = [chance.choice(LINKS)() for _ in range(chance.randrange(1, 5))]
    rule = rules.chain(*links, rules.scale_by_learning_rate())
    setting = {
        "chunk_size": chance.choice([3, 5]),
        "window": chance.choice([1, 2]),
        "read": chance.choice(["after", "before", "start"]),
        "tokens": 11,
        "reset": chance.choice([False, True]),
    }
    return table.case(repr(rule), rule, True, chance.choice(["linear", "mlp", "gated"]), setting)


GATED = (
    lambda: rules.momentum(gate="slow_momentum"),
    lambda: rules.momentum(gate="slow_momentum", nesterov=True),
    lambda: rules.retention(gate="second_moment"),
)
FORGETFUL = (lambda: optax.scale(0.5), rules.scale_by_learning_rate, lambda: LINKS[9]())


def special_case(seed: int) -> table.Case:
    """Chains with gates per channel, with delta gradient descent, or with Newton-Schulz first, in turn."""
    chance, kind = random.Random(seed), ("channels", "erasing", "low rank")[seed % 3]
    others = [chance.choice(LINKS + GATED)() for _ in range(chance.randrange(1, 4))]
    first = {"channels": [], "erasing": [rules.delta_gradient_descent()], "low rank": [rules.newton_schulz()]}[kind]
    if kind == "erasing" and chance.random() < 0.3:
        first = [optax.masked(first[0], lambda tree: {name: name in ("w", "w2") for name in tree})]
    elif kind == "low rank" and chance.random() < 0.7:
        first = [chance.choice(FORGETFUL)(), *first]
    last = [optax.scale(0.5)] if kind == "erasing" else [rules.scale_by_learning_rate()]
    rule = rules.chain(*first, *others, *last)
    setting = {
        "chunk_size": chance.choice([3, 5]),
        "window": 1 if kind == "erasing" else chance.choice([1, 2]),
        "read": chance.choice(["after", "before", "start"]),
        "tokens": 11,
        "reset": chance.choice([False, True]),
    }
    case = table.case(repr(rule), rule, True, chance.choice(["linear", "mlp", "gated"]), setting)
    return case._replace(channels=kind == "channels")


def agree(case: table.Case):
    plan = case.plan()
    if plan.implementation != "scan":
        assert_close(everything(case, plan.implementation), everything(case, "scan"), TOLERANCE)
    else:
        assert plan.reason.startswith("token by token")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 2])
def test_random_chains_agree(seed):
    agree(random_case(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 40))
def test_more_random_chains_agree(seed):
    """`pytest -m slow tests/laws`."""
    agree(random_case(seed))


def test_most_random_chains_are_run_over_chunks():
    """The seeds above do test the dual form."""
    plans = [random_case(seed).memory.plan(table.DIM).implementation for seed in range(40)]
    assert [plans[0], plans[2]] == ["dual", "dual"]
    assert plans.count("dual") >= 25


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(45))
def test_special_random_chains_agree(seed):
    """`pytest -m slow tests/laws`."""
    agree(special_case(seed))


def test_most_special_random_chains_are_run_over_chunks():
    plans = [special_case(seed).plan() for seed in range(45)]
    assert [plan.implementation for plan in plans].count("scan") <= 15
    assert sum(bool(plan.erases) for plan in plans) >= 5
    assert sum(plan.low_rank for plan in plans) >= 5
