"""`compile` and `plan`: topologies, predictions worked out by hand, and the commands on tiny configs."""

import argparse
import csv
import dataclasses
import importlib.util
import pathlib
import re

import pytest

from nested_jax import config as configs
from nested_jax.data import TextConfig
from nested_jax.models import AttentionConfig, ModelConfig
from nested_jax.run.chips import CHIPS, topology
from nested_jax.run.compile import capacity, fits, mesh_of, report
from nested_jax.run.compiled import Compiled, Memory, Request, compile_step, decode, encode, run, shortage
from nested_jax.run.counts import Collective, Counts
from nested_jax.run.main import main
from nested_jax.run.plan import counted, follow, predict
from nested_jax.train.sharding import MeshConfig, make_mesh

ROOT = pathlib.Path(__file__).parents[2]
TINY = f"{ROOT}/experiments/quickstart.py:tiny"
ALL = {"data": 1, "fsdp": 8, "tensor": 1, "sequence": 1}
FLOPS = {"bfloat16": 3e15, "float32": 1e15, "highest": 1e12}
FOUND = Compiled(
    compiler="cpu",
    devices=8,
    parameters=10**9,
    tokens=2**19,
    flops=FLOPS,
    trace_seconds=1.0,
    compile_seconds=2.0,
    memory=Memory(4e9, 1e9, 3e9, 0.0),
    counts=Counts(sum(FLOPS.values()) / 8, 1e12, (Collective("all-gather", 8, 3, 10**10, 8.75e9),), 0),
)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:2x2", "expected CHIP:SHAPE with a chip among v5e, .*got 'v9:2x2'"),
        ("v5e", "expected a shape like 4x4 or 8 after v5e:, got 'v5e'"),
        ("v5e:3x5", "expected 2 sides of 1, 2 or a multiple of 4 after v5e:, got 'v5e:3x5'"),
        ("v5p:4x4", "expected 3 sides of 1, 2 or a multiple of 4 after v5p:, got 'v5p:4x4'"),
        ("h100:2x4", "expected a number of GPUs after h100:, got 'h100:2x4'"),
        ("h100:0", "expected a shape"),
        ("h100:4x", "expected a shape"),
    ],
)
def test_topologies_that_are_none(name, message):
    with pytest.raises(ValueError, match=message):
        topology(name)


def test_devices_of_topologies():
    assert topology("v5p:4x4x4").devices == 64
    assert topology("tpu7x:2x2x1").devices == 8  # two to a chip
    assert topology("h100:16").devices == 16
    assert capacity(topology("tpu7x:2x2x1")) == 96 * 2**30


def test_every_chip_says_where_its_numbers_are_from():
    for chip in CHIPS.values():
        assert re.fullmatch(
            r"https://\S+, (20\d\d-\d\d-\d\d|as others repeat its numbers; not read there)", chip.source
        )
        assert chip.flops["bfloat16"] >= chip.flops["float32"] > chip.flops["highest"]


def test_what_gpus_send_between_nodes():
    chip = CHIPS["h100"]
    assert chip.sends("all-gather", 8) == 450e9
    assert chip.sends("all-gather", 64) == 400e9  # eight ports of 50 GB/s for the node
    assert chip.sends("all-to-all", 64) == 50e9
    assert CHIPS["v5p"].sends("all-to-all", 64) == 600e9


def experiment(**changes):
    return dataclasses.replace(configs.load(TINY), **changes)


def test_the_mesh_of_a_topology():
    tiny = experiment()
    rows = tiny.data.batch_size
    assert mesh_of(tiny, None) == {"data": 1, "fsdp": 1, "tensor": 1, "sequence": 1}
    whole = mesh_of(tiny, topology("v5e:4x4"))
    assert whole == {"data": 1, "fsdp": min(rows, 16), "tensor": 1, "sequence": 16 // min(rows, 16)}
    parts = mesh_of(experiment(microbatches=2), topology("v5e:4x4"))
    assert parts["fsdp"] == min(rows // 2, 16)
    assert parts["sequence"] == 16 // parts["fsdp"]
    given = experiment(mesh=MeshConfig(data=2, tensor=2))
    assert mesh_of(given, topology("v5e:2x2")) == {"data": 2, "fsdp": 1, "tensor": 2, "sequence": 1}
    with pytest.raises(ValueError, match=r"mesh data=2 × tensor=2 has 4 devices, and v5p:4x4x4 has 64"):
        mesh_of(given, topology("v5p:4x4x4"))


def test_a_prediction_by_hand():
    found = predict(FOUND, topology("h100:8"), efficiency=0.5, bandwidth=0.8)
    products = 3e15 / 989e12 + 1e15 / 494e12 + 1e12 / 67e12
    assert found.compute == pytest.approx(products / 8 / 0.5, rel=1e-12)
    assert found.memory == pytest.approx(1e12 / 3350e9 / 0.8, rel=1e-12)
    assert found.network == pytest.approx(8.75e9 / 450e9 / 0.8, rel=1e-12)
    assert (found.step, found.bound) == (found.compute, "compute")

    assert FOUND.counts is not None
    busier = FOUND._replace(counts=FOUND.counts._replace(flops=3 * FOUND.counts.flops, traffic=1e14))
    again = predict(busier, topology("h100:8"), efficiency=0.5, bandwidth=0.8)
    assert again.compute == pytest.approx(3 * found.compute, rel=1e-12)  # devices repeat each other's work
    assert again.bound == "HBM"
    far = predict(FOUND, topology("h100:64"), efficiency=1.0, bandwidth=1.0)
    assert far.network == found.network * 0.8  # a group of eight stays in its node


def test_two_devices_share_a_chip():
    one, two = predict(FOUND, topology("v6e:2x4"), 1, 1), predict(FOUND, topology("tpu7x:2x2x1"), 1, 1)
    assert two.compute / one.compute == pytest.approx(918 / 2307 * 2)
    assert two.memory / one.memory == pytest.approx(1638 / 7380 * 2)
    assert two.network / one.network == pytest.approx(800 / 1200 * 2)


def stack(layers):
    """What a stack of so many blocks counts if each counts 3 and the rest 5."""
    number = 5 + 3 * layers
    counts = Counts(number, number, (Collective("all-gather", 8, number, number, number),), 0)
    flops = {"float32": number, "bfloat16": number}
    return FOUND._replace(parameters=number, flops=flops, memory=Memory(*[number] * 4), counts=counts)


def test_the_line_through_two_stacks():
    asked = []

    def compiled(request):
        asked.append(request.layers)
        return stack(request.layers or 2)

    model = ModelConfig(layers=13, blocks=("memory", "attention"))
    found = counted(model, Request(TINY, {}, ALL), compiled)
    assert asked == [2, 4]
    whole = stack(13)
    assert found[2:5] == whole[2:5]
    assert (found.memory, found.counts) == (whole.memory, whole.counts)
    assert counted(dataclasses.replace(model, layers=4), Request(TINY, {}, ALL), compiled) == stack(2)
    assert asked == [2, 4, None]


def test_what_fits():
    place = topology("h100:8")
    assert fits(FOUND, place) == "yes"
    assert fits(FOUND._replace(memory=Memory(4e9, 1e9, 9e10, 0.0)), place) == "perhaps"  # a CPU's temporaries
    assert fits(FOUND._replace(memory=Memory(4e9, 1e9, 9e10, 0.0), compiler="TPU v5"), place) == "no"
    assert fits(FOUND._replace(memory=Memory(9e10, 1e9, 1e9, 0.0)), place) == "no"
    assert fits(FOUND._replace(memory=None), place) == "no"


def test_a_stack_that_does_not_fit_stays_so():
    full = FOUND._replace(memory=None, counts=None, full=("17.00G", "15.75G", "HBM"))
    assert follow(stack(1), full, 9) == full
    assert "does NOT fit: the compiler needs 17.00G of HBM per device and has 15.75G" in report(
        full, TINY, ALL, topology("v5e:2x4")
    )


@pytest.mark.parametrize("stacked", [False, True])
def test_the_step_of_a_config_and_its_text(stacked):
    attention = AttentionConfig(heads=2)
    model = ModelConfig(dim=16, layers=1 + stacked, blocks=("attention",), attention=attention, stacked=stacked)
    data = TextConfig(sequence_length=8, batch_size=2)
    found = compile_step(experiment(model=model, data=data), make_mesh(MeshConfig(fsdp=2)))
    assert found.counts is not None
    assert found.counts.flops * 2 == sum(found.flops.values())  # everything is split
    assert {one.kind for one in found.counts.collectives} >= {"all-gather", "all-reduce"}
    assert decode(encode(found)) == found
    text = " ".join(report(found, TINY, ALL | {"fsdp": 2}, topology("h100:2")).split())
    for part in ("2 virtual CPU devices", "tpu-compile", "fits:", "arguments", "6 · parameters", "compiled in"):
        assert part in text


def test_plan_prints_and_writes_its_table(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("nested_jax.run.plan.counted", lambda model, request: FOUND)
    file = tmp_path / "plan.csv"
    shapes = "--topologies=h100:4,v5e:2x2"
    assert main(["plan", f"--config={TINY}", shapes, "--compiler=cpu", "--efficiency=0.5", f"--csv={file}"]) == 0
    printed = capsys.readouterr().out
    for part in ("h100:4", "v5e:2x2", "bound by", "Products reach 50%", "float32", "2026-", "https://", "lower bound"):
        assert part in " ".join(printed.split())
    rows = list(csv.DictReader(file.read_text().splitlines()))
    step = predict(FOUND, topology("h100:4"), 0.5, 0.8).step
    assert float(rows[0]["step ms"].replace(",", "")) == pytest.approx(1e3 * step, abs=0.01)
    assert float(rows[0]["hours"]) == pytest.approx(step * experiment().steps / 3600, abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "--efficiency=0"], r"--efficiency takes a share of the peak, in \(0, 1\]; got 0.0"),
        (["plan", "--bandwidth=1.5"], "--bandwidth takes a share"),
        (["plan", "--topologies=v5p:4y4"], "topology: expected a shape"),
        (["compile", "--topology=h100:8", "--config.mesh.data=2"], "mesh data=2 has 2 devices, and h100:8 has 8"),
    ],
)
def test_bad_input(arguments, message, capsys):
    assert main([*arguments, f"--config={TINY}"]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_batches_that_cannot_be_shared_out_are_told():
    overrides = {"model.layers": "1", "data.batch_size": "3"}
    with pytest.raises(
        ValueError, match=r"data.batch_size must be a multiple of mesh.data · mesh.fsdp · microbatches = 2; got 3"
    ):
        run(Request(TINY, overrides, ALL | {"fsdp": 2}))


@pytest.mark.parametrize(
    ("message", "found"),
    [
        ("INTERNAL: Used 1G of 2G hbm.", None),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
            "Used 48.00G of 15.75G hbm. Exceeded hbm capacity by 32.25G.",
            ("48.00G", "15.75G", "HBM"),
        ),
        ("RESOURCE_EXHAUSTED: something else", ("more", "too little", "memory")),
    ],
)
def test_what_compilers_say_where_memory_is_short(message, found):
    assert shortage(message) == found


@pytest.mark.slow
def test_compile_as_a_command(capsys):
    assert main(["compile", f"--config={TINY}", "--topology=h100:2"]) == 0
    printed = capsys.readouterr().out
    assert "on h100:2, mesh fsdp=2" in printed
    assert "1.00 times an even share" in printed


@pytest.mark.slow
@pytest.mark.parametrize(("stacked", "first"), [(False, 1), (True, 2)])
def test_following_two_stacks_gives_the_counts_of_the_whole(stacked, first):
    found = configs.load(f"{ROOT}/experiments/families.py:titans-lmm@tiny")
    one, two, whole = (
        compile_step(
            dataclasses.replace(found, model=dataclasses.replace(found.model, layers=layers, stacked=stacked)),
            make_mesh(MeshConfig(fsdp=4)),
        )
        for layers in (first, first + 1, 6)
    )
    followed = follow(one, two, 6 - first)
    assert (followed.parameters, followed.flops) == (whole.parameters, dict(whole.flops))
    assert followed.counts is not None
    assert whole.counts is not None
    assert followed.counts.flops == whole.counts.flops
    assert followed.counts.traffic == pytest.approx(whole.counts.traffic, rel=0.02)
    sent = [sum(one.sent for one in place.counts.collectives) for place in (followed, whole)]
    assert sent[0] == pytest.approx(sent[1], rel=0.02)
    assert followed.memory is not None
    assert whole.memory is not None
    assert followed.memory.arguments == pytest.approx(whole.memory.arguments, rel=0.02)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="pip install 'nested_jax[tpu-compile]' runs it")
def test_the_tpu_compiler():
    options = argparse.Namespace(topology="v5e:2x2")
    mesh = mesh_of(experiment(), topology(options.topology))
    found = run(Request(TINY, {"model.layers": "1"}, mesh, options.topology))
    assert found.compiler.startswith("TPU v5")
    assert found.counts is not None
    assert found.counts.flops * 4 == pytest.approx(sum(found.flops.values()), rel=1e-3)
    assert "the program that it would run" in report(found, TINY, mesh, topology(options.topology))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="pip install 'nested_jax[tpu-compile]' runs it")
def test_what_is_too_large_for_a_tpu_is_told():
    overrides = {"data.batch_size": "65536", "data.sequence_length": "4096", "final_bytes": "none"}
    found = run(Request(TINY, overrides, ALL | {"fsdp": 4}, "v5e:2x2"))
    assert found.counts is None
    assert found.full is not None
    assert found.full[2] == "HBM"
    assert "does NOT fit" in report(found, TINY, ALL | {"fsdp": 4}, topology("v5e:2x2"))
