"""Newton-Schulz: against a literal numpy iteration, on its spectrum, and at inputs where norms and ranks vanish."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from nested_jax import rules
from nested_jax.kernels import newton_schulz as ns
from nested_jax.kernels import orthogonalize

NAMES = tuple(ns.TABLES)
every_name = pytest.mark.parametrize("name", NAMES)


def with_spectrum(values, rows, columns, seed=0):
    """A matrix with the given singular values."""
    rng = np.random.default_rng(seed)
    left, _ = np.linalg.qr(rng.normal(size=(rows, len(values))))
    right, _ = np.linalg.qr(rng.normal(size=(columns, len(values))))
    return left @ np.diag(values) @ right.T


def literal(x, triples, eps=1e-7):
    """Wide matrices only: five lines of numpy."""
    x = x / (np.linalg.norm(x) + eps)
    for a, b, c in triples:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


@every_name
@pytest.mark.parametrize("steps", [1, 5, 10])
def test_equals_the_literal_iteration(name, steps, x64):
    x = np.random.default_rng(0).normal(size=(5, 9))
    got = orthogonalize(jnp.asarray(x), name, steps)
    np.testing.assert_allclose(got, literal(x, ns.polynomials(name, steps)), rtol=1e-12, atol=1e-12)


def test_muon_equals_the_quintic_written_out(x64):
    x = np.random.default_rng(1).normal(size=(4, 6))
    z = x / (np.linalg.norm(x) + 1e-7)
    for _ in range(5):
        a = z @ z.T
        z = 3.4445 * z + (-4.7750 * a + 2.0315 * a @ a) @ z
    np.testing.assert_allclose(orthogonalize(jnp.asarray(x)), z, rtol=1e-12, atol=1e-12)


def test_cubic_equals_the_cubic_written_out(x64):
    x = np.random.default_rng(1).normal(size=(4, 6))
    z = x / (np.linalg.norm(x) + 1e-7)
    for _ in range(5):
        z = 1.5 * z - 0.5 * z @ z.T @ z
    np.testing.assert_allclose(orthogonalize(jnp.asarray(x), "cubic"), z, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "smallest", "low", "high"),
    [("muon", 1e-2, 0.68, 1.13), ("muon", 1e-3, 0.47, 1.20), ("polar_express", 1e-3, 0.85, 1.12)],
)
def test_five_steps_bring_singular_values_near_one(name, smallest, low, high, x64):
    """A dense grid of singular values, each beside the one that makes the Frobenius norm 1; known to two digits."""
    values = np.geomspace(smallest, 1.0, 20001)
    pairs = np.stack([values, np.sqrt(1 - np.minimum(values, 1.0) ** 2)], axis=1)
    got = orthogonalize(jnp.asarray(pairs[:, :, None] * np.eye(2)), name)[:, 0, 0]
    assert (round(float(got.min()), 2), round(float(got.max()), 2)) == (low, high)


@pytest.mark.parametrize(("name", "steps"), [("cubic", 30), ("polar_express", 9)])
def test_converges_to_the_polar_factor(name, steps, x64):
    x = with_spectrum(np.geomspace(1e-3, 0.9, 5), 5, 8)
    left, _, right = np.linalg.svd(x, full_matrices=False)
    np.testing.assert_allclose(orthogonalize(jnp.asarray(x), name, steps), left @ right, atol=1e-10)


def test_muon_does_not_converge_to_the_polar_factor(x64):
    """Its polynomial's fixed point repels: steps keep the singular values moving within [0.68, 1.14]."""
    x = jnp.asarray(with_spectrum(np.geomspace(1e-2, 0.9, 5), 5, 8))
    for steps in (20, 21):
        values = np.linalg.svd(orthogonalize(x, "muon", steps), compute_uv=False)
        assert np.max(np.abs(values - 1)) > 0.05


@every_name
def test_keeps_singular_vectors(name, x64):
    x = with_spectrum([1.0, 0.5, 0.2], 3, 7)
    left, _, right = np.linalg.svd(x, full_matrices=False)
    core = left.T @ orthogonalize(jnp.asarray(x), name) @ right.T
    np.testing.assert_allclose(core, np.diag(np.diag(core)), atol=1e-12)
    assert np.all(np.diag(core) > 0)


@every_name
@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (5, 5), (1, 6), (6, 1), (1, 1)])
def test_transposes(name, shape, x64):
    x = jax.random.normal(jax.random.key(0), shape, jnp.float64)
    np.testing.assert_allclose(orthogonalize(x.T, name).T, orthogonalize(x, name), atol=1e-12)


@every_name
@pytest.mark.parametrize("shape", [(2, 3), (3, 2)])
def test_batches(name, shape, x64):
    x = jax.random.normal(jax.random.key(0), (2, 4, *shape), jnp.float64)
    run = jax.jit(lambda y: orthogonalize(y, name))
    got = run(x)
    assert got.shape == x.shape
    for i in range(2):
        for j in range(4):
            np.testing.assert_allclose(got[i, j], run(x[i, j]), atol=1e-12)
    np.testing.assert_allclose(jax.vmap(run)(x), got, atol=1e-12)


@every_name
def test_an_empty_batch(name):
    assert orthogonalize(jnp.zeros([0, 2, 3]), name).shape == (0, 2, 3)


@every_name
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=str)
def test_ignores_scale(name, dtype):
    x = jax.random.normal(jax.random.key(0), (4, 6), dtype)
    np.testing.assert_allclose(
        orthogonalize(64 * x, name).astype(jnp.float32), orthogonalize(x, name).astype(jnp.float32), atol=1e-6
    )


def rounding(values, triples):
    """What one rounding of every product becomes by the end, in Frobenius norm, per unit of rounding.

    A step rounds terms of size |a| s + |b| s^3 + |c| s^5. The steps behind it carry that on, by at most the largest of
    the quotients (f(s_i) ± f(s_j)) / (s_i ± s_j) and f(s_i) / s_i, f being all of them together.
    """
    orbit = [np.asarray(values) / np.linalg.norm(values)]
    for a, b, c in triples:
        s = orbit[-1]
        orbit.append(a * s + b * s**3 + c * s**5)
    end, (i, j), total = orbit[-1], np.triu_indices(len(values), 1), 0.0
    for (a, b, c), s, after in zip(triples, orbit, orbit[1:], strict=False):
        quotients = [(end[i] - end[j]) / (after[i] - after[j]), (end[i] + end[j]) / (after[i] + after[j]), end / after]
        terms = abs(a) * s + abs(b) * s**3 + abs(c) * s**5
        total += np.abs(np.concatenate(quotients)).max() * np.linalg.norm(terms)
    return total


@every_name
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=str)
def test_precision(name, dtype):
    """Within what one rounding of every term becomes, of the iteration in float64."""
    values = [1.0, 0.7, 0.4, 0.2]
    rounded = jnp.asarray(with_spectrum(values, 4, 6), dtype)
    got = orthogonalize(rounded, name)
    assert got.dtype == dtype
    triples = ns.polynomials(name, 5)
    want = literal(np.asarray(rounded, np.float64), triples)
    error = np.linalg.norm(np.asarray(got, np.float64) - want)
    assert error < float(jnp.finfo(dtype).eps) * rounding(values, triples)


def test_bfloat16_products_are_added_in_float32():
    text = str(jax.make_jaxpr(orthogonalize)(jnp.ones([3, 5], jnp.bfloat16)))
    assert text.count("dot_general") == text.count("preferred_element_type=float32") > 0


@functools.partial(jax.jit, static_argnums=1)
def with_gradient(x, name):
    """The result, and its derivative along a fixed probe."""
    result, pull = jax.vjp(lambda x: orthogonalize(x, name), x)
    return result, pull(jax.random.normal(jax.random.key(0), x.shape, x.dtype))[0]


@jax.jit
def curvature(x):
    """A second derivative of the steepest of the tables."""
    return jax.grad(lambda x: jnp.sum(with_gradient(x, "polar_express")[1] ** 2))(x)


RNG = np.random.default_rng(0)
DEGENERATE = {
    "zero": np.zeros((3, 5)),
    "rank one": np.outer(RNG.normal(size=3), RNG.normal(size=5)),
    "zero row": np.vstack([RNG.normal(size=(2, 5)), np.zeros((1, 5))]),
    "tiny": 1e-12 * RNG.normal(size=(3, 5)),
    "underflowing": 1e-30 * RNG.normal(size=(3, 5)),
    "huge": 1e12 * RNG.normal(size=(3, 5)),
}


def beside_a_matrix(kind, dtype):
    """The degenerate matrix and an ordinary one, as a batch [2, 3, 5]."""
    return jnp.asarray(np.stack([DEGENERATE[kind], np.eye(3, 5)]), dtype)


@every_name
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=str)
@pytest.mark.parametrize("kind", DEGENERATE)
def test_finite_in_value_and_gradient(name, dtype, kind):
    value, gradient = with_gradient(beside_a_matrix(kind, dtype), name)
    assert jnp.all(jnp.abs(value.astype(jnp.float32)) < 1.3)
    assert jnp.all(jnp.isfinite(gradient))


@every_name
def test_zero_and_its_gradient_are_zero(name):
    value, gradient = with_gradient(beside_a_matrix("zero", jnp.float32), name)
    assert not jnp.any(value[0])
    assert not jnp.any(gradient[0])
    assert jnp.any(gradient[1])


@pytest.mark.parametrize("kind", ["zero", "rank one", "zero row"])
def test_finite_in_second_derivatives(kind):
    assert jnp.all(jnp.isfinite(curvature(beside_a_matrix(kind, jnp.float32))))


@every_name
def test_rank_one_stays_rank_one(name, x64):
    x = np.outer([1.0, 2.0, -1.0], [3.0, 0.0, 1.0, 1.0])
    values = np.linalg.svd(orthogonalize(jnp.asarray(x), name, 10), compute_uv=False)
    assert 0.68 <= values[0] <= 1.14
    np.testing.assert_allclose(values[1:], 0, atol=1e-12)


@every_name
def test_gradient_is_that_of_finite_differences(name, x64):
    x, direction, probe = jax.random.normal(jax.random.key(0), (3, 3, 4), jnp.float64)

    def loss(x):
        return jnp.sum(probe * orthogonalize(x, name))

    step = 1e-6
    difference = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    np.testing.assert_allclose(jnp.sum(direction * jax.grad(loss)(x)), difference, rtol=1e-6)


def test_tables():
    assert ns.polynomials("muon", 2) == ((3.4445, -4.7750, 2.0315),) * 2
    assert ns.polynomials([(1, 2, 3), (4, 5, 6)], 3) == ((1, 2, 3), (4, 5, 6), (4, 5, 6))
    polar = ns.polynomials("polar_express", 10)
    assert polar[7:] == ((1.875, -1.25, 0.375),) * 3
    a, b, c = polar[4]
    np.testing.assert_allclose(
        (a * 1.01, b * 1.01**3, c * 1.01**5), (2.300652019954817, -1.6689039845747493, 0.4188073119525673)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"coefficients": "moun"}, "coefficients must be one of 'cubic', 'muon', 'polar_express'.*got 'moun'"),
        ({"coefficients": ()}, "non-empty sequence of triples"),
        ({"coefficients": (1.0, 2.0, 3.0)}, "non-empty sequence of triples"),
        ({"coefficients": ((1.0, 2.0),)}, "non-empty sequence of triples"),
        ({"steps": 0}, "steps must be an integer of at least 1, got 0"),
        ({"steps": 2.5}, "steps must be an integer of at least 1, got 2.5"),
    ],
)
def test_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        rules.newton_schulz(**arguments)
    with pytest.raises(ValueError, match=message):
        orthogonalize(jnp.ones([2, 2]), **arguments)


def test_refuses_vectors_and_integers():
    with pytest.raises(ValueError, match=r"got shape \(3,\)"):
        orthogonalize(jnp.ones([3]))
    with pytest.raises(ValueError, match="floating dtype, got int32"):
        orthogonalize(jnp.ones([3, 3], jnp.int32))
    weights = {"layer": {"bias": jnp.ones([3]), "kernel": jnp.ones([2, 3])}}
    rule = rules.newton_schulz()
    with pytest.raises(ValueError, match=r"update at \['layer'\]\['bias'\] has shape \(3,\).*optax.partition"):
        rule.update(weights, rule.init(weights))


@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
def test_direction_is_that_of_optax_muon(shape, x64):
    """Its momentum is an average with bias correction, which the normalisation takes away at the first step."""
    gradient = {"w": jax.random.normal(jax.random.key(0), shape, jnp.float64)}
    numbers = {"w": contrib.MuonDimensionNumbers()}
    theirs = contrib.scale_by_muon(nesterov=False, eps=1e-7, weight_dimension_numbers=numbers)
    want, _ = theirs.update(gradient, theirs.init(gradient), gradient)
    ours = rules.chain(rules.momentum(0.95), rules.newton_schulz())
    got, _ = ours.update(gradient, ours.init(gradient))
    np.testing.assert_allclose(got["w"], want["w"], atol=1e-6)


def test_under_a_partition_by_rank():
    weights = {"kernel": jnp.ones([2, 3]), "bias": jnp.ones([3])}
    labels = {"kernel": "matrix", "bias": "vector"}
    rule = optax.partition({"matrix": rules.muon(0.1, 0.9), "vector": optax.sgd(0.1)}, labels)
    updates, _ = rule.update(weights, rule.init(weights), weights)
    np.testing.assert_allclose(updates["bias"], -0.1 * jnp.ones([3]), rtol=1e-6)
    np.testing.assert_allclose(updates["kernel"], -0.1 * orthogonalize(jnp.ones([2, 3])), rtol=1e-6)


def test_an_implementation_is_passed_on_and_named():
    rule = rules.newton_schulz(implementation="gram")
    assert repr(rule) == "newton_schulz(implementation='gram')"
    update = {"w": jax.random.normal(jax.random.key(0), (4, 12))}
    found, _ = rule.update(update, rule.init(update))
    expected, _ = rules.newton_schulz(implementation="xla").update(update, rule.init(update))
    assert np.allclose(found["w"], expected["w"], atol=1e-5)
    assert not np.array_equal(found["w"], expected["w"])
    with pytest.raises(ValueError, match="implementation must be one of 'auto', 'xla', 'gram'"):
        rules.newton_schulz(implementation="cuda")
