"""Continual learning: a stream of text whose topic shifts, learned by one level and by four.

    python experiments/nested_learning/continual.py

A byte model reads three parts of the standard library, one after the other and each once: the language's documentation
(English), `asyncio` (code), `encodings` (tables); then the first one again. The feed-forward part of a block is four
layers. With *one level* all of them step at every optimizer step; with *four levels* they step every 1, 4, 16 and 64
steps on the sum of the gradients in between (Nested Learning 70-71: `Group(period=)`). Everything else is the same: the
weights at the start, the text and its order, the learning rates, and that all else in the model steps every time.

Printed per topic: bits per byte of held-out text when its part of the stream ended, at the end of the part before it
came again, and what was forgotten in between; drawn: all topics over time, the median of the seeds and their range.

Measured with the defaults (256 steps of 1,024 bytes per part, seeds 0-2; one core of an AMD EPYC virtual machine, the
other one busy, jax 0.10.2, 2026-11-23; bits per byte, median and range):

=======  ===========  ===================  ======================  ===================
topic    system       when learned         before it comes again   forgotten
=======  ===========  ===================  ======================  ===================
English  one level    2.16 (2.10 to 2.20)  3.92 (3.61 to 4.00)     1.76 (1.50 to 1.80)
English  four levels  2.16 (2.15 to 2.18)  3.88 (3.70 to 4.18)     1.70 (1.55 to 2.03)
code     one level    2.09 (2.08 to 2.09)  3.61 (3.58 to 3.63)     1.52 (1.50 to 1.54)
code     four levels  2.10 (2.10 to 2.21)  3.59 (3.49 to 3.60)     1.39 (1.38 to 1.50)
tables   one level    1.46 (1.43 to 1.63)  4.80 (4.56 to 4.82)     3.34 (2.93 to 3.39)
tables   four levels  1.58 (1.56 to 1.61)  4.56 (4.38 to 4.79)     2.95 (2.80 to 3.23)
=======  ===========  ===================  ======================  ===================

Both forget most of what they learned of a topic. Four levels forget less of code and tables, of which they had learned
less; at the end the mean of all topics is 3.33 (3.24 to 3.42) against 3.42 (3.32 to 3.42): the ranges overlap.
"""

import argparse
import json
import pathlib
import statistics
import sysconfig
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from nested_jax.data import TextConfig, load_text, validation_windows
from nested_jax.evals.bits_per_byte import score_windows, window_scorer
from nested_jax.models import AttentionConfig, LanguageModel, LevelConfig, ModelConfig
from nested_jax.run.text_table import text_table
from nested_jax.train.optimizer import Group, OptimizerConfig, make_optimizer
from nested_jax.train.step import initial_state, make_step

TOPICS = {"English": "pydoc_data", "code": "asyncio", "tables": "encodings"}
PARTS = ("English", "code", "tables", "English")
SYSTEMS = {"one level": (1, 1, 1, 1), "four levels": (1, 4, 16, 64)}
SEEDS, LENGTH, BATCH, RATE = (0, 1, 2), 128, 8, 3e-3
MODEL = ModelConfig(
    dim=64,
    layers=2,
    blocks=("attention",),
    attention=AttentionConfig(window=64),
    expansion=4,
    levels=(LevelConfig(),) * 4,
)


def optimizer(periods: Sequence[int]) -> OptimizerConfig:
    """Adam at a constant rate; level i of every block steps each `periods[i]` steps."""
    groups = tuple(Group(parameters=f"levels_{i}/", period=period) for i, period in enumerate(periods))
    return OptimizerConfig(rule="optax.adam", learning_rate=RATE, warmup=20, schedule="constant", groups=groups)


def run(periods: Sequence[int], steps: int, every: int, seed: int) -> dict[str, list[float]]:
    """Reads the stream once: topic → bits per byte of its held-out text, before the first step and `every` so many."""
    draw, model, config = np.random.default_rng(seed), LanguageModel(MODEL), optimizer(periods)
    root, tests, texts = pathlib.Path(sysconfig.get_path("stdlib")), {}, {}
    for topic, folder in TOPICS.items():
        text = load_text(TextConfig(path=str(root / folder), sequence_length=LENGTH, batch_size=BATCH))
        tests[topic] = validation_windows(text.validation, LENGTH, 4 * BATCH)[:]
        texts[topic] = draw.permutation(validation_windows(text.train, LENGTH)[:])
    rule = make_optimizer(config, steps * len(PARTS))
    step = jax.jit(make_step(model, rule, config, steps * len(PARTS)), donate_argnums=0)
    state, score = initial_state(model, rule, seed), window_scorer(model)
    curves: dict[str, list[float]] = {topic: [] for topic in TOPICS}

    def examine() -> None:
        for topic, windows in tests.items():
            curves[topic].append(score_windows(score, state.params, windows, 4 * BATCH))

    examine()
    for topic in PARTS:
        rows, texts[topic] = texts[topic][: steps * BATCH], texts[topic][steps * BATCH :]
        if len(rows) < steps * BATCH:
            raise ValueError(f"steps: {topic!r} has text for {len(rows) // BATCH} steps more, got {steps}")
        for number, batch in enumerate(rows.reshape(steps, BATCH, -1), 1):
            state, _ = step(state, {"tokens": jnp.asarray(batch)})
            if number % every == 0:
                examine()
    return curves


def draw(found: dict[str, list[dict[str, list[float]]]], steps: int, every: int, output: pathlib.Path) -> None:
    """A panel per topic, the parts of the stream shaded where they are its own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(TOPICS))
    for axes, topic in zip(panels, TOPICS, strict=True):
        for name, seeds in found.items():
            curves = np.array([seed[topic] for seed in seeds])
            at = np.arange(curves.shape[1]) * every
            (line,) = axes.plot(at, np.median(curves, axis=0), label=name)
            axes.fill_between(at, curves.min(axis=0), curves.max(axis=0), color=line.get_color(), alpha=0.25)
        for number, part in enumerate(PARTS):
            axes.axvspan(number * steps, (number + 1) * steps, color="gold", alpha=0.25 if part == topic else 0.0)
            axes.text((number + 0.5) * steps, 0.98, part, ha="center", va="top", transform=axes.get_xaxis_transform())
        top = max(max(seed[topic][2:]) for seeds in found.values() for seed in seeds)
        axes.set(title=f"held-out {topic}", xlabel="step", ylim=(None, 1.1 * top))
    panels[0].set_ylabel("bits per byte")
    panels[0].legend(loc="lower left")
    figure.savefig(output, dpi=120)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=256, help="of each part of the stream")
    parser.add_argument("--every", type=int, default=16, help="steps between two looks at all topics")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/continual"))
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "curves.json"
    done = json.loads(file.read_text()) if file.exists() else {}
    found: dict[str, list[dict[str, list[float]]]] = {name: [] for name in SYSTEMS}
    for seed in SEEDS:
        for name, periods in SYSTEMS.items():
            key, began = f"{name} {options.steps} {options.every} {seed}", time.perf_counter()
            if key not in done:
                done[key] = run(periods, options.steps, options.every, seed)
                file.write_text(json.dumps(done))
                left = (len(SEEDS) * len(SYSTEMS) - sum(map(len, found.values())) - 1) * (time.perf_counter() - began)
                print(f"{name}, seed {seed}: {time.perf_counter() - began:.0f} s, about {left:.0f} s left", flush=True)
            found[name].append(done[key])
    rows, looks = [], options.steps // options.every
    for topic in TOPICS:
        own = PARTS.index(topic) + 1
        again = PARTS.index(topic, own) if topic in PARTS[own:] else len(PARTS)
        for name, seeds in found.items():
            learned, kept = ([curves[topic][part * looks] for curves in seeds] for part in (own, again))
            lost = [after - before for before, after in zip(learned, kept, strict=True)]
            rows.append([topic, name, *map(cell, (learned, kept, lost))])
    for name, seeds in found.items():
        last = [statistics.fmean(curves[topic][-1] for topic in TOPICS) for curves in seeds]
        rows.append(["mean of all, at the end", name, "", cell(last), ""])
    print(text_table(["topic", "system", "when learned", "before it comes again", "forgotten"], rows))
    draw(found, options.steps, options.every, options.output / "continual.png")
    print(f"picture: {options.output / 'continual.png'}")


def cell(values: Sequence[float]) -> str:
    """Median (least to greatest)."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
