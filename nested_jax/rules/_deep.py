"""Deep momentum: a memory inside a rule, from the rows of a gradient to the rows of the update (Nested Learning 50)."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from nested_jax.rules._gates import unlisted, widen
from nested_jax.rules._parts import is_none
from nested_jax.rules._rule import Rule, call_text

Rows = Callable[[jax.Array], jax.Array]


class SequenceMemory(Protocol):
    """What `deep_momentum` asks of a memory; `nj.Memory` has it."""

    def init(self, key: jax.Array, dim: tuple[int, int]) -> Any: ...

    def start(self, params: Any) -> Any: ...

    def scan(self, state: Any, keys: jax.Array, values: jax.Array, queries: jax.Array) -> tuple[jax.Array, Any]: ...

    def recall(self, state: Any, queries: jax.Array) -> jax.Array: ...


class DeepMomentumState(NamedTuple):
    """What `deep_momentum` carries: for each weight the state of its memory."""

    memories: Any


def unit_rows(gradient: jax.Array) -> jax.Array:
    """A gradient's rows [R, D], divided by the root of their mean squared length; zero for a zero gradient.

    Example:
      >>> print(unit_rows(jnp.array([[3.0, 0.0], [0.0, 3.0]])))
      [[1. 0.]
       [0. 1.]]
    """
    squares = jnp.mean(jnp.sum(gradient * gradient, axis=-1))
    positive = squares > 0
    return gradient * jnp.where(positive, jax.lax.rsqrt(jnp.where(positive, squares, 1.0)), 0.0)


def deep_momentum(memory: SequenceMemory, *, keys: Rows = unit_rows, values: Rows = unit_rows, seed: int = 0) -> Rule:
    r"""A momentum that is a network: it learns gradients as they come, and its answer to a gradient is the update.

    .. math::
      m_t = \mathrm{memory}(m_{t-1};\; k(g_t) \mapsto v(g_t)), \qquad u_t = m_t(k(g_t))

    The network goes over the rows of a gradient [d_in, d_out], one memory for each weight (our choice where the paper
    is silent), and steps by the memory's own rule. Its answers are on the scale of `values` and point like the
    gradient, as those of `momentum` do: put `scale_by_learning_rate` behind it. Nonlinear outputs (equation 52) are a
    link behind it, e.g. `newton_schulz`; features of a gradient (51) are its `keys`.

    A linear network that starts at zero, with `dot_product`, a decay, and the rows' numbers as keys
    (`keys=lambda g: jnp.eye(g.shape[0])`), is the exponential average.

    Args:
      memory: an `nj.Memory` whose rule has constants for all its gates. `chunk_size` of at least d_in with
        `step_per="chunk"` and `read="start"` takes one step on the sum over the rows; other settings let the rows write
        one after the other.
      keys: gradient [d_in, d_out] -> [d_in, d_k], what a row is remembered by.
      values: gradient [d_in, d_out] -> [d_in, d_v], what is remembered; d_v = d_out. The paper's printed loss has the
        constant 1 here, which any gradient would be answered by.
      seed: of the memories' initial weights.

    Returns:
      A rule without gates with state `DeepMomentumState`. Leading axes are rows too, a vector is one row.

    Raises:
      ValueError: if `memory` lacks a method of `nj.Memory`; at `update`, what the memory raises.

    Example:
      >>> import nested_jax as nj
      >>> inner = nj.rules.gradient_descent(0.1)
      >>> memory = nj.Memory(network=nj.networks.MLP(), rule=inner, chunk_size=64, step_per="chunk", read="start")
      >>> rule = nj.rules.chain(deep_momentum(memory), nj.rules.scale_by_learning_rate(0.1))
      >>> weights = jnp.ones([3, 4])
      >>> step, state = rule.update(weights, rule.init(weights))
      >>> step.shape
      (3, 4)

    References:
      Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025, equations (50-52).

    .. note::
      `momentum` sums updates, one number for each weight; here the past is in the weights of a network.
    """
    for method in ("init", "start", "scan", "recall"):
        if not callable(getattr(memory, method, None)):
            raise ValueError(f"memory must be an nj.Memory, got {type(memory).__name__}, which has no {method}().")

    def rows(leaf: jax.Array) -> jax.Array:
        leaf = widen(leaf)
        return leaf.reshape(-1, leaf.shape[-1]) if leaf.ndim else leaf.reshape(1, 1)

    def init(params):
        def begin(leaf):
            dim_k, dim_v = (jax.eval_shape(f, rows(leaf)).shape[-1] for f in (keys, values))
            with unlisted():
                return memory.start(memory.init(jax.random.key(seed), (dim_k, dim_v)))

        return DeepMomentumState(jax.tree.map(begin, params))

    def update(updates, state, params=None, **extra):
        del params, extra

        def learn(gradient, before):
            if gradient is None:
                return None, before
            k, v = keys(rows(gradient)), values(rows(gradient))
            with unlisted():
                _, after = memory.scan(before, k, v, k)
            out = memory.recall(after, k)
            return out.reshape(jnp.shape(gradient)).astype(jnp.result_type(gradient)), after

        leaves, structure = jax.tree.flatten(updates, is_leaf=is_none)
        states = structure.flatten_up_to(state.memories)
        results = [learn(*pair) for pair in zip(leaves, states, strict=True)]
        outputs, after = ([pair[i] for pair in results] for i in (0, 1))
        return structure.unflatten(outputs), DeepMomentumState(structure.unflatten(after))

    defaults = {"keys": unit_rows, "values": unit_rows, "seed": 0}
    return Rule(init, update, call_text("deep_momentum", defaults, memory=memory, keys=keys, values=values, seed=seed))
