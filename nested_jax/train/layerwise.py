"""A rule over parameters with an axis of stacked layers, as if each layer's parameters were of their own."""

from typing import Any

import jax
import optax

from nested_jax.models import in_stack


def path_name(path: Any) -> str:
    """A pytree path as `layers_0/mlp/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def layerwise(rule: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Runs a rule once for all layers of a stack, `jax.vmap` over their axis; the rule sees what one layer has.

    A vector stays a vector for it, a matrix a matrix: rules that ask for the number of axes, norms of a parameter,
    weight decay of matrices alone work as they do where layers are written out. Parameters outside of stacks
    (`in_stack`) and the counts of a rule have no such axis; without a stack the rule is called as it is.

    Args:
      rule: any optax transformation that treats each parameter by itself. One whose parameters act on each other (a
        global norm) is refused where its parameters lie in a stack and outside; in a stack alone, it sees one layer at
        a time.

    Returns:
      The transformation. Its state is the rule's, with the axis of layers in front of what belongs to a stacked
      parameter, hence contains its path.

    Raises:
      ValueError: at `init` or `update`, if a number of the rule that has no axis of layers depends on a layer.

    Example:
      >>> import jax.numpy as jnp
      >>> def rows(params):
      ...     return jax.tree.map(lambda leaf: jnp.ndim(leaf) >= 2, params)
      >>> rule = layerwise(optax.masked(optax.scale(2.0), rows))
      >>> params = {"stack": {"vector": jnp.ones((2, 1)), "matrix": jnp.ones((2, 1, 1))}, "norm": jnp.ones(1)}
      >>> updates, state = rule.update(params, rule.init(params), params)
      >>> {name: leaf.ravel().tolist() for name, leaf in updates["stack"].items()}
      {'matrix': [2.0, 2.0], 'vector': [1.0, 1.0]}
    """
    full = optax.with_extra_args_support(rule)

    def init(params: optax.Params) -> optax.OptState:
        axes = _axes(params)
        if not jax.tree.leaves(axes):
            return full.init(params)
        one_layer = jax.eval_shape(lambda params: full.init(_first_layer(params)), params)
        return _mapped(full.init, (axes,), _axes(one_layer))(params)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        axes = _axes(updates)
        if not jax.tree.leaves(axes):
            return full.update(updates, state, params, **extra)

        def one_layer(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
            return full.update(updates, state, params, **extra)

        before = (axes, _axes(state), _axes(params))
        return _mapped(one_layer, before, before[:2])(updates, state, params)

    return optax.GradientTransformationExtraArgs(init, update)


def _first_layer(tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf[0] if in_stack(path_name(path)) else leaf, tree)


def _axes(tree: Any) -> Any:
    """For `jax.vmap`: 0 for the leaves in a stack, None for the others."""
    return jax.tree_util.tree_map_with_path(lambda path, _: 0 if in_stack(path_name(path)) else None, tree)


def _mapped(function: Any, before: Any, after: Any) -> Any:
    def run(*arguments: Any) -> Any:
        try:
            return jax.vmap(function, in_axes=before, out_axes=after)(*arguments)
        except ValueError as error:
            if "out_axes" not in str(error):
                raise
            raise ValueError(
                "rule: expected one that treats each parameter by itself where layers are stacked, got one in which "
                f"layers act on what they share ({error})"
            ) from error

    return run
