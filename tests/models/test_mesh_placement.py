"""Layers on the mesh in context: what each device is given, and that the numbers are those of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from nested_jax.models import LanguageModel, ModelConfig
from nested_jax.models.families import family
from nested_jax.models.placement import HEADS, PLACES, ROWS, TIME, constrain, fit, on_own
from nested_jax.train.layerwise import path_name
from nested_jax.train.sharding import AXES, STATES, MeshConfig, make_mesh, placement
from nested_jax.train.step import loss


@pytest.fixture(autouse=True, scope="module")
def compile_quickly():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def mesh():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        yield mesh


def test_fit_leaves_out_what_does_not_divide():
    sizes = {"data": 2, "fsdp": 2, "tensor": 3}
    assert fit(P(ROWS, HEADS), (8, 6, 5), sizes) == P(ROWS, HEADS)
    assert fit(P(ROWS, HEADS), (6, 6), sizes) == P(None, HEADS)
    assert fit(P(ROWS, HEADS), (8,), sizes) == P()
    assert fit(P(TIME), (8,), sizes) == P(None)


def test_constrain_places_arrays(mesh):
    place = jax.jit(lambda tree: constrain(tree, P(ROWS, HEADS)))
    placed = place({"all": jnp.zeros((4, 2)), "rows": jnp.zeros((4, 3)), "none": jnp.zeros(3)})
    assert placed["all"].sharding.spec == P(ROWS, HEADS)
    assert placed["all"].addressable_data(0).shape == (1, 1)
    assert placed["rows"].addressable_data(0).shape == (1, 3)
    assert placed["none"].addressable_data(0).shape == (3,)


def test_nothing_happens_without_a_mesh_or_on_one_device():
    tree = {"x": jnp.zeros((2, 2))}
    assert constrain(tree, P(ROWS)) is tree
    assert on_own(jnp.cumsum, (P(ROWS),), P(ROWS)) is jnp.cumsum
    with jax.set_mesh(make_mesh(MeshConfig())):
        assert constrain(tree, P(ROWS)) is tree
        assert on_own(jnp.cumsum, (P(ROWS),), P(ROWS)) is jnp.cumsum


@pytest.mark.parametrize(("rows", "heads", "own"), [(8, 4, (2, 2)), (6, 4, (6, 2)), (8, 3, (2, 3))])
def test_on_own_gives_every_device_its_rows_and_heads(mesh, rows, heads, own):
    seen = []

    def run(weight, x, extra):
        seen.append((x.shape[0], x.shape[2]))
        _, y = jax.lax.scan(lambda carry, part: (carry + weight * part,) * 2, extra, jnp.moveaxis(x, 1, 0))
        return jnp.moveaxis(y, 0, 1)

    def value(run, weight, x, extra):
        return jnp.sum(jnp.sin(run(weight, x, extra)))

    x = jax.random.normal(jax.random.key(0), (rows, 5, heads))
    arguments = jnp.float32(0.3), x, x[:, 0]
    stream = P(ROWS, None, HEADS)
    split = on_own(run, (P(), stream, P(ROWS, HEADS)), stream)
    expected = jax.value_and_grad(value, (1, 2, 3))(run, *arguments)
    seen.clear()
    found = jax.jit(jax.value_and_grad(lambda *given: value(split, *given), (0, 1, 2)))(*arguments)
    assert set(seen) == {own}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


def test_on_own_refuses_time_that_does_not_divide():
    with jax.set_mesh(make_mesh(MeshConfig(sequence=2))), pytest.raises(ValueError, match="time in 2 pieces"):
        on_own(lambda x: x, (PLACES,), PLACES)(jnp.zeros((2, 3)))


def test_logits_of_few_places_are_made_of_own_rows():
    """Answers of each row of a batch that is split over devices: the loss of one device, and no features are sent."""
    model = LanguageModel(ModelConfig(vocab_size=31, dim=8, layers=1, blocks=("attention",)))
    draw = np.random.default_rng(0)
    inputs, trained = draw.integers(0, 31, (8, 12)), draw.permuted(np.tile(np.arange(12) < 3, (8, 1)), axis=1)
    batch = {"inputs": inputs, "targets": np.roll(inputs, -1, 1), "trained": trained}
    params = jax.jit(model.init)(jax.random.key(0), inputs)["params"]
    expected = loss(model, params, batch)
    with jax.set_mesh(make_mesh(MeshConfig(data=4, fsdp=2))):
        few = jax.jit(lambda params, batch: loss(model, params, batch, answers=3)).lower(params, batch).compile()
        np.testing.assert_allclose(few(params, batch), expected, rtol=1e-5)
    assert "all-gather" not in few.as_text()


@pytest.mark.parametrize("name", ["titans-mag", pytest.param("hope", marks=pytest.mark.slow), "slots"])
def test_states_lie_where_the_table_says(mesh, name):
    model = LanguageModel(family(name, layers=1))
    tokens = jnp.zeros((4, 16), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)
    _, states = jax.jit(model.apply).lower(params, tokens).compile().output_shardings
    shapes = jax.eval_shape(model.apply, params, tokens)[1]
    for (path, sharding), shape in zip(jax.tree.leaves_with_path(states), jax.tree.leaves(shapes), strict=True):
        spec = placement(path_name(path), shape.shape, mesh, STATES)
        expected = jax.sharding.NamedSharding(mesh, spec)
        assert sharding.is_equivalent_to(expected, shape.ndim), (path_name(path), sharding, spec)


def test_on_explicit_axes_a_model_runs_with_automatic_ones_inside():
    model = LanguageModel(family("linear-attention", layers=1, dim=16, vocab_size=32))
    tokens = jax.random.randint(jax.random.key(0), (4, 17), 0, 32)
    params = jax.jit(model.init)(jax.random.key(1), tokens[:, :-1])["params"]

    def value(params, tokens):
        return loss(model, params, {"tokens": tokens})

    expected = jax.jit(jax.value_and_grad(value))(params, tokens)
    with jax.set_mesh(jax.make_mesh((2, 2, 2, 1), AXES, axis_types=(AxisType.Explicit,) * 4)):
        inside = jax.sharding.auto_axes(value, out_sharding=P())
        params, tokens = jax.device_put(params, P()), jax.device_put(tokens, P(ROWS))
        found = jax.jit(jax.value_and_grad(inside))(params, tokens)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(expected[1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest, rtol=0), found[1], expected[1])
