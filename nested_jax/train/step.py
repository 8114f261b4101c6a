"""One update: a loss (cross-entropy per answer), its gradient, the optimizer, a guard that applies no bad update."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from nested_jax.evals.bits_per_byte import nats
from nested_jax.models import ModelConfig, unstack_layers
from nested_jax.models.placement import PLACES, ROWS, constrain
from nested_jax.train.layerwise import path_name
from nested_jax.train.optimizer import OptimizerConfig, learning_rate_schedule
from nested_jax.train.sharding import shardings
from nested_jax.train.spread import spread_over

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


def loss(model: nn.Module, params: Any, batch: Batch, answers: int | None = None, **options: Any) -> jax.Array:
    """Mean nats of the answers of a batch that count.

    Args:
      model: gives logits for inputs [B, T].
      params: its parameters.
      batch: see `Batch`.
      answers: how many places of a row count at most; logits are made of so many. None for all, counted or not.
      **options: go to the model's `apply`.
    """
    inputs, targets = constrain(questions(batch), PLACES)
    trained = batch.get("trained")
    if trained is None or answers is None or answers >= inputs.shape[1]:
        logits, _ = model.apply({"params": params}, inputs, None, batch.get("reset"), **options)
        each = constrain(nats(logits, targets), PLACES)
    else:
        places = jnp.argsort(~jnp.asarray(trained, bool), axis=1)[:, :answers]
        trained, targets = (jnp.take_along_axis(x, places, axis=1) for x in (trained, targets))
        logits, _ = model.apply({"params": params}, inputs, None, batch.get("reset"), places, **options)
        each = constrain(nats(logits, targets), P(ROWS))
    if trained is None:
        return jnp.mean(each)
    return jnp.sum(each * trained) / jnp.maximum(jnp.sum(trained), 1)


def make_step(
    model: nn.Module,
    optimizer: optax.GradientTransformationExtraArgs,
    config: OptimizerConfig,
    steps: int,
    loss: Loss = loss,
    microbatches: int = 1,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The function of one update, to be jitted with the state donated.

    Args:
      model: gives logits for inputs [B, T].
      optimizer: from `make_optimizer`.
      config: its config, for the guard and the learning rate that is reported.
      steps: steps of the whole run.
      loss: what is minimised, a mean over the answers that count.
      microbatches: parts of a batch that are read one after the other, see `accumulated`.

    Returns:
      `(state, batch) -> (state, metrics)`. An update whose loss or gradient is not finite, or whose
      gradient norm is above `halt_norm`, is not applied, and none after it. Traced in the context of a mesh of several
      devices, `newton_schulz` in the optimizer runs over all of them, see `spread_over`.

    Raises:
      ValueError: if `microbatches` is below 1; at a call, if it does not divide the rows of the batch.
    """
    schedule = learning_rate_schedule(config, steps)
    gradient_of = accumulated(functools.partial(loss, model), microbatches)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        keys = {"dropout": jax.random.fold_in(state.key, state.step)}
        value, gradient = gradient_of(state.params, batch, rngs=keys)
        norm = optax.tree.norm(gradient)
        mesh = jax.sharding.get_abstract_mesh()
        spread = {"spread": spread_over(mesh)} if mesh.size > 1 else {}
        updates, after = optimizer.update(gradient, state.optimizer, state.params, **spread)
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


def accumulated(loss: Callable[..., jax.Array], microbatches: int) -> Callable[..., tuple[jax.Array, Any]]:
    """The value and gradient of a mean over a batch, part by part: memory for one part, and a sum of gradients.

    Part m has the rows m, m + M, m + 2M, ..., so that every device has rows in each where a batch's rows are split over
    devices. Parts are weighed by how many of their answers count ("trained"), not alike: the mean is that of the whole
    batch. The naive code is `jax.value_and_grad(loss)(params, batch, **options)`, and is what one part does.

    Args:
      loss: of parameters and a batch, the mean over its answers that count (0 if none does), with options.
      microbatches: M, ≥ 1. Random keys among the options are the same in every part.

    Returns:
      A function of parameters, batch [B, ...] and options that gives value and gradient, in float32 or better.

    Raises:
      ValueError: if `microbatches` is below 1; at a call, if it does not divide the rows of the batch.

    Example:
      >>> def mean(params, batch):
      ...     return jnp.sum(params * batch["x"] * batch["trained"]) / jnp.sum(batch["trained"])
      >>> batch = {"x": jnp.array([[1.0], [2.0], [3.0], [4.0]]), "trained": jnp.array([[1], [1], [1], [0]])}
      >>> [round(float(found), 6) for found in accumulated(mean, 2)(5.0, batch)]
      [10.0, 2.0]
    """
    if microbatches < 1:
        raise ValueError(f"microbatches must be at least 1; got {microbatches}")
    value_and_gradient = jax.value_and_grad(loss)
    if microbatches == 1:
        return value_and_gradient

    def whole(params: Any, batch: Batch, **options: Any) -> tuple[jax.Array, Any]:
        rows = len(jax.tree.leaves(batch)[0])
        if rows % microbatches:
            raise ValueError(f"microbatches must divide the {rows} rows of the batch; got {microbatches}")

        def parts(leaf: jax.Array) -> jax.Array:
            return jnp.swapaxes(leaf.reshape(rows // microbatches, microbatches, *leaf.shape[1:]), 0, 1)

        counted = jnp.maximum(jnp.sum(batch["trained"]), 1) if "trained" in batch else None

        def add(total: Any, part: Batch) -> tuple[Any, None]:
            share = 1 / microbatches if counted is None else jnp.sum(part["trained"]) / counted
            found = value_and_gradient(params, part, **options)
            return jax.tree.map(lambda a, b: a + (share * b).astype(a.dtype), total, found), None

        like = jax.eval_shape(
            value_and_gradient, params, jax.tree.map(lambda leaf: parts(leaf)[0], dict(batch)), **options
        )
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), like)
        return jax.lax.scan(add, zeros, jax.tree.map(parts, dict(batch)))[0]

    return whole


def make_diagnosis(model: nn.Module) -> Callable[[Any, Batch], Metrics]:
    """A jitted function of parameters and a batch that gives what the layers record: gates and inner losses.

    Names are the layers' paths, e.g. `blocks_0/mixer/learning_rate`, where layers are stacked as well. A model that
    records nothing gives an empty dict.
    """

    @jax.jit
    def diagnose(params: Any, batch: Batch) -> Metrics:
        resets = (None, batch["reset"]) if "reset" in batch else ()
        _, found = model.apply({"params": params}, questions(batch)[0], *resets, mutable=["diagnostics"])
        found, config = found.get("diagnostics", {}), getattr(model, "config", None)
        if isinstance(config, ModelConfig) and config.stacked:
            found = unstack_layers(found, config)
        return {path_name(path): jnp.mean(leaf) for path, leaf in jax.tree.leaves_with_path(found)}

    return diagnose


def replicated(mesh: Mesh) -> NamedSharding:
    """The placement of a value that every device holds whole."""
    return NamedSharding(mesh, P())
