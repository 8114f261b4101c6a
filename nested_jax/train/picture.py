"""A picture of a run, drawn from its metrics: loss, gates and inner loss over training."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from nested_jax.train.metrics import read

GATES = (("learning_rate", "learning rate θ"), ("momentum", "momentum η"), ("decay", "decay α (fraction forgotten)"))
INNER = (("inner_loss", "weights of the chunk's start", "-"), ("inner_loss_after", "weights read from", "--"))
STYLES = ("--", "-.", (0, (4, 1, 1, 1, 1, 1)), ":")

Records = Sequence[Mapping[str, Any]]


def series(records: Records, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric, where it was recorded and finite."""
    points = [(record["step"], record[name]) for record in records if record.get(name) is not None]
    return [step for step, _ in points], [value for _, value in points]


def layers(records: Records, ending: str) -> dict[str, str]:
    """Label → metric for each layer that records `ending`, in order of appearance.

    Example:
      >>> layers([{"step": 1, "blocks_0/mixer/decay": 0.1, "blocks_0/levels_1/decay": 0.2}], "decay")
      {'block 0': 'blocks_0/mixer/decay', 'block 0 level 1': 'blocks_0/levels_1/decay'}
    """
    names = dict.fromkeys(name for record in records for name in record if name.endswith("/" + ending))

    def label(name: str) -> str:
        parts = (part for part in name.split("/") if part.startswith(("blocks_", "levels_")))
        return " ".join(part.replace("s_", " ") for part in parts)

    return {label(name): name for name in names}


def smooth(values: Sequence[float], share: float = 0.02) -> list[float]:
    """Running mean over about `share` of the points."""
    rate = min(1.0, 1 / max(1.0, share * len(values)))
    means, mean = [], values[0] if values else 0.0
    for value in values:
        mean += rate * (value - mean)
        means.append(mean)
    return means


def draw(metrics: str | os.PathLike[str], output: str | os.PathLike[str], baselines: Mapping[str, float]) -> None:
    """Draws `metrics.jsonl` into an image file: loss and inner loss above, the gates below.

    Args:
      metrics: path of the JSON-lines file of a run.
      output: path of the image; its suffix gives the format.
      baselines: name → bits per byte, drawn as horizontal lines.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = read(metrics)
    gates = [(name, title) for name, title in GATES if layers(records, name)]
    figure = Figure(figsize=(14, 8 if gates else 4), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1 + bool(gates), 6)

    inner = layers(records, "inner_loss")
    _loss(figure.add_subplot(grid[0, : 4 if inner else 6]), records, baselines)
    if inner:
        _inner_loss(figure.add_subplot(grid[0, 4:]), records)
    width = 6 // max(len(gates), 1)
    for place, (name, title) in enumerate(gates):
        _gate(figure.add_subplot(grid[1, place * width : (place + 1) * width]), records, name, title)
    figure.savefig(output, dpi=100)


def _finish(axes: Any, title: str, label: str) -> None:
    axes.set(title=title, xlabel="step", ylabel=label)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _loss(axes: Any, records: Records, baselines: Mapping[str, float]) -> None:
    text = any("bits_per_byte" in record for record in records)
    steps, values = series(records, "bits_per_byte" if text else "loss")
    axes.plot(steps, values, color="tab:blue", alpha=0.3, linewidth=0.8, label="training, each step")
    axes.plot(steps, smooth(values), color="tab:blue", label="training, running mean")
    names = dict.fromkeys(name for record in records for name in record if name.startswith("validation_"))
    for name in list(names)[:1]:
        steps, values = series(records, name)
        last = f" (last {values[-1]:.2f})" if values else ""
        axes.plot(
            steps, values, "o-", color="tab:orange", markersize=4, label=name.removesuffix("_bits_per_byte") + last
        )
    for number, (name, value) in enumerate(baselines.items()):
        style = STYLES[number % len(STYLES)]
        axes.axhline(value, color="0.3", linewidth=1, linestyle=style, label=f"{name} {value:.2f}")
    axes.set_ylim(0, None)
    _finish(axes, "Loss", "bits per byte" if text else "loss; of validation the score")


def _inner_loss(axes: Any, records: Records) -> None:
    for ending, meaning, style in INNER:
        for number, (label, metric) in enumerate(layers(records, ending).items()):
            axes.plot(*series(records, metric), linestyle=style, color=f"C{number}", label=f"{label}, {meaning}")
    axes.set_ylim(0, None)
    _finish(axes, "Inner loss of the memories", "inner loss per token")


def _gate(axes: Any, records: Records, name: str, title: str) -> None:
    for label, metric in layers(records, name).items():
        axes.plot(*series(records, metric), label=label)
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    _finish(axes, f"Gate: {title}", "mean over tokens and heads")
