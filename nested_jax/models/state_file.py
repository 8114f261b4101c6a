"""A state in one file: a NumPy archive (.npz) with an array per leaf, named by its path in the tree, and a description.

The description says what the state belongs to (a config, say). A file whose description, tree, shapes or dtypes are not
those expected is refused, by name.
"""

import io
import json
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nested_jax import description

DESCRIPTION = "description.json"
SHOWN = 5


def _named(tree: Any) -> dict[str, Any]:
    """Tree path → leaf, in the order of the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _plain(array: np.ndarray) -> np.ndarray:
    """An array of a dtype that NumPy can write: the bits of bfloat16 and its kind as unsigned integers."""
    return array.view(f"u{array.itemsize}") if array.dtype.kind == "V" else array


def save_state(path: str | os.PathLike[str], state: Any, about: Mapping[str, Any] | None = None) -> None:
    """Writes a state to one file; a file that is there is replaced once the new one is complete.

    Args:
      path: the file, of any name.
      state: a pytree of arrays: what `LanguageModel` or `Memory` returned, or a tree of such.
      about: JSON-able description of what the state belongs to, compared when it is loaded.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_state(f"{folder}/state", {"w": jnp.ones(2)}, {"dim": 2})
      ...     load_state(f"{folder}/state", {"w": jnp.zeros(2)}, {"dim": 2})["w"].tolist()
      [1.0, 1.0]
    """
    arrays = {name: np.asarray(leaf) for name, leaf in _named(state).items()}
    dtypes = {name: str(array.dtype) for name, array in arrays.items()}
    description = json.dumps({"about": dict(about or {}), "dtypes": dtypes})
    path = pathlib.Path(path)
    temporary = path.with_name(f"{path.name}.tmp")
    with zipfile.ZipFile(temporary, "w") as archive:
        archive.writestr(DESCRIPTION, description)
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, _plain(array), allow_pickle=False)
    temporary.replace(path)


def _read(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The description and the arrays of a file."""
    try:
        with zipfile.ZipFile(path) as archive:
            description = json.loads(archive.read(DESCRIPTION))
            arrays = {
                name: np.lib.format.read_array(io.BytesIO(archive.read(f"{name}.npy")), allow_pickle=False)
                for name in description["dtypes"]
            }
        dtypes = {name: jnp.dtype(dtype) for name, dtype in description["dtypes"].items()}
        return description["about"], {name: array.view(dtypes[name]) for name, array in arrays.items()}
    except (zipfile.BadZipFile, EOFError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a saved state, or damaged: {error}") from error


def saved_rows(path: str | os.PathLike[str]) -> int:
    """Returns how many rows a saved state has: the first axis of its first leaf.

    Raises:
      ValueError: if the file is not a saved state.
    """
    _, arrays = _read(pathlib.Path(path))
    return next((array.shape[0] for array in arrays.values() if array.ndim), 0)


def load_state(path: str | os.PathLike[str], like: Any, about: Mapping[str, Any] | None = None) -> Any:
    """Reads a state that :func:`save_state` wrote.

    Args:
      path: the file.
      like: a pytree of arrays or of their shapes (`jax.eval_shape`): what the state must look like.
      about: the description that it must have been saved with.

    Returns:
      The state.

    Raises:
      ValueError: if the file is not a saved state or damaged, or its description, tree, shapes or dtypes differ from
        what is expected; it says which and how.
      FileNotFoundError: if there is no such file.
    """
    found_about, arrays = _read(pathlib.Path(path))
    expected = _named(like)
    wrong = description.differences(found_about, json.loads(json.dumps(dict(about or {}))))
    wrong += [f"{name}: not in the file" for name in expected if name not in arrays]
    wrong += [f"{name}: in the file only" for name in arrays if name not in expected]
    for name, leaf in expected.items():
        if name in arrays:
            found, wanted = ((tuple(x.shape), str(x.dtype)) for x in (arrays[name], leaf))
            if found != wanted:
                wrong.append(f"{name}: {found[1]}{list(found[0])} != {wanted[1]}{list(wanted[0])}")
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise ValueError(f"{path} does not fit (in the file != expected): {'; '.join(wrong[:SHOWN])}{more}")
    return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(arrays[name]) for name in expected])
