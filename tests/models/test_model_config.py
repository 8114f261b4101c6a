"""A config that cannot work says which field, what was expected and what came."""

import pytest

from nested_jax import models


def test_defaults_are_valid():
    models.ModelConfig().validate()


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("", "dim", 0),
        ("", "dim", 130),
        ("", "layers", 0),
        ("", "vocab_size", 2.5),
        ("", "blocks", ()),
        ("", "blocks", "memory"),
        ("", "blocks", ("memory", "mamba")),
        ("", "dtype", "int8"),
        ("", "expansion", 0.0),
        ("memory", "heads", 0),
        ("memory", "head_dim", 0),
        ("memory", "conv", -1),
        ("memory", "momentum", 1.0),
        ("memory", "decay", 0.0),
        ("memory", "max_learning_rate", 0.0),
        ("memory", "gate_rank", 0),
        ("memory", "gate_rank", 4.0),
        ("attention", "heads", True),
        ("attention", "window", 0),
        ("attention", "max_length", 0),
        ("attention", "rope_base", 1.0),
    ],
)
def test_a_field_out_of_range_is_named(section, field, value):
    config = models.ModelConfig(blocks=("memory", "attention"))
    setattr(getattr(config, section) if section else config, field, value)
    with pytest.raises(ValueError, match=field):
        config.validate()


def test_sections_of_absent_blocks_are_not_looked_at():
    config = models.ModelConfig(blocks=("attention",), memory=models.MemoryConfig(heads=0))
    config.validate()


def test_block_kinds_repeat_over_the_layers():
    config = models.ModelConfig(layers=5, blocks=("memory", "memory", "attention"))
    assert config.kinds == ("memory", "memory", "attention", "memory", "memory")


def test_chunk_size_is_the_memorys_where_there_is_one():
    config = models.ModelConfig()
    assert config.chunk_size == config.memory.memory.chunk_size
    config.blocks = ("attention",)
    assert config.chunk_size == 1
