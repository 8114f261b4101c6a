"""`SlotMemory`: levels of content-addressable slots that fade at their own pace (CMS §2-4)."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nested_jax import rules
from nested_jax.memory import networks, objectives
from nested_jax.memory.memory import Memory, check_reset
from nested_jax.memory.slots import rows as store
from nested_jax.memory.slots.level import Event, Level, LevelState
from nested_jax.scan.state import select

Params = Mapping[str, Any]


class SlotState(NamedTuple):
    """What a slot memory carries: a pytree to save, copy, branch and carry on from.

    Attributes:
      levels: of each level its slots, fastest first.
      position: tokens of the open chunk that were written, int32; None where chunks are of one token.
    """

    levels: tuple[LevelState, ...]
    position: jax.Array | None


@dataclasses.dataclass(frozen=True)
class SlotMemory:
    r"""Levels of slots, read by attention and written by events, each fading at its own pace.

    At token t, with x_t what queries are made of (CMS: :math:`s_{t-1}, e_t`) and e_t what events are made of
    (:math:`s_t, e_t`), for level ℓ = 0 .. L (CMS §3-4):

    .. math::
      q_t &= x_t W_Q, \qquad \alpha^\ell_t = \mathrm{softmax}(K^\ell_{t-1} q_t / \sqrt{d_k}), \qquad
      c^\ell_t = \alpha^{\ell\top}_t M^\ell_{t-1} && (3.1\text{-}3.3) \\
      \beta_t &= \mathrm{softmax}([c^0_t \| \dots \| c^L_t]\, W_\beta), \qquad
      y_t = \textstyle\sum_\ell \beta^\ell_t\, c^\ell_t U^\ell && (3.4) \\
      z^\ell_t &= \mathrm{SiLU}([e_t \| c^{\ell-1}_t]\, E^\ell), \qquad g^\ell_t = \sigma(z W_g), \quad
      v^\ell_t = z W_V, \quad k^\ell_t = z W_K && (4.1\text{-}4.3) \\
      \tilde\alpha^\ell_t &= \lambda\, \mathrm{softmax}(K^\ell_{t-1} k^\ell_t / \sqrt{d_k})
      + (1 - \lambda)\, \mathrm{onehot}(\arg\min_i u^\ell_{t-1}) && (4.4) \\
      M^\ell_t &= (1 - d_\ell)\, M^\ell_{t-1} + g_t\, \tilde\alpha_t \otimes v_t, \qquad
      K^\ell_t = (1 - d_\ell)\, K^\ell_{t-1} + g_t\, \tilde\alpha_t \otimes k_t && (4.5)

    A token reads what was written before it, and then writes (our choice; the indices of CMS allow both). With
    ``chunk_size=C`` the addresses of a chunk's tokens come from the keys at its start, while values and usage go on
    token by token: then a level is a linear memory of addresses with the rule
    ``nj.rules.gated_gradient_descent()`` (`linear`), and the engine runs a chunk at once. Token by token, gradients
    keep the slots of every token.

    Attributes:
      levels: fastest first, decays not growing. The default is that of §8.3 and §10.
      key_dim: d_k.
      event_dim: d_z.
      context_dim: d_c, features of what is read.
      chunk_size: tokens whose addresses come from the same keys; 1 is the exact online memory.

    Raises:
      ValueError: if a field is out of range or two do not go together.

    Example:
      >>> import jax, jax.numpy as jnp, nested_jax as nj
      >>> levels = (nj.memory.slots.Level(4, 8, 0.1), nj.memory.slots.Level(8, 8, 0.01, content=0.5))
      >>> memory = nj.memory.slots.SlotMemory(levels, key_dim=4, event_dim=8, context_dim=6)
      >>> params = memory.init(jax.random.key(0), 5)
      >>> y, state = memory.scan(params, memory.start(params), jnp.ones((3, 5)))
      >>> y.shape, state.levels[1].usage.shape
      ((3, 6), (8,))
    """

    levels: tuple[Level, ...] = (Level(64, 128, 0.1), Level(128, 256, 0.05), Level(256, 512, 0.01))
    key_dim: int = 64
    event_dim: int = 128
    context_dim: int = 128
    chunk_size: int = 1

    def __post_init__(self):
        if not isinstance(self.levels, tuple) or not self.levels:
            raise ValueError(f"levels: expected a tuple of one or more Level, got {self.levels!r}")
        for name in ("key_dim", "event_dim", "context_dim", "chunk_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {value!r}")
        for number, level in enumerate(self.levels):
            if not isinstance(level, Level):
                raise ValueError(f"levels[{number}]: expected a Level, got {type(level).__name__}")
            for name in ("top_k", "storage"):
                if self.chunk_size != 1 and getattr(level, name) is not None:
                    raise ValueError(
                        f"levels[{number}].{name}: expected None where slots are written a chunk of {self.chunk_size} "
                        f"tokens at once, got {getattr(level, name)!r}"
                    )
        decays = [level.decay for level in self.levels]
        if decays != sorted(decays, reverse=True):
            raise ValueError(f"levels: expected decays from fast to slow, got {decays}")

    @property
    def linear(self) -> Memory | None:
        """The linear memory of addresses that runs a chunk of every level; None where each token asks the keys anew."""
        if self.chunk_size == 1:
            return None
        rule = rules.gated_gradient_descent()
        return Memory(networks.Linear(), objectives.dot_product, rule, chunk_size=self.chunk_size, read="before")

    def init(self, key: jax.Array, dim: int, events: int | None = None) -> dict[str, Any]:
        """Parameters: slots before the first event and all maps, see `Level.init`.

        Args:
          key: a PRNG key.
          dim: features of what queries are made of.
          events: features of what events are made of; None for `dim`.

        Returns:
          {"query": [dim, d_k], "mix": [sum of widths, levels], "level0": {...}, ...}; `mix` is zero, an equal share of
          all levels.
        """
        first, *keys = jax.random.split(key, 1 + len(self.levels))
        below = [0, *(level.width for level in self.levels)]
        sizes = (self.key_dim, self.event_dim, self.context_dim)
        total = sum(level.width for level in self.levels)
        return {
            "query": jax.random.normal(first, (dim, self.key_dim)) / jnp.sqrt(dim),
            "mix": jnp.zeros((total, len(self.levels))),
        } | {
            f"level{number}": level.init(keys[number], (events or dim) + below[number], *sizes)
            for number, level in enumerate(self.levels)
        }

    def start(self, params: Params) -> SlotState:
        """The state before the first token."""
        chunked = self.chunk_size > 1
        levels = tuple(level.start(weights, chunked) for level, weights in self._each(params))
        return SlotState(levels, jnp.zeros((), jnp.int32) if chunked else None)

    def scan(
        self,
        params: Params,
        state: SlotState,
        inputs: jax.Array,
        events: jax.Array | None = None,
        reset: jax.Array | None = None,
    ) -> tuple[jax.Array, SlotState]:
        """Reads and writes a sequence. Opens a new chunk; hand over at multiples of `chunk_size`.

        Args:
          params: see `init`.
          state: where to start from.
          inputs: [T, D], what queries are made of.
          events: [T, D'], what events are made of; None for the inputs.
          reset: bool [ceil(T / chunk_size)], True where a document begins.

        Returns:
          y [T, context_dim] and the state after the last token.

        Raises:
          ValueError: for arrays of other shapes.
        """
        events = self._events(params, inputs, events, 2)
        self._check_state(params, state)
        tokens, size = inputs.shape[0], self.chunk_size
        check_reset(reset, tokens, size)
        fresh = self.start(params)
        begins = jnp.zeros(-(-tokens // size), bool) if reset is None else reset
        run = self.step if size == 1 else self._chunk

        @jax.checkpoint
        def body(state: SlotState, xs: tuple[jax.Array, jax.Array, jax.Array]):
            x, e, begin = xs
            read, state = run(params, select(begin, fresh, state), x, e)
            return state, read

        full, rest = divmod(tokens, size)
        outputs = []
        if full:
            shape = (full,) if size == 1 else (full, size)
            parts = tuple(x[: full * size].reshape(*shape, -1) for x in (inputs, events))
            state, read = jax.lax.scan(body, state, (*parts, begins[:full]))
            outputs.append(read.reshape(full * size, -1))
        if rest:
            state, read = body(state, (inputs[full * size :], events[full * size :], begins[full]))
            outputs.append(read)
        return jnp.concatenate(outputs), state

    def step(
        self, params: Params, state: SlotState, inputs: jax.Array, events: jax.Array | None = None
    ) -> tuple[jax.Array, SlotState]:
        """One token, [D] → [context_dim], in the words of the class: what `scan` does, whose chunks it continues."""
        events = self._events(params, inputs, events, 1)
        self._check_state(params, state)
        state = self._open(state)
        query = inputs.astype(params["query"].dtype) @ params["query"]
        contexts, after = [], []
        for (level, weights), slots in zip(self._each(params), state.levels, strict=True):
            event = level.event(weights, jnp.concatenate([events, *contexts[-1:]]))
            context, slots = level.token(slots, query, event)
            contexts.append(context)
            after.append(slots)
        position = None if state.position is None else (state.position + 1) % self.chunk_size
        return self._mix(params, contexts), SlotState(tuple(after), position)

    def recall(self, params: Params, state: SlotState, inputs: jax.Array) -> jax.Array:
        """What the slots answer as they are, without an event: [T, D] → [T, context_dim]."""
        self._check(params, inputs, 2)
        self._check_state(params, state)
        state = self._open(state)

        def one(x: jax.Array) -> jax.Array:
            query = x.astype(params["query"].dtype) @ params["query"]
            pairs = zip(self.levels, state.levels, strict=True)
            return self._mix(params, [level.read(slots, level.attend(slots, query)) for level, slots in pairs])

        return jax.vmap(one)(inputs)

    def _chunk(
        self, params: Params, state: SlotState, inputs: jax.Array, events: jax.Array
    ) -> tuple[jax.Array, SlotState]:
        """A chunk from its start at once, [C, D] → [C, context_dim]; the naive code is `step` for each token."""
        count = inputs.shape[0]
        state = self._open(state._replace(position=jnp.zeros((), jnp.int32)))
        queries = inputs.astype(params["query"].dtype) @ params["query"]
        contexts, after = [], []
        for (level, weights), slots in zip(self._each(params), state.levels, strict=True):
            event = level.event(weights, jnp.concatenate([events, *contexts[-1:]], axis=-1))
            read, near = (jax.vmap(level.attend, (None, 0))(slots, rows).weights for rows in (queries, event.key))
            written, usage = _place(level, slots.usage, read, near, event)
            assert self.linear is not None
            context, values, keys = _run(self.linear, slots, read, written, event)
            contexts.append(context)
            after.append(slots._replace(values=store.encode(values), keys=store.encode(keys), usage=usage))
        position = jnp.asarray(count % self.chunk_size, jnp.int32)
        return self._mix(params, contexts), SlotState(tuple(after), position)

    def _open(self, state: SlotState) -> SlotState:
        """The state with the keys at the start of the chunk that the next token is in."""
        if state.position is None:
            return state
        levels = (
            slots._replace(frozen=select(state.position == 0, store.decode(slots.keys), slots.frozen))
            for slots in state.levels
        )
        return state._replace(levels=tuple(levels))

    def _mix(self, params: Params, contexts: Sequence[jax.Array]) -> jax.Array:
        """The levels' answers [..., w] as one, [..., context_dim] (§3.4)."""
        shares = jax.nn.softmax(jnp.concatenate(contexts, axis=-1) @ params["mix"])
        projected = [c @ weights["project"] for c, (_, weights) in zip(contexts, self._each(params), strict=True)]
        return jnp.einsum("...l,...ld->...d", shares, jnp.stack(projected, axis=-2))

    def _each(self, params: Params) -> list[tuple[Level, dict[str, jax.Array]]]:
        return [(level, params[f"level{number}"]) for number, level in enumerate(self.levels)]

    def _check(self, params: Params, inputs: jax.Array, ndim: int) -> None:
        names = ("query", "mix", *(f"level{number}" for number in range(len(self.levels))))
        if set(params) != set(names):
            raise ValueError(f"params: expected {[*names]}, got {[*params]}")
        features, below = params["query"].shape[0], params["level0"]["event"].shape[0]
        wanted, found = (jax.tree.map(jnp.shape, tree) for tree in (_shapes(self, features, below), dict(params)))
        if wanted != found:
            raise ValueError(f"params: expected those of this memory, {wanted}, got {found}")
        _check_features("inputs", inputs, features, ndim)

    def _check_state(self, params: Params, state: SlotState) -> None:
        wanted = jax.eval_shape(self.start, params)
        shapes = [jax.tree.map(jnp.shape, tree) for tree in (wanted, state)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"state: expected one of this memory, {shapes[0]}, got {shapes[1]}")

    def _events(self, params: Params, inputs: jax.Array, events: jax.Array | None, ndim: int) -> jax.Array:
        """What events are made of, in the parameters' type."""
        self._check(params, inputs, ndim)
        given = inputs if events is None else events
        _check_features("events", given, params["level0"]["event"].shape[0], ndim)
        if given.shape[:-1] != inputs.shape[:-1]:
            raise ValueError(f"events: expected as many tokens as inputs, {inputs.shape[0]}, got {given.shape[0]}")
        return given.astype(params["query"].dtype)


@functools.cache
def _shapes(memory: SlotMemory, dim: int, events: int) -> dict[str, Any]:
    return jax.eval_shape(lambda key: memory.init(key, dim, events), jax.random.key(0))


def _check_features(name: str, x: jax.Array, features: int, ndim: int) -> None:
    if jnp.ndim(x) != ndim or jnp.shape(x)[-1] != features or 0 in jnp.shape(x):
        axes = "[T, D]" if ndim == 2 else "[D]"
        raise ValueError(f"{name}: expected {axes} with D = {features}, not empty, got shape {jnp.shape(x)}")


def _place(
    level: Level, usage: jax.Array | None, read: jax.Array, near: jax.Array, event: Event
) -> tuple[jax.Array, jax.Array | None]:
    """Write addresses of a chunk [C, N] from those of reading and of content, and the usage after it."""
    if usage is None:
        return near, None

    def token(usage: jax.Array, xs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        read, near, gate, decay = xs
        written = level.blend(near, usage)
        return (1 - decay) * usage + read + gate * written, written

    usage, written = jax.lax.scan(token, usage, (read, near, event.gate, event.decay))
    return written, usage


def _run(
    memory: Memory, slots: LevelState, read: jax.Array, written: jax.Array, event: Event
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Decay and write of a chunk: what its tokens read, [C, w], and the values and keys after it.

    Values and keys are one matrix [N, w + d_k], whose gradient at a token is −α̃ ⊗ [v ‖ k].
    """
    width = event.value.shape[-1]
    start = memory.start({"w": jnp.concatenate([store.decode(slots.values), store.decode(slots.keys)], axis=1)})
    both = jnp.concatenate([event.value, event.key], axis=1)
    answer, after = memory.scan(start, written, both, read, {"learning_rate": event.gate, "decay": event.decay})
    return answer[:, :width], after.weights["w"][:, :width], after.weights["w"][:, width:]
