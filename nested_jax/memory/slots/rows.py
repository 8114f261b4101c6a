"""How the rows of a slot memory are kept: as numbers of some type, times one scale per row (CMS §9.3).

Decay is on the scale alone. So a step that only fades rounds no code and costs one number per slot, and a slot that no
write touches needs no other work. Where rows are rounded, the largest code of a
row is always the same, so that values of any size fit and a faded row rounds as finely as a fresh one.
"""

import functools
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


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _codes(rows: jax.Array, storage: str) -> jax.Array:
    return jnp.round(rows).astype(jnp.int8) if storage == "int8" else rows.astype(storage)


@_codes.defjvp
def _no_gradient(storage, primals, tangents):
    raise ValueError(f"storage: expected None or 'bfloat16' where gradients are taken, got {storage!r}")


def encode(rows: jax.Array, storage: str | None = None) -> Rows:
    r"""Rounds rows to what they are kept as.

    The error of an entry x of a row r is at most :math:`\max|r| / 254` for "int8", :math:`2^{-11}|x| + 2^{-25}\max|r|`
    for "float16" and :math:`2^{-8}|x|` for "bfloat16". Where every step writes to a row and its errors are at most e,
    they sum to no more than e / d, as fading forgets errors, too.

    Args:
      rows: [..., D].
      storage: "int8", "float16", "bfloat16"; None keeps them as they are.

    Returns:
      Codes and scales.

    Raises:
      ValueError: if a gradient is taken through "int8" or "float16", in which gradients are lost.

    Example:
      >>> encode(jnp.array([[1.0, -2.0, 0.0]]), "int8").codes.tolist()
      [[64, -127, 0]]
    """
    wide = jnp.promote_types(rows.dtype, jnp.float32)
    if storage is None:
        return Rows(rows.astype(wide), jnp.ones(rows.shape[:-1], wide))
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(rows), axis=-1).astype(wide))
    scale = jnp.where(largest == 0, 1.0, largest / (_STEPS if storage == "int8" else 1))
    codes = rows / scale[..., None]
    return Rows(codes.astype(storage) if storage == "bfloat16" else _codes(codes, storage), scale)


def decode(rows: Rows) -> jax.Array:
    """Codes times scales, [..., D] in the scales' type."""
    return rows.codes.astype(rows.scale.dtype) * rows.scale[..., None]


def scaled(rows: Rows, share: jax.typing.ArrayLike) -> Rows:
    """All rows times a number."""
    return rows._replace(scale=rows.scale * jnp.asarray(share, rows.scale.dtype))


def take(rows: Rows, index: jax.Array | None) -> Rows:
    """The rows at `index` [K]; all of them for None."""
    return rows if index is None else jax.tree.map(lambda x: x[index], rows)


def put(rows: Rows, index: jax.Array | None, new: Rows) -> Rows:
    """`new` in the place of the rows at `index` [K]; an index beyond the last row is left out."""
    return new if index is None else jax.tree.map(lambda x, y: x.at[index].set(y), rows, new)
