"""Delta gradient descent: steps that depend on the weights as well as on the gradient (Nested Learning 56-57)."""

import jax
import jax.numpy as jnp
import optax

from nested_jax.rules._gates import check_constant, fit, read_gate, read_inputs, widen
from nested_jax.rules._parts import is_none
from nested_jax.rules._rule import Rule, call_text

FORMS = ("proximal", "explicit")


def delta_gradient_descent(
    learning_rate: jax.typing.ArrayLike | None = None, *, form: str = "proximal", gate: str = "learning_rate"
) -> Rule:
    r"""Gradient descent that first takes out what a layer already answers to its present input.

    For a layer :math:`y = x W` with error :math:`\delta = \nabla_y L`, the minimiser of
    :math:`\tfrac12\lVert x W + \delta\rVert^2 + \tfrac1{2\theta}\lVert W - W_{t-1}\rVert^2` is

    .. math::
      W_t = W_{t-1} - \theta'\, x^\top x\, W_{t-1} - \theta'\, x^\top \delta, \qquad
      \theta' = \frac{\theta_t}{1 + \theta_t \lVert x\rVert^2}

    for an input of any norm; the gradient is :math:`g = x^\top\delta`. With `form="explicit"` the step is
    :math:`\theta' = \theta_t`, as printed for Hope: what the layer answers to an input of norm 1 is multiplied by
    :math:`1 - \theta`, which is stable for θ in (0, 2) and changes sign beyond 1.

    The input may be given to `update`, or is read off the gradient: for a gradient of rank one
    :math:`g g^\top / \lVert g\rVert_F^2` is the projection on `x`, whose norm is then taken to be 1.

    Over N tokens :math:`x^\top x` and :math:`\lVert x\rVert^2` are sums with the weights that the losses have in `g`,
    means for the gradient of a mean loss (our choice where the paper is silent; the step is bounded for any inputs). A
    gradient of higher rank without inputs takes out less: :math:`g g^\top/\lVert g\rVert_F^2` has trace 1.

    An `nj.Memory` gives its rule every layer's own inputs, with `step_per="chunk"` excepted, where the rule has to read
    them off the chunk's gradient.

    Args:
      learning_rate: θ, at least 0; None if it is given at every step.
      form: "proximal", stable for any θ and any input, or "explicit".
      gate: the keyword of `update` that overrides the constant.

    Returns:
      A stateless rule that needs `params` and reads one gate, a scalar. Its `update` takes two optional keywords:
      `inputs`, a tree like the weights with each layer's input [d_in] or inputs [N, d_in], or None where it is to be
      read off the gradient; and `importance` [N], the weight of each input, 1 / N unless given. Leading axes [...,
      d_in, d_out] of weights are batch; a vector [d_out] is the weight of a constant input 1 (a bias).

    Raises:
      ValueError: if `learning_rate` is a number below 0, or `form` is unknown; at `update`, if `params` is missing, the
        gate has no value or is no scalar, or an input does not fit its weight.

    Example:
      >>> rule, weights, x = delta_gradient_descent(1.0), {"w": jnp.array([[2.0], [5.0]])}, jnp.array([1.0, 0.0])
      >>> gradient = {"w": jnp.array([[-3.0], [0.0]])}
      >>> step, _ = rule.update(gradient, rule.init(weights), weights, inputs={"w": x})
      >>> print((weights["w"] + step["w"]).T)
      [[2.5 5. ]]

    References:
      Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025, equations (56-57), there for
      :math:`\lVert x\rVert = 1`, and (88), explicit. The short version (27-29) prints the erasing term without a step
      size.

    .. note::
      `gradient_descent` with an l2 objective erases too, through its gradient; here every objective does.
    """
    check_constant("learning_rate", learning_rate)
    check_form(form)

    def update(updates, state, params=None, inputs=None, importance=None, **extra):
        inputs = read_inputs(inputs)
        theta = read_gate(extra, gate, learning_rate, scalar=True)
        if params is None:
            raise ValueError(
                "delta_gradient_descent needs params, the weights it erases from: call update(updates, state, params), "
                "got params=None."
            )

        given = {} if inputs is None else dict(jax.tree_util.tree_leaves_with_path(inputs))

        def step(path, gradient, weight):
            if gradient is None:
                return None
            x, g, w = given.get(path), widen(gradient), widen(weight)
            if g.ndim < 2 and x is None:
                g, w = g.reshape(1, -1), w.reshape(1, -1)
            taken, square = _answer(g, w) if x is None else _answer_to(x, importance, w)
            rate = fit(theta, g)
            if form == "proximal":
                rate = rate / (1 + rate * square)
            return (-rate * (taken + g)).reshape(jnp.shape(gradient)).astype(jnp.result_type(gradient))

        return jax.tree_util.tree_map_with_path(step, updates, params, is_leaf=is_none), state

    def init(params):
        del params
        return optax.EmptyState()

    defaults = {"form": "proximal", "gate": "learning_rate"}
    given = {"learning_rate": learning_rate, "form": form, "gate": gate}
    return Rule(init, update, call_text("delta_gradient_descent", defaults, **given))


def check_form(form: str) -> None:
    """Raises a `ValueError` for an unknown form."""
    if form not in FORMS:
        raise ValueError(f"form must be one of {FORMS}, got {form!r}.")


def _answer(gradient: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x^T x W and ‖x‖² = 1 for the unit input of a gradient of rank one; zeros for no gradient."""
    squares = jnp.sum(gradient * gradient, axis=(-2, -1), keepdims=True)
    positive = squares > 0
    taken = gradient @ (gradient.mT @ weight)
    return jnp.where(positive, taken / jnp.where(positive, squares, 1.0), 0.0), jnp.where(positive, 1.0, 0.0)


def _answer_to(
    inputs: jax.Array, importance: jax.typing.ArrayLike | None, weight: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The sums of x^T x W and of ‖x‖² over the inputs [d_in] or [N, d_in], each times its importance."""
    x, dim = jnp.atleast_2d(widen(inputs)), weight.shape[-2] if weight.ndim > 1 else 1
    if x.ndim != 2 or x.shape[-1] != dim:
        raise ValueError(
            f"inputs must be [d_in] or [N, d_in] with d_in = {dim} for a weight of shape {weight.shape}, "
            f"got shape {jnp.shape(inputs)}."
        )
    share = jnp.full(len(x), 1 / len(x), x.dtype) if importance is None else jnp.asarray(importance, x.dtype)
    square = jnp.sum(share * jnp.sum(x * x, axis=-1))
    return (square * weight if weight.ndim < 2 else x.T @ (share[:, None] * (x @ weight))), square
