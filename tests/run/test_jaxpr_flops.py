"""Products counted in jaxprs, against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from nested_jax.run.jaxpr_flops import product_flops

X, W = jax.ShapeDtypeStruct((4, 8), jnp.float32), jax.ShapeDtypeStruct((8, 16), jnp.float32)
SQUARE = jax.ShapeDtypeStruct((8, 8), jnp.float32)
DENSE = 2 * 4 * 8 * 16


def dense(x, w):
    return jnp.sum(jnp.sin(jnp.matmul(x, w, precision="default")))


def powers(x, w, length):
    return jax.lax.scan(lambda x, _: (jnp.matmul(x, w, precision="default"), None), x, length=length)[0]


def test_dense_layer_and_its_gradients():
    assert product_flops(dense, X, W) == {"float32": DENSE}
    assert product_flops(jax.grad(dense, 1), X, W) == {"float32": 2 * DENSE}
    assert product_flops(jax.grad(dense, (0, 1)), X, W) == {"float32": 3 * DENSE}


def test_recomputation_counts():
    twice = jax.checkpoint(lambda x, w: jnp.sum(jnp.sin(jnp.sin(jnp.matmul(x, w, precision="default")))))
    assert product_flops(jax.grad(twice, (0, 1)), X, W) == {"float32": 4 * DENSE}


def test_scans_count_as_often_as_they_go_round():
    one = 2 * 4 * 8 * 8
    assert product_flops(lambda x, w: powers(x, w, 7), X, SQUARE) == {"float32": 7 * one}

    def nested(x, w):
        return jax.lax.scan(lambda x, _: (powers(x, w, 7), None), x, length=3)[0]

    assert product_flops(jax.jit(nested), X, SQUARE) == {"float32": 21 * one}
    gradient = jax.grad(lambda x, w: jnp.sum(nested(x, w)), (0, 1))
    assert product_flops(gradient, X, SQUARE) == {"float32": 3 * 21 * one}


def test_batches_and_branches():
    many = jax.ShapeDtypeStruct((5, 4, 8), jnp.float32)
    assert product_flops(jax.vmap(dense, (0, None)), many, W) == {"float32": 5 * DENSE}

    def either(flag, x, w):
        return jax.lax.cond(flag, lambda: dense(x, w) + dense(x, w), lambda: dense(x, w))

    def other(flag, x, w):
        return either(~flag, x, w) + jax.lax.cond(flag, lambda: 0.0, lambda: dense(x, w))

    flag = jax.ShapeDtypeStruct((), jnp.bool_)
    assert product_flops(either, flag, X, W) == {"float32": 2 * DENSE}  # the longer branch
    assert product_flops(other, flag, X, W) == {"float32": 3 * DENSE}


def test_loops_of_unknown_length_are_told():
    def search(x, w):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 9, lambda x: powers(x, w, 1), x)

    assert product_flops(search, X, SQUARE) == {"float32": 2 * 4 * 8 * 8, "unknown": 1}


@pytest.mark.parametrize(
    ("dtype", "precision", "kind"),
    [("bfloat16", "default", "bfloat16"), ("float32", "default", "float32"), ("float32", "highest", "highest")],
)
def test_precision(dtype, precision, kind):
    a, b = X.update(dtype=dtype), W.update(dtype=dtype)
    assert product_flops(lambda a, b: jnp.matmul(a, b, precision=precision), a, b) == {kind: DENSE}


def test_convolution():
    x, kernel = jax.ShapeDtypeStruct((2, 3, 10), jnp.float32), jax.ShapeDtypeStruct((5, 3, 4), jnp.float32)
    found = product_flops(lambda x, k: jax.lax.conv(x, k, (1,), "VALID"), x, kernel)
    assert sum(found.values()) == 2 * (2 * 5 * 7) * (3 * 4)


def test_a_sharded_map_counts_all_shards():
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    split = jax.shard_map(
        lambda x, w: jnp.matmul(x, w, precision="default"),
        mesh=mesh,
        in_specs=(P("a"), P()),
        out_specs=P("a"),
        axis_names={"a"},
    )
    assert product_flops(jax.jit(split), X, W) == {"float32": DENSE}
