"""How the rows of a slot memory are kept: as numbers of some type, times one scale per row (CMS §9.3).

Decay is on the scale alone. So a step that only fades rounds nothing and costs one number per slot, and a slot that no
write touches needs no other work.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

STORAGES = ("int8", "float16", "bfloat16")
_STEPS = 127


class Rows(NamedTuple):
    """Rows [N, D] as codes times scales.

    Attributes:
      codes: [N, D] of the storage's type.
      scale: [N] in float32 or wider.
    """

    codes: jax.Array
    scale: jax.Array


@jax.custom_jvp
def _codes(rows: jax.Array, scale: jax.Array) -> jax.Array:
    return jnp.round(rows / scale[..., None]).astype(jnp.int8)


@_codes.defjvp
def _no_gradient(primals, tangents):
    raise ValueError("storage: expected None, 'float16' or 'bfloat16' where gradients are taken, got 'int8'")


def encode(rows: jax.Array, storage: str | None = None) -> Rows:
    r"""Rounds rows to what they are kept as.

    The error of an entry x of a row r is at most :math:`\max|r| / 254` for "int8", :math:`2^{-11}|x|` for "float16" and
    :math:`2^{-8}|x|` for "bfloat16" (above the smallest normal number).

    Args:
      rows: [..., D].
      storage: "int8", "float16", "bfloat16"; None keeps them as they are.

    Returns:
      Codes and scales.

    Raises:
      ValueError: if a gradient is taken through "int8".

    Example:
      >>> encode(jnp.array([[1.0, -2.0, 0.0]]), "int8").codes.tolist()
      [[64, -127, 0]]
    """
    wide = jnp.promote_types(rows.dtype, jnp.float32)
    if storage == "int8":
        largest = jnp.max(jnp.abs(rows), axis=-1).astype(wide)
        scale = jnp.where(largest > 0, largest / _STEPS, 1.0)
        return Rows(_codes(rows, scale), scale)
    return Rows(rows.astype(storage or wide), jnp.ones(rows.shape[:-1], wide))


def decode(rows: Rows) -> jax.Array:
    """Codes times scales, [..., D] in the scales' type."""
    return rows.codes.astype(rows.scale.dtype) * rows.scale[..., None]


def fade(rows: Rows, decay: jax.typing.ArrayLike) -> Rows:
    """All rows times 1 − decay."""
    return rows._replace(scale=rows.scale * (1 - jnp.asarray(decay, rows.scale.dtype)))


def take(rows: Rows, index: jax.Array | None) -> Rows:
    """The rows at `index` [K]; all of them for None."""
    return rows if index is None else jax.tree.map(lambda x: x[index], rows)


def put(rows: Rows, index: jax.Array | None, new: Rows) -> Rows:
    """`new` in the place of the rows at `index` [K]; an index beyond the last row is left out."""
    return new if index is None else jax.tree.map(lambda x, y: x.at[index].set(y), rows, new)
