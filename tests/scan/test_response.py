"""The roll-out of a linear system against carrying it token by token, and against the closed form of Titans."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nested_jax.scan import response
from nested_jax.scan.structure import System

pytestmark = pytest.mark.usefixtures("x64")


def random_system(tokens: int, size: int, lead=()) -> System:
    rng = np.random.default_rng(tokens + size)
    shapes = ((size, size), (size,), (size,), ())
    return System(*(jnp.asarray(0.5 * rng.normal(size=(*lead, tokens, *s))) for s in shapes))


def literal(system: System) -> response.Response:
    """The definition: carry z = Pe z_0 + Ke g through the chunk, one token after the other."""
    A, B, C, D = map(np.asarray, system)
    tokens, size = B.shape
    z = np.concatenate([np.eye(size), np.zeros((size, tokens))], axis=1)
    rows = []
    for t in range(tokens):
        now = np.eye(tokens + size)[size + t]
        rows.append(C[t] @ z + D[t] * now)
        z = A[t] @ z + np.outer(B[t], now)
    rows = np.stack(rows)
    return response.Response(rows[:, :size], rows[:, size:], z[:, :size], z[:, size:])


roll_out = jax.jit(response.roll_out)


@pytest.mark.parametrize(("tokens", "size"), [(1, 2), (2, 1), (5, 3), (8, 2), (13, 0), (13, 2)])
def test_merging_blocks_is_carrying_the_state(tokens, size):
    system = random_system(tokens, size)
    for found, expected in zip(roll_out(system), literal(system), strict=True):
        assert found.shape == expected.shape
        assert np.allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_leading_axes_are_chunks():
    system = random_system(6, 2, lead=(3, 4))
    found = roll_out(system)
    one = roll_out(System(*(x[2, 1] for x in system)))
    for all_of_them, single in zip(found, one, strict=True):
        assert np.allclose(all_of_them[2, 1], single, rtol=1e-12, atol=1e-12)


def test_titans_has_the_papers_closed_form():
    """kappa[t, i] = -θ_i Σ_{j=i..t} (Π_{l=i+1..j} η_l) (Π_{l=j+1..t} (1 − α_l)), Titans §3.2."""
    tokens = 7
    theta, eta, alpha = np.random.default_rng(0).uniform(size=(3, tokens))
    A = np.stack([np.stack([1 - alpha, eta], -1), np.stack([0 * eta, eta], -1)], -2)
    B = -np.stack([theta, theta], -1)
    found = roll_out(System(*map(jnp.asarray, (A, B, A[:, 0], B[:, 0]))))
    for t in range(tokens):
        assert np.allclose(found.P[t, 0], np.prod(1 - alpha[: t + 1]), rtol=1e-12)
        for i in range(tokens):
            paths = [np.prod(eta[i + 1 : j + 1]) * np.prod(1 - alpha[j + 1 : t + 1]) for j in range(i, t + 1)]
            assert np.allclose(found.K[t, i], -theta[i] * sum(paths), rtol=1e-12, atol=1e-15)


def test_strong_decay_does_not_overflow():
    """Forgetting everything at every token: ratios of cumulative products would be 0/0."""
    tokens = 64
    A = jnp.zeros((tokens, 1, 1), jnp.float32)
    ones = jnp.ones((tokens, 1), jnp.float32)
    system = System(A, ones, jnp.zeros_like(ones), ones[:, 0])
    gradient = jax.jit(jax.grad(lambda s: sum(jnp.sum(x) for x in response.roll_out(s))))(system)
    assert np.array_equal(roll_out(system).K, np.eye(tokens))
    assert all(jnp.isfinite(x).all() for x in gradient)


def test_reading_before_the_write_shifts_by_one_token():
    found = roll_out(random_system(5, 2))
    before = response.shift(found)
    assert np.array_equal(before.P, np.concatenate([[[1.0, 0.0]], found.P[:-1]]))
    assert np.array_equal(before.K, np.concatenate([np.zeros((1, 5)), found.K[:-1]]))
