"""Checkpoints of a whole run (parameters, rule state, step, key, data position, config), written with Orbax.

A checkpoint is one directory, `<directory>/<step>`. Orbax writes it under a temporary name and renames it when it is
complete, so a process that is killed in the middle of a save leaves the checkpoints before it as they were. Beside the
arrays lies `checksums.json` (size and CRC-32 of every file), so that a truncated or altered checkpoint is refused
before anything is read from it.
"""

import json
import os
import pathlib
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from nested_jax.train.multiprocess import first, verdict

CHECKSUMS = "checksums.json"
READERS = 8  # files whose checksums are computed at once


def _checksum(path: pathlib.Path) -> list[int]:
    """Size and CRC-32 of a file."""
    size, value = 0, 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            size, value = size + len(block), zlib.crc32(block, value)
    return [size, value]


def _checksums(paths: Iterable[pathlib.Path]) -> list[list[int]]:
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(_checksum, paths))


def _damage(directory: pathlib.Path) -> str | None:
    """What is wrong with the files of a checkpoint; None if nothing is, or if it carries no checksums."""
    try:
        expected = json.loads((directory / CHECKSUMS).read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return f"{CHECKSUMS} is not valid JSON"
    for name in expected:
        if not (directory / name).is_file():
            return f"{name} is missing"
    found = _checksums(directory / name for name in expected)
    for (name, (size, value)), (got_size, got_value) in zip(expected.items(), found, strict=True):
        if got_size != size:
            return f"{name} has {got_size} bytes, expected {size}"
        if got_value != value:
            return f"{name} has another checksum than when it was written"
    return None


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Path → shape."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def _context(partial: bool = False) -> ocp.Context:
    """How Orbax reads and writes; `partial` reads the wanted part of a tree."""
    registry = ocp.handlers.local_registry()
    for name in ("config", "data"):
        registry.add(ocp.handlers.JsonHandler, checkpointable_name=name)
    context = ocp.Context()
    context.checkpointables.registry = registry
    context.pytree.loading.partial_load = partial
    return context


class Checkpoints:
    """The checkpoints of one run, newest last.

    Reading changes nothing in the directory, also while another process writes there; the first save removes what
    saves that were killed have left.

    Args:
      directory: where the checkpoints lie, one directory per step. It is created by the first save, not before.
      keep: how many of the latest checkpoints are kept, ≥ 1.

    Raises:
      ValueError: if `keep` is below 1.
    """

    def __init__(self, directory: str | os.PathLike[str], keep: int = 3):
        if keep < 1:
            raise ValueError(f"keep is the number of checkpoints that stay, at least 1; got {keep}")
        self.directory = pathlib.Path(directory).absolute()
        self._keep = keep
        self._checkpointer: ocp.training.Checkpointer | None = None
        self._sound: set[int] = set()

    def _orbax(self) -> ocp.training.Checkpointer:
        if self._checkpointer is None:
            context = _context()
            every: Any = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
            latest: Any = ocp.training.preservation_policies.LatestN(self._keep)
            self._checkpointer = ocp.training.Checkpointer(
                str(self.directory),
                context=context,
                save_decision_policy=every,
                preservation_policy=latest,
                cleanup_tmp_directories=True,
            )
        return self._checkpointer

    @property
    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending; empty if there is none."""
        if not self.directory.is_dir():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir() if path.is_dir() and path.name.isdigit())

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, None if there is none."""
        return max(self.steps, default=None)

    def path(self, step: int) -> pathlib.Path:
        """Directory of the checkpoint of `step`."""
        return self.directory / str(step)

    def save(self, step: int, state: Any, data: Mapping[str, Any], config: Mapping[str, Any]) -> pathlib.Path:
        """Writes a checkpoint and returns its directory; does nothing if `step` has one already.

        Args:
          step: number of updates done, ≥ 0.
          state: pytree of arrays, typed PRNG keys included.
          data: JSON-able position of the data iterator.
          config: JSON-able config of the run.
        """
        path = self.path(step)
        if path.is_dir():
            return path
        self._orbax().save_checkpointables(step, {"state": state, "data": dict(data), "config": dict(config)})
        if first():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            names = [file.relative_to(path).as_posix() for file in files]
            table = dict(zip(names, _checksums(files), strict=True))
            temporary = path / f"{CHECKSUMS}.tmp"
            temporary.write_text(json.dumps(table, indent=1))
            temporary.replace(path / CHECKSUMS)
        return path

    def config(self, step: int) -> dict[str, Any]:
        """The config that the checkpoint of `step` was written with.

        Raises:
          ValueError: if the checkpoint is truncated or corrupt.
        """
        return self._load(step, {"config": None})["config"]

    def restore(self, step: int, state: Any) -> tuple[Any, dict[str, Any]]:
        """State and data position of the checkpoint of `step`.

        Args:
          step: one of `steps`.
          state: the structure to restore into: a pytree of `jax.ShapeDtypeStruct` with shardings, which need not be
            those it was saved with.

        Returns:
          `(state, data)`.

        Raises:
          ValueError: if the checkpoint is truncated or corrupt; it names the directory and the newest good one.
        """
        loaded = self._load(step, {"state": state, "data": None})
        return loaded["state"], loaded["data"]

    def restore_params(self, step: int, params: Any) -> Any:
        """The parameters alone of the checkpoint of `step`, whatever trained them.

        Args:
          step: one of `steps`.
          params: the structure to restore into, see `restore`.

        Raises:
          ValueError: if the checkpoint is truncated or corrupt, or its parameters have other names or shapes.
        """
        self.config(step)
        with _context():
            stored = ocp.checkpointables_metadata(str(self.path(step))).metadata["state"]["params"]
        there, here = _shapes(stored), _shapes(params)
        other = [name for name in sorted(there.keys() | here.keys()) if there.get(name) != here.get(name)]
        if other:
            lines = [f"{name} is {there.get(name, 'absent')} there, {here.get(name, 'absent')} here" for name in other]
            raise ValueError(f"the parameters of {self.path(step)} are another model's: {'; '.join(lines[:5])}")
        return self._load(step, {"state": {"params": params}}, partial=True)["state"]["params"]

    def _load(self, step: int, wanted: dict[str, Any], partial: bool = False) -> dict[str, Any]:
        problem = None if step in self._sound else verdict(lambda: _damage(self.path(step)))
        if problem is None:
            self._sound.add(step)
            try:
                with _context(partial):
                    return ocp.load_checkpointables(str(self.path(step)), wanted)
            except Exception as error:
                problem = f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"
        earlier = [other for other in reversed(self.steps) if other < step and _damage(self.path(other)) is None]
        advice = (
            f"the newest good one before it is step {earlier[0]}: to continue from there, move {self.path(step)} away"
            if earlier
            else "there is no good one before it"
        )
        raise ValueError(
            f"the checkpoint {self.path(step)} cannot be read ({problem}); nothing was overwritten, and {advice}"
        )

    def close(self) -> None:
        """Waits for what is under way and lets go of the directory."""
        if self._checkpointer is not None:
            self._checkpointer.close()
            self._checkpointer = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def refuse_other_config(directory: os.PathLike[str], differences: Iterable[str]) -> None:
    """Raises a `ValueError` that lists how the config differs from the checkpoint's; does nothing if it does not."""
    lines = list(differences)
    if lines:
        raise ValueError(
            f"the checkpoints in {os.fspath(directory)} belong to another config: "
            + "; ".join(lines)
            + ". Nothing was overwritten: give the same config, or another --workdir (with "
            "--config.parameters_from=WORKDIR it begins with the parameters of this one)"
        )
