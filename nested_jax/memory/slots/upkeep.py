"""What is done to slots between tokens: waiting, replay, merging, and counting their bytes (CMS §5.2, 8.3, 11.3)."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nested_jax.memory.slots import rows as store
from nested_jax.memory.slots.level import LevelState
from nested_jax.memory.slots.memory import SlotMemory, SlotState
from nested_jax.memory.slots.rows import Rows


class Kept(NamedTuple):
    """Values [N, w] and keys [N, d_k] of a level that are worth keeping, zero elsewhere."""

    values: jax.Array
    keys: jax.Array


class Footprint(NamedTuple):
    """What a level takes.

    Attributes:
      slots: N.
      width: w.
      floats: N (w + d_k), the numbers of its values and keys.
      bytes: of these as they are kept.
      extra: bytes of scales, usage and the keys of a chunk's start.
      half_life: tokens until half of a value is forgotten.
    """

    slots: int
    width: int
    floats: int
    bytes: int
    extra: int
    half_life: float


def idle(memory: SlotMemory, state: SlotState, steps: int) -> SlotState:
    r"""The state after steps that write nothing, :math:`M = (1 - d)^n M` (§5.2), and keys and usage alike.

    A decay that is adaptive is what it is for an event of zeros.

    Args:
      memory: whose levels know their decays.
      state: of that memory.
      steps: n, at least 0.

    Returns:
      The state. No code is rounded, whatever the storage.

    Raises:
      ValueError: for a negative number of steps.

    Example:
      >>> memory = SlotMemory(key_dim=4)
      >>> state = memory.start(memory.init(jax.random.key(0), 4))
      >>> print(f"{idle(memory, state, 7).levels[0].keys.scale[0]:.3f}")
      0.478
    """
    if steps < 0:
        raise ValueError(f"steps: expected an integer >= 0, got {steps}")
    after = []
    for level, slots in zip(memory.levels, state.levels, strict=True):
        kept = (1 - level.decay) ** steps
        usage = None if slots.usage is None else kept * slots.usage
        after.append(
            slots._replace(values=store.scaled(slots.values, kept), keys=store.scaled(slots.keys, kept), usage=usage)
        )
    return state._replace(levels=tuple(after))


def important(state: SlotState, count: int) -> tuple[Kept, ...]:
    """The slots with the longest values, of each level so many: what `replay` brings back.

    CMS leaves open which memories are important; this is our choice.

    Args:
      state: of a slot memory, or a batch of such.
      count: slots of each level, at least 1; levels with fewer keep all.

    Returns:
      Of each level its values and keys, zero but in those slots.

    Raises:
      ValueError: if `count` is not positive.
    """
    if count < 1:
        raise ValueError(f"count: expected an integer >= 1, got {count}")
    kept = []
    for slots in state.levels:
        values, keys = store.decode(slots.values), store.decode(slots.keys)
        norms = jnp.linalg.norm(values, axis=-1)
        index = jax.lax.top_k(norms, min(count, norms.shape[-1]))[1]
        chosen = jnp.sum(jax.nn.one_hot(index, norms.shape[-1], dtype=norms.dtype), axis=-2)[..., None]
        kept.append(Kept(chosen * values, chosen * keys))
    return tuple(kept)


def replay(memory: SlotMemory, state: SlotState, kept: Sequence[Kept], rate: float) -> SlotState:
    r"""Writes what was kept once more, :math:`M \leftarrow M + \gamma M_{important}` (§11.3), keys as well as values.

    Keys are our choice: values whose keys have faded are not found. The bound of theorem 1 grows by
    :math:`\gamma \lVert M_{important} \rVert` with every replay.

    Args:
      memory: whose levels know how slots are kept.
      state: of that memory.
      kept: what `important` returned, for this state or an older one.
      rate: γ.

    Returns:
      The state.

    Raises:
      ValueError: if `kept` is not of as many levels.

    Example:
      >>> memory = SlotMemory(key_dim=4)
      >>> state = memory.start(memory.init(jax.random.key(0), 4))
      >>> faded = idle(memory, state, 7)
      >>> again = replay(memory, faded, important(state, 64), 0.5)
      >>> ratio = jnp.linalg.norm(again.levels[0].keys.codes) / jnp.linalg.norm(state.levels[0].keys.codes)
      >>> print(f"{ratio:.3f}")
      0.978
    """
    if len(kept) != len(state.levels):
        raise ValueError(f"kept: expected an entry for each of {len(state.levels)} levels, got {len(kept)}")
    after = []
    for level, slots, old in zip(memory.levels, state.levels, kept, strict=True):

        def add(rows: Rows, more: jax.Array, storage: str | None = level.storage) -> Rows:
            return store.encode(store.decode(rows) + rate * more, storage)

        after.append(slots._replace(values=add(slots.values, old.values), keys=add(slots.keys, old.keys)))
    return state._replace(levels=tuple(after))


def merge(memory: SlotMemory, first: SlotState, second: SlotState, share: float = 0.5) -> SlotState:
    """Two branches as one: share · first + (1 − share) · second, slot by slot.

    Both must be of the same chunk grid; an open chunk goes on from the first's addresses. Norms stay below the larger
    one's (by convexity), hence below the bound of theorem 1.

    Args:
      memory: whose levels know how slots are kept.
      first: a state of that memory.
      second: another.
      share: of the first, in [0, 1].

    Returns:
      The state.

    Raises:
      ValueError: if the share is out of range.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share: expected a number in [0, 1], got {share}")
    after = []
    for level, one, two in zip(memory.levels, first.levels, second.levels, strict=True):

        def mean(a: Rows, b: Rows, storage: str | None = level.storage) -> Rows:
            return store.encode(share * store.decode(a) + (1 - share) * store.decode(b), storage)

        usage = jax.tree.map(lambda a, b: share * a + (1 - share) * b, one.usage, two.usage)
        after.append(LevelState(mean(one.values, two.values), mean(one.keys, two.keys), usage, one.frozen))
    return first._replace(levels=tuple(after))


def footprint(memory: SlotMemory) -> tuple[Footprint, ...]:
    """What the levels take, one by one (§8.3).

    Args:
      memory: any.

    Returns:
      An entry per level, fastest first.

    Example:
      >>> print(*(row.bytes // 1024 for row in footprint(SlotMemory())), "KiB")
      48 160 576 KiB
    """

    def size(*arrays) -> int:
        return sum(x.size * x.dtype.itemsize for x in arrays)

    state = jax.eval_shape(lambda: memory.start(memory.init(jax.random.key(0), 1)))
    found = []
    for level, slots in zip(memory.levels, state.levels, strict=True):
        codes = (slots.values.codes, slots.keys.codes)
        extra = size(*jax.tree.leaves(slots)) - size(*codes)
        floats = level.slots * (level.width + memory.key_dim)
        found.append(Footprint(level.slots, level.width, floats, size(*codes), extra, level.half_life))
    return tuple(found)
