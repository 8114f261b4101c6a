"""The toy valley of Nested Learning (equation 53, figure 4): momentum against delta momentum.

    psi(r, theta) = r^2 + k (r - theta + a sin(omega r))^2,   from (-3.5, 2) to the minimum at (0, 0)

    python experiments/nested_learning/valley.py            # prints the table, draws valley.png; about 10 s on one core

The paper prints neither k, a, omega nor the learning rates: k = 2, a = 1, omega = 3 are our choice. Every optimizer
gets the same tuning budget, 60 settings, and is shown at the one that brings psi below 1e-4 first (and keeps it there).
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nested_jax import rules
from nested_jax.run.text_table import text_table

START, STEPS, GOAL = (-3.5, 2.0), 400, 1e-4
K, A, OMEGA = 2.0, 1.0, 3.0
RATES = tuple(float(x) for x in np.geomspace(1e-3, 1.0, 12))
MOMENTA = (0.0, 0.5, 0.8, 0.9, 0.95)


def valley(point: jax.Array) -> jax.Array:
    """psi at (r, theta)."""
    r, theta = point
    return r**2 + K * (r - theta + A * jnp.sin(OMEGA * r)) ** 2


def plain(learning_rate: float, momentum: float) -> rules.Rule:
    return rules.chain(rules.scale_by_learning_rate(learning_rate), rules.momentum(momentum))


def averaged(learning_rate: float, momentum: float) -> rules.Rule:
    return rules.chain(rules.average(momentum), rules.scale_by_learning_rate(learning_rate))


def literal(learning_rate: float, momentum: float) -> rules.Rule:
    return rules.delta_momentum(learning_rate, momentum, form="literal")


OPTIMIZERS = {
    "momentum": plain,
    "momentum (average)": averaged,
    "delta momentum": rules.delta_momentum,
    "delta momentum (literal)": literal,
}


def path(rule: optax.GradientTransformation, steps: int = STEPS) -> jax.Array:
    """The points an optimizer visits, [steps + 1, 2]."""
    start = jnp.array(START)

    def step(carry, _):
        point, state = carry
        updates, state = rule.update(jax.grad(valley)(point), state, point)
        return (point + updates, state), point + updates

    _, points = jax.lax.scan(step, (start, rule.init(start)), length=steps)
    return jnp.concatenate([start[None], points])


def arrival(points: np.ndarray) -> int | None:
    """Steps after which psi stays below the goal; None if it does not."""
    above = ~(np.asarray(jax.vmap(valley)(jnp.asarray(points))) < GOAL)
    return None if above[-1] else int(np.flatnonzero(above)[-1]) + 1


def tune(build) -> tuple[int | None, tuple[float, float], np.ndarray]:
    """(steps, setting, path) of the quickest setting; without one that arrives, that of the lowest last psi."""
    paths = jax.jit(lambda rate, momentum: path(build(rate, momentum)))
    tried = []
    for setting in ((rate, momentum) for rate in RATES for momentum in MOMENTA):
        points = np.asarray(paths(*map(jnp.float32, setting)))
        steps, last = arrival(points), float(valley(jnp.asarray(points[-1])))
        tried.append((STEPS + 1 if steps is None else steps, last if np.isfinite(last) else np.inf, setting, points))
    steps, _, setting, points = min(tried, key=lambda row: row[:2])
    return (None if steps > STEPS else steps), setting, points


def draw(found, output: pathlib.Path) -> None:
    """The paths over the valley, and psi over steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), layout="constrained")
    FigureCanvasAgg(figure)
    ground, curves = figure.subplots(1, 2)
    r, theta = np.meshgrid(np.linspace(-4.5, 3, 200), np.linspace(-6, 4, 200))
    heights = np.asarray(jax.vmap(valley)(jnp.stack([r.ravel(), theta.ravel()], 1))).reshape(r.shape)
    ground.contourf(r, theta, np.log10(heights + 1e-2), levels=30, cmap="Greys_r")
    for name, (steps, _, points) in found.items():
        shown = points if steps is None else points[: steps + 1]
        inside = np.isfinite(shown).all(1)
        ground.plot(*shown[inside].T, ".-", markersize=3, linewidth=1, label=name)
        curves.plot(np.asarray(jax.vmap(valley)(points)), label=name)
    ground.set(xlabel="r", ylabel="θ", title="ψ(r, θ), logarithmic shades", xlim=(-4.5, 3), ylim=(-6, 4))
    curves.axhline(GOAL, color="grey", linewidth=0.8)
    curves.set(xlabel="step", ylabel="ψ", yscale="log", ylim=(1e-8, 1e3), title="each at its best of 60 settings")
    curves.legend()
    figure.savefig(output, dpi=120)


def main(arguments=None) -> None:
    """Tunes, prints the table and draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("valley.png"), help="the picture")
    options = parser.parse_args(arguments)
    found = {name: tune(build) for name, build in OPTIMIZERS.items()}
    rows = []
    for name, (steps, (rate, momentum), points) in found.items():
        last = float(valley(jnp.asarray(points[-1])))
        rows.append([name, "–" if steps is None else str(steps), f"{rate:.3g}", f"{momentum:g}", f"{last:.1e}"])
    print(f"k = {K}, a = {A}, omega = {OMEGA}, from {START}, goal psi < {GOAL}, {STEPS} steps at most")
    print(text_table(["optimizer", "steps to goal", "learning rate", "momentum", "psi at the end"], rows))
    draw(found, options.output)
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
