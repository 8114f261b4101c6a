"""`describe`: what a model is made of, level by level."""

import collections
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nested_jax.memory import Memory, SelfModifying
from nested_jax.memory.slots import SlotMemory, footprint
from nested_jax.models import (
    AttentionConfig,
    Gate,
    LanguageModel,
    LevelsState,
    MemoryConfig,
    gate_table,
    parameter_count,
    state_bytes,
    unstack_layers,
    unstack_states,
)
from nested_jax.models.config import WITH_ATTENTION, WITH_MEMORY
from nested_jax.rules import describe_rule, gated_gradient_descent, gates
from nested_jax.run.nesting import Component, table
from nested_jax.train.experiment import Experiment
from nested_jax.train.optimizer import OptimizerConfig, make_optimizer, path_name


class Description(NamedTuple):
    """What a model is made of.

    Attributes:
      components: what changes how often, training first.
      notes: lines about them and their sums.
    """

    components: list[Component]
    notes: list[str]


def describe_model(experiment: Experiment) -> str:
    """The components of a model as a table, and what is to be said of them.

    Args:
      experiment: the config.

    Returns:
      The text.
    """
    found = description(experiment)
    return "\n".join([table(found.components, experiment.data.sequence_length), "", *found.notes])


def description(experiment: Experiment) -> Description:
    """Levels from slowest to fastest, and what each kind of block carries; nothing is computed, only shapes.

    Args:
      experiment: the config.
    """
    model = LanguageModel(experiment.model)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    params = jax.eval_shape(lambda key, tokens: model.init(key, tokens)["params"], jax.random.key(0), tokens)
    states = jax.eval_shape(lambda params: model.apply({"params": params}, 1, method="start"), params)
    length, optimizer = experiment.data.sequence_length, make_optimizer(experiment.optimizer, experiment.steps)
    components, notes = _training(experiment.optimizer, params, length), []
    if experiment.model.stacked:
        params = jax.eval_shape(lambda params: unstack_layers(params, experiment.model), params)
        states = jax.eval_shape(lambda states: unstack_states(states, experiment.model), states)
    for kind, group in itertools.groupby(enumerate(experiment.model.kinds), key=lambda pair: pair[1]):
        numbers = [number for number, _ in group]
        name = f"block {numbers[0]}" if len(numbers) == 1 else f"blocks {numbers[0]}-{numbers[-1]}"
        mixers = [params[f"blocks_{number}"]["mixer"] for number in numbers]
        what = What("1 token", 1, "–", "LSTM")
        if kind in WITH_ATTENTION:
            what = _attention(experiment.model.attention)
        if kind in WITH_MEMORY:
            memories = mixers if kind == "memory" else [mixer["memory"] for mixer in mixers]
            beside, (what, note) = what.rule, _memory(experiment.model.memory, memories)
            if kind in WITH_ATTENTION:
                what = what._replace(rule=f"{what.rule}; attention {beside}")
            notes.append(f"{name}: {note}")
        if kind == "slots":
            what, note = _slots(experiment.model.slots)
            notes.append(f"{name}: {note}")
        size = state_bytes([_parts(states[number])[0] for number in numbers])
        components.append(Component(f"{name} {kind}", *what, sum(map(parameter_count, mixers)), size))
        components += _levels(experiment, numbers, params, states)
    if experiment.model.levels:
        notes.append(
            f"levels: feed-forward layers of {experiment.model.level_hidden} features one after the other, drawn to a "
            "learned projection of their input; one step per period, read at the weights of its start"
        )
    batch = experiment.data.batch_size * length
    notes += [
        f"parameters: {parameter_count(params):,}, of which {_fast(params):,} are initial weights of memories",
        f"state of one sequence: {state_bytes(states):,} bytes, however long the context; of the optimizer: "
        f"{state_bytes(jax.eval_shape(optimizer.init, params)):,}",
        f"a step reads {experiment.data.batch_size} × {length} = {batch:,} bytes; {experiment.steps:,} steps read "
        f"{experiment.steps * batch:,}",
    ]
    return Description(components, notes)


class What(NamedTuple):
    """The middle of a `Component`: period, in words and tokens, objective and rule."""

    period: str
    tokens: int | None
    objective: str
    rule: str


def _training(config: OptimizerConfig, params: Any, length: int) -> list[Component]:
    """A component for every pace at which the optimizer changes parameters, the slowest first."""

    def name(rule: Any) -> str:
        return rule if isinstance(rule, str) else getattr(rule, "__qualname__", repr(rule))

    paces: dict[int | None, list[int]] = {}
    for place, trained in enumerate(config.trained):
        paces.setdefault(trained.period, []).append(place)
    sizes = collections.Counter()
    for path, leaf in jax.tree.leaves_with_path(params):
        sizes[config.label(path_name(path))] += leaf.size
    rows = []
    for period in sorted(paces, key=lambda period: -(period or float("inf"))):
        count = sum(sizes[place] for place in paces[period])
        if period is None:
            rows.append(Component("frozen", "never", None, "–", "–", count, None))
            continue
        places = sorted(paces[period], key=lambda place: place < len(config.groups))
        used = [(name(config.trained[place].rule), place) for place in places]
        described = [
            rule if place == len(config.groups) else f"{rule} for {config.groups[place].parameters}"
            for rule, place in used
        ]
        rows.append(
            Component("training", _updates(period), period * length, "cross-entropy", "; ".join(described), count, None)
        )
    return rows


def _parts(state: Any) -> tuple[Any, tuple[Any, ...]]:
    """A block's state: the mixer's and the levels'."""
    return (state.mixer, state.levels) if isinstance(state, LevelsState) else (state, ())


def _levels(experiment: Experiment, numbers: Sequence[int], params: Any, states: Any) -> list[Component]:
    """A component for each level of the feed-forward part of these blocks, those of one config and place together."""
    places: dict[Any, list[int]] = {}
    for number in numbers:
        for place, level in enumerate(experiment.model.block_levels[number]):
            places.setdefault((place, level), []).append(number)
    rows = []
    for (place, level), found in places.items():
        layers = [_level(params[f"blocks_{number}"], place) for number in found]
        carried = [_parts(states[number])[1] for number in found]
        one = experiment.model.topology != "sequential"
        size = state_bytes([levels[0].memory.levels[place] if one else levels[place] for levels in carried])
        count = sum(map(parameter_count, layers))
        what = _by_training(experiment, f"blocks_{found[0]}", layers[0])
        if level.period is not None:
            what = What(_tokens(level.period), level.period, _objective(level.objective), describe_rule(level.rule))
        blocks = "" if found == list(numbers) else f" of {', '.join(map(str, found))}"
        rows.append(Component(f"level {place}{blocks}", *what, count, size, inside=True))
    return rows


def _level(block: Any, place: int) -> dict[str, Any]:
    """The parameters of a level, whether it is a layer or one of several in a layer."""
    if "level_0" not in block["levels_0"].get("initial", {}):
        return {f"levels_{place}": block[f"levels_{place}"]}
    layer = block["levels_0"]
    parts = {name: layer[name] for name in (f"values_{place}", f"gates_{place}") if name in layer}
    return {"levels_0": parts | {"initial": {f"level_{place}": layer["initial"][f"level_{place}"]}}}


def _by_training(experiment: Experiment, prefix: str, layer: Any) -> What:
    """Of a level that does not learn while it reads: the pace of most of its parameters."""
    sizes = collections.Counter()
    for path, leaf in jax.tree.leaves_with_path(layer):
        sizes[experiment.optimizer.label(f"{prefix}/{path_name(path)}")] += leaf.size
    period = experiment.optimizer.trained[sizes.most_common(1)[0][0]].period
    if period is None:
        return What("never", None, "–", "–")
    return What(_updates(period), period * experiment.data.sequence_length, "–", "by training")


def _updates(count: int) -> str:
    return "1 update" if count == 1 else f"{count:,} updates"


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count:,} tokens"


def _memory(config: MemoryConfig, mixers: Sequence[Any]) -> tuple[What, str]:
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
    columns = [list(dict.fromkeys(column)) for column in zip(*rows, strict=True)]
    periods, objectives, described = (", ".join(map(str, column)) for column in (columns[0], *columns[2:]))
    what = What(periods, min(columns[1]), objectives, described)
    return what, f"{config.heads} heads per block, {kind}{'; '.join(notes)}"


def _self_modifying(config: MemoryConfig, memory: SelfModifying, mixers: Sequence[Any]) -> tuple[What, str]:
    one, others = memory.memory, memory.generators
    periods = " and ".join(str(size) for size in sorted({one.chunk_size, others.chunk_size}))
    described = list(dict.fromkeys(describe_rule(part.rule) for part in (one, others)))
    started = ("memory", *memory.generated)
    weights = sum(parameter_count(mixer["initial"][name]) for mixer in mixers for name in started)
    note = (
        f"{config.heads} heads per block, network {_network(one.network)}, {weights:,} weights learn while reading; "
        f"{', '.join(memory.generated)} from memories with chunks of {others.chunk_size}, each writing its own values; "
        f"static: {', '.join(memory.static) or 'none'}; all at the weights of the start of a chunk"
    )
    return What(f"1 token (chunks {periods})", 1, _objective(one.objective), "; ".join(described)), note


def _dims(parts: Mapping[str, Memory], initial: Any) -> tuple[int, int]:
    """(D_k, D_v) of a layer's memories, from their initial weights with an axis of heads."""
    name, part = next(iter(parts.items()))
    weights = initial[name] if name else initial
    shapes: dict[str, Any] = {leaf: jax.ShapeDtypeStruct(w.shape[1:], w.dtype) for leaf, w in weights.items()}
    return part.network.dims(shapes)


def _part(config: MemoryConfig, memory: Memory, initial: Sequence[Any], table: Mapping[str, Gate]) -> tuple[What, str]:
    period = 1 if memory.step_per == "token" else memory.chunk_size
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
    return What(_tokens(period), period, _objective(memory.objective), describe_rule(memory.rule)), note


def _slots(memory: SlotMemory) -> tuple[What, str]:
    rule = describe_rule(gated_gradient_descent())
    levels = "; ".join(
        f"{row.slots} slots of {row.width} (half-life {row.half_life:.0f} tokens, {row.bytes + row.extra:,} bytes)"
        for row in footprint(memory)
    )
    note = f"{levels}; keys of {memory.key_dim}; addresses from the keys at the start of chunks of {memory.chunk_size}"
    return What("1 token", 1, "dot_product", f"{rule} on addresses"), note


def _attention(config: AttentionConfig) -> What:
    reach = f"last {config.window:,}" if config.window is not None else f"at most {config.max_length:,}"
    return What("1 token", 1, "–", f"keeps keys and values ({reach} tokens)")


def _network(network: Any) -> str:
    if not is_dataclass(network):
        return type(network).__name__
    fields = {name: value for name, value in asdict(network).items() if isinstance(value, int | float | str)}
    return f"{type(network).__name__}({', '.join(f'{name}={value}' for name, value in fields.items())})"


def _objective(objective: Any) -> str:
    return getattr(objective, "__name__", repr(objective))


def _fast(params: Any) -> int:
    blocks = [value for key, value in params.items() if key.startswith("blocks_")]
    layers = [layer for block in blocks for name, layer in block.items() if name.startswith(("mixer", "levels_"))]
    return sum(parameter_count(_initial(layer.get("memory", layer))) for layer in layers)


def _initial(layer: Any) -> dict[str, Any]:
    """What a layer's memories start from; levels that are one layer have a projection each if they learn."""
    if "slots" in layer:
        levels = (part for name, part in layer["slots"].items() if name.startswith("level"))
        return {"slots": [(level["keys"], level["values"]) for level in levels]}
    initial = layer.get("initial", {})
    if "level_0" not in initial:
        return initial
    return {name: weights for name, weights in initial.items() if name.replace("level", "values") in layer}
