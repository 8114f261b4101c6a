"""A picture of a run, drawn from its metrics: loss, gates and inner loss over training."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from nested_jax.train.metrics import read

GATES = (("learning_rate", "learning rate θ"), ("momentum", "momentum η"), ("decay", "decay α (fraction forgotten)"))
INNER = (("inner_loss", "weights of the chunk's start", "-"), ("inner_loss_after", "after the write", "--"))


def _series(records: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    points = [(record["step"], record[name]) for record in records if record.get(name) is not None]
    return [step for step, _ in points], [value for _, value in points]


def _layers(records: Sequence[Mapping[str, Any]], ending: str) -> list[tuple[str, str]]:
    """(label, metric) of each layer that records `ending`, in order of appearance."""
    names = dict.fromkeys(name for record in records for name in record if name.endswith("/" + ending))
    return [(name.removesuffix("/" + ending).split("/")[0].replace("_", " "), name) for name in names]


def _smooth(values: Sequence[float], share: float = 0.02) -> list[float]:
    """Running mean over about `share` of the points."""
    rate = min(1.0, 1 / max(1.0, share * len(values)))
    smooth, mean = [], values[0] if values else 0.0
    for value in values:
        mean += rate * (value - mean)
        smooth.append(mean)
    return smooth


def draw(metrics: str | os.PathLike[str], output: str | os.PathLike[str], baselines: Mapping[str, float]) -> None:
    """Draws `metrics.jsonl` into an image file.

    Args:
      metrics: path of the JSON-lines file of a run.
      output: path of the image; its suffix gives the format.
      baselines: name → bits per byte, drawn as horizontal lines.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = read(metrics)
    gates = [(name, title) for name, title in GATES if _layers(records, name)]
    inner = _layers(records, "inner_loss")
    panels = 1 + len(gates) + bool(inner)
    columns = 2 if panels <= 4 else 3
    rows = -(-panels // columns)
    figure = Figure(figsize=(5.6 * columns, 3.9 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_visible(False)
    free = iter(grid)

    axes = next(free)
    axes.set_visible(True)
    steps, values = _series(records, "bits_per_byte")
    axes.plot(steps, values, color="tab:blue", alpha=0.25, linewidth=0.8)
    axes.plot(steps, _smooth(values), color="tab:blue", label="training (smoothed)")
    axes.plot(*_series(records, "validation_bits_per_byte"), "o-", color="tab:orange", markersize=4, label="validation")
    for number, (name, value) in enumerate(baselines.items()):
        axes.axhline(value, color="0.35", linewidth=0.9, linestyle=("--", "-.", ":", (0, (1, 3)))[number % 4])
        axes.annotate(f"{name} {value:.2f}", (1.0, value), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                      fontsize=8, color="0.25")  # fmt: skip
    axes.set(title="Loss", xlabel="step", ylabel="bits per byte", ylim=(0, None))
    axes.legend(loc="lower left", fontsize=8)

    for name, title in gates:
        axes = next(free)
        axes.set_visible(True)
        for label, metric in _layers(records, name):
            axes.plot(*_series(records, metric), label=label)
        axes.set(title=f"Gate: {title}", xlabel="step", ylabel="mean over tokens and heads", ylim=(0, None))
        axes.legend(fontsize=8)

    if inner:
        axes = next(free)
        axes.set_visible(True)
        for number, (label, _) in enumerate(inner):
            for ending, meaning, style in INNER:
                for other, metric in _layers(records, ending):
                    if other == label:
                        axes.plot(*_series(records, metric), style, color=f"C{number}", label=f"{label}, {meaning}")
        axes.set(title="Inner loss of the memories", xlabel="step", ylabel="inner loss per token", yscale="log")
        axes.legend(fontsize=8)

    for axes in grid:
        axes.grid(alpha=0.25)
    figure.savefig(output, dpi=110)
