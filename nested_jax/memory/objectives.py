"""Objectives: the inner loss of a memory (its attentional bias), per token.

An objective maps predictions and targets, [T, D] each, to losses [T]; any function of that form will do. One with an
attribute `gates`, name -> constant or None, is given those gates too, as keyword arguments [T, D].
"""

import dataclasses
from collections.abc import Callable, Mapping

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


@dataclasses.dataclass(frozen=True)
class Lp:
    """See `lp`."""

    p: float
    eps: float

    def __call__(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        squares = jnp.square(prediction - target) + self.eps
        return jnp.sum(squares ** (self.p / 2), axis=-1) / self.p


def lp(p: float, eps: float = 1e-6) -> Lp:
    """A power of the error, `1/p Σ_features |M(k) − v|^p`, with |x| smoothed to √(x² + eps).

    Its gradient is Sign(e) |e|^(p−1), without the factor p that the paper prints; `lp(2)` has the gradient of `l2`.

    Args:
      p: at least 1; Moneta's is 3.
      eps: at least 0; below p = 2 it must be above 0.

    Returns:
      The objective.

    Raises:
      ValueError: for a `p` or `eps` out of range.

    Example:
      >>> import jax.numpy as jnp, nested_jax as nj
      >>> nj.objectives.lp(3, eps=0.0)(jnp.array([[2.0, 1.0]]), jnp.zeros([1, 2])).tolist()
      [3.0]

    References:
      MIRAS eqs 10-11.
    """
    if p < 1:
        raise ValueError(f"p must be at least 1, got {p}.")
    if eps < 0 or (eps == 0 and p < 2):
        raise ValueError(f"eps must be above 0 for p below 2, and never below 0; got {eps} with p = {p}.")
    return Lp(p, eps)


KINDS = ("coordinate", "norm", "mixture")


@dataclasses.dataclass(frozen=True)
class _Bounded:
    """An objective with one gate, `delta`."""

    delta: float | None

    @property
    def gates(self) -> dict[str, float | None]:
        """The gate `delta` with its constant or None."""
        return {"delta": self.delta}

    def _bound(self, given: jax.typing.ArrayLike | None) -> jax.typing.ArrayLike:
        delta = self.delta if given is None else given
        if delta is None:
            name = type(self).__name__.lower()
            raise ValueError(f"{name}: the gate 'delta' has no value; give a constant or a value at every token")
        return delta


@dataclasses.dataclass(frozen=True)
class Huber(_Bounded):
    """See `huber`."""

    kind: str

    def __call__(
        self, prediction: jax.Array, target: jax.Array, delta: jax.typing.ArrayLike | None = None
    ) -> jax.Array:
        delta = self._bound(delta)
        error = prediction - target
        if self.kind == "norm":
            size = _norm(error)
            bound = _per_token(delta, error)
            return jnp.where(size <= bound, 0.5 * jnp.square(size), bound * (size - 0.5 * bound))
        if self.kind == "coordinate":
            size = jnp.abs(error)
            return jnp.sum(jnp.where(size <= delta, 0.5 * jnp.square(error), delta * (size - 0.5 * delta)), axis=-1)
        inside = _norm(error)[..., None] <= delta
        return jnp.sum(jnp.where(inside, 0.5 * jnp.square(error), delta * jnp.abs(error)), axis=-1)


def huber(delta: float | None = None, kind: str = "mixture") -> Huber:
    """Squared error for small errors, linear for large ones, so that outliers do not write much.

    - `"coordinate"`: Σ_features H(e), each feature on its own.
    - `"norm"`: H(‖e‖), one for a token; its gradient has a norm of at most δ.
    - `"mixture"` (Yaad): ½ ‖e‖² where ‖e‖ ≤ δ, else δ ‖e‖₁. It jumps at δ, as printed.

    H(a) is a²/2 up to δ and δ (a − δ/2) beyond.

    Args:
      delta: δ, above 0; None makes it a gate, a value at every token: [T], or [T, D] for one per feature (of
        which `"norm"` takes the mean).
      kind: which of the three.

    Returns:
      The objective, with the gate `delta`.

    Raises:
      ValueError: for a `delta` not above 0, or an unknown `kind`.

    Example:
      >>> import jax.numpy as jnp, nested_jax as nj
      >>> error, zero = jnp.array([[0.5, 3.0]]), jnp.zeros([1, 2])
      >>> [float(nj.objectives.huber(1.0, kind)(error, zero)[0]) for kind in ("coordinate", "mixture")]
      [2.625, 3.5]

    References:
      MIRAS eqs 13-16, 26; the constant of eq 13 is printed without the square, which no gradient sees.
    """
    if delta is not None and not delta > 0:
        raise ValueError(f"delta must be above 0 or None, got {delta}.")
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}.")
    return Huber(delta, kind)


@dataclasses.dataclass(frozen=True)
class Robust(_Bounded):
    """See `robust`."""

    def __call__(
        self, prediction: jax.Array, target: jax.Array, delta: jax.typing.ArrayLike | None = None
    ) -> jax.Array:
        delta = self._bound(delta)
        error = prediction - target
        return 0.5 * jnp.sum(jnp.square(error), axis=-1) + _per_token(delta, error) * _norm(error)


def robust(delta: float | None = None) -> Robust:
    """The squared error under the worst shift of the value by at most Δ: `½ ‖e‖² + Δ ‖e‖`.

    Args:
      delta: Δ, at least 0; None makes it a gate, a value at every token: [T], or the mean of [T, D].

    Returns:
      The objective, with the gate `delta`.

    Raises:
      ValueError: for a `delta` below 0.

    Example:
      >>> import jax.numpy as jnp, nested_jax as nj
      >>> nj.objectives.robust(2.0)(jnp.array([[3.0, 4.0]]), jnp.zeros([1, 2])).tolist()
      [22.5]

    References:
      MIRAS eq 17, without its constant.
    """
    if delta is not None and delta < 0:
        raise ValueError(f"delta must be at least 0 or None, got {delta}.")
    return Robust(delta)


def _per_token(gate: jax.typing.ArrayLike, error: jax.Array) -> jax.typing.ArrayLike:
    """The mean over features of a gate [T, D]; a gate [T] or a constant as it is."""
    return jnp.mean(jnp.asarray(gate), axis=-1) if jnp.ndim(gate) == error.ndim else gate


def _norm(error: jax.Array) -> jax.Array:
    """‖e‖ over the last axis, with derivative 0 at 0."""
    squares = jnp.sum(jnp.square(error), axis=-1)
    positive = squares > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0)


def gates(objective: Callable[..., jax.Array]) -> dict[str, float | None]:
    """The gates that an objective reads at every token, with their constants or None; most have none.

    Example:
      >>> import nested_jax as nj
      >>> nj.objectives.gates(nj.objectives.huber()), nj.objectives.gates(nj.objectives.l2)
      ({'delta': None}, {})
    """
    return dict(getattr(objective, "gates", {}))


@dataclasses.dataclass(frozen=True)
class Packed:
    """An objective whose gates ride behind the values, [T, D_v · (1 + gates)], so that a window keeps both."""

    objective: Callable[..., jax.Array]

    @property
    def gates(self) -> dict[str, float | None]:
        """Those of the objective."""
        return gates(self.objective)

    def __call__(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        names = list(gates(self.objective))
        values, *riding = jnp.split(target, 1 + len(names), axis=-1)
        return self.objective(prediction, values, **dict(zip(names, riding, strict=True)))


def pack(objective: Callable[..., jax.Array], values: jax.Array, given: Mapping[str, jax.Array]) -> jax.Array:
    """Values with the objective's gates behind them, each a value per feature.

    Args:
      objective: its gates are those of `gates(objective)`.
      values: [..., D_v].
      given: gate name -> [...], repeated over the features, or [..., D_v]; the constant stands in for one not given.

    Returns:
      [..., D_v · (1 + gates)].

    Raises:
      ValueError: for a gate of any other shape.
    """
    columns = [values]
    for name, constant in gates(objective).items():
        gate = jnp.asarray(given.get(name, constant), values.dtype)
        if name in given and gate.shape not in (values.shape, values.shape[:-1]):
            raise ValueError(
                f"gates[{name!r}]: expected shape {values.shape[:-1]}, or {values.shape} for a value per feature, "
                f"got {gate.shape}"
            )
        if name in given and gate.ndim < values.ndim:
            gate = gate[..., None]
        columns.append(jnp.broadcast_to(gate, values.shape))
    return jnp.concatenate(columns, axis=-1)
