"""What a finished run shows: its scores (bits per byte beside count models and xz), a sample, where the files are."""

import json
import pathlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np


@dataclass(frozen=True)
class Report:
    """The end of a run.

    Attributes:
      steps: updates done.
      tokens: per update.
      parameters: numbers in the model.
      metrics: name → number; "bits_per_byte" of a text, "set/score" of a task.
      scored: one line on what the metrics are measured on.
      data: one line on the data.
      baselines: of a text, name → bits per byte.
      sample: of a text, a prompt and what the model wrote after it.
    """

    steps: int
    tokens: int
    parameters: int
    metrics: Mapping[str, float]
    scored: str
    data: str
    baselines: Mapping[str, float] = field(default_factory=dict)
    sample: str = ""

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
    """The report's numbers as a text table; bits per byte worst first, among those of the baselines."""
    if not report.baselines:
        width = max(map(len, report.metrics))
        rows = [f"  {name:<{width}} {value:8.4f}" for name, value in report.metrics.items()]
        return "\n".join([f"scores on {report.scored}", *rows])
    rows = {**report.baselines, "this model": report.metrics["bits_per_byte"]}
    lines = [f"bits per byte on {report.scored}"]
    for name, value in sorted(rows.items(), key=lambda row: -row[1]):
        lines.append(f"  {name:<12} {value:6.3f}" + ("  <" if name == "this model" else ""))
    others = {name: value for name, value in report.metrics.items() if name != "bits_per_byte"}
    return "\n".join([*lines, *(f"  {name:<28} {value:8.3f}" for name, value in others.items())])


def show(report: Report, files: Mapping[str, pathlib.Path]) -> str:
    """Everything a finished run prints.

    Args:
      report: of the run.
      files: what a path is → the path.
    """
    width = max(map(len, files))
    paths = "\n".join(f"  {name:<{width}}  {path}" for name, path in files.items())
    sample = f"\n\nsample\n{_indent(report.sample)}" if report.sample else ""
    return f"\n{table(report)}{sample}\n\nfiles\n{paths}"


def _indent(text: str) -> str:
    return "\n".join("  | " + line for line in text.splitlines())
