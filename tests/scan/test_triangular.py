"""The block-ladder inverse against double precision, LAPACK's triangular solve and the product it replaces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nested_jax.scan.triangular import unit_lower_inverse

inverse = jax.jit(unit_lower_inverse)


def systems(correlation: float, count: int = 4, size: int = 64, dim: int = 64) -> np.ndarray:
    """Strictly lower parts of the Gram matrices of unit keys, float32."""
    rng = np.random.default_rng(0)
    own, common = rng.normal(size=(count, size, dim)), rng.normal(size=(count, 1, dim))
    keys = np.sqrt(1 - correlation) * own + np.sqrt(correlation) * common
    keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
    return np.tril(keys @ keys.swapaxes(-1, -2), -1).astype(np.float32)


def exact(lower: np.ndarray) -> np.ndarray:
    return np.linalg.inv(np.eye(lower.shape[-1]) + lower.astype(np.float64))


def neumann(lower: np.ndarray) -> np.ndarray:
    """The product of (I + (-A)^(2^j)) over the whole block."""
    eye = np.eye(lower.shape[-1], dtype=lower.dtype)
    found, power = eye - lower, lower @ lower
    for _ in range((lower.shape[-1] - 1).bit_length() - 1):
        found, power = found + found @ power, power @ power
    return found


def error(found, lower: np.ndarray) -> float:
    expected = exact(lower)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("rate", [1.0, 2.0])
def test_the_error_stays_at_rounding(correlation, rate):
    """Correlated and identical keys, and twice the largest learning rate that is stable on its own."""
    lower = np.float32(rate) * systems(correlation)
    assert error(inverse(lower), lower) <= 1e-5


def test_the_product_of_powers_would_not_do():
    """Why there is a ladder: the error of the product grows from harmless to useless with the keys' correlation."""
    assert error(neumann(systems(0.0)), systems(0.0)) <= 1e-5
    assert error(neumann(systems(0.9)), systems(0.9)) > 1.0
    assert error(neumann(systems(1.0)), systems(1.0)) > 1e6


@pytest.mark.parametrize("size", [1, 2, 13, 64])
def test_any_size_against_the_triangular_solve(size, x64):
    """Values, first derivatives, and the same numbers whatever stands on and above the diagonal."""
    rng = np.random.default_rng(size)
    lower, weights = jnp.asarray(rng.normal(size=(2, 3, size, size)) / size**0.5)
    eye = jnp.broadcast_to(jnp.eye(size), lower.shape)

    def peer(lower):
        full = eye + jnp.tril(lower, -1)
        return jax.scipy.linalg.solve_triangular(full, eye, lower=True, unit_diagonal=True)

    def value_and_gradient(function):
        return jax.jit(jax.value_and_grad(lambda a: jnp.sum(weights * jnp.sin(function(a)))))(lower)

    found = inverse(lower)
    assert np.allclose(found, peer(lower), rtol=1e-10, atol=1e-10)
    assert np.array_equal(found, jnp.tril(found))
    for a, b in zip(value_and_gradient(unit_lower_inverse), value_and_gradient(peer), strict=True):
        assert np.allclose(a, b, rtol=1e-10, atol=1e-10)


def test_second_derivatives_in_both_directions(x64):
    lower = jnp.asarray(np.random.default_rng(0).normal(size=(5, 5)))
    eye = jnp.eye(5)

    def naive(lower):
        powers = [eye]
        for _ in range(4):
            powers.append(-powers[-1] @ jnp.tril(lower, -1))
        return sum(powers)

    def both_ways(function):
        gradient = jax.grad(lambda a: jnp.sum(jnp.sin(function(a))))
        return jax.jit(lambda a: (jax.jacfwd(gradient)(a), jax.jacrev(gradient)(a)))(lower)

    for a, b in zip(both_ways(unit_lower_inverse), both_ways(naive), strict=True):
        assert np.allclose(a, b, rtol=1e-10, atol=1e-10)


def test_two_leading_batch_axes_under_vmap():
    """Heads and batch by `vmap` over a batch of blocks: some block extractions abort XLA's CPU compiler here."""
    lower = systems(0.5, count=6, size=16).reshape(2, 3, 1, 16, 16)
    found = jax.jit(jax.vmap(jax.vmap(unit_lower_inverse)))(lower)
    assert np.allclose(found, exact(lower), atol=1e-5)
    gradient = jax.jit(jax.vmap(jax.vmap(jax.grad(lambda a: jnp.sum(jnp.sin(unit_lower_inverse(a)))))))(lower)
    assert np.isfinite(gradient).all()
    assert np.allclose(unit_lower_inverse(lower), exact(lower), atol=1e-5)


@pytest.mark.parametrize(
    ("lower", "message"),
    [
        (jnp.ones(3), r"lower: expected square matrices \[..., C, C\], got shape \(3,\)"),
        (jnp.ones((2, 3)), r"lower: expected square matrices .* got shape \(2, 3\)"),
        (jnp.ones((2, 2), int), "lower: expected a floating dtype, got int32"),
    ],
)
def test_bad_inputs(lower, message):
    with pytest.raises(ValueError, match=message):
        unit_lower_inverse(lower)
