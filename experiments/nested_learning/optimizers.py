"""Optimizers as memories at an equal tuning budget (in the spirit of Nested Learning, figures 11 and 12).

    pip install scikit-learn
    python experiments/nested_learning/optimizers.py digits  # a small ViT on scikit-learn's digits
    python experiments/nested_learning/optimizers.py text    # a small Transformer++ on the standard library's sources

The paper trains ViTs on ImageNet-21K and prints no numbers; here everything is small, and the question is only which
rule does best when each gets the same number of trials: learning rates a factor of about 3 apart on seed 0, then the
best one (lowest validation loss) on three seeds. The other constants are fixed and usual, below. Matrices inside the
blocks are trained by the rule, the other parameters by Adam with a fixed learning rate, except for SGD and AdamW, which
train everything. Losses are means over the validation set after the last step; the learning rate is chosen by the same
set. A run that was finished is read from --output, so an interrupted comparison goes on.

Measured with the two commands on 2 cores of an AMD EPYC virtual machine, jax 0.10.2, 2026-11-22, 300 steps: validation
loss, median and range of 3 seeds, and the learning rate that seed 0 chose among five.

==================  =====================  ======  =====================  ======
optimizer           digits                 rate    text (nats per byte)   rate
==================  =====================  ======  =====================  ======
SGD (momentum 0.9)  0.178 (0.143-0.201)    0.1     2.000 (1.989-2.092)    0.3
AdamW               0.207 (0.163-0.227)    0.03    1.978 (1.941-2.044)    0.01
Muon                0.140 (0.135-0.189)    0.003   1.855 (1.820-1.880)    0.03
M3 (ema)            0.204 (0.178-0.251)    1e-05   1.873 (1.872-1.890)    1e-05
M3 (additive)       0.213 (0.207-0.271)    1e-05   1.964 (1.950-1.980)    0.0001
delta momentum      0.170 (0.135-0.215)    0.03    2.017 (1.942-2.021)    0.3
deep momentum       0.189 (0.177-0.205)    0.01    2.059 (2.037-2.125)    0.003
==================  =====================  ======  =====================  ======

M3 does not win here: it is level with Muon on text, and on digits it fits the training set best by far (0.0015 against
Muon's 0.011) and generalises worse. Three seeds do not separate neighbours in a column.
"""

import argparse
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import nested_jax as nj
from nested_jax import rules
from nested_jax.data import TextConfig, load_text
from nested_jax.data import batches as batches_of
from nested_jax.models import AttentionConfig, LanguageModel, ModelConfig
from nested_jax.run.text_table import text_table
from nested_jax.train.optimizer import path_name

Build = Callable[[jax.Array], optax.GradientTransformation]
SEEDS, CURVE_POINTS = (0, 1, 2), 50
ADAM_RATE = 3e-3


def deep(learning_rate: jax.Array) -> rules.Rule:
    """A momentum that is an MLP over the rows of a gradient, with a plain momentum behind it."""
    inner = rules.gated_gradient_descent(0.002, 0.01)  # rows of a gradient add up: 0.002 · 256 < 2
    memory = nj.Memory(nj.networks.MLP(expansion=1), rule=inner, chunk_size=4096, step_per="chunk", read="start")
    return rules.chain(rules.deep_momentum(memory), rules.average(0.9), rules.scale_by_learning_rate(learning_rate))


def delta(learning_rate: jax.Array) -> rules.Rule:
    """Delta momentum of gradients of norm 1, so that what it erases does not depend on their size."""
    normalised = optax.stateless(lambda updates, _: jax.tree.map(lambda g: g / (jnp.linalg.norm(g) + 1e-12), updates))
    return rules.chain(normalised, rules.delta_momentum(1.0, 0.9), optax.scale(learning_rate))


def matrices(build: Build) -> Build:
    """A rule for the blocks' matrices, Adam for the rest."""

    def both(learning_rate: jax.Array) -> optax.GradientTransformation:
        return optax.partition({"block": build(learning_rate), "rest": optax.adam(ADAM_RATE, 0.9, 0.95)}, labels)

    return both


def labels(params: Any) -> Any:
    """ "block" for the kernels of the blocks, "rest" for embeddings, heads, scales and biases."""

    def label(path: Any, leaf: jax.Array) -> str:
        return "block" if leaf.ndim == 2 and "block" in path_name(path) else "rest"

    return jax.tree_util.tree_map_with_path(label, params)


OPTIMIZERS: dict[str, tuple[Build, tuple[float, ...]]] = {
    "SGD (momentum 0.9)": (lambda lr: optax.sgd(lr, momentum=0.9), (0.01, 0.03, 0.1, 0.3, 1.0)),
    "AdamW": (lambda lr: optax.adamw(lr, 0.9, 0.95, weight_decay=0.05), (1e-3, 3e-3, 0.01, 0.03, 0.1)),
    "Muon": (matrices(lambda lr: rules.muon(lr, 0.95, nesterov=True)), (0.001, 0.003, 0.01, 0.03, 0.1)),
    "M3 (ema)": (matrices(lambda lr: rules.m3(lr, 0.95, 0.9, 0.95)), (1e-6, 1e-5, 1e-4, 1e-3, 0.01)),
    "M3 (additive)": (
        matrices(lambda lr: rules.m3(lr, 0.95, 0.9, 0.95, form="additive")),
        (1e-6, 1e-5, 1e-4, 1e-3, 0.01),
    ),
    "delta momentum": (matrices(delta), (0.01, 0.03, 0.1, 0.3, 1.0)),
    "deep momentum": (matrices(deep), (1e-3, 3e-3, 0.01, 0.03, 0.1)),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
      init: key -> parameters.
      loss: (parameters, batch) -> mean loss.
      batches: seed -> endless training batches.
      validation: batches whose mean loss is reported.
      steps: updates of a run.
      description: model and data in words.
    """

    init: Callable[[jax.Array], Any]
    loss: Callable[[Any, Any], jax.Array]
    batches: Callable[[int], Iterator[Any]]
    validation: list[Any]
    steps: int
    description: str


class Block(nn.Module):
    """A pre-norm Transformer block that sees everything."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        normed = nn.LayerNorm()(x)
        heads, dim = 4, x.shape[-1]
        q, k, v = (
            nn.Dense(dim, name=name)(normed).reshape(*x.shape[:2], heads, -1) for name in ("query", "key", "value")
        )
        read = jax.nn.dot_product_attention(q, k, v).reshape(x.shape)
        x = x + nn.Dense(dim, name="output")(read)
        hidden = nn.gelu(nn.Dense(2 * dim, name="up")(nn.LayerNorm()(x)))
        return x + nn.Dense(dim, name="down")(hidden)


class ViT(nn.Module):
    """16 patches of 2 × 2 pixels through two blocks."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        patches = images.reshape(-1, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 16, 4)
        places = self.param("places", nn.initializers.normal(0.02), (16, 64))
        x = nn.Dense(64, name="patch")(patches) + places[None]
        for number in range(2):
            x = Block(name=f"block_{number}")(x)
        return nn.Dense(10, name="head")(nn.LayerNorm()(x).mean(1))


def digits(steps: int) -> Task:
    """scikit-learn's 1,797 digits, a quarter held out."""
    from sklearn.datasets import load_digits  # pyrefly: ignore[missing-import]

    pixels, numbers = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(numbers))
    images = np.asarray(pixels[order] / 16, np.float32).reshape(-1, 8, 8)
    targets = np.asarray(numbers)[order]
    cut = len(order) // 4
    model = ViT()

    def batches(seed: int) -> Iterator[Any]:
        rng = np.random.default_rng(seed)
        while True:
            chosen = rng.integers(cut, len(order), 64)
            yield images[chosen], targets[chosen]

    def loss(params: Any, batch: Any) -> jax.Array:
        logits = model.apply({"params": params}, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits), batch[1]).mean()

    return Task(
        lambda key: model.init(key, images[:1])["params"],
        loss,
        batches,
        [(images[:cut], targets[:cut])],
        steps,
        f"ViT (2 blocks of 64) on {len(order) - cut} digits, {cut} held out, batches of 64",
    )


def text(steps: int) -> Task:
    """The standard library's sources, byte by byte."""
    config = TextConfig(sequence_length=128, batch_size=8, max_bytes=4_000_000)
    found = load_text(config)
    model = LanguageModel(
        ModelConfig(dim=64, layers=2, blocks=("attention",), attention=AttentionConfig(heads=4, max_length=128))
    )

    def batches(seed: int) -> Iterator[Any]:
        for batch in batches_of(found.train, dataclasses.replace(config, seed=seed)):
            yield batch["tokens"]

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        logits, _ = model.apply({"params": params}, tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    rows = found.validation[: 129 * 64].reshape(8, 8, 129).astype(np.int32)
    return Task(
        lambda key: model.init(key, jnp.zeros((1, 8), jnp.int32))["params"],
        loss,
        batches,
        list(rows),
        steps,
        "Transformer++ (2 blocks of 64) on bytes of the standard library, batches of 8 × 128; loss in nats per byte",
    )


TASKS = {"digits": (digits, 300), "text": (text, 300)}


class Trainer:
    """A task's training step under one optimizer, compiled once for all learning rates and seeds."""

    def __init__(self, task: Task, build: Build):
        self.task = task
        schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, task.steps // 10, task.steps, 0.1)

        def rule(rate: jax.Array) -> optax.GradientTransformation:
            return optax.chain(optax.clip_by_global_norm(1.0), build(rate), optax.scale_by_schedule(schedule))

        @jax.jit
        def step(params, state, batch, rate):
            loss, gradient = jax.value_and_grad(task.loss)(params, batch)
            updates, state = rule(rate).update(gradient, state, params)
            return optax.apply_updates(params, updates), state, loss

        self.init, self.step, self.held_out = rule(jnp.float32(0)).init, step, jax.jit(task.loss)

    def train(self, rate: float, seed: int) -> dict[str, Any]:
        """One run: the training curve, the validation loss at the end and the seconds of a step."""
        params = self.task.init(jax.random.key(seed))
        state, losses, batches, begin = self.init(params), [], self.task.batches(seed), 0.0
        for number in range(self.task.steps):
            params, state, loss = self.step(params, state, next(batches), jnp.float32(rate))
            losses.append(loss)
            if number == 4:
                loss.block_until_ready()
                begin = time.perf_counter()
        jax.block_until_ready(params)
        seconds = (time.perf_counter() - begin) / (self.task.steps - 5)
        final = float(np.mean([self.held_out(params, batch) for batch in self.task.validation]))
        curve = [float(np.mean(part)) for part in np.array_split(np.asarray(losses), min(CURVE_POINTS, len(losses)))]
        return {"curve": curve, "loss": final if np.isfinite(final) else float("inf"), "seconds": seconds}


def compare(name: str, task: Task, output: pathlib.Path) -> list[list[str]]:
    """All runs, and the table's rows; runs already in `output` are not repeated."""
    store = output / f"{name}-{task.steps}.json"
    done = json.loads(store.read_text()) if store.exists() else {}

    trainers: dict[str, Trainer] = {}

    def run(optimizer: str, rate: float, seed: int) -> dict[str, Any]:
        key = f"{optimizer} {rate:g} {seed}"
        if key not in done:
            if optimizer not in trainers:
                trainers[optimizer] = Trainer(task, OPTIMIZERS[optimizer][0])
            done[key] = trainers[optimizer].train(rate, seed)
            print(f"{len(done):3d}  {key:<32}  validation loss {done[key]['loss']:.4f}", flush=True)
            part = store.with_suffix(".part")
            part.write_text(json.dumps(done))
            part.replace(store)
        return done[key]

    rows, curves = [], {}
    for optimizer, (_, rates) in OPTIMIZERS.items():
        best = min(rates, key=lambda rate: run(optimizer, rate, SEEDS[0])["loss"])
        runs = [run(optimizer, best, seed) for seed in SEEDS]
        losses = sorted(found["loss"] for found in runs)
        edge = " (at the edge)" if best in (rates[0], rates[-1]) else ""
        milliseconds = 1e3 * np.median([found["seconds"] for found in runs])
        rows.append(
            [
                optimizer,
                f"{best:g}{edge}",
                f"{np.median(losses):.4f}",
                f"{losses[0]:.4f}-{losses[-1]:.4f}",
                f"{milliseconds:.1f}",
            ]
        )
        curves[optimizer] = np.median([found["curve"] for found in runs], axis=0)
    draw(task, curves, output / f"{name}.png")
    return rows


def draw(task: Task, curves: dict[str, np.ndarray], output: pathlib.Path) -> None:
    """Training loss over steps, the median over seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.plot((np.arange(len(curve)) + 0.5) * task.steps / len(curve), curve, label=name)
    axes.set(xlabel="step", ylabel="training loss", yscale="log")
    axes.set_title(task.description, fontsize=9)
    axes.legend()
    figure.savefig(output, dpi=120)


HEADINGS = ["optimizer", "learning rate", "validation loss", "min-max of 3 seeds", "ms/step"]


def main(arguments=None) -> None:
    """Runs a comparison, prints its table and draws its curves."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--steps", type=int, help="updates of a run, at least 10 (default 300)")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/optimizers"), metavar="DIR")
    options = parser.parse_args(arguments)
    build, steps = TASKS[options.task]
    task = build(options.steps or steps)
    options.output.mkdir(parents=True, exist_ok=True)
    rows = compare(options.task, task, options.output)
    print(f"\n{task.description}, {task.steps} steps\n\n{text_table(HEADINGS, rows)}")
    print(f"\ncurves: {options.output / options.task}.png")


if __name__ == "__main__":
    main()
