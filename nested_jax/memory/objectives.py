"""Objectives: the inner loss of a memory (its attentional bias), per token.

An objective maps predictions and targets, [T, D] each, to losses [T]; any function of that form will do.
"""

import jax
import jax.numpy as jnp


def l2(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Half the squared error, `½ Σ_features (M(k) − v)²`.

    With this half, a learning rate on a linear network is the β of the delta rule. The papers print the loss without it
    and absorb the factor 2 in the learning rate.

    Args:
      prediction: the memory's answers M(k), [T, D].
      target: the values v, [T, D].

    Returns:
      The loss of each token, [T].

    Example:
      >>> import jax.numpy as jnp, nested_jax as nj
      >>> nj.objectives.l2(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 0.0]])).tolist()
      [2.5]

    References:
      Titans eq 12; TTT §2.1.
    """
    return 0.5 * jnp.sum(jnp.square(prediction - target), axis=-1)


def dot_product(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Negative similarity, `−⟨M(k), v⟩`; on a linear network its gradient step is the Hebbian write of linear
    attention.

    Args:
      prediction: the memory's answers M(k), [T, D].
      target: the values v, [T, D].

    Returns:
      The loss of each token, [T].

    Example:
      >>> import jax.numpy as jnp, nested_jax as nj
      >>> nj.objectives.dot_product(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 1.0]])).tolist()
      [-5.0]

    References:
      Atlas eq 19 (printed without the sign, which would move away from v); Nested Learning eq 9.
    """
    return -jnp.sum(prediction * target, axis=-1)
