"""Compiled programs counted: small ones of XLA, and texts as a TPU compiler writes them, against numbers by hand."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from nested_jax.run.counts import Collective, count
from nested_jax.run.hlo import Program
from nested_jax.run.jaxpr_flops import product_flops

X, SQUARE = jax.ShapeDtypeStruct((4, 8), jnp.float32), jax.ShapeDtypeStruct((8, 8), jnp.float32)
ONE = 2 * 4 * 8 * 8


def counted(function, *arguments, devices=1, fused=True):
    return count(jax.jit(function).lower(*arguments).compile().as_text(), devices, fused=fused)


def powers(x, w, length):
    return jax.lax.scan(lambda x, _: (jnp.sin(x @ w), None), x, length=length)[0]


def nested(x, w):
    return jax.lax.scan(lambda x, _: (powers(x, w, 7), None), x, length=3)[0]


@pytest.mark.parametrize(
    ("function", "flops"),
    [
        (lambda x, w: x @ w, ONE),
        (lambda x, w: powers(x, w, 7), 7 * ONE),
        (nested, 21 * ONE),
        (jax.grad(lambda x, w: jnp.sum(nested(x, w)), (0, 1)), 3 * 21 * ONE),
        (lambda x, w: jax.vmap(lambda row: jnp.outer(row, row) @ w)(x), 4 * 2 * 8 * 8 * 8),
    ],
    ids=["dense", "scan", "nested", "gradient", "batched"],
)
def test_products_as_in_the_jaxpr(function, flops):
    found = counted(function, X, SQUARE)
    assert found.flops == flops
    assert found.unknown_loops == 0
    assert sum(product_flops(function, X, SQUARE).values()) == flops


def test_a_loop_that_depends_on_its_values_is_told():
    found = counted(lambda x, w: jax.lax.while_loop(lambda x: jnp.sum(x) < 9, lambda x: x @ w, x), X, SQUARE)
    assert found.flops == ONE
    assert found.unknown_loops == 1


def collectives(function, in_spec, out_spec, shape=(8, 16)):
    """On 4 × 2 devices, along the axis of 4."""
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, in_spec))
    mapped = jax.shard_map(function, mesh=mesh, in_specs=in_spec, out_specs=out_spec, check_vma=False)
    return counted(mapped, x, devices=8).collectives


def test_collectives_and_their_bytes():
    whole = 8 * 16 * 4
    found = functools.partial(collectives, in_spec=P("a"))
    gathered = found(lambda x: jax.lax.all_gather(x, "a", tiled=True), out_spec=P())
    assert gathered == (Collective("all-gather", 4, 1, whole, whole * 3 / 4),)
    summed = found(lambda x: jax.lax.psum(x, "a"), out_spec=P())
    assert summed == (Collective("all-reduce", 4, 1, whole // 4, 2 * whole / 4 * 3 / 4),)
    moved = found(lambda x: jax.lax.ppermute(x, "a", [(i, (i + 1) % 4) for i in range(4)]), out_spec=P("a"))
    assert [(one.kind, one.count, one.nbytes, one.sent) for one in moved] == [
        ("collective-permute", 1, whole // 4, whole / 4)
    ]
    scattered = collectives(lambda x: jax.lax.psum_scatter(x, "a", tiled=True), P(), P("a"))
    assert scattered == (Collective("reduce-scatter", 4, 1, whole, whole * 3 / 4),)


def test_collectives_in_a_loop_count_as_often_as_it_goes_round():
    def body(x, _):
        return jnp.sin(jax.lax.psum(x, "a")), None

    (found,) = collectives(lambda x: jax.lax.scan(body, x, length=5)[0], P("a"), P("a"))
    assert (found.kind, found.count, found.nbytes) == ("all-reduce", 5, 5 * 2 * 16 * 4)


def test_traffic_of_a_program_that_is_not_fused():
    found = counted(lambda x, w: jnp.sin(x @ w), X, SQUARE, fused=False)
    ends = 4 * (4 * 8 + 8 * 8 + 4 * 8)
    assert found.traffic == 2 * ends  # the product's, and the program's own


TPU = """HloModule step, is_scheduled=true

%sliced (param_0.1: f32[6,8], param_1.1: s32[]) -> f32[1,8] {
  %param_0.1 = f32[6,8]{1,0:T(8,128)} parameter(0)
  %param_1.1 = s32[]{:T(128)S(6)} parameter(1)
  %constant.1 = s32[]{:T(128)} constant(0)
  ROOT %dynamic-slice.1 = f32[1,8]{1,0:T(8,128)} dynamic-slice(%param_0.1, %param_1.1, %constant.1)
}

%async_collective_fusion.1 (param_0.2: f32[2,8]) -> f32[8,8] {
  %param_0.2 = f32[2,8]{1,0:T(8,128)} parameter(0)
  ROOT %all-gather.1 = f32[8,8]{1,0:T(8,128)} all-gather(%param_0.2), channel_id=7, replica_groups=[1,4]<=[4]
}

%async_collective_fusion.2 (param_0.3: f32[2,8]) -> f32[8,8] {
  %param_0.3 = f32[2,8]{1,0:T(8,128)} parameter(0)
  ROOT %all-gather.2 = f32[8,8]{1,0:T(8,128)} all-gather(%param_0.3), channel_id=7, replica_groups=[1,4]<=[4]
}

%all-reduce-scatter (input: f32[8,8]) -> f32[2,8] {
  %input = f32[8,8]{1,0:T(8,128)} parameter(0)
  %all-reduce.1 = f32[8,8]{1,0:T(8,128)} all-reduce(%input), channel_id=9, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %slice.1 = f32[2,8]{1,0:T(8,128)} slice(%all-reduce.1), slice={[0:2], [0:8]}
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%body (carry: (s32[], f32[6,8], /*index=2*/f32[8,8])) -> (s32[], f32[6,8], f32[8,8]) {
  %carry = (s32[]{:T(128)}, f32[6,8]{1,0:T(8,128)}, /*index=2*/f32[8,8]{1,0:T(8,128)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%carry), index=0
  %rows = f32[6,8]{1,0:T(8,128)} get-tuple-element(%carry), index=1
  %w = f32[8,8]{1,0:T(8,128)S(1)} get-tuple-element(%carry), index=2
  %row = f32[1,8]{1,0:T(8,128)} fusion(%rows, %i), kind=kLoop, calls=%sliced
  %convolution.1 = f32[1,8]{1,0:T(8,128)S(1)} convolution(%row, %w), dim_labels=bf_io->bf
  ROOT %next = (s32[]{:T(128)}, f32[6,8]{1,0:T(8,128)}, f32[8,8]{1,0:T(8,128)S(1)}) tuple(%i, %rows, %w)
}

%condition (carry.1: (s32[], f32[6,8], f32[8,8])) -> pred[] {
  %bound = s32[]{:T(128)} constant(6)
  %carry.1 = (s32[]{:T(128)}, f32[6,8]{1,0:T(8,128)}, f32[8,8]{1,0:T(8,128)S(1)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%carry.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %bound), direction=LT
}

ENTRY %main (x: f32[6,8], w.1: f32[2,8], g: f32[8,8]) -> f32[2,8] {
  %x = f32[6,8]{1,0:T(8,128)} parameter(0)
  %w.1 = f32[2,8]{1,0:T(8,128)} parameter(1)
  %g = f32[8,8]{1,0:T(8,128)} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  %start = f32[8,8]{1,0:T(8,128)S(1)} fusion(%w.1), kind=kCustom, calls=%async_collective_fusion.1
  %end = f32[8,8]{1,0:T(8,128)S(1)} fusion(%w.1), kind=kCustom, calls=%async_collective_fusion.2
  %loop = (s32[]{:T(128)}, f32[6,8]{1,0:T(8,128)}, f32[8,8]{1,0:T(8,128)S(1)}) tuple(%zero, %x, %end)
  %while.1 = (s32[]{:T(128)}, f32[6,8]{1,0}, f32[8,8]{1,0:T(8,128)S(1)}) while(%loop), condition=%condition, body=%body
  ROOT %part = f32[2,8]{1,0:T(8,128)} fusion(%g), kind=kCustom, calls=%all-reduce-scatter
}
"""


def test_a_tpu_program():
    found = count(TPU, 4)
    assert found.flops == 6 * 2 * 8 * 8  # the loop goes round six times
    assert found.unknown_loops == 0
    assert found.collectives == (
        Collective("all-gather", 4, 1, 8 * 8 * 4, 8 * 8 * 4 * 3 / 4),  # in two fusions, by one channel
        Collective("reduce-scatter", 4, 1, 8 * 8 * 4, 8 * 8 * 4 * 3 / 4),
    )


def test_traffic_of_a_tpu_program():
    """In the loop a row is read and written by the slice and read by the product; the rest of it stays in VMEM."""
    row, loop = 8 * 4, 6 * 3 * 8 * 4
    gathers = 2 * 8 * row  # both fusions give the whole array
    assert count(TPU, 4).traffic == loop + gathers + 2 * row


@pytest.mark.parametrize(
    ("line", "traffic"),
    [
        ("(f32[6,8]{1,0:S(1)}, f32[6,8]{1,0}, u32[]) copy-start(%x)", 6 * 8 * 4),
        ("(f32[6,8]{1,0}, f32[2,8]{1,0}, u32[]) slice-start(%x)", 2 * 2 * 8 * 4),
        ("f32[6,8]{1,0} copy-done(%x)", 0),
        ("f32[6,8]{1,0} copy(%x)", 2 * 6 * 8 * 4),
        ("f32[6,8]{1,0:S(1)} copy(%x)", 6 * 8 * 4),
    ],
)
def test_traffic_of_copies(line, traffic):
    text = f"ENTRY %main (x: f32[6,8]) -> f32[] {{\n  %x = f32[6,8]{{1,0}} parameter(0)\n  ROOT %c = {line}\n}}\n"
    assert count(text, 1).traffic == traffic


def test_conditions_without_a_bound_are_unknown():
    assert count(TPU.replace("direction=LT", "direction=NE"), 4)[-1] == 1
    known = TPU.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"9"}}')
    assert count(known, 4).flops == 9 * 2 * 8 * 8


@pytest.mark.parametrize(
    ("line", "flops"),
    [
        # every output meets both inputs, padding does not count: 3 outputs × 2 of the kernel, less two beside the input
        (
            "f32[5,3,7] convolution(%a, %b), window={size=2 pad=1_1}, dim_labels=b0f_0io->b0f",
            2 * 5 * 7 * 4 * (3 * 2 - 2),
        ),
        # a batch of 2 as a dilated axis: each output meets one entry of it
        (
            "f32[5,2,7] convolution(%a, %b), window={size=2 stride=1 pad=0_0 lhs_dilate=2}, dim_labels=b0f_0io->b0f",
            2 * 5 * 7 * 4 * 2,
        ),
    ],
)
def test_convolutions_count_what_meets(line, flops):
    text = f"""HloModule one

ENTRY %main (a: f32[5,2,4], b: f32[2,4,7]) -> f32[] {{
  %a = f32[5,2,4]{{2,1,0}} parameter(0)
  %b = f32[2,4,7]{{2,1,0}} parameter(1)
  ROOT %c = {line}
}}
"""
    assert count(text, 1).flops == flops


def test_names_without_percent_signs():
    assert count(TPU.replace("%", ""), 4)[:1] == count(TPU, 4)[:1]
    assert Program(TPU.replace("%", "")).entry == "main"
