"""The nesting of a model: what changes how often, as rows of a table and as a picture of clocks inside clocks."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from nested_jax.run.text_table import text_table

LONG = 1_000_000
HEADINGS = ("level", "period", "objective", "rule", "parameters", "state bytes")


class Component(NamedTuple):
    """Something that learns, or is carried on, at one pace.

    Attributes:
      name: which part of the model.
      period: from one change to the next, in words.
      tokens: the same in tokens of a sequence, whose end is an update of training; None for never.
      objective: what is made smaller; "–" where nothing is.
      rule: what is done with its gradient, or how it changes.
      parameters: numbers that training finds, initial weights included.
      state: bytes that are carried from token to token; None for what does not run along a sequence.
      inside: whether it belongs to the component above.
    """

    name: str
    period: str
    tokens: int | None
    objective: str
    rule: str
    parameters: int
    state: int | None
    inside: bool = False


def table(components: Sequence[Component], length: int) -> str:
    """The components as text.

    Args:
      components: in the order of the rows.
      length: tokens of a sequence, for the bytes of state per token.
    """
    rows = []
    for one in components:
        name = f"  {one.name}" if one.inside else one.name
        sizes = ["–"] * 3
        if one.state is not None:
            sizes = [f"{one.state:,}", f"{one.state / length:,.1f}", f"{one.state / LONG:,.3f}"]
        rows.append([name, one.period, one.objective, one.rule, f"{one.parameters:,}", *sizes])
    return text_table([*HEADINGS, f"per token of {length:,}", f"of {LONG:,}"], rows)


def draw(components: Sequence[Component], title: str, length: int, path: str | os.PathLike[str]) -> None:
    """Draws one line per component, a mark wherever it changes from the start of a sequence to its end.

    The slowest come first. A box holds everything that changes at least as often as its first line: what is outside is
    constant to what is inside.

    Args:
      components: see `Component`.
      title: above the picture.
      length: tokens of the sequence.
      path: an image file; its suffix gives the format.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lanes = sorted(components, key=lambda one: -_pace(one))
    figure = Figure(figsize=(12, 1.2 + 0.8 * len(lanes)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    paces = list(dict.fromkeys(map(_pace, lanes)))
    colours = _colours(len(paces))
    for place, lane in enumerate(lanes):
        depth = paces.index(_pace(lane))
        _clock(axes, lane, place, length, colours[depth])
        left = (-0.72 + 0.015 * depth) * length
        axes.text(left, place - 0.24, lane.name, weight="bold", va="center", fontsize=9)
        about = [lane.period] + [lane.objective] * (lane.objective != "–")
        sizes = f"{lane.parameters:,} parameters" + (f", {lane.state:,} bytes of state" if lane.state else "")
        axes.text(left, place, f"{' · '.join(about)} · {sizes}", va="center", fontsize=7)
        axes.text(left, place + 0.2, _short(lane.rule), va="center", fontsize=7)
    for depth, pace in enumerate(paces):
        top = next(place for place, lane in enumerate(lanes) if _pace(lane) == pace) - 0.45
        left, right = (-0.74 + 0.015 * depth) * length, (1.1 - 0.015 * depth) * length
        _box(axes, left, right, top, len(lanes) - 0.45 - 0.04 * depth, colours[depth])
    axes.set(xlim=(-0.76 * length, 1.12 * length), ylim=(len(lanes) - 0.35, -0.55), yticks=[], title=title)
    axes.set_xticks([0, length // 4, length // 2, 3 * length // 4, length])
    axes.set_xlabel("tokens of a sequence", loc="right")
    for side in ("left", "right", "top", "bottom"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=130)


def _colours(count: int) -> list[Any]:
    """Colours from slow (dark) to fast (bright)."""
    from matplotlib import colormaps

    return [colormaps["viridis"](0.15 + 0.7 * place / max(count - 1, 1)) for place in range(count)]


def _pace(one: Component) -> float:
    return float("inf") if one.tokens is None else float(one.tokens)


def _short(rule: str, longest: int = 75) -> str:
    if rule == "–":
        return ""
    return rule if len(rule) <= longest else rule[: longest - 1] + "…"


def _clock(axes: Any, lane: Component, place: int, length: int, colour: Any) -> None:
    """The line of a component, with a mark at every change; a bar where marks would touch."""
    axes.plot([0, length], [place, place], color=colour, linewidth=0.8, linestyle=":" if lane.tokens is None else "-")
    if lane.tokens is None or lane.tokens > length:
        return
    if length / lane.tokens > 150:
        axes.fill_between([0, length], place - 0.22, place + 0.22, color=colour, alpha=0.55, linewidth=0)
    else:
        axes.vlines(
            range(lane.tokens, length + 1, lane.tokens), place - 0.25, place + 0.25, color=colour, linewidth=1.6
        )


def _box(axes: Any, left: float, right: float, top: float, bottom: float, colour: Any) -> None:
    axes.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color=colour, linewidth=1, alpha=0.7)
