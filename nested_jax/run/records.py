"""Records of finished runs, one JSON line each: what was run, what came out, on what machine, when."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

import jax

from nested_jax.data.lock import locked
from nested_jax.train.experiment import FREE

PACKAGES = ("jax", "flax", "optax")
NOT_TOLD = (*(set(FREE) - {"final_bytes", "questions"}), "questions.asked", "questions.path")
"""Fields of a config that say how and where a run is run and scored, not what is trained and measured."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run of a table.

    Attributes:
      row: of the table.
      part: what the row was trained on, "" where a row is one run.
      size: of the model, and the budget's name.
      seed: of parameters and data.
      config: hash of its config, see `Comparison.digest`; "" for a run from before there was one.
      settings: field of the config → value that was set, on a command line and by the sweep's grid.
      metrics: name → number; empty if training had to stop.
      stopped: why training had to stop, "" if it did not.
      steps: updates.
      tokens: per update.
      parameters: of the model.
      scored: what the metrics are measured on.
      data: what was learned.
      seconds: from the start of the run to its report, compiling included; of the last start, if it was interrupted.
      device: what it ran on.
      versions: of Python and of packages.
      date: of its end, ISO 8601.
      command: that runs it again.
    """

    row: str
    part: str = ""
    size: str
    seed: int
    config: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    stopped: str = ""
    steps: int
    tokens: int
    parameters: int = 0
    scored: str = ""
    data: str = ""
    seconds: float
    device: str
    versions: Mapping[str, str] = field(default_factory=dict)
    date: str
    command: str

    @property
    def key(self) -> tuple:
        """What a run is told from others by."""
        return self.row, self.part, self.size, self.seed, tuple(sorted(told(self.settings).items()))


def told(settings: Mapping[str, str]) -> dict[str, str]:
    """The settings that runs are told from each other by.

    Example:
      >>> told({"steps": "7", "mesh.data": "8", "zero_shot": "benchmarks"})
      {'steps': '7'}
    """
    return {
        field: value
        for field, value in settings.items()
        if field not in NOT_TOLD and field.partition(".")[0] not in NOT_TOLD
    }


def read(path: pathlib.Path) -> list[Record]:
    """The records of a file; none if there is no file, and without a half-written last line.

    Raises:
      ValueError: for a line that is no record.
    """
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(Record(**json.loads(line)))
        except (ValueError, TypeError) as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise ValueError(f"{path}, line {number}: expected a record of a run, got {line[:60]!r}") from error
    return found


def append(path: pathlib.Path, record: Record) -> None:
    """Adds a record to a file, in place of one with the same key; several processes may do so at once."""
    with locked(path.with_name(path.name + ".lock")):
        kept = [one for one in read(path) if one.key != record.key]
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text("".join(json.dumps(asdict(one)) + "\n" for one in [*kept, record]))
        temporary.replace(path)


def merged(*sources: Iterable[Record]) -> list[Record]:
    """Records of several files; of those with the same key the last."""
    return list({record.key: record for source in sources for record in source}.values())


def today() -> str:
    """The date, ISO 8601."""
    return datetime.date.today().isoformat()


def versions() -> dict[str, str]:
    """Of Python and of the packages that numbers depend on."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def device() -> str:
    """The accelerators that JAX uses, or the processor and how many of its cores this process may use."""
    first = jax.devices()[0]
    if first.platform != "cpu":
        return f"{jax.device_count()} × {first.device_kind}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} × {_processor()}"


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
