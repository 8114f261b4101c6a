"""Every implementation of Newton-Schulz against the reference; kernels run on their machine or in its simulator."""

import contextlib
import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from nested_jax.kernels import gram, implementations, newton_schulz, orthogonalize
from nested_jax.kernels.newton_schulz import TABLES, polynomials
from nested_jax.kernels.recompute import with_derivative_of
from nested_jax.scan import structure

interprets_gpu = pytest.mark.skipif(
    not hasattr(plgpu, "InterpretGPUParams") and jax.default_backend() != "gpu",
    reason="JAX 0.10 has no interpreter of GPU kernels; the CI job on Python 3.12, with a later JAX, runs this",
)


def interpreted(implementation):
    """Runs kernels on their machine, or in JAX's simulator of it, which also looks for races."""
    if {"tpu": "pallas_tpu", "gpu": "mosaic_gpu"}.get(jax.default_backend()) == implementation:
        return contextlib.nullcontext()
    if implementation == "pallas_tpu":
        return pltpu.force_tpu_interpret_mode(pltpu.InterpretParams(detect_races=True))
    if implementation == "mosaic_gpu":
        return plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(detect_races=True))
    return contextlib.nullcontext()


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def run(x, name, steps, implementation, interpreting=False):
    return orthogonalize(x, name, steps, implementation=implementation)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def with_gradient(x, name, steps, implementation):
    """The result, and its derivative along a fixed probe."""
    result, pull = jax.vjp(lambda x: orthogonalize(x, name, steps, implementation=implementation), x)
    return result, pull(jax.random.normal(jax.random.key(0), x.shape, x.dtype))[0]


def matrices(*shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(0), shape, dtype)


def with_degenerate_ones(x):
    """The first matrix zero, the second of rank one."""
    return x.at[0].set(0).at[1].set(x[1, :, :1] * x[1, :1, :])


def relative(got, want):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return np.linalg.norm(got - want) / np.linalg.norm(want)


def operations(jaxpr):
    """Floating point operations of all products."""
    count = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            ((contracted,), _), _ = eqn.params["dimension_numbers"]
            count += 2 * eqn.invars[0].aval.shape[contracted] * eqn.outvars[0].aval.size
        count += sum(operations(p.jaxpr) for p in eqn.params.values() if hasattr(p, "jaxpr"))
    return count


BFLOAT16_ROUNDINGS = 2 * float(jnp.finfo(jnp.bfloat16).eps)
"""In Frobenius norm. A kernel rounds the numbers that the reference rounds, in the same places, but adds in another
order, in float32: where a sum lies at a boundary of bfloat16 it goes the other way. Were every entry of the result and
of the last product to go the other way, two spacings of bfloat16 would be between the results."""


class TestGram:
    @pytest.mark.parametrize(("name", "steps"), [("cubic", 5), ("muon", 2), ("muon", 5), ("polar_express", 9)])
    def test_equals_the_reference(self, name, steps, x64):
        x = matrices(2, 3, 8, dtype=jnp.float64)
        want, want_gradient = with_gradient(x, name, steps, "xla")
        got, got_gradient = with_gradient(x, name, steps, "gram")
        np.testing.assert_allclose(got, want, atol=1e-10)
        np.testing.assert_allclose(got_gradient, want_gradient, atol=1e-10)

    @pytest.mark.parametrize("shape", [(8, 3), (4, 4), (2, 2, 3, 7), (0, 3, 5)], ids=str)
    def test_of_other_shapes(self, shape, x64):
        x = matrices(*shape, dtype=jnp.float64)
        got = run(x, "muon", 3, "gram")
        assert got.shape == shape
        np.testing.assert_allclose(got, run(x, "muon", 3, "xla"), atol=1e-10)

    @pytest.mark.parametrize("name", TABLES)
    def test_in_float32(self, name):
        """Against the reference in float64."""
        x = matrices(3, 16, 128)
        with jax.enable_x64(True):
            want = run(x.astype(jnp.float64), name, 5, "xla")
        np.testing.assert_allclose(run(x, name, 5, "gram"), want, atol=1e-5)

    def test_of_bfloat16_is_computed_in_float32(self):
        x = matrices(2, 16, 64, dtype=jnp.bfloat16)
        got = run(x, "polar_express", 8, "gram")
        assert got.dtype == jnp.bfloat16
        np.testing.assert_array_equal(got, run(x.astype(jnp.float32), "polar_express", 8, "gram").astype(jnp.bfloat16))
        assert "bf16" not in str(jax.make_jaxpr(gram.iterate, static_argnums=(1, 2))(x.astype(float), ((1, 1, 1),), 0))

    def test_zero_and_rank_one(self):
        value, gradient = with_gradient(with_degenerate_ones(matrices(3, 16, 32)), "muon", 5, "gram")
        assert not jnp.any(value[0])
        assert not jnp.any(gradient[0])
        values = np.linalg.svd(value[1], compute_uv=False)
        assert 0.68 <= values[0] <= 1.14
        # Five steps multiply by up to 3.4445^5 = 485 what rounding leaves where there should be nothing.
        np.testing.assert_allclose(values[1:], 0, atol=485 * float(jnp.finfo(jnp.float32).eps))
        assert jnp.all(jnp.isfinite(gradient))

    def test_counts_its_operations(self):
        triples = polynomials("muon", 5)
        x = jax.ShapeDtypeStruct((1, 8, 32), jnp.float32)
        written = jax.make_jaxpr(lambda x: newton_schulz.iterate(x, triples, 0.0, x.dtype))(x)
        saved = jax.make_jaxpr(lambda x: gram.iterate(x, triples, 0.0))(x)
        assert gram.operations(8, 32, triples) == (operations(written.jaxpr), operations(saved.jaxpr))

    def test_restarts_after_two_steps_and_then_every_three(self):
        assert [len(part) for part in gram.segments(polynomials("muon", 9))] == [2, 3, 3, 1]


KERNEL_CASES = [
    ("pallas_tpu", jnp.float32, (33, 64, 64), "muon"),  # two blocks, the last of one matrix
    ("pallas_tpu", jnp.bfloat16, (2, 2, 128, 128), "polar_express"),
    ("pallas_tpu", jnp.float32, (3, 256, 256), "cubic"),
    pytest.param("mosaic_gpu", jnp.bfloat16, (3, 64, 64), "cubic", marks=interprets_gpu),
    pytest.param("mosaic_gpu", jnp.bfloat16, (1, 2, 128, 128), "polar_express", marks=interprets_gpu),
]


class TestKernels:
    @pytest.mark.parametrize(("implementation", "dtype", "shape", "name"), KERNEL_CASES)
    def test_equals_the_reference(self, implementation, dtype, shape, name, capfd):
        x = matrices(*shape, dtype=dtype)
        x = with_degenerate_ones(x.reshape(-1, *shape[-2:])).reshape(shape)
        want = run(x, name, 3, "xla")
        with interpreted(implementation):
            got = run(x, name, 3, implementation, True)
        assert (got.dtype, got.shape) == (dtype, shape)
        assert not jnp.any(got.reshape(-1, *shape[-2:])[0])
        if dtype == jnp.float32:
            np.testing.assert_allclose(got, want, atol=1e-5)
        else:
            assert relative(got, want) < BFLOAT16_ROUNDINGS
        assert "RACE DETECTED" not in "".join(capfd.readouterr())

    @pytest.mark.parametrize(
        ("implementation", "dtype"),
        [("pallas_tpu", jnp.float32), pytest.param("mosaic_gpu", jnp.bfloat16, marks=interprets_gpu)],
    )
    def test_gradient_is_that_of_the_reference(self, implementation, dtype):
        """Of the reference run again, that is: XLA rounds a bfloat16 program in other places where it saves results."""
        x = with_degenerate_ones(matrices(3, 64, 64, dtype=dtype))
        reference = jax.checkpoint(lambda x: orthogonalize(x, "muon", 2, implementation="xla"))
        probe = jax.random.normal(jax.random.key(0), x.shape, dtype)
        want = jax.jit(lambda x: jax.vjp(reference, x)[1](probe)[0])(x)
        with interpreted(implementation):
            got = with_gradient(x, "muon", 2, implementation)[1]
        assert jnp.all(jnp.isfinite(got))
        assert not jnp.any(got[0])
        np.testing.assert_allclose(got.astype(jnp.float32), want.astype(jnp.float32), atol=1e-5)

    def test_under_vmap(self):
        """Axes of `jax.vmap` join the batch: one call of the kernel, on blocks of the size it chooses."""
        x = matrices(2, 3, 64, 64)
        call = lambda x: orthogonalize(x, "cubic", 1, implementation="pallas_tpu")
        with interpreted("pallas_tpu"):
            got = jax.jit(jax.vmap(jax.vmap(call)))(x)
            gradient = jax.jit(jax.vmap(jax.grad(lambda x: jnp.sum(jnp.sin(call(x))))))(x)
        reference = lambda x: orthogonalize(x, "cubic", 1)
        np.testing.assert_allclose(got, reference(x), atol=1e-5)
        want = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(reference(x)))))(x)
        np.testing.assert_allclose(gradient, want, atol=1e-5)
        assert "grid=(1,)" in str(jax.make_jaxpr(jax.vmap(jax.vmap(call)))(x))

    @pytest.mark.parametrize("implementation", implementations.KERNELS)
    def test_saves_its_input_alone(self, implementation):
        x = jax.ShapeDtypeStruct((4, 64, 64), jnp.bfloat16)
        call = lambda x: orthogonalize(x, implementation=implementation)
        saved = jax.eval_shape(lambda x: jax.vjp(call, x)[1], x)
        assert sum(leaf.size for leaf in jax.tree.leaves(saved)) <= 4 * 64 * 64

    @pytest.mark.parametrize("implementation", implementations.KERNELS)
    def test_of_an_empty_batch(self, implementation):
        assert orthogonalize(jnp.zeros((0, 64, 64), jnp.bfloat16), implementation=implementation).shape == (0, 64, 64)


def test_derivatives_of_all_orders_go_through_the_reference(x64):
    """A kernel whose own derivative would be wrong, forward, backward, twice, and mapped in any order."""
    wrong = lambda x: jax.lax.stop_gradient(jnp.sin(x))
    f = with_derivative_of(jnp.sin, wrong)
    x = jnp.array([0.5, 2.0])
    batch = jnp.stack([x, 2 * x])
    np.testing.assert_allclose(f(x), jnp.sin(x))
    np.testing.assert_allclose(jax.jacfwd(f)(x), jnp.diag(jnp.cos(x)), atol=1e-12)
    np.testing.assert_allclose(jax.jacrev(f)(x), jnp.diag(jnp.cos(x)), atol=1e-12)
    first = jax.grad(lambda x: jnp.sum(f(x)))
    np.testing.assert_allclose(jax.vmap(first)(batch), jnp.cos(batch))
    np.testing.assert_allclose(jax.grad(lambda x: jnp.sum(jax.vmap(f)(x)))(batch), jnp.cos(batch))
    np.testing.assert_allclose(jax.jit(jax.grad(lambda x: jnp.sum(first(x))))(x), -jnp.sin(x))
    np.testing.assert_allclose(jax.hessian(lambda x: jnp.sum(f(x)))(x), -jnp.diag(jnp.sin(x)), atol=1e-12)
    third = jax.grad(lambda x: jnp.sum(jax.grad(lambda x: jnp.sum(first(x)))(x)))
    np.testing.assert_allclose(third(x), -jnp.cos(x), atol=1e-12)


H100 = jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")


def devices(count, platform, kind=AxisType.Explicit):
    """A mesh to lower for, of devices that need not be here."""
    device = {"abstract_device": H100} if platform == "cuda" else {}
    return jax.sharding.AbstractMesh((count,), ("data",), (kind,), **device)


@pytest.mark.parametrize("derivative", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(
    ("implementation", "platform", "shape", "dtype"),
    [
        ("pallas_tpu", "tpu", (33, 64, 64), jnp.float32),
        ("pallas_tpu", "tpu", (5, 128, 128), jnp.bfloat16),
        ("pallas_tpu", "tpu", (5, 256, 256), jnp.bfloat16),
        ("mosaic_gpu", "cuda", (5, 64, 64), jnp.bfloat16),
        ("mosaic_gpu", "cuda", (5, 128, 128), jnp.bfloat16),
        ("gram", "tpu", (2, 16, 64), jnp.float32),
        ("gram", "cuda", (2, 16, 64), jnp.float32),
    ],
)
def test_lowers(implementation, platform, shape, dtype, derivative):
    def call(x):
        return jnp.sum(jnp.square(orthogonalize(x, implementation=implementation).astype(jnp.float32)))

    function = jax.grad(call) if derivative else call
    with jax.sharding.use_abstract_mesh(devices(1, platform)):
        traced = jax.jit(function).trace(jax.ShapeDtypeStruct(shape, dtype))
        text = traced.lower(lowering_platforms=(platform,)).as_text()
    target = {"pallas_tpu": "tpu_custom_call", "mosaic_gpu": "mosaic_gpu", "gram": "dot_general"}[implementation]
    assert target in text
    assert ("dot_general" in text) == (derivative or implementation == "gram")


@pytest.mark.parametrize("derivative", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(("implementation", "platform"), [("pallas_tpu", "tpu"), ("mosaic_gpu", "cuda")])
def test_lowers_in_shard_map(implementation, platform, derivative):
    function = lambda x: orthogonalize(x, steps=1, implementation=implementation)
    if derivative:
        function = jax.grad(lambda x: jnp.sum(jnp.square(orthogonalize(x, steps=1, implementation=implementation))))
    mesh = devices(4, platform, AxisType.Auto)
    mapped = jax.jit(jax.shard_map(function, mesh=mesh, in_specs=P("data"), out_specs=P("data")))
    x = jax.ShapeDtypeStruct((8, 64, 64), jnp.bfloat16, sharding=jax.NamedSharding(mesh, P("data")))
    text = mapped.trace(x).lower(lowering_platforms=(platform,)).as_text()
    assert {"tpu": "tpu_custom_call", "cuda": "mosaic_gpu"}[platform] in text
    assert ("dot_general" in text) == derivative


def test_blocks_have_indices_of_32_bits_where_numbers_have_64(x64):
    """The TPU compiler refuses others, which lowering does not show."""
    from nested_jax.kernels import newton_schulz_tpu

    traced = jax.make_jaxpr(lambda x: newton_schulz_tpu.iterate(x, ((1.5, -0.5, 0.0),), 0.0))(jnp.zeros((2, 64, 64)))
    (call,) = (eqn for eqn in traced.eqns if eqn.primitive.name == "pallas_call")
    for block in call.params["grid_mapping"].block_mappings:
        assert {index.dtype for index in block.index_map_jaxpr.out_avals} == {jnp.dtype(jnp.int32)}


class TestChoice:
    def chosen(self, *shape, dtype=jnp.float32):
        return implementations.choose(jax.ShapeDtypeStruct(shape, dtype), polynomials("muon", 5))

    def test_on_a_cpu(self):
        assert self.chosen(8, 64, 64) == "xla"
        assert self.chosen(64, 256) == self.chosen(2, 256, 64) == self.chosen(64, 16) == "gram"
        assert self.chosen(64, 96) == "xla"  # as many operations
        assert self.chosen(8, 32) == "xla"  # too small for operations to count
        assert self.chosen(64, 256, dtype=jnp.bfloat16) == "xla"
        with jax.enable_x64(True):
            assert self.chosen(64, 256, dtype=jnp.float64) == "xla"

    def test_auto_is_the_reference_where_it_chooses_so(self):
        x = matrices(3, 8, 8)
        np.testing.assert_array_equal(run(x, "muon", 5, "auto"), run(x, "muon", 5, "xla"))

    def test_on_one_tpu(self, monkeypatch):
        monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
        monkeypatch.setattr(jax, "device_count", lambda: 1)
        assert self.chosen(8, 64, 64) == self.chosen(256, 256, dtype=jnp.bfloat16) == "pallas_tpu"
        assert self.chosen(8, 64, 128) == self.chosen(32, 32) == self.chosen(64, 64, dtype=jnp.float16) == "xla"

    @pytest.mark.parametrize(("capability", "found"), [("9.0", "mosaic_gpu"), ("8.0", "xla"), ("10.0", "xla")])
    def test_on_one_gpu(self, monkeypatch, capability, found):
        device = type("Device", (), {"compute_capability": capability})
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        monkeypatch.setattr(jax, "device_count", lambda: 1)
        monkeypatch.setattr(jax, "devices", lambda: [device])
        assert self.chosen(8, 128, 128, dtype=jnp.bfloat16) == found
        assert self.chosen(8, 128, 128) == self.chosen(8, 256, 256, dtype=jnp.bfloat16) == "xla"

    def test_on_several_tpus_kernels_are_for_shard_map(self, monkeypatch):
        monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
        assert self.chosen(8, 64, 64) == "xla"
        mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
        found = []

        def inside(x):
            found.append(implementations.choose(x, polynomials("muon", 5)))
            return x

        for names in ({"a", "b"}, {"a"}):
            mapped = jax.shard_map(inside, mesh=mesh, in_specs=P("a"), out_specs=P("a"), axis_names=names)
            jax.eval_shape(jax.jit(mapped), jax.ShapeDtypeStruct((4, 64, 64), jnp.float32))
        assert found == ["pallas_tpu", "xla"]

    @pytest.mark.parametrize(
        ("implementation", "x", "message"),
        [
            ("cuda", jnp.ones((64, 64)), "implementation must be one of 'auto', 'xla', .* got 'cuda'"),
            ("pallas_tpu", jnp.ones((64, 128)), r"square matrices .* one of 64, 128, 256, got float32\[64, 128\]"),
            ("pallas_tpu", jnp.ones((32, 32)), r"one of 64, 128, 256, got float32\[32, 32\]"),
            ("pallas_tpu", jnp.ones((64, 64), jnp.float16), "takes bfloat16 and float32, got float16"),
            ("mosaic_gpu", jnp.ones((64, 64)), "'mosaic_gpu' takes bfloat16, got float32"),
            ("mosaic_gpu", jnp.ones((256, 256), jnp.bfloat16), "one of 64, 128 .* exceed a block's shared memory"),
        ],
    )
    def test_refuses_what_an_implementation_does_not_take(self, implementation, x, message):
        with pytest.raises(ValueError, match=message):
            orthogonalize(x, implementation=implementation)


@pytest.mark.parametrize("implementation", ["xla", "gram", "pallas_tpu", "mosaic_gpu"])
def test_is_timewise_to_the_engine(implementation):
    rule = optax.stateless_with_tree_map(lambda u, _: orthogonalize(u, implementation=implementation))
    weights = {"w": jnp.zeros((64, 64), jnp.bfloat16)}
    found = structure.classify(structure.rule_step(rule), weights, rule.init(weights), {})
    assert (found.kind, found.reads_weights) == ("timewise", False)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("spec", [P(("data", "tensor")), P(None, "tensor", "data")], ids=str)
def test_of_matrices_split_over_a_mesh(spec, kind):
    x = matrices(8, 4, 8, 16)
    call = functools.partial(orthogonalize, coefficients="cubic", steps=2)
    want, want_gradient = jax.jit(call)(x), jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(call(x)))))(x)
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(kind,) * 2)
    with jax.set_mesh(mesh):
        split = jax.device_put(x, spec)
        got = jax.jit(call)(split)
        gradient = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(call(x)))))(split)
        np.testing.assert_allclose(jax.jit(jax.vmap(call))(split), want, atol=1e-5)
    np.testing.assert_allclose(got, want, atol=1e-5)
    np.testing.assert_allclose(gradient, want_gradient, atol=1e-5)
    if kind == AxisType.Explicit:
        assert jax.typeof(got).sharding.spec == jax.typeof(split).sharding.spec


def test_the_library_loads_pallas_on_first_use():
    code = """
import sys
import jax.numpy as jnp
import nested_jax

nested_jax.rules.newton_schulz().update({"w": jnp.ones((2, 2))}, None)
late = ("jax.experimental.pallas", "nested_jax.kernels.newton_schulz_")
print([name for name in sys.modules if name.startswith(late)])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"
