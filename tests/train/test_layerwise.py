"""Stacked layers are trained as layers written out are, by rules that count axes, too."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import nested_jax as nj
from nested_jax.data import TextConfig
from nested_jax.models import ModelConfig, stack_layers, unstack_layers
from nested_jax.train.experiment import Experiment
from nested_jax.train.layerwise import layerwise
from nested_jax.train.optimizer import Group, OptimizerConfig, make_optimizer
from nested_jax.train.sharding import MeshConfig, make_mesh, placement, shardings

MODEL = ModelConfig(layers=4, blocks=("memory", "attention"), stacked=True)


def tree(seed):
    """Four layers of a pattern of two, and what is no layer."""
    draw = np.random.default_rng(seed)
    blocks = {
        f"blocks_{n}": {"kernel": np.float32(draw.normal(size=(3, 4 + n % 2))), "scale": np.ones(3, np.float32)}
        for n in range(MODEL.layers)
    }
    return {"norm": np.float32(draw.normal(size=4)), "embedding": np.float32(draw.normal(size=(5, 4))), **blocks}


ADAM = Group(parameters="norm|scale", rule=optax.adam)
RULES = {
    "adam with decay of matrices": OptimizerConfig(weight_decay=0.1),
    "muon": OptimizerConfig(rule=nj.rules.muon, arguments={"momentum": 0.9}, groups=(ADAM,)),
    "optax muon": OptimizerConfig(rule="optax.contrib.muon", arguments={}),
    "m3": OptimizerConfig(
        weight_decay=0.1,  # of matrices alone
        rule=nj.rules.m3,
        arguments={"momentum": 0.9, "slow_momentum": 0.9, "second_moment": 0.99, "period": 2},
    ),
    "norms per parameter": OptimizerConfig(rule="optax.lamb", arguments={}),
    "slow": OptimizerConfig(groups=(Group(parameters="blocks", period=2),), learning_rate=0.1),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "m3")) for name in RULES])
def test_a_stack_is_trained_as_its_layers_are(name):
    optimizer = make_optimizer(RULES[name], 10)

    @jax.jit
    def step(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params, same = tree(0), stack_layers(tree(0), MODEL)
    state, other = optimizer.init(params), optimizer.init(same)
    for seed in (1, 2, 3):
        params, state = step(params, state, tree(seed))
        same, other = step(same, other, stack_layers(tree(seed), MODEL))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        unstack_layers((same, other), MODEL),
        (params, state),
    )
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), params, tree(0))
    assert all(change > 0 for change in jax.tree.leaves(moved))


def test_rules_that_mix_layers_with_what_they_share_are_refused():
    rule = layerwise(optax.clip_by_global_norm(1.0))
    params = stack_layers(tree(0), MODEL)
    with pytest.raises(ValueError, match="rule: expected one that treats each parameter by itself where layers"):
        jax.eval_shape(lambda params: rule.update(params, rule.init(params), params), params)
    found, _ = jax.jit(rule.update)(tree(0), rule.init(tree(0)))
    np.testing.assert_allclose(optax.tree.norm(found), 1.0, rtol=1e-6)


def test_each_layer_lies_where_it_would_alone():
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    assert placement("blocks_0/up/kernel", (4, 6), mesh) == P("fsdp", "tensor")
    assert placement("stack/blocks_0/up/kernel", (3, 4, 6), mesh) == P(None, "fsdp", "tensor")
    assert placement("stack/blocks_0/up/kernel", (2, 4, 5), mesh) == P(None, "fsdp", None)
    state = make_optimizer(OptimizerConfig(), 3).init({"stack": {"blocks_0": {"kernel": jnp.zeros((2, 4, 4))}}})
    specs = [leaf.spec for leaf in jax.tree.leaves(shardings(state, mesh))]
    assert specs.count(P(None, "fsdp", "tensor")) == 2


def test_an_expression_that_tells_stacked_layers_apart_is_named():
    def experiment(parameters):
        groups = (Group(parameters=parameters, learning_rate=0.1),)
        return Experiment(model=MODEL, data=TextConfig(), steps=1, optimizer=OptimizerConfig(groups=groups))

    experiment("blocks_1/mixer").validate()
    with pytest.raises(ValueError, match=r"stacked model has 2 blocks, which stand for all layers; got 'blocks_2/'"):
        experiment("blocks_2/").validate()
