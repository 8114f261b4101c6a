"""One update: a loss (cross-entropy per answer), its gradient, the optimizer, a guard that applies no bad update."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from nested_jax.evals.bits_per_byte import nats
from nested_jax.train.optimizer import OptimizerConfig, learning_rate_schedule, path_name
from nested_jax.train.sharding import shardings

Metrics = dict[str, jax.Array]
Batch = Mapping[str, jax.Array]
"""What a model reads and what it should say: "tokens" [B, T + 1], each to be told from those before it, or "inputs" and
"targets" [B, T]. With "trained" bool [B, T] only those places count; "reset" is handed to the model."""
Loss = Callable[..., jax.Array]
"""Of a model, its parameters and a batch, with options that go to the model's `apply`: see `loss`."""


class TrainState(NamedTuple):
    """Everything an update changes, and the key.

    Attributes:
      params: the model's parameters.
      optimizer: the outer rule's state.
      step: updates done, int32.
      key: typed PRNG key of the run; each step folds its number in.
      halted: number of the update that the guard refused, −1 as long as there is none. All later ones are refused, too.
    """

    params: Any
    optimizer: optax.OptState
    step: jax.Array
    key: jax.Array
    halted: jax.Array


def initial_state(model: nn.Module, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first update; a model that reads no tokens has `example_inputs`."""
    key = jax.random.key(seed)
    inputs = getattr(model, "example_inputs", jnp.zeros((1, 1), jnp.int32))
    params = model.init(jax.random.fold_in(key, 0), inputs)["params"]
    return TrainState(params, optimizer.init(params), jnp.int32(0), jax.random.fold_in(key, 1), jnp.int32(-1))


def place(model: nn.Module, optimizer: optax.GradientTransformation, seed: int, mesh: Mesh) -> TrainState:
    """Shapes, types and placements of `initial_state`, nothing computed."""
    shapes = jax.eval_shape(lambda: initial_state(model, optimizer, seed))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings(shapes, mesh),
    )


def questions(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Inputs and targets of a batch, [B, T] each."""
    if "tokens" in batch:
        return batch["tokens"][:, :-1], batch["tokens"][:, 1:]
    return batch["inputs"], batch["targets"]


def loss(model: nn.Module, params: Any, batch: Batch, **options: Any) -> jax.Array:
    """Mean nats of the answers of a batch that count; `options` go to the model's `apply`."""
    inputs, targets = questions(batch)
    logits, _ = model.apply({"params": params}, inputs, None, batch.get("reset"), **options)
    each = nats(logits, targets)
    if "trained" not in batch:
        return jnp.mean(each)
    return jnp.sum(each * batch["trained"]) / jnp.maximum(jnp.sum(batch["trained"]), 1)


def make_step(
    model: nn.Module,
    optimizer: optax.GradientTransformationExtraArgs,
    config: OptimizerConfig,
    steps: int,
    loss: Loss = loss,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The function of one update, to be jitted with the state donated.

    Args:
      model: gives logits for inputs [B, T].
      optimizer: from `make_optimizer`.
      config: its config, for the guard and the learning rate that is reported.
      steps: steps of the whole run.
      loss: what is minimised.

    Returns:
      `(state, batch) -> (state, metrics)`. An update whose loss or gradient is not finite, or whose
      gradient norm is above `halt_norm`, is not applied, and none after it.
    """
    schedule = learning_rate_schedule(config, steps)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        keys = {"dropout": jax.random.fold_in(state.key, state.step)}
        value, gradient = jax.value_and_grad(lambda params: loss(model, params, batch, rngs=keys))(state.params)
        norm = optax.tree.norm(gradient)
        updates, after = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)

        limit = jnp.inf if config.halt_norm is None else config.halt_norm
        good = jnp.isfinite(value) & jnp.isfinite(norm) & (norm <= limit) & (state.halted < 0)
        params, after = jax.tree.map(
            lambda new, old: jnp.where(good, new, old), (params, after), (state.params, state.optimizer)
        )
        halted = jnp.where(good | (state.halted >= 0), state.halted, state.step + 1)
        metrics = {
            "loss": value,
            "gradient_norm": norm,
            "learning_rate": schedule(state.step),
        }
        return TrainState(params, after, state.step + 1, state.key, halted), metrics

    return step


def make_diagnosis(model: nn.Module) -> Callable[[Any, Batch], Metrics]:
    """A jitted function of parameters and a batch that gives what the layers record: gates and inner losses.

    Names are the layers' paths, e.g. `blocks_0/mixer/learning_rate`. A model that records nothing gives an empty dict.
    """

    @jax.jit
    def diagnose(params: Any, batch: Batch) -> Metrics:
        resets = (None, batch["reset"]) if "reset" in batch else ()
        _, found = model.apply({"params": params}, questions(batch)[0], *resets, mutable=["diagnostics"])
        leaves = jax.tree.leaves_with_path(found.get("diagnostics", {}))
        return {path_name(path): jnp.mean(leaf) for path, leaf in leaves}

    return diagnose


def replicated(mesh: Mesh) -> NamedSharding:
    """The placement of a value that every device holds whole."""
    return NamedSharding(mesh, P())
