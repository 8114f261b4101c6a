"""The outer optimizer: any rule of ours or of optax, a learning-rate schedule, clipping and weight decay.

A rule is named by a function that builds it and takes `learning_rate`: `optax.adamw`, `nested_jax.rules.muon`, or a
function in the config file that returns a chain. It is built anew in every step, with the learning rate of that step
(`optax.inject_hyperparams`), so rules that read the learning rate at construction and rules that read it as a gate
are used in one way.
"""

import difflib
import functools
import importlib
import inspect
import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nested_jax import rules
from nested_jax.train.layerwise import layerwise, path_name

RuleFactory = Callable[..., optax.GradientTransformation]
Schedule = Callable[[jax.typing.ArrayLike], jax.Array]
MODULES = ("optax", "nested_jax.rules")
ADAMS = {"b1": 0.9, "b2": 0.95}


@dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters that another rule trains, or at another pace.

    Attributes:
      parameters: regular expression, searched in the parameter's path (`layers_0/mlp/kernel`).
      rule: as in `OptimizerConfig`; None for the config's, with its arguments.
      arguments: as in `OptimizerConfig`.
      learning_rate: peak learning rate of the group, None for the config's; the schedule's shape is shared.
      learning_rate_factor: times which the group's learning rate is taken, whichever it is, > 0.
      weight_decay: as in `OptimizerConfig`; None for the config's if the rule is the config's, else for none.
      period: optimizer steps from one update of these parameters to the next, on the sum of their gradients: a level of
        a continuum memory. The weight decay acts at every step. None never changes them.

    Example:
      >>> slow, frozen = Group(parameters="levels_0", period=16), Group(parameters="embedding", period=None)
    """

    parameters: str
    rule: str | RuleFactory | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float | None = None
    learning_rate_factor: float = 1.0
    weight_decay: float | None = None
    period: int | None = 1


class Trained(NamedTuple):
    """A rule with all its settings, see `Group`."""

    rule: str | RuleFactory
    arguments: Mapping[str, Any]
    learning_rate: float
    weight_decay: float
    period: int | None


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How the parameters are trained.

    Attributes:
      rule: a function with a parameter `learning_rate` that returns a transformation, or its dotted name in `optax` or
        `nested_jax.rules` (`"optax.adamw"`, `"optax.contrib.muon"`, `"nested_jax.rules.titans"`).
      arguments: the function's other arguments, e.g. `{"momentum": 0.95}`. The default, `ADAMS`, goes to those that
        take it.
      learning_rate: peak learning rate, > 0.
      warmup: steps of linear warm-up from 0, ≥ 0.
      schedule: shape after the warm-up, to `final` times the peak at the last step.
      final: learning rate at the last step as a fraction of the peak, in [0, 1].
      weight_decay: decoupled: every matrix loses weight_decay · learning rate of its value per step, ≥ 0. Rules that
        have a decay of their own (`optax.adamw`, `retention`) may be used instead.
      clip_norm: gradients with a larger global norm are scaled down to it; None leaves them.
      halt_norm: a gradient norm above it stops the run, as a non-finite one does; None never does.
      groups: exceptions, the first whose expression matches wins; the other parameters are trained by `rule`.

    Example:
      >>> from nested_jax import rules
      >>> muon = OptimizerConfig(
      ...     rule=rules.muon,
      ...     arguments={"momentum": 0.95, "nesterov": True},
      ...     learning_rate=0.02,
      ...     groups=(Group(parameters="embedding|scale|bias", rule=optax.adam, learning_rate=3e-3),),
      ... )
    """

    rule: str | RuleFactory = "optax.adam"
    arguments: Mapping[str, Any] = field(default_factory=lambda: dict(ADAMS))
    learning_rate: float = 3e-3
    warmup: int = 50
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final: float = 0.1
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    halt_norm: float | None = 1e6
    groups: tuple[Group, ...] = ()

    @property
    def trained(self) -> tuple["Trained", ...]:
        """How each of the groups is trained, and last the other parameters."""
        rest = Trained(self.rule, self.arguments, self.learning_rate, self.weight_decay, 1)
        return (*(self._complete(group, rest) for group in self.groups), rest)

    def label(self, path: str) -> int:
        """The place in `trained` of the parameter at a path."""
        matches = (place for place, group in enumerate(self.groups) if re.search(group.parameters, path))
        return next(matches, len(self.groups))

    def _complete(self, group: Group, rest: "Trained") -> "Trained":
        rate = rest.learning_rate if group.learning_rate is None else group.learning_rate
        rate *= group.learning_rate_factor
        if group.rule is None:
            decay = rest.weight_decay if group.weight_decay is None else group.weight_decay
            return Trained(rest.rule, rest.arguments, rate, decay, group.period)
        return Trained(group.rule, group.arguments, rate, group.weight_decay or 0.0, group.period)

    def validate(self) -> None:
        """Raises a `ValueError` that names the first field out of range."""
        for name, value in (("clip_norm", self.clip_norm), ("halt_norm", self.halt_norm)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} is a gradient norm above 0, or None; got {value}")
        if self.warmup < 0:
            raise ValueError(f"warmup is a number of steps, at least 0; got {self.warmup}")
        if not 0 <= self.final <= 1:
            raise ValueError(f"final is a fraction of learning_rate in [0, 1]; got {self.final}")
        for group in self.groups:
            if group.rule is None and group.arguments:
                raise ValueError(f"arguments must be empty for the config's own rule; got {dict(group.arguments)}")
        for trained in self.trained:
            if not trained.learning_rate > 0:
                raise ValueError(f"learning_rate must be above 0; got {trained.learning_rate}")
            if trained.weight_decay < 0:
                raise ValueError(f"weight_decay must be at least 0; got {trained.weight_decay}")
            factory(trained.rule, trained.arguments)
        for group in self.groups:
            if group.period is not None and group.period < 1:
                raise ValueError(f"period is a number of steps, at least 1, or None; got {group.period}")
            try:
                re.compile(group.parameters)
            except re.error as error:
                raise ValueError(
                    f"parameters must be a regular expression; got {group.parameters!r}: {error}"
                ) from None


def factory(rule: str | RuleFactory, arguments: Mapping[str, Any]) -> RuleFactory:
    """The function that builds a rule from a learning rate.

    Args:
      rule: the function, or its dotted name in `optax` or `nested_jax.rules`.
      arguments: its other arguments; those of `ADAMS` are left out where the function does not take them.

    Returns:
      A function of `learning_rate` alone.

    Raises:
      ValueError: if there is no such name, or the function does not take `learning_rate` and the arguments.

    Example:
      >>> rule = factory("optax.sgd", {"momentum": 0.9})(learning_rate=0.1)
    """
    function = _look_up(rule) if isinstance(rule, str) else rule
    name = rule if isinstance(rule, str) else getattr(rule, "__qualname__", repr(rule))
    if not callable(function):
        raise ValueError(f"rule must be a function that takes learning_rate and returns a transformation; got {rule!r}")
    known = inspect.signature(function).parameters
    if "learning_rate" not in known:
        raise ValueError(
            f"rule must be a function that takes learning_rate; {name} takes {', '.join(known) or 'nothing'}. "
            "Wrap it: a function of learning_rate that returns a chain"
        )
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    if arguments == ADAMS and not ADAMS.keys() <= known.keys():
        arguments = {}
    for argument in arguments:
        if argument == "learning_rate":
            raise ValueError("arguments must not hold learning_rate: it is a field of its own, and scheduled")
        if argument not in known and not open_ended:
            near = difflib.get_close_matches(argument, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"arguments: {name} has no parameter {argument!r}{hint} (it takes {', '.join(known)})")
    return functools.partial(function, **arguments)


def _look_up(name: str) -> Any:
    for module in MODULES:
        if name.startswith(module + "."):
            found: Any = importlib.import_module(module)
            for part in name.removeprefix(module + ".").split("."):
                if not hasattr(found, part):
                    near = difflib.get_close_matches(part, dir(found), n=1)
                    hint = f"; did you mean {near[0]!r}?" if near else ""
                    raise ValueError(f"rule {name!r}: there is no {part!r}{hint}")
                found = getattr(found, part)
            return found
    last = name.rpartition(".")[2]
    near = [f"{module}.{last}" for module in MODULES if hasattr(importlib.import_module(module), last)]
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"rule must be a dotted name in {' or '.join(MODULES)}; got {name!r}{hint}")


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> Schedule:
    """Warm-up, then the config's shape.

    Args:
      config: the optimizer's config.
      steps: steps of the whole run.

    Returns:
      A function from the number of updates done (0 at the first) to the learning rate; the first update uses
      1 / (warmup + 1) of the peak, not 0.
    """

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        count = jnp.asarray(step, jnp.float32)
        rise = jnp.minimum((count + 1) / (config.warmup + 1), 1.0)
        done = jnp.clip((count - config.warmup) / max(steps - 1 - config.warmup, 1), 0.0, 1.0)
        fall = {"cosine": 0.5 * (1 + jnp.cos(jnp.pi * done)), "linear": 1 - done, "constant": jnp.ones_like(done)}
        return config.learning_rate * rise * (config.final + (1 - config.final) * fall[config.schedule])

    return schedule


def _scheduled(trained: Trained, schedule: Schedule) -> optax.GradientTransformation:
    if trained.period is None:
        return optax.set_to_zero()
    build, period = factory(trained.rule, trained.arguments), trained.period

    def with_learning_rate(learning_rate: jax.typing.ArrayLike) -> optax.GradientTransformation:
        built = build(learning_rate=learning_rate)
        return built if period == 1 else rules.every(period, built)

    parts: list[optax.GradientTransformation] = [optax.inject_hyperparams(with_learning_rate)(learning_rate=schedule)]
    if trained.weight_decay:
        parts.append(optax.add_decayed_weights(lambda step: -trained.weight_decay * schedule(step), _is_matrix))
    return optax.chain(*parts)


def _is_matrix(params: optax.Params) -> Any:
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) >= 2, params)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformationExtraArgs:
    """The transformation that trains the parameters.

    Args:
      config: which rule, and how it is scheduled.
      steps: steps of the whole run, for the schedule.

    Returns:
      A transformation of gradients into updates to be added, learning rate and signs included. Of stacked layers a
      rule sees one at a time, see `layerwise`.

    Raises:
      ValueError: if the config is out of range or a rule lacks a gate.
    """
    config.validate()
    schedule = learning_rate_schedule(config, steps)
    *others, rest = config.trained
    main = _scheduled(rest, schedule)
    if others:

        def scaled(trained: Trained) -> optax.GradientTransformation:
            scale = trained.learning_rate / config.learning_rate
            return _scheduled(trained, lambda step: scale * schedule(step))

        def label(path: Any, leaf: Any) -> str:
            place = config.label(path_name(path))
            return str(place) if place < len(others) else "main"

        table: dict[Hashable, optax.GradientTransformation] = {"main": main}
        table |= {str(place): scaled(trained) for place, trained in enumerate(others)}
        main = optax.partition(table, lambda params: jax.tree_util.tree_map_with_path(label, params))
    main = layerwise(main)
    if config.clip_norm is not None:
        main = optax.chain(optax.clip_by_global_norm(config.clip_norm), main)
    return optax.with_extra_args_support(main)
