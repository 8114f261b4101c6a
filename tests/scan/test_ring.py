"""The ring over a mesh axis: equal to whole sequences on one device, gradients and last states; what is sent."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from nested_jax.scan import ring

N, T, D = 8, 16, 3


def mesh(members: int, others: int = 1):
    kinds = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh(
        (others, members), ("data", "time"), axis_types=kinds, devices=jax.devices()[: others * members]
    )


def token(weight, state, xs):
    """A step that is not affine, and has neither value nor gradient at a state of zeros; a flag begins anew."""
    x, flag = xs
    h = jnp.where(flag, state["start"], state["h"])
    after = {
        "h": jnp.tanh(h @ weight + x) / jnp.linalg.norm(h),
        "count": state["count"] + 1,
        "late": state["count"] > 5,
    }
    return state | after, h * state["scale"]


def run(weight, state, xs):
    after, y = jax.lax.scan(functools.partial(token, weight), state, xs)
    return y, after


def naive(weight, states, xs):
    return jax.vmap(functools.partial(run, weight))(states, xs)


def across(members: int, groups: int | None, others: int = 1):
    def local(weight, states, xs):
        return ring.scan(functools.partial(run, weight), "time", states, xs, groups)

    specs = {"in_specs": (P(), P(), P(None, "time")), "out_specs": (P(None, "time"), P())}
    return jax.shard_map(local, mesh=mesh(members, others), axis_names={"time"}, check_vma=False, **specs)


def arguments():
    rng = np.random.default_rng(0)
    start, scale, x = (jnp.asarray(rng.normal(size=shape)) for shape in ((N, D), (N, D), (N, T, D)))
    states = {"h": start, "start": start[::-1], "scale": scale, "count": jnp.zeros(N, int), "late": jnp.zeros(N, bool)}
    flags = jnp.zeros((N, T), bool).at[1, 8].set(True).at[3, 5].set(True)
    return jnp.asarray(rng.normal(size=(D, D))), states, (x, flags)


def loss(function, weight, h, start, x):
    _, states, (_, flags) = arguments()
    y, after = function(weight, states | {"h": h, "start": start}, (x, flags))
    return jnp.sum(jnp.sin(3 * y)) + jnp.sum(jnp.cos(after["h"] + after["start"]) * after["scale"])


@functools.cache
def gradients(members: int | None = None, groups: int | None = None):
    """Of the naive code, unless there are members."""
    weight, states, (x, _) = arguments()
    function = naive if members is None else across(members, groups)
    return jax.jit(jax.grad(functools.partial(loss, function), (0, 1, 2, 3)))(weight, states["h"], states["start"], x)


def close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-10)


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("members", "groups"), [(4, None), (8, 2), slow(4, 1), slow(1, 4)])
def test_outputs_last_states_and_gradients_are_those_of_one_device(members, groups):
    """Idle members start from real states: zeros, which no state here may be, would make every gradient NaN."""
    y, after = jax.jit(across(members, groups))(*arguments())
    close((y, after), naive(*arguments()))
    assert after["count"].tolist() == [T] * N
    assert after["late"].all()
    close(gradients(members, groups), gradients())


def collectives(function, *given) -> list[str]:
    text = jax.jit(function).lower(*given).compile().as_text()
    return re.findall(r"= \S+ (all-[\w-]+|collective-[\w-]+|reduce-scatter)\(", text)


def test_only_what_changes_travels():
    """Not what nobody asks for, the counts, nor what a step leaves as it is, `start` and `scale`."""
    alone = collectives(lambda *given: across(4, 2)(*given)[0], *arguments())
    assert alone == ["collective-permute"]
    assert "all-reduce" in collectives(across(4, 2), *arguments())


def test_items_stay_on_the_members_of_another_axis():
    weight, states, xs = arguments()
    rows = NamedSharding(mesh(4, 2), P("data"))
    states, xs = jax.device_put((states, xs), rows)
    assert set(collectives(lambda *given: across(4, 4, 2)(*given)[0], weight, states, xs)) == {"collective-permute"}


def test_bad_input():
    weight, states, xs = arguments()
    with pytest.raises(ValueError, match=r"groups: expected a divisor of the 8 items, got 3"):
        jax.eval_shape(across(4, 3), weight, states, xs)
    other = lambda states, xs: ring.scan(lambda state, x: (x, state["h"]), "time", states, xs)
    specs = {"in_specs": (P(), P(None, "time")), "out_specs": (P(None, "time"), P())}
    with pytest.raises(ValueError, match="run: expected to return a state like the one it gets"):
        jax.eval_shape(jax.shard_map(other, mesh=mesh(2), check_vma=False, **specs), states, xs)
