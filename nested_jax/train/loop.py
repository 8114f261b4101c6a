"""The training run: start or continue, update, log, evaluate, save, and stop in an orderly way whatever happens.

A run lives in one directory, the workdir: `config.json`, `metrics.jsonl` (one line per step), `checkpoints/<step>`,
and at the end `scores.json`, `report.json` and `training.png`. Started again with the same config it goes on from the
newest checkpoint, to the same losses bit for bit; with another config it refuses; finished, it says so, and if it is
asked for scores that it does not have (`train.scoring`), it is evaluated again. A second process of the same computer
that is started there waits for the first to end.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from nested_jax import config as configs
from nested_jax import description
from nested_jax.data import TextConfig
from nested_jax.data.lock import locked
from nested_jax.data.text import check_path
from nested_jax.train import scoring
from nested_jax.train.checkpoint import Checkpoints, refuse_other_config
from nested_jax.train.experiment import FREE, Experiment
from nested_jax.train.interruption import Interruption
from nested_jax.train.metrics import Writers, open_writers
from nested_jax.train.multiprocess import alone, check_same, check_shared, first, from_first, own_copy
from nested_jax.train.optimizer import make_optimizer
from nested_jax.train.picture import draw
from nested_jax.train.problems import Problem, open_model, open_problem, validation_names
from nested_jax.train.progress import Progress, quantity
from nested_jax.train.report import Report, show
from nested_jax.train.sharding import BATCH, make_mesh, placements
from nested_jax.train.step import Batch, Metrics, TrainState, initial_state, make_diagnosis, make_step, place

DIAGNOSED_ROWS = 4


class TrainingStopped(RuntimeError):
    """The guard refused an update: the loss or a gradient was not finite, or the gradient norm was above its limit."""


class Run:
    """One run in one directory.

    Args:
      experiment: its config.
      workdir: its directory; nothing is written before the config and the data are known to be good.
      model: takes the place of `open_model(experiment)`; for models with the same calls.
      say: takes each line for people.

    Attributes:
      interrupted: whether a signal asked `train` to stop, be it too late for that.
      trained: whether `train` made an update.

    Raises:
      ValueError: if the config is out of range, or the workdir no path.
    """

    def __init__(
        self,
        experiment: Experiment,
        workdir: str | os.PathLike[str],
        *,
        model: nn.Module | None = None,
        say: Callable[[str], None] = print,
    ):
        configs.validate(experiment)
        check_path("workdir", workdir)
        self.experiment = experiment
        self.workdir = pathlib.Path(workdir)
        self.model = open_model(experiment) if model is None else model
        self.say = from_first(say)
        self.interrupted = self.trained = False
        self.checkpoints = Checkpoints(self.workdir / "checkpoints", experiment.keep)
        self.description = json.loads(json.dumps(description.to_dict(experiment)))

    def train(self) -> Report | None:
        """Trains to the last step, from the beginning or from the newest checkpoint.

        Returns:
          The report; None if the run was interrupted and can be continued.

        Raises:
          ValueError: if the workdir holds another config's checkpoints or a truncated one, or the data is unusable.
          TrainingStopped: if the guard refused an update.
        """
        with self._held(), self.checkpoints:
            self.check_config()
            report = self._finished()
            if report is not None:
                self.say(
                    f"{self.workdir} is finished ({report.steps} of {self.experiment.steps} steps); nothing to do. "
                    "For a new run give another --workdir."
                )
                self.say(show(report, self.files()))
                return report
            with Interruption() as interruption, jax.set_mesh(make_mesh(self.experiment.mesh)):
                report = self._train(interruption)
                self.interrupted = interruption.received is not None
                return report

    def check_config(self) -> None:
        """Raises a `ValueError` if the newest checkpoint belongs to another config (fields in `FREE` may differ)."""
        latest = self.checkpoints.latest
        check_same(-1 if latest is None else latest, f"the newest checkpoint in {self.checkpoints.directory}")
        if latest is not None:
            stored = description.completed(self.checkpoints.config(latest), self.experiment)
            mine, theirs = (description.without(described, FREE) for described in (self.description, stored))
            lines = [f"{line} (checkpoint != this config)" for line in description.differences(theirs, mine)]
            refuse_other_config(self.checkpoints.directory, lines)

    def restore_params(self) -> tuple[int, Any]:
        """Step and parameters of the newest checkpoint.

        Raises:
          ValueError: if there is none, or it is truncated or another config's.
        """
        with self.checkpoints:
            latest = self.checkpoints.latest
            if latest is None:
                raise ValueError(f"no checkpoint in {self.checkpoints.directory}: train first, or give --workdir")
            self.check_config()
            mesh = make_mesh(self.experiment.mesh)
            optimizer = make_optimizer(self.experiment.optimizer, self.experiment.steps)
            placed = place(self.model, optimizer, self.experiment.seed, mesh)
            return latest, own_copy(self.checkpoints.restore_params(latest, placed.params), mesh)

    def files(self) -> dict[str, pathlib.Path]:
        """What the run leaves for people to open."""
        return {
            "metrics": self.workdir / "metrics.jsonl",
            "checkpoint": self.checkpoints.path(self.checkpoints.latest or 0),
            "picture": self.workdir / "training.png",
        }

    def _held(self) -> contextlib.AbstractContextManager[None]:
        """Keeps other processes of this computer out of the workdir, by a lock elsewhere that ends with the process.

        Other computers are not kept out: locks on shared filesystems may outlive a computer that was lost.
        """
        if not first():
            return contextlib.nullcontext()
        name = hashlib.sha256(str(self.workdir.resolve()).encode()).hexdigest()[:16]
        return locked(
            pathlib.Path(tempfile.gettempdir()) / f"nested_jax-{os.getuid()}-{name}.lock",
            lambda: self.say(f"{self.workdir}: another process trains here; waiting for it to end"),
        )

    def _finished(self) -> Report | None:
        if self.checkpoints.latest != self.experiment.steps:
            return None
        report = Report.load(self.workdir / "report.json")
        lacking = [] if report is None else scoring.missing(self.experiment, self.workdir)
        check_same(report is not None and not lacking, f"what is found of the finished run in {self.workdir}")
        if lacking:
            self.say(f"{self.workdir} is finished, but lacks scores as they are asked for now: {', '.join(lacking)}")
        return None if lacking else report

    def _train(self, interruption: Interruption) -> Report | None:
        experiment = self.experiment
        mesh = make_mesh(experiment.mesh)
        optimizer = make_optimizer(experiment.optimizer, experiment.steps)
        problem = open_problem(experiment, self.model, self.say)
        placed = place(self.model, optimizer, experiment.seed, mesh)
        where = placements(placed)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(placed.params))
        self.say(f"data    {problem.description}")
        self.say(f"model   {quantity(parameters)} parameters")
        self.say(f"workdir {self.workdir}")

        latest = self.checkpoints.latest
        given = self._given(placed) if latest is None else None
        if latest is None:
            state = jax.jit(lambda: initial_state(self.model, optimizer, experiment.seed), out_shardings=where)()
            if given is not None:
                restart = jax.jit(optimizer.init, out_shardings=where.optimizer)
                state = state._replace(params=given, optimizer=restart(given))
        else:
            state, position = self.checkpoints.restore(latest, placed)
            problem.batches.set_state(position)
            self.say(f"continuing from step {latest} of {experiment.steps}")
        done = latest or 0
        self.trained = done < experiment.steps
        self._open_workdir()
        writers = Writers(())
        if first():
            writers = open_writers(experiment.writers, self.workdir, done, self.description)
        try:
            if latest is None:
                self.checkpoints.save(0, state, problem.batches.get_state(), self.description)
            updates = _Updates(self, state, where, problem, writers, interruption)
            state = updates.run(done)
        finally:
            writers.close()
        if state is None:
            return None
        return self._report(state, problem, parameters, interruption)

    def _given(self, placed: TrainState) -> Any:
        """The parameters of the run that this one begins with; None where it begins anew."""
        if self.experiment.parameters_from is None:
            return None
        with Checkpoints(pathlib.Path(self.experiment.parameters_from) / "checkpoints") as others:
            if others.latest is None:
                raise ValueError(f"parameters_from: there is no checkpoint in {others.directory}")
            self.say(f"begin   with the parameters of {others.path(others.latest)}")
            return others.restore_params(others.latest, placed.params)

    def _open_workdir(self) -> None:
        if first():
            self.workdir.mkdir(parents=True, exist_ok=True)
            temporary = self.workdir / "config.json.tmp"
            temporary.write_text(json.dumps(self.description, indent=1))
            temporary.replace(self.workdir / "config.json")
        check_shared(self.workdir / "config.json")

    def _report(
        self, state: TrainState, problem: Problem, parameters: int, interruption: Interruption
    ) -> Report | None:
        self.say("evaluating")
        report = problem.report(state.params, parameters)
        scores = self._scores(state.params, interruption)
        if scores is None:
            self.say(f"{interruption.received}: stopped between two scores; the same command goes on with the next")
            return None
        report = dataclasses.replace(report, metrics={**report.metrics, **scores})
        files = self.files()
        if first():
            draw(files["metrics"], files["picture"], {**report.baselines})
            report.save(self.workdir / "report.json")
        self.say(show(report, files))
        return report

    def _scores(self, params: Any, interruption: Interruption) -> dict[str, float] | None:
        """What the experiment asks for beside its own data; None if a signal came in between."""
        experiment = self.experiment
        if not scoring.benchmarks(experiment):
            return {}
        assert isinstance(experiment.data, TextConfig)
        tokenizer = experiment.data.encoder()
        numbers = itertools.count(experiment.steps + 1)  # processes agree on where to stop by numbers that grow
        with alone(params, make_mesh(experiment.mesh)) as own:
            return scoring.run(
                experiment,
                self.model,
                tokenizer,
                own,
                self.workdir,
                self.say,
                lambda: interruption.stop_after(next(numbers)) is not None,
            )


class _Updates:
    """The inner part of a run: from a state to the last step, or to an interruption."""

    def __init__(
        self,
        run: Run,
        state: TrainState,
        where: Any,
        problem: Problem,
        writers: Writers,
        interruption: Interruption,
    ):
        self._run, self._state, self._problem = run, state, problem
        self._writers, self._interruption = writers, interruption
        experiment = run.experiment
        self._mesh = make_mesh(experiment.mesh)
        optimizer = make_optimizer(experiment.optimizer, experiment.steps)
        step = make_step(
            run.model, optimizer, experiment.optimizer, experiment.steps, problem.loss, experiment.microbatches
        )
        self._step = jax.jit(step, donate_argnums=0, out_shardings=(where, None))
        self._diagnose = make_diagnosis(run.model)
        self._pending: list[tuple[int, Metrics]] = []
        self._progress = Progress(experiment.steps, problem.tokens_per_step)

    def run(self, done: int) -> TrainState | None:
        """Updates `done` + 1 to the last; the state after it, or None if interrupted."""
        run, experiment, progress = self._run, self._run.experiment, self._progress
        sharding = jax.sharding.NamedSharding(self._mesh, BATCH)
        for number in range(done + 1, experiment.steps + 1):
            if number == done + 1:
                run.say("compiling the training step")
            batch = {
                name: jax.make_array_from_process_local_data(sharding, part)
                for name, part in next(self._problem.batches).items()
            }
            logged = number % experiment.log_every == 0 or number in (1, experiment.steps)
            extra = self._diagnose(self._state.params, _few(batch)) if logged else {}
            self._state, metrics = self._step(self._state, batch)
            self._pending.append((number, {**metrics, **extra}))

            stopping = self._interruption.stop_after(number)
            last = number == experiment.steps
            evaluated = last or (experiment.eval_every > 0 and number % experiment.eval_every == 0)
            saved = last or stopping is not None or number % experiment.checkpoint_every == 0
            first = number == done + 1
            if logged or first or evaluated or saved:
                validation = self._flush(validate=evaluated)
                if logged or first:
                    values = self._last_values
                    units = self._problem.units(values["loss"])
                    run.say(progress.line(number, values["loss"], _shown(units), *progress.rates(number)))
                if validation:
                    name, value = next(iter(_shown(validation).items()))
                    run.say(f"step {number}/{experiment.steps}  validation {name} {value:.3f}")
            if saved:
                with progress.aside():
                    self._writers.sync()
                    path = run.checkpoints.save(number, self._state, self._problem.batches.get_state(), run.description)
                if stopping is not None and not last:
                    run.say(f"{stopping}: stopped after step {number}, saved {path}; resume with the same command")
                    return None
        return self._state

    def _flush(self, *, validate: bool) -> dict[str, float]:
        """Fetches and writes what is pending; stops the run if the guard refused one of these updates."""
        fetched: list[dict[str, float]] = [
            {name: float(value) for name, value in values.items()}
            for values in jax.device_get([values for _, values in self._pending])
        ]
        numbers = [number for number, _ in self._pending]
        self._pending.clear()
        halted = int(self._state.halted)
        validation: dict[str, float] = {}
        if validate and halted < 0:
            with self._progress.aside():
                validation = self._problem.validate(self._state.params)
            fetched[-1] |= validation_names(validation)
        for number, values in zip(numbers, fetched, strict=True):
            if halted < 0 or number <= halted:
                self._writers.scalars(number, values | self._problem.units(values["loss"]))
        if halted >= 0:
            self._stop(halted, fetched[numbers.index(halted)])
        self._last_values = fetched[-1]
        return validation

    def _stop(self, number: int, values: Mapping[str, float]) -> None:
        loss, norm = values["loss"], values["gradient_norm"]
        good = self._run.checkpoints.latest
        limit = self._run.experiment.optimizer.halt_norm
        reason = "not finite" if not np.isfinite(loss + norm) else f"above optimizer.halt_norm = {limit:g}"
        what = "the loss is" if not np.isfinite(loss) else "the gradient norm is"
        raise TrainingStopped(
            f"step {number}: {what} {reason} (loss {loss:g}, gradient norm {norm:g}, "
            f"learning rate {values['learning_rate']:g}). The update was not applied and nothing was saved; the last "
            f"good checkpoint is {self._run.checkpoints.path(good or 0)}. Try a lower optimizer.learning_rate or "
            "optimizer.clip_norm, a longer optimizer.warmup, or smaller memory gates (model.memory.max_learning_rate), "
            "in a new --workdir"
        )


def _few(batch: Batch) -> dict[str, jax.Array]:
    return {name: part[:DIAGNOSED_ROWS] for name, part in batch.items()}


def _shown(units: Mapping[str, float]) -> dict[str, float]:
    return {name.replace("_per_", "/"): value for name, value in units.items()}


def train(experiment: Experiment, workdir: str | os.PathLike[str], **options: Any) -> Report | None:
    """Runs an experiment in a directory, from the beginning or from where it was left: see `Run.train`."""
    return Run(experiment, workdir, **options).train()
