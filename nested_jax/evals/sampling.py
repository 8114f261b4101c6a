"""From the logits of the next token to a token: temperature, then top-k, then top-p (nucleus), then a draw.

    l / T                                              temperature T, 0 for the likeliest alone
    l_i, or −∞ unless i is among the k largest         top-k
    l_i, or −∞ unless P(likelier than i) < p           top-p, P the softmax of what the filters before have left
    i ~ softmax(l)

Each filter takes logits [..., V] and returns logits [..., V]; it leaves at least one of them above −∞. Of equal logits
the first counts as the larger, so that exactly k are left, and so that temperature 0 is `argmax`.
"""

import dataclasses

import jax
import jax.numpy as jnp


def _ranks(logits: jax.Array) -> jax.Array:
    """The place of each logit from the largest, 0, down."""
    return jnp.argsort(jnp.argsort(-logits, axis=-1, stable=True), axis=-1, stable=True)


def _check_temperature(temperature: float) -> None:
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be at least 0 and finite; got {temperature}")


def _check_k(k: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"top_k is a number of tokens, at least 1; got {k!r}")


def _check_p(p: float) -> None:
    if not 0 < p <= 1:
        raise ValueError(f"top_p is a probability, in (0, 1]; got {p}")


def temper(logits: jax.Array, temperature: float) -> jax.Array:
    """Divides by the temperature: below 1 sharper, above 1 flatter, 0 leaves the likeliest token alone.

    Args:
      logits: [..., V].
      temperature: ≥ 0.

    Returns:
      [..., V].

    Raises:
      ValueError: if the temperature is out of range.

    Example:
      >>> temper(jnp.array([1.0, 3.0, 3.0]), 0.5).tolist()
      [2.0, 6.0, 6.0]
      >>> temper(jnp.array([1.0, 3.0, 3.0]), 0).tolist()
      [-inf, 3.0, -inf]
    """
    _check_temperature(temperature)
    return top_k(logits, 1) if temperature == 0 else logits / temperature


def top_k(logits: jax.Array, k: int) -> jax.Array:
    """Leaves the k likeliest tokens.

    Args:
      logits: [..., V].
      k: ≥ 1; V or more leaves all.

    Returns:
      [..., V], −∞ where a token was taken out.

    Raises:
      ValueError: if k is out of range.

    Example:
      >>> top_k(jnp.array([0.0, 2.0, 1.0, 2.0]), 3).tolist()
      [-inf, 2.0, 1.0, 2.0]
    """
    _check_k(k)
    return jnp.where(_ranks(logits) < k, logits, -jnp.inf)


def top_p(logits: jax.Array, p: float) -> jax.Array:
    """Leaves the nucleus: the fewest tokens, likeliest first, that have the probability p together.

    Args:
      logits: [..., V].
      p: in (0, 1]; 1 leaves all.

    Returns:
      [..., V], −∞ where a token was taken out.

    Raises:
      ValueError: if p is out of range.

    Example:
      >>> logits = jnp.log(jnp.array([0.1, 0.5, 0.15, 0.25]))
      >>> [jnp.isfinite(top_p(logits, p)).tolist() for p in (0.4, 0.7)]
      [[False, True, False, False], [False, True, False, True]]

    References:
      Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", §3.1.

    Unlike `top_k`, it leaves few tokens where the model is sure and many where it is not.
    """
    _check_p(p)
    if p == 1:
        return logits
    falling = -jnp.sort(-jax.nn.softmax(logits, axis=-1), axis=-1)
    likelier = jnp.cumsum(falling, axis=-1) - falling
    return jnp.where(jnp.take_along_axis(likelier < p, _ranks(logits), axis=-1), logits, -jnp.inf)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: temperature, then top-k, then top-p, each only if asked for.

    The order matters: top-p measures the probabilities that temperature and top-k have left.

    Attributes:
      temperature: ≥ 0; 0 takes the likeliest token, whatever the other two say.
      top_k: draw among so many likeliest tokens, ≥ 1; None for all.
      top_p: draw among the fewest tokens that have this probability together, in (0, 1]; None for all.

    Raises:
      ValueError: if one of them is out of range.

    Example:
      >>> logits = jnp.array([1.0, 4.0, 3.0])
      >>> int(Sampling(temperature=0)(logits))
      1
      >>> Sampling(temperature=0.5, top_k=2, top_p=0.99).filter(logits).tolist()
      [-inf, 8.0, 6.0]
      >>> int(Sampling(temperature=0.5, top_p=0.5)(logits, jax.random.key(0)))
      1
    """

    temperature: float = 0.7
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self):
        _check_temperature(self.temperature)
        if self.top_k is not None:
            _check_k(self.top_k)
        if self.top_p is not None:
            _check_p(self.top_p)

    def filter(self, logits: jax.Array) -> jax.Array:
        """[..., V] → [..., V], the logits that are drawn from."""
        logits = temper(logits, self.temperature)
        if self.top_k is not None:
            logits = top_k(logits, self.top_k)
        return logits if self.top_p is None else top_p(logits, self.top_p)

    def __call__(self, logits: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Draws one token.

        Args:
          logits: [V].
          key: typed PRNG key, needed unless the temperature is 0.

        Returns:
          The token, int32.

        Raises:
          ValueError: if the key is missing.
        """
        if self.temperature == 0:
            return jnp.argmax(logits).astype(jnp.int32)
        if key is None:
            raise ValueError("key is needed to sample at a temperature above 0; got None")
        return jax.random.categorical(key, self.filter(logits)).astype(jnp.int32)
