"""Law 2: scan = dual = delta = materialize, in outputs, final state and all gradients, to 1e-10 in double precision."""

import jax
import jax.numpy as jnp
import memory_table as table
import pytest
from memory_table import Case

pytestmark = pytest.mark.usefixtures("x64")

TOLERANCE = 1e-10
CASES = (
    table.quick_cases()
    + table.online_cases()[:2]
    + table.channel_cases()[:1]
    + table.erasing_cases()[5:6]
    + table.low_rank_cases()[:1]
)
ALL_CASES = table.rule_cases(len(table.SETTINGS)) + table.titans_cases((1, 7, 16, 64)) + table.online_cases()
ALL_CASES += table.channel_cases() + table.erasing_cases() + table.low_rank_cases()


def everything(case: Case, implementation: str):
    """Outputs, final state and the gradients of a function of both with respect to all inputs."""
    memory = table.using(case.memory, implementation)
    reset = table.resets(case)

    def loss(params, data):
        y, state = memory.scan(memory.start(params), *data, reset)
        total = jnp.sum(jnp.sin(y)) + sum(jnp.sum(jnp.cos(w)) for w in state.weights.values())
        return total, (y, state)

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, (y, state)), gradients = run(table.weights(case.memory), case.data())
    return {"y": y, "state": state, "gradients": gradients}


def assert_close(found, expected, tolerance: float):
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        assert jnp.isfinite(b).all(), path
        assert jnp.allclose(a, b, rtol=tolerance, atol=tolerance), (path, float(jnp.abs(a - b).max()))


def claims(case: Case, implementation: str) -> bool:
    """Whether an implementation says that it can run the case."""
    try:
        case.plan(implementation)
    except ValueError:
        return False
    return True


def agree(case: Case, implementations: tuple[str, ...]):
    chosen = case.plan().implementation
    claimed = [name for name in ("dual", "delta", "materialize") if claims(case, name)]
    assert ("delta" in claimed) == (chosen == "delta")
    if chosen == "scan" and case.memory.chunk_size > 1:
        assert not claimed
    else:
        assert chosen in ("scan", *claimed)
    run = [name for name in implementations if name in claimed]
    expected = everything(case, "scan") if run else None
    for implementation in run:
        assert_close(everything(case, implementation), expected, TOLERANCE)


@pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])
def test_implementations_agree(case: Case):
    """All implementations for an eighth of the cases, the fast ones for the others."""
    eighth = CASES.index(case) % 8 == 0 and case.memory.step_per == "token"
    agree(case, ("dual", "delta", "materialize") if eighth else ("dual", "delta"))


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL_CASES, ids=[c.name for c in ALL_CASES])
def test_implementations_agree_everywhere(case: Case):
    """Every rule in every setting: `pytest -m slow tests/laws`."""
    agree(case, ("dual", "delta", "materialize"))


def test_the_cases_cover_every_setting_network_and_read():
    networks = {c.memory.network for c in CASES}
    assert networks >= set(table.NETWORKS.values())
    assert {c.memory.read for c in CASES} == {"after", "before", "start"}
    assert {c.memory.step_per for c in CASES} == {"token", "chunk"}
    assert {c.memory.window for c in CASES} == {1, 2, 3}
    assert {c.memory.chunk_size for c in CASES} >= {1, 3, 7, 16}
    assert any(c.memory.retain_first for c in CASES)
    assert {c.reset for c in CASES} == {False, True}
    assert {c.plan().implementation for c in CASES} == {"scan", "dual", "delta"}
