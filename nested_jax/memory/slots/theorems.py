r"""What is known of slots that fade: bounds, limits and energy (CMS §5-6), with the constants that hold.

With a write :math:`M_t = (1 - d) M_{t-1} + g_t\, \tilde\alpha_t \otimes v_t`, :math:`\lVert v_t \rVert \le V`, g in
[0, 1] and addresses that are not negative and of sum one, :math:`\lVert \tilde\alpha \rVert_2 \le 1`. It is a mean of
two matrices,

.. math::
  M_t = (1 - d)\, M_{t-1} + d\, \Big(\tfrac{g_t}{d}\, \tilde\alpha_t \otimes v_t\Big), \qquad
  \Big\lVert \tfrac{g_t}{d}\, \tilde\alpha_t \otimes v_t \Big\rVert \le \tfrac{V}{d},

so that every convex function of the norm stays below its value at the larger of the two. What is printed otherwise:

=========  ===============================================  ======================================================
theorem    as printed                                       what holds
=========  ===============================================  ======================================================
1          :math:`\lVert\tilde\alpha\rVert_2 = 1`, bound    :math:`\lVert\tilde\alpha\rVert_2 \le 1` (an even
           :math:`\max(\lVert M_0\rVert, V\sqrt N / d)`     address of 4 slots has 0.5) and the bound V / d, which
                                                            one-hot addresses reach: no :math:`\sqrt N` is needed
2          half-life 0.693 / d                              log 0.5 / log(1 − d): 6.6, 13.5, 69.0 tokens for decays
                                                            of 0.1, 0.05, 0.01, where 0.693 / d gives 6.9, 13.9, 69.3
3          :math:`(g / d)\, \tilde\alpha \otimes v`         as printed, and left behind like (1 − d)^t
4          γ = 2 min d, :math:`C = (L + 1) V^2`             false: one slot M = 1, d = 0.1, g = v = 1 goes from energy
                                                            1 to 1.9² = 3.61 > 0.8 · 1 + 1. The cross term is missing,
                                                            and (1 − d)² is no less than 1 − 2d. γ = min d and
                                                            :math:`C = \sum_\ell \lambda_\ell V_\ell^2 / d_\ell` hold
=========  ===============================================  ======================================================

Source: Continuous Memory System (CMS), formal memory update rule, §5.1-5.3 and §6.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from nested_jax.memory.slots import rows as store
from nested_jax.memory.slots.level import Level
from nested_jax.memory.slots.memory import SlotState


def norm_bound(level: Level, start: float, largest: float) -> float:
    """Theorem 1: the Frobenius norm of a level's values (or keys) never exceeds this, unless `storage` rounds them.

    Args:
      level: whose decay it is; not an adaptive one, unless no event's decay is below it.
      start: the norm of the values before the first event.
      largest: V, the largest norm of a written value.

    Returns:
      max(start, V / d).

    Example:
      >>> norm_bound(Level(64, 128, decay=0.1), start=0.0, largest=2.0)
      20.0
    """
    return max(start, largest / level.decay)


def limit(level: Level, gate: float, address: jax.Array, value: jax.Array) -> jax.Array:
    """Theorem 3: where the same write over and over leads, (g / d) α̃ ⊗ v.

    Args:
      level: whose decay it is.
      gate: g in [0, 1].
      address: α̃ [N].
      value: v [w].

    Returns:
      [N, w].

    Example:
      >>> limit(Level(2, 1, decay=0.25), 0.5, jnp.array([1.0, 0.0]), jnp.array([3.0])).tolist()
      [[6.0], [0.0]]
    """
    return gate / level.decay * jnp.outer(address, value)


def energy(state: SlotState, shares: Sequence[float] | None = None) -> jax.Array:
    r"""The memory's energy, :math:`\sum_\ell \lambda_\ell \lVert M^\ell \rVert_F^2` (§6.1).

    Args:
      state: of a slot memory, or a batch of such.
      shares: λ of each level, positive; None for ones.

    Returns:
      A scalar, or one for each of the batch.

    Raises:
      ValueError: if there are not as many shares as levels.
    """
    shares = _shares(shares, len(state.levels))
    squares = [jnp.sum(jnp.square(store.decode(level.values)), axis=(-2, -1)) for level in state.levels]
    return sum((share * square for share, square in zip(shares, squares, strict=True)), jnp.zeros(()))


def dissipation(
    levels: Sequence[Level], largest: Sequence[float], shares: Sequence[float] | None = None
) -> tuple[float, float]:
    """Theorem 4: γ and C of energy after a step ≤ (1 − γ) · energy before it + C.

    Args:
      levels: of the memory, none with an adaptive decay, nor with a `storage` that rounds.
      largest: of each level V, the largest norm of a written value.
      shares: λ of each level, positive; None for ones.

    Returns:
      γ = min d and C = Σ λ V² / d.

    Raises:
      ValueError: if there are not as many values or shares as levels.

    Example:
      >>> dissipation([Level(1, 1, 0.5), Level(1, 1, 0.25)], [1.0, 1.0])
      (0.25, 6.0)
    """
    if len(largest) != len(levels):
        raise ValueError(f"largest: expected a number for each of {len(levels)} levels, got {len(largest)}")
    given = zip(levels, largest, _shares(shares, len(levels)), strict=True)
    return min(level.decay for level in levels), sum(share * v**2 / level.decay for level, v, share in given)


def _shares(shares: Sequence[float] | None, count: int) -> Sequence[float]:
    shares = [1.0] * count if shares is None else shares
    if len(shares) != count:
        raise ValueError(f"shares: expected a number for each of {count} levels, got {len(shares)}")
    return shares
