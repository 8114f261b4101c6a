"""What a finished run shows: bits per byte beside count models and xz, a sample, and where the files are."""

import json
import pathlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Report:
    """The end of a run.

    Attributes:
      steps: updates done.
      parameters: numbers in the model.
      scored_bytes: validation bytes that every line of the table is measured on.
      context_length: bytes of context the model was given at most.
      bits_per_byte: of the model.
      baselines: name → bits per byte.
      prompt: where the sample begins.
      sample: what the model wrote after it.
      text: one line on the data.
    """

    steps: int
    parameters: int
    scored_bytes: int
    context_length: int
    bits_per_byte: float
    baselines: Mapping[str, float]
    prompt: str
    sample: str
    text: str

    def save(self, path: pathlib.Path) -> None:
        """Writes the report as JSON."""
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(json.dumps(asdict(self), indent=1))
        temporary.replace(path)

    @classmethod
    def load(cls, path: pathlib.Path) -> "Report | None":
        """The report of a finished run, None if there is none."""
        try:
            return cls(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None


def excerpt(tokens: np.ndarray, count: int | None, pieces: int = 16) -> np.ndarray:
    """`count` bytes of a text in contiguous pieces spread evenly over it; all of it if it has no more, or for None.

    Example:
      >>> excerpt(np.arange(100), 8, pieces=4).tolist()
      [0, 1, 25, 26, 50, 51, 75, 76]
    """
    if count is None or count >= len(tokens):
        return tokens
    size = max(count // pieces, 1)
    starts = np.arange(count // size) * len(tokens) // (count // size)
    return np.concatenate([tokens[start : start + size] for start in starts])


def table(report: Report) -> str:
    """The report's numbers as a text table, worst first."""
    rows = dict(report.baselines)
    rows["this model"] = report.bits_per_byte
    lines = [f"bits per byte on {report.scored_bytes:,} validation bytes (context {report.context_length})"]
    for name, value in sorted(rows.items(), key=lambda row: -row[1]):
        lines.append(f"  {name:<12} {value:6.3f}" + ("  <" if name == "this model" else ""))
    return "\n".join(lines)


def show(report: Report, files: Mapping[str, pathlib.Path]) -> str:
    """Everything a finished run prints.

    Args:
      report: of the run.
      files: what a path is → the path.
    """
    width = max(map(len, files))
    paths = "\n".join(f"  {name:<{width}}  {path}" for name, path in files.items())
    return f"\n{table(report)}\n\nsample\n{_indent(report.prompt + report.sample)}\n\nfiles\n{paths}"


def _indent(text: str) -> str:
    return "\n".join("  | " + line for line in text.splitlines())
