"""Where a run's numbers go: a JSON-lines file always; TensorBoard and Weights & Biases if the config asks for them."""

import json
import math
import os
import pathlib
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Writer(Protocol):
    """Takes the scalars of one step."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records `values` (name → number) for `step`."""

    def sync(self) -> None:
        """Puts what was recorded where it outlives the machine."""

    def close(self) -> None:
        """Flushes and lets go of what is open."""


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a JSON-lines file, in order; a half-written last line (a killed process) is left out."""
    records = []
    try:
        text = pathlib.Path(path).read_text()
    except FileNotFoundError:
        return records
    for line in text.splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


class JsonLines:
    """One line per call: `{"step": 12, "loss": 1.25, ...}`. Continuing a run, lines after `step` are dropped first.

    Not-a-number and infinities are written as null, which every JSON reader takes.

    Args:
      path: the file; it is created, or continued.
      step: the step the run continues from; lines of later steps are removed, so that each step appears once.
    """

    def __init__(self, path: str | os.PathLike[str], step: int = 0):
        path = pathlib.Path(path)
        kept = [record for record in read(path) if record["step"] <= step]
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
        temporary.replace(path)
        self._file = path.open("a")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Event files for TensorBoard; needs the optional extra `nested_jax[tensorboard]`."""

    def __init__(self, directory: str | os.PathLike[str], step: int = 0):
        try:
            from tensorboardX import SummaryWriter  # pyrefly: ignore[missing-import]
        except ImportError:
            raise ValueError(
                'writers contains "tensorboard", which needs: pip install "nested_jax[tensorboard]"'
            ) from None
        self._writer = SummaryWriter(os.fspath(directory), purge_step=step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def sync(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A Weights & Biases run named after the directory; needs the optional extra `nested_jax[wandb]`."""

    def __init__(self, directory: str | os.PathLike[str], config: Mapping[str, Any]):
        try:
            import wandb  # pyrefly: ignore[missing-import]
        except ImportError:
            raise ValueError('writers contains "wandb", which needs: pip install "nested_jax[wandb]"') from None
        path = pathlib.Path(directory)
        identity = path / "wandb_id.txt"
        if not identity.exists():
            identity.write_text(uuid.uuid4().hex[:12])
        self._run = wandb.init(
            project="nested_jax",
            name=path.name,
            dir=os.fspath(path),
            id=identity.read_text(),
            resume="allow",
            config=dict(config),
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def sync(self) -> None:
        """It sends what it has by itself."""

    def close(self) -> None:
        self._run.finish()


class Writers:
    """Several writers as one."""

    def __init__(self, writers: Sequence[Writer]):
        self._writers = writers

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for writer in self._writers:
            writer.scalars(step, values)

    def sync(self) -> None:
        for writer in self._writers:
            writer.sync()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


NAMES = ("tensorboard", "wandb")


def open_writers(
    names: Sequence[str], workdir: str | os.PathLike[str], step: int, config: Mapping[str, Any]
) -> Writers:
    """The writers of a run: `metrics.jsonl` in `workdir`, and those named.

    Args:
      names: any of "tensorboard" and "wandb".
      workdir: the run's directory.
      step: the step the run continues from, 0 for a new one.
      config: JSON-able config, shown by Weights & Biases.

    Raises:
      ValueError: if a named writer is unknown or its package is missing.
    """
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise ValueError(f"writers takes any of {', '.join(NAMES)}; got {unknown[0]!r}")
    path = pathlib.Path(workdir)
    others: list[Writer] = []
    if "tensorboard" in names:
        others.append(TensorBoard(path / "tensorboard", step))
    if "wandb" in names:
        others.append(WandB(path, config))
    return Writers([JsonLines(path / "metrics.jsonl", step), *others])
