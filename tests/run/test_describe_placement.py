"""`describe --sharding`: placements and bytes, for more devices than there are."""

import pathlib

import jax
import pytest

from nested_jax.run.main import main

CONFIG = f"{pathlib.Path(__file__).parents[2]}/experiments/quickstart.py:tiny"


@pytest.fixture(autouse=True)
def devices():
    """JAX has its devices before a command could ask for others."""
    assert len(jax.devices()) == 8


def cells(text, path):
    [line] = [line for line in text.splitlines() if line.startswith(path)]
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_parameters_and_states_with_their_bytes_per_device(capsys):
    sizes = {"data": 2, "fsdp": 2, "tensor": 2, "sequence": 8}
    assert main(["describe", "--sharding", CONFIG, *(f"--config.mesh.{name}={n}" for name, n in sizes.items())]) == 0
    text = capsys.readouterr().out
    assert "mesh data 2 × fsdp 2 × tensor 2 × sequence 8: 64 devices" in text
    kernel, weights = cells(text, "blocks_0/mixer/key/kernel"), cells(text, "blocks_0/memory/weights/w1")
    assert kernel == ["blocks_0/mixer/key/kernel", "32 × 32", "fsdp × tensor", "1", f"{32 * 32 * 4 // 4:,}"]
    assert weights[1:] == ["4 × 2 × 16 × 32", "data+fsdp × tensor × – × –", "1", f"{4 * 2 * 16 * 32 * 4 // 8:,}"]
    assert cells(text, "norm/scale")[2] == "whole"


@pytest.mark.parametrize(
    ("tokens", "said"), [(64, "over pieces of 8 tokens"), (32, "over all 32 tokens on every device")]
)
def test_what_a_split_sequence_gains(capsys, tokens, said):
    arguments = ["--config.mesh.sequence=8", f"--config.data.sequence_length={tokens}"]
    assert main(["describe", "--sharding", CONFIG, *arguments]) == 0
    assert f"memories run {said}" in capsys.readouterr().out


@pytest.mark.parametrize("stacked", [False, True])
def test_blocks_that_are_alike_are_one_line(capsys, stacked):
    layers = ["--config.model.layers=3", f"--config.model.stacked={stacked}", "--config.mesh.fsdp=2"]
    assert main(["describe", "--sharding", CONFIG, *layers]) == 0
    text = capsys.readouterr().out
    assert cells(text, "blocks_0-2/memory/weights/w1")[3] == "3"
    if stacked:
        kernel = cells(text, "stack/blocks_0/mixer/key/kernel")
        assert kernel[1:] == ["3 × 32 × 32", "– × fsdp × –", "1", f"{3 * 32 * 32 * 4 // 2:,}"]
    else:
        assert cells(text, "blocks_0-2/mixer/key/kernel")[3:] == ["3", f"{3 * 32 * 32 * 4 // 2:,}"]
