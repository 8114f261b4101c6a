"""Newton-Schulz between thin factors: equal to that of their product, values and gradients, whatever their rank."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nested_jax.kernels import low_rank_orthogonalize, orthogonalize
from nested_jax.kernels.newton_schulz import TABLES

every_table = pytest.mark.parametrize("name", TABLES)


def full(left, right, *settings):
    return orthogonalize(left.mT @ right, *settings)


def between(left, right, *settings):
    return left.mT @ low_rank_orthogonalize(left, right, *settings) @ right


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def with_gradients(function, left, right, name, steps):
    """The result, and the gradients along a fixed probe."""
    result, pull = jax.vjp(lambda left, right: function(left, right, name, steps), left, right)
    return result, pull(jax.random.normal(jax.random.key(2), result.shape, result.dtype))


compiled = jax.jit(lambda function, *arguments: function(*arguments), static_argnums=(0, 3, 4, 5))


def factors(rank, rows, columns, dtype, batch=(2,)):
    left, right = jax.random.split(jax.random.key(0))
    return (
        jax.random.normal(left, (*batch, rank, rows), dtype),
        jax.random.normal(right, (*batch, rank, columns), dtype),
    )


def repeated(left, right):
    """Every row twice, on one side alone: c rows of rank c / 2."""
    return jnp.repeat(left[:, ::2], 2, axis=1), right


def assert_equals_the_orthogonalised_product(left, right, name, steps):
    want, want_gradients = with_gradients(full, left, right, name, steps)
    got, got_gradients = with_gradients(between, left, right, name, steps)
    np.testing.assert_allclose(got, want, atol=1e-10)
    for a, b in zip(got_gradients, want_gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "steps"), [("cubic", 1), ("cubic", 5), ("muon", 1), ("muon", 5), ("polar_express", 8)]
)
def test_equals_the_orthogonalised_product(name, steps, x64):
    assert_equals_the_orthogonalised_product(*factors(4, 7, 9, jnp.float64), name, steps)


def test_of_outer_products(x64):
    assert_equals_the_orthogonalised_product(*factors(1, 3, 5, jnp.float64), "polar_express", 5)


@every_table
def test_of_factors_of_lower_rank_than_rows(name, x64):
    """More rows than columns, and every row of one side twice."""
    assert_equals_the_orthogonalised_product(*repeated(*factors(10, 8, 7, jnp.float64)), name, 5)


@every_table
def test_in_float32(name):
    """A window of 16 in 64 dimensions. 1e-5 is also what the full iteration keeps to float64 here."""
    left, right = factors(16, 64, 64, jnp.float32)
    with jax.enable_x64(True):
        want = compiled(full, left.astype(jnp.float64), right.astype(jnp.float64), name, 5)
    np.testing.assert_allclose(compiled(between, left, right, name, 5), want, atol=1e-5)


def alike(kind):
    """Windows of 16 in 64 dimensions, f32."""
    left, right = (np.asarray(x) for x in factors(16, 64, 64, jnp.float32))
    if kind == "repeated":
        left = np.repeat(left[:, :1], 16, 1)
    if kind == "parallel":
        left, right = (np.float32(np.sqrt(0.99) * x[:, :1] + np.sqrt(0.01) * x) for x in (left, right))
    return jnp.asarray(left), jnp.asarray(right)


@pytest.mark.parametrize(
    ("kind", "own", "of_full"), [("independent", 2e-6, 5e-5), ("repeated", 2e-4, 2e-4), ("parallel", 1e-3, 2e-4)]
)
def test_rounding_in_float32_is_as_the_docstring_says(kind, own, of_full):
    left, right = alike(kind)
    with jax.enable_x64(True):
        want = np.asarray(compiled(full, left.astype(jnp.float64), right.astype(jnp.float64), "muon", 5))
    for function, bound in ((between, own), (full, of_full)):
        error = np.abs(np.asarray(compiled(function, left, right, "muon", 5)) - want).max() / np.abs(want).max()
        assert bound / 20 < error < bound


@pytest.mark.parametrize("zero", [("left",), ("right",), ("left", "right")], ids=" and ".join)
def test_a_product_of_zero_gives_zero_with_gradient_zero(zero):
    left, right = factors(4, 5, 6, jnp.float32)
    left = left.at[0].set(0) if "left" in zero else left
    right = right.at[0].set(0) if "right" in zero else right
    z, gradients = with_gradients(low_rank_orthogonalize, left, right, "polar_express", 5)
    assert not jnp.any(z[0])
    assert jnp.any(z[1])
    for gradient in gradients:
        assert not jnp.any(gradient[0])
        assert jnp.all(jnp.isfinite(gradient))
        assert jnp.any(gradient[1])


def test_terms_that_cancel_stay_finite():
    left, right = jnp.ones((2, 3)), jnp.array([[1.0, 2.0], [-1.0, -2.0]])
    z, gradients = with_gradients(low_rank_orthogonalize, left, right, "muon", 5)
    assert jnp.all(jnp.isfinite(z))
    assert all(jnp.all(jnp.isfinite(gradient)) for gradient in gradients)


def test_the_derivative_is_that_of_the_reference_by_finite_differences(x64):
    left, right = factors(3, 4, 5, jnp.float64, ())
    direction, probe = jax.random.normal(jax.random.key(1), (2, 3, 3), jnp.float64)
    direction = jnp.pad(direction, ((0, 0), (0, 1)))
    loss = jax.jit(lambda left: jnp.sum(probe * low_rank_orthogonalize(left, right)))
    step = 1e-6
    difference = (loss(left + step * direction) - loss(left - step * direction)) / (2 * step)
    np.testing.assert_allclose(jnp.sum(direction * jax.grad(loss)(left)), difference, rtol=1e-6)


@pytest.mark.parametrize("batch", [(), (2, 3)], ids=str)
def test_leading_axes(batch, x64):
    left, right = factors(4, 6, 5, jnp.float64, batch)
    got = jax.jit(low_rank_orthogonalize)(left, right)
    assert got.shape == (*batch, 4, 4)
    mapped = low_rank_orthogonalize
    for _ in batch:
        mapped = jax.vmap(mapped)
    np.testing.assert_allclose(got, jax.jit(mapped)(left, right), atol=1e-12)


def test_bfloat16_factors_are_computed_in_float32():
    left, right = factors(4, 8, 8, jnp.bfloat16)
    got = jax.jit(low_rank_orthogonalize)(left, right)
    assert got.dtype == jnp.float32
    want = jax.jit(low_rank_orthogonalize)(left.astype(jnp.float32), right.astype(jnp.float32))
    np.testing.assert_array_equal(got, want)


def test_eps_counts_as_in_the_reference(x64):
    left, right = factors(3, 4, 5, jnp.float64)
    arguments = (1e-2 * left, 1e-2 * right, "cubic", 3, 0.5)
    np.testing.assert_allclose(compiled(between, *arguments), compiled(full, *arguments), atol=1e-14)


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        (jnp.ones(3), jnp.ones(3), r"left and right must be .* got shapes \(3,\) and \(3,\)"),
        (jnp.ones((3, 4)), jnp.ones((2, 4)), r"got shapes \(3, 4\) and \(2, 4\)"),
        (jnp.ones((3, 4)), jnp.ones((1, 3, 4)), r"got shapes \(3, 4\) and \(1, 3, 4\)"),
        (jnp.ones((3, 4)), jnp.ones((3, 4), jnp.bfloat16), "one floating dtype, got float32 and bfloat16"),
        (jnp.ones((3, 4), int), jnp.ones((3, 4), int), "one floating dtype, got int32 and int32"),
    ],
)
def test_refuses_what_does_not_fit(left, right, message):
    with pytest.raises(ValueError, match=message):
        low_rank_orthogonalize(left, right)
    with pytest.raises(ValueError, match="coefficients must be one of"):
        low_rank_orthogonalize(jnp.ones((3, 4)), jnp.ones((3, 4)), "moun")
