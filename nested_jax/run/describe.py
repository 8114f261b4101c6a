"""`describe`: what a model is made of, level by level, as text."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

import jax
import jax.numpy as jnp

from nested_jax.memory import Memory, SelfModifying
from nested_jax.models import (
    AttentionConfig,
    Gate,
    LanguageModel,
    LevelsState,
    MemoryConfig,
    ModelConfig,
    gate_table,
    parameter_count,
    state_bytes,
)
from nested_jax.models.config import WITH_ATTENTION, WITH_MEMORY
from nested_jax.rules import describe_rule, gates
from nested_jax.run.text_table import text_table
from nested_jax.train.experiment import Experiment
from nested_jax.train.optimizer import OptimizerConfig

LONG = 1_000_000


def describe_model(experiment: Experiment) -> str:
    """Levels from slowest to fastest, and what each kind of block carries; nothing is computed, only shapes.

    Args:
      experiment: the config.

    Returns:
      The tables.
    """
    model = LanguageModel(experiment.model)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    params = jax.eval_shape(lambda key, tokens: model.init(key, tokens)["params"], jax.random.key(0), tokens)
    states = jax.eval_shape(lambda params: model.apply({"params": params}, 1, method="start"), params)
    length = experiment.data.sequence_length
    levels = [
        [
            "training",
            "1 update",
            "cross-entropy",
            _optimizer(experiment.optimizer),
            f"{parameter_count(params):,}",
            "0",
            "0",
            "0",
        ]
    ]
    notes = []
    for kind, group in itertools.groupby(enumerate(experiment.model.kinds), key=lambda pair: pair[1]):
        numbers = [number for number, _ in group]
        name = f"block {numbers[0]}" if len(numbers) == 1 else f"blocks {numbers[0]}-{numbers[-1]}"
        mixers = [params[f"blocks_{number}"]["mixer"] for number in numbers]
        carried = [_parts(states[number])[0] for number in numbers]
        row = ["1 token", "–", "LSTM"]
        if kind in WITH_ATTENTION:
            row = _attention(experiment.model.attention)
        if kind in WITH_MEMORY:
            memories = mixers if kind == "memory" else [mixer["memory"] for mixer in mixers]
            beside, (row, note) = row[-1], _memory(experiment.model.memory, memories)
            row[-1] += f"; attention {beside}" if kind in WITH_ATTENTION else ""
            notes.append(f"{name}: {note}")
        size = state_bytes(carried)
        levels.append(
            [f"{name} {kind}", *row, f"{sum(map(parameter_count, mixers)):,}", f"{size:,}", *_per_token(size, length)]
        )
        levels += _levels(experiment.model, numbers, params, states, length)
    headings = ["level", "period", "objective", "rule", "parameters", "state bytes"]
    headings += [f"per token of {length:,}", f"of {LONG:,}"]
    if experiment.model.levels:
        notes.append(
            f"levels: feed-forward layers of {experiment.model.level_hidden} features one after the other, drawn to a "
            "learned projection of their input; one step per period, read at the weights of its start"
        )
    total = parameter_count(params)
    batch = experiment.data.batch_size * length
    lines = [
        text_table(headings, levels),
        "",
        *notes,
        f"parameters: {total:,}, of which {_fast(params):,} are initial weights of memories",
        f"state of one sequence: {state_bytes(states):,} bytes, however long the context",
        f"a step reads {experiment.data.batch_size} × {length} = {batch:,} bytes; {experiment.steps:,} steps read "
        f"{experiment.steps * batch:,}",
    ]
    return "\n".join(lines)


def _parts(state: Any) -> tuple[Any, tuple[Any, ...]]:
    """A block's state: the mixer's and the levels'."""
    return (state.mixer, state.levels) if isinstance(state, LevelsState) else (state, ())


def _levels(config: ModelConfig, numbers: Sequence[int], params: Any, states: Any, length: int) -> list[list[str]]:
    """A row for each level of the feed-forward part of these blocks, those of one config and place together."""
    places: dict[Any, list[int]] = {}
    for number in numbers:
        for place, level in enumerate(config.block_levels[number]):
            places.setdefault((place, level), []).append(number)
    rows = []
    for (place, level), found in places.items():
        count = sum(parameter_count(params[f"blocks_{number}"][f"levels_{place}"]) for number in found)
        size = state_bytes([_parts(states[number])[1][place] for number in found])
        what = ["never", "–", "–"]
        if level.period is not None:
            tokens = "1 token" if level.period == 1 else f"{level.period:,} tokens"
            what = [tokens, _objective(level.objective), describe_rule(level.rule)]
        blocks = "" if found == list(numbers) else f" of {', '.join(map(str, found))}"
        rows.append([f"  level {place}{blocks}", *what, f"{count:,}", f"{size:,}", *_per_token(size, length)])
    return rows


def _per_token(size: int, length: int) -> list[str]:
    return [f"{size / length:,.1f}", f"{size / LONG:,.3f}"]


def _memory(config: MemoryConfig, mixers: Sequence[Any]) -> tuple[list[str], str]:
    if isinstance(config.memory, SelfModifying):
        return _self_modifying(config, config.memory, mixers)
    table = gate_table(config, _dims(config.memory.parts, mixers[0]["initial"])[1])
    rows, notes = [], []
    for name, part in config.memory.parts.items():
        initial = [mixer["initial"][name] if name else mixer["initial"] for mixer in mixers]
        gates = {gate.removeprefix(f"{name}_"): found for gate, found in table.items() if found.part == name}
        row, note = _part(config, part, initial, gates)
        rows.append(row)
        notes.append(f"{name}: {note}" if name else note)
    about = getattr(config.memory, "about", "")
    kind = f"{about}; " if about else ""
    joined = [", ".join(dict.fromkeys(column)) for column in zip(*rows, strict=True)]
    return joined, f"{config.heads} heads per block, {kind}{'; '.join(notes)}"


def _self_modifying(config: MemoryConfig, memory: SelfModifying, mixers: Sequence[Any]) -> tuple[list[str], str]:
    one, others = memory.memory, memory.generators
    periods = " and ".join(str(size) for size in sorted({one.chunk_size, others.chunk_size}))
    described = list(dict.fromkeys(describe_rule(part.rule) for part in (one, others)))
    weights = sum(parameter_count(mixer["initial"]) for mixer in mixers)
    note = (
        f"{config.heads} heads per block, network {_network(one.network)}, {weights:,} weights learn while reading; "
        f"{', '.join(memory.generated)} from memories with chunks of {others.chunk_size}, each writing its own values; "
        f"static: {', '.join(memory.static) or 'none'}; all at the weights of the start of a chunk"
    )
    return [f"1 token (chunks {periods})", _objective(one.objective), "; ".join(described)], note


def _dims(parts: Mapping[str, Memory], initial: Any) -> tuple[int, int]:
    """(D_k, D_v) of a layer's memories, from their initial weights with an axis of heads."""
    name, part = next(iter(parts.items()))
    weights = initial[name] if name else initial
    shapes: dict[str, Any] = {leaf: jax.ShapeDtypeStruct(w.shape[1:], w.dtype) for leaf, w in weights.items()}
    return part.network.dims(shapes)


def _part(
    config: MemoryConfig, memory: Memory, initial: Sequence[Any], table: Mapping[str, Gate]
) -> tuple[list[str], str]:
    period = "1 token" if memory.step_per == "token" else f"{memory.chunk_size} tokens"
    weights = sum(map(parameter_count, initial))
    wide = [name for name, gate in table.items() if gate.size and name != "window"]
    plan = memory.plan(_dims({"": memory}, initial[0]), wide)
    window = f", losses of the last {memory.window} tokens" if memory.window > 1 else ""
    constants = [f"{name} {value}" for name, value in gates(memory.rule).items() if value is not None]
    constants += [f"{name} {gate.initial}" for name, gate in table.items() if gate.fixed]
    learned = [name for name, gate in table.items() if not gate.fixed]
    fixed = f" (constant: {', '.join(constants)})" if constants else ""
    rank = f" (channel-wise, by rank {config.gate_rank}: {', '.join(wide)})" if wide else ""
    note = (
        f"network {_network(memory.network)}, {weights:,} weights learn while reading; "
        f"gradients at the weights of the start of each chunk of {memory.chunk_size}{window}; read {memory.read}; "
        f"gates per token: {', '.join(learned) or 'none'}{rank}{fixed}; run as {plan.implementation} ({plan.reason})"
    )
    return [period, _objective(memory.objective), describe_rule(memory.rule)], note


def _attention(config: AttentionConfig) -> list[str]:
    reach = f"last {config.window:,}" if config.window is not None else f"at most {config.max_length:,}"
    return ["1 token", "–", f"keeps keys and values ({reach} tokens)"]


def _network(network: Any) -> str:
    if not is_dataclass(network):
        return type(network).__name__
    fields = {name: value for name, value in asdict(network).items() if isinstance(value, int | float | str)}
    return f"{type(network).__name__}({', '.join(f'{name}={value}' for name, value in fields.items())})"


def _objective(objective: Any) -> str:
    return getattr(objective, "__name__", repr(objective))


def _optimizer(config: OptimizerConfig) -> str:
    def name(rule: Any) -> str:
        return rule if isinstance(rule, str) else getattr(rule, "__qualname__", repr(rule))

    rules = [name(config.rule), *(f"{name(group.rule)} for {group.parameters}" for group in config.groups)]
    return "; ".join(rules)


def _fast(params: Any) -> int:
    blocks = [value for key, value in params.items() if key.startswith("blocks_")]
    layers = [layer for block in blocks for name, layer in block.items() if name.startswith(("mixer", "levels_"))]
    return sum(parameter_count(layer.get("memory", layer).get("initial", {})) for layer in layers)
