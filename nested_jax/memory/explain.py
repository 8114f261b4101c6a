"""`explain`: what the engine reads off the rules of a memory, or of a system of memories, in words."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import optax

from nested_jax.memory import across
from nested_jax.memory.memory import Memory
from nested_jax.memory.slots import SlotMemory


def explain(memory: Any, dim: int | tuple[int, int] = 64) -> None:
    """Prints what the engine reads off a memory's rule, the path it chose, and how that goes over a split sequence.

    Args:
      memory: an `nj.Memory`, or what is made of several (`nj.memory.TNT`, `Cached`, `SelfModifying`, `Continuum`), of
        which each is explained under its name; or a `nj.memory.slots.SlotMemory`, level by level.
      dim: features of keys and values, or (dim_k, dim_v); slots know theirs.

    Raises:
      ValueError: if there is no memory in what is given.

    Example:
      >>> import nested_jax as nj
      >>> one = nj.Memory(rule=nj.rules.gradient_descent(), chunk_size=16)
      >>> nj.explain(one)
      scale_by_learning_rate(): elementwise-linear
      implementation: dual. Chunk by chunk: response, as masked attention, no weights of a token are formed.
      split sequence: ring. A piece is no affine map of the state: its network has other weights than one matrix.

      >>> nj.explain(nj.memory.Cached(one))
      memory:
        scale_by_learning_rate(): elementwise-linear
        implementation: dual. Chunk by chunk: response, as masked attention, no weights of a token are formed.
      split sequence: ring. The state goes from member to member.
    """
    if isinstance(memory, Memory):
        print("\n".join([*_lines(memory, dim), _split(memory, dim)]))
        return
    if isinstance(memory, SlotMemory):
        for number, level in enumerate(memory.levels):
            lines = ["token by token: each address asks the keys as they are"]
            if memory.linear is not None:
                lines = [
                    "linear memory of addresses",
                    *_lines(memory.linear, (level.slots, level.width + memory.key_dim)),
                ]
            print("\n  ".join([f"level {number}:", *lines]))
        print(_split(memory, dim))
        return
    found = list(_memories(memory))
    if not found:
        hint = (
            ": put the rule into one, nj.Memory(rule=...)" if isinstance(memory, optax.GradientTransformation) else ""
        )
        raise ValueError(f"memory: expected an nj.Memory or a system of them, got {type(memory).__name__}{hint}")
    for name, one in found:
        print("\n  ".join([f"{name}:", *_lines(one, dim)]))
    print(_split(memory, dim))


def _lines(memory: Memory, dim: int | tuple[int, int]) -> Iterator[str]:
    plan = memory.plan(dim)
    for name, found in plan.links:
        notes = [{"linear": "elementwise-linear"}.get(found.kind, found.kind)]
        notes += ["reads the weights"] * found.reads_weights + ["with a clock"] * found.clock
        yield f"{name}: {', '.join(notes)}" + (f" ({found.reason})" if found.reason else "")
    yield f"implementation: {plan.implementation}. {plan.reason[0].upper()}{plan.reason[1:]}."


def _split(memory: Any, dim: int | tuple[int, int]) -> str:
    found = across.form(memory, dim)
    return f"split sequence: {found.kind or 'gathered'}. {found.reason[0].upper()}{found.reason[1:]}."


def _memories(system: Any) -> Iterator[tuple[str, Memory]]:
    """The memories among the fields of a system, by name."""
    for field in dataclasses.fields(system) if dataclasses.is_dataclass(system) else ():
        value = getattr(system, field.name)
        each = value if isinstance(value, tuple) else (value,)
        for place, one in enumerate(each):
            if isinstance(one, Memory):
                yield f"{field.name}[{place}]" if isinstance(value, tuple) else field.name, one
