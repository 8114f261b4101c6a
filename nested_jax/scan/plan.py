"""How a memory's rule will be run, and why: the stages of its chain and the implementation chosen."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from nested_jax import rules
from nested_jax.scan import affine, structure
from nested_jax.scan.state import Carry, Specification
from nested_jax.scan.structure import Structure

IMPLEMENTATIONS = ("auto", "scan", "dual", "delta", "materialize")

Path = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Stage:
    """Neighbouring links of one kind.

    Attributes:
      kind: "linear" or "timewise".
      links: (position in the rule's state, link) pairs.
      forgets: whether all of them do, see `Structure`.
    """

    kind: str
    links: tuple[tuple[Path, optax.GradientTransformation], ...]
    forgets: bool = False

    @property
    def factored(self) -> Callable[[jax.Array, jax.Array], jax.Array] | None:
        """The map on thin factors, see `rules.Rule`, if the stage is one such link."""
        return getattr(self.links[0][1], "factored", None) if len(self.links) == 1 else None

    def step(self, updates, states, weights, gates):
        """The links one after the other; `states` is a tuple with one state per link."""
        after = []
        for (_, link), state in zip(self.links, states, strict=True):
            updates, state = structure.rule_step(link)(updates, state, weights, gates)
            after.append(state)
        return updates, tuple(after)

    def states(self, rule_state) -> tuple[Any, ...]:
        """The states of this stage's links."""
        return tuple(_get(rule_state, path) for path, _ in self.links)

    def replace(self, rule_state, states):
        """`rule_state` with the states of this stage's links replaced."""
        for (path, _), state in zip(self.links, states, strict=True):
            rule_state = _set(rule_state, path, state)
        return rule_state


@dataclasses.dataclass(frozen=True)
class Plan:
    """The implementation chosen for a memory.

    Attributes:
      implementation: "scan", "dual", "delta" or "materialize".
      low_rank: whether the timewise stage works on the factors of windows, forming no matrix of a token.
      map: from an accumulator, which the stages drive, to the weights; None where they drive the weights themselves.
      erases: the weights of those layers whose answers to their inputs the rule takes out (see `Structure`).
      stages: the rule's stages; the last is linear. Empty for "scan" and for `step_per="chunk"`.
      links: (name, `Structure`) of what was analysed, link by link where the rule shows its links.
      reason: why this implementation, in words.
    """

    implementation: str
    stages: tuple[Stage, ...]
    links: tuple[tuple[str, Structure], ...]
    reason: str
    erases: frozenset[str] = frozenset()
    low_rank: bool = False
    map: rules.Map | None = None

    def driven(self, carry: Carry) -> Carry:
        """What the stages drive and their rule's state: the weights, or the accumulator that they are a map of."""
        if self.map is None:
            return carry
        return Carry(carry.rule_state.accumulator, carry.rule_state.rule, carry.window)

    def written(self, before: Carry, driven: Carry) -> Carry:
        """The memory's weights and rule state from what the stages left."""
        if self.map is None:
            return driven
        accumulator = jax.tree.map(self.map.settled, driven.weights)
        state = before.rule_state._replace(accumulator=accumulator, rule=driven.rule_state)
        return Carry(jax.tree.map(self.map.forward, accumulator), state, driven.window)


def make(spec: Specification, weights, rule_state, gates: Mapping[str, Any]) -> Plan:
    """Analyses a memory's rule on these shapes and chooses how to run it.

    Args:
      spec: the memory.
      weights: its weights, arrays or shapes.
      rule_state: the rule's state for them.
      gates: one token's gates, arrays or shapes, without "window".

    Returns:
      The `Plan`.

    Raises:
      ValueError: if `spec.implementation` cannot run this rule; the message says why.
    """
    wanted, wide = spec.implementation, [name for name, gate in gates.items() if gate.ndim > 0]
    known = {**inputs(spec, weights), **gates}
    rule, map = getattr(spec.rule, "mirrored", None) or (spec.rule, None)
    if map is None or spec.step_per == "chunk":
        whole, links, stages, obstacle = _analyse(spec.rule, weights, rule_state, known)
    else:
        whole, links, stages, obstacle = _analyse(rule, rule_state.accumulator, rule_state.rule, known)
    erases = frozenset(name for i, name in enumerate(sorted(weights)) if i in whole.erases)
    channels = f"gate {wide[0]!r} has a value per channel" if wide else ""
    if not wide and any(found.channels for found in (whole, *(found for _, found in links))):
        channels = "a constant of the rule has a value per channel"
    if wanted == "scan":
        return Plan("scan", (), links, "token by token, as asked for")
    online = _not_delta(spec, weights, stages, erases, channels)
    if map is not None:
        online = f"they are a map of an accumulator, {map}"
    if wanted == "delta" and online:
        raise ValueError(f"implementation='delta': expected gradients that depend on the weights, but {online}")
    if spec.step_per == "chunk":
        reason = "the rule steps once per chunk: the chunk's gradient is one backward pass, then one step of the rule"
        return Plan("dual" if wanted == "auto" else wanted, (), links, reason)
    if not obstacle and spec.retain_first and (spec.window > 1 or erases):
        obstacle = "with retain_first every token of a window has its own decayed weights"
        if erases:
            obstacle = "with retain_first a rule that takes out the weights' answer has two kinds of weights"
    if not obstacle and map is not None:
        obstacle = _not_mapped(spec, map, bool(erases), channels) or _remembered(rule, map, rule_state, links)
    if not obstacle and erases and channels:
        obstacle = f"{channels}, and the rule takes out the weights' answer"
    if not obstacle and "inputs" in known and not erases:
        obstacle = "it reads the layers' inputs for other things than what they answer"
    if obstacle:
        if wanted != "auto":
            raise ValueError(
                f"implementation={wanted!r}: expected a rule that can be run over a chunk at once, but {obstacle}"
            )
        return Plan("scan", (), links, f"token by token: {obstacle}")
    if not online and wanted in ("auto", "delta") and (erases or wanted == "delta" or spec.chunk_size == 1):
        reason = "gradients at the current weights, in blocks of tokens: response, and one triangular system per block"
        if spec.chunk_size > 1:
            reason = (
                "chunk by chunk: response, and one triangular system per layer for what it takes out of the weights"
            )
        return Plan("delta", stages, links, reason, erases=erases)
    if erases and wanted != "auto":
        raise ValueError(
            f"implementation={wanted!r}: expected a rule that does not take out of the weights what a layer answers to "
            "its input; use 'delta'"
        )
    if wanted == "auto" and spec.chunk_size == 1:
        reason = f"token by token: with chunk_size=1 every gradient is taken at the current weights, and {online}"
        return Plan("scan", (), links, reason)
    low_rank = wanted != "materialize" and not channels and _low_rank(spec, weights, stages)
    steps = " → ".join("response" if stage.kind == "linear" else "timewise map" for stage in stages)
    attended = len(stages) == 1 or low_rank
    how = "as masked attention, no weights of a token are formed" if attended else "over materialised updates"
    if low_rank:
        how = f"on the factors of windows, {spec.window} × {spec.window} for each token; {how}"
    if wanted == "materialize":
        how = "by an associative scan over materialised weights"
    if map is not None:
        when = "at its end" if spec.read == "start" else "for every token"
        low_rank, how = False, f"of an accumulator, and {map} {when}"
    reason = f"chunk by chunk: {steps}, {how}"
    return Plan("dual" if wanted == "auto" else wanted, stages, links, reason, low_rank=low_rank, map=map)


def _not_mapped(spec: Specification, map: rules.Map, erases: bool, channels: str) -> str:
    """Why an accumulator's chunk cannot be run at once though its rule can, or ''."""
    if spec.implementation == "materialize":
        return "the weights are a map of an accumulator; use 'dual'"
    if erases:
        return "the rule needs other weights of every token than the map of its accumulator at the chunk's start"
    if map.settle is not None and not map.shifts:
        return f"{map} settles its accumulator after every token"
    if channels and map.settle is not None:
        return f"{channels}, and {map} settles its accumulator after every token"
    return ""


def _remembered(rule, map: rules.Map, rule_state, links) -> str:
    """Why it matters to the rule's state when its accumulator is settled, or ''."""
    read = ""
    for (path, _), (name, found) in zip(_flatten(rule), links, strict=True):
        read = read or (name if found.reads_weights else "")
        kept = structure.owners(rule_state.accumulator, _get(rule_state.rule, path))
        if map.settle is not None and read and any(owner is not None for owner in kept):
            return f"{read} reads the accumulator, which {map} settles after every token, and {name} remembers it"
    return ""


def _low_rank(spec: Specification, weights, stages: tuple[Stage, ...]) -> bool:
    """Whether windows are thin and go, scaled at most, into one map that keeps thin factors."""
    *early, _ = stages
    before, timewise = early[:-1], early[-1:]
    thin = all(w.ndim == 2 and 2 * spec.window <= min(w.shape) for w in weights.values())
    maps = len(timewise) == 1 and timewise[0].kind == "timewise" and timewise[0].factored is not None
    return thin and maps and len(before) < 2 and all(stage.kind == "linear" and stage.forgets for stage in before)


def inputs(spec: Specification, weights) -> dict[str, Any]:
    """The shapes of every layer's input at one token, and of their importance, for a rule that reads them."""
    if spec.step_per == "chunk" or not rules.reads_inputs(spec.rule, weights):
        return {}

    def shape(weight):
        return jax.ShapeDtypeStruct((spec.window, weight.shape[0] if weight.ndim > 1 else 1), weight.dtype)

    importance = jax.ShapeDtypeStruct((spec.window,), next(iter(weights.values())).dtype)
    return {"inputs": {name: shape(weight) for name, weight in weights.items()}, "importance": importance}


def _not_delta(spec: Specification, weights, stages: tuple[Stage, ...], erases: frozenset[str], channels: str) -> str:
    """Why the delta form cannot run a memory whose rule has these stages, or ''."""
    if erases and spec.chunk_size > 1 and spec.step_per == "token":
        return ""
    if spec.chunk_size > 1 or spec.step_per == "chunk":
        steps = ", one step per chunk" if spec.step_per == "chunk" else ""
        return f"with chunk_size={spec.chunk_size}{steps} they are taken at the weights of a chunk's start"
    if spec.window > 1:
        return f"with window={spec.window} a token's gradient is that of several tokens"
    if len(stages) > 1:
        return "the rule has a map that is not linear"
    if channels:
        return channels
    return affine.read(spec, weights)[1]


def _analyse(rule, weights, rule_state, gates):
    """(structure, links with theirs, stages, why it cannot be run over a chunk at once or '')."""
    whole = structure.classify(structure.rule_step(rule), weights, rule_state, gates)
    links = _flatten(rule)
    described = tuple(
        (
            rules.describe_rule(link),
            structure.classify(structure.rule_step(link), weights, _get(rule_state, path), gates),
        )
        for path, link in links
    )
    if whole.kind == "linear":
        return whole, described, (Stage("linear", (((), rule),)),), ""
    for name, found in described:
        if found.kind == "sequential":
            return whole, described, (), f"{name} is sequential: {found.reason}"
    stages: list[Stage] = []
    for (path, link), (_, found) in zip(links, described, strict=True):
        if stages and stages[-1].kind == found.kind:
            last = stages[-1]
            stages[-1] = Stage(found.kind, (*last.links, (path, link)), last.forgets and found.forgets)
        else:
            stages.append(Stage(found.kind, ((path, link),), found.forgets))
    if stages[-1].kind == "timewise":
        stages.append(Stage("linear", ()))
    for name, found in described:
        if found.erases:
            return (
                whole,
                described,
                (),
                f"{name} takes out the weights' answer, in a chain with a map that is not linear",
            )
    early = [link for stage in stages[:-1] for link in stage.links]
    for (path, link), (name, found) in zip(links, described, strict=True):
        if found.reads_weights and (path, link) in early:
            return whole, described, (), f"{name} reads the weights before a map that is not linear"
    for stage in stages:
        if stage.kind == "linear" and len(stage.links) > 1:
            found = structure.classify(stage.step, weights, stage.states(rule_state), gates)
            if found.kind != "linear":
                return whole, described, (), f"links that are linear alone are not so together: {found.reason}"
    return whole, described, tuple(stages), ""


def _flatten(rule, path: Path = ()) -> list[tuple[Path, optax.GradientTransformation]]:
    links = getattr(rule, "links", ())
    if not links or links == (rule,):
        return [(path, rule)]
    return [found for i, link in enumerate(links) for found in _flatten(link, (*path, i))]


def _get(state, path: Path):
    for i in path:
        state = state[i]
    return state


def _set(state, path: Path, value):
    if not path:
        return value
    i, *rest = path
    return (*state[:i], _set(state[i], tuple(rest), value), *state[i + 1 :])
