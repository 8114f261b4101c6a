"""Newton-Schulz over a mesh: the numbers of one device, whole matrices by all-to-all, each computed once."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from nested_jax import rules
from nested_jax.train.layerwise import layerwise
from nested_jax.train.optimizer import Group, OptimizerConfig, make_optimizer
from nested_jax.train.sharding import MeshConfig, make_mesh, shardings
from nested_jax.train.spread import spread_over
from nested_jax.train.step import initial_state, make_step

WIDE, TALL = (16, 24), (24, 16)
SHARES = {
    "stacked": {"stack": {"blocks_0": {"up": {"kernel": (8, *WIDE)}, "gate": {"kernel": (8, *WIDE)}}}},
    "written out": {f"blocks_{n}": {"up": {"kernel": WIDE}, "gate": {"kernel": WIDE}} for n in range(4)},
    "both, of two shapes": {
        "stack": {"blocks_0": {"up": {"kernel": (6, *WIDE)}, "down": {"kernel": (6, *TALL)}}},
        "head": {"kernel": WIDE},
    },
    "heads": {"initial": {"w1": (4, *WIDE)}, "kernel": (7, 16)},
}
MESHES = {
    "fsdp": MeshConfig(fsdp=8),
    "all": MeshConfig(data=2, fsdp=2, tensor=2),
    "data": MeshConfig(data=8),
    "sequence": MeshConfig(fsdp=2, sequence=4),
}
RULES = {
    "newton_schulz": rules.newton_schulz(),
    "muon": rules.muon(0.1, 0.9),
    "m3": rules.m3(0.1, 0.9, 0.9, 0.99, period=1),
}


class Tiny(nn.Module):
    """The next token by the last alone."""

    @nn.compact
    def __call__(self, tokens, state=None, reset=None):
        hidden = nn.Embed(16, 8)(tokens)
        for _ in range(2):
            hidden = hidden + nn.Dense(8)(nn.gelu(hidden))
        return nn.Dense(16)(hidden), state


def drawn(shapes, seed=0, dtype=np.float32):
    draw = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: draw.normal(size=shape).astype(dtype), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )


def lowered(rule, gradients, mesh, spread):
    """The compiled update on arrays that lie as the table says, and the updates."""
    rule = layerwise(rule)
    with jax.set_mesh(mesh):
        placed = jax.tree.map(jax.device_put, gradients, shardings(gradients, mesh))
        state = rule.init(placed)
        state = jax.tree.map(jax.device_put, state, shardings(state, mesh))
        extra = {"spread": spread_over(jax.sharding.get_abstract_mesh())} if spread else {}
        out = shardings(gradients, mesh), shardings(state, mesh)
        run = jax.jit(lambda g, s: rule.update(g, s, g, **extra), out_shardings=out)
        program = run.lower(placed, state).compile()
        return program, program(placed, state)[0]


def collectives(program):
    """How often each kind occurs, and the shapes that all-gathers give."""
    found = re.findall(
        r"= (.*?) (all-to-all|all-gather|all-reduce|collective-permute|reduce-scatter)(?:-start)?\(", program.as_text()
    )
    gathered = [
        tuple(map(int, re.findall(r"\[([\d,]+)\]", shape)[0].split(",")))
        for shape, kind in found
        if kind == "all-gather"
    ]
    return collections.Counter(kind for _, kind in found), gathered


def agree(found, expected):
    """In float64, to 1e-13 of a matrix's norm: sums in another order, amplified by 5 iterations."""
    for a, b in zip(*map(jax.tree.leaves, jax.device_get((found, expected))), strict=True):
        assert a.dtype == b.dtype == np.float64
        assert np.linalg.norm(a - b) <= 1e-13 * np.linalg.norm(b), np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("mesh", [pytest.param(name, marks=[pytest.mark.slow] * (name != "all")) for name in MESHES])
@pytest.mark.parametrize(
    "shapes", [pytest.param(name, marks=[pytest.mark.slow] * (name != "both, of two shapes")) for name in SHARES]
)
def test_numbers_are_those_of_one_device(x64, mesh, shapes):
    gradients = drawn(SHARES[shapes], dtype=np.float64)
    _, found = lowered(RULES["newton_schulz"], gradients, make_mesh(MESHES[mesh]), True)
    agree(found, layerwise(RULES["newton_schulz"]).update(gradients, (), None)[0])


@pytest.mark.parametrize("rule", ["muon", pytest.param("m3", marks=pytest.mark.slow)])
def test_rules_made_of_it_are_those_of_one_device(x64, rule):
    gradients = drawn(SHARES["stacked"], dtype=np.float64)
    _, expected = lowered(RULES[rule], gradients, make_mesh(MeshConfig()), False)
    _, found = lowered(RULES[rule], gradients, make_mesh(MESHES["fsdp"]), True)
    agree(found, expected)


@pytest.mark.parametrize("rule", ["muon", pytest.param("m3", marks=pytest.mark.slow)])
def test_split_matrices_change_places_and_none_is_gathered(rule):
    """One batch of 16 matrices: two all-to-alls per Newton-Schulz, an eighth of the work on each device."""
    gradients = drawn(SHARES["stacked"])
    whole, _ = lowered(RULES[rule], gradients, make_mesh(MeshConfig()), False)
    program, _ = lowered(RULES[rule], gradients, make_mesh(MESHES["fsdp"]), True)
    counts, _ = collectives(program)
    assert counts == {"all-to-all": 2 if rule == "muon" else 4}
    # 0.05 for what moves numbers: masks and sums, a few per number.
    assert program.cost_analysis()["flops"] < (1 / 8 + 0.05) * whole.cost_analysis()["flops"]
    plain, _ = lowered(RULES[rule], gradients, make_mesh(MESHES["fsdp"]), False)
    assert collectives(plain)[0]["all-gather"] > 8  # what the partitioner does without


def test_copies_share_the_work_and_gather_shards_of_the_results():
    gradients = drawn(SHARES["stacked"])
    whole, _ = lowered(RULES["muon"], gradients, make_mesh(MeshConfig()), False)
    program, _ = lowered(RULES["muon"], gradients, make_mesh(MESHES["all"]), True)
    counts, gathered = collectives(program)
    assert counts == {"all-to-all": 4, "all-gather": 1}
    assert gathered == [(16, WIDE[0] // 2, WIDE[1] // 2)]
    assert program.cost_analysis()["flops"] < (1 / 8 + 0.05) * whole.cost_analysis()["flops"]


def test_training_steps_use_it_where_the_mesh_has_devices():
    model = Tiny()
    adam = Group(parameters="embedding|bias", rule="optax.adam")
    config = OptimizerConfig(rule="nested_jax.rules.muon", arguments={"momentum": 0.9}, warmup=0, groups=(adam,))
    optimizer = make_optimizer(config, 4)
    tokens = np.random.default_rng(0).integers(0, 16, (8, 9))
    step = make_step(model, optimizer, config, 4)

    def updated(mesh_config):
        mesh = make_mesh(mesh_config)
        with jax.set_mesh(mesh):
            state = jax.jit(lambda: initial_state(model, optimizer, 0))()
            placed = shardings(state, mesh)
            state = jax.tree.map(jax.device_put, state, placed)
            program = (
                jax.jit(step, out_shardings=(placed, None)).lower(state, {"tokens": jnp.asarray(tokens)}).compile()
            )
            after, metrics = program(state, {"tokens": jnp.asarray(tokens)})
            return jax.device_get(after.params), float(metrics["loss"]), collectives(program)[0]

    one, loss, none = updated(MeshConfig())
    many, same, counts = updated(MeshConfig(fsdp=4))
    assert counts["all-to-all"] > 0
    assert none["all-to-all"] == 0
    np.testing.assert_allclose(same, loss, rtol=1e-5)
    # A unit of rounding in a gradient moves an orthogonalised matrix by at most its condition; updates are 3e-3.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), many, one)
