"""`AnyMemory`: what a layer asks of a memory; `nj.Memory`, `nj.memory.TNT` and `nj.memory.Cached` have it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import jax

if TYPE_CHECKING:
    from nested_jax.memory.memory import Memory


class AnyMemory(Protocol):
    """A memory, or a composition of memories, over one sequence of one head; see `nj.Memory` for the methods.

    Its states are pytrees with a property or field `position`: tokens of the open chunk that were written, or None.
    """

    @property
    def chunk_size(self) -> int:
        """The grid on which scans are handed over and documents begin."""
        ...

    @property
    def parts(self) -> "dict[str, Memory]":
        """The memories it is made of. Each has its gates under `name_gate`, and initial weights under its name."""
        ...

    def init(self, key: jax.Array, dim: int | tuple[int, int]) -> dict[str, Any]: ...

    def constrain(self, params: Mapping[str, Any]) -> dict[str, Any]: ...

    def start(self, params: Mapping[str, Any]) -> Any: ...

    def gates(self, weights: Any = None) -> dict[str, Any]: ...

    def scan(
        self,
        state: Any,
        keys: jax.Array,
        values: jax.Array,
        queries: jax.Array,
        gates: Mapping[str, jax.Array] | None = None,
        reset: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]: ...

    def step(
        self,
        state: Any,
        key: jax.Array,
        value: jax.Array,
        query: jax.Array,
        gates: Mapping[str, jax.typing.ArrayLike] | None = None,
    ) -> tuple[jax.Array, Any]: ...

    def recall(self, state: Any, queries: jax.Array) -> jax.Array: ...
