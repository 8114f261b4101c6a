"""Every rule on one line: its name, its constructor, and values for its gates.

Add a rule here and the properties of `tests/rules` and the laws of the memories run over it.
"""

from collections.abc import Callable
from typing import NamedTuple

import nested_jax as nj
from nested_jax import rules


class RuleCase(NamedTuple):
    """A rule under test.

    Attributes:
      name: of the rule.
      build: its constructor; every gate is a keyword that defaults to None.
      gates: keyword -> a value at which the rule descends on a small, well-conditioned least-squares problem.
      matrices: whether all weights must be matrices.
      descends: whether its updates, added to the weights, go downhill to the goal. A link by itself need not, nor a
        rule that pulls elsewhere.
      simplex: whether its weights have to be positive and sum to one.
      partial: whether weights may be without a gradient; `optax.partition` allows none.
    """

    name: str
    build: Callable[..., rules.Rule]
    gates: dict[str, float]
    matrices: bool = False
    descends: bool = True
    simplex: bool = False
    partial: bool = True

    def constant(self) -> rules.Rule:
        """The rule with the gates' values as its constants."""
        return self.build(**self.gates)

    def gated(self) -> rules.Rule:
        """The rule without constants: the gates are given at every step."""
        return self.build()


def slow_titans(learning_rate=None, momentum=None, decay=None):
    """A level: Titans, once in three steps."""
    return rules.every(3, rules.titans(learning_rate, momentum, decay))


def two_muons(learning_rate=None, momentum=None):
    """A quick and a slow orthogonalised momentum, as in the numerator of M3."""
    return rules.add(rules.muon(learning_rate, momentum), rules.every(4, rules.muon(learning_rate, momentum)))


def delta_momentum(learning_rate=None, momentum=None):
    """Delta momentum with a weak correction, so that it goes on to the goal."""
    return rules.delta_momentum(learning_rate, momentum, erase=0.1)


def held(learning_rate=None, momentum=None):
    """A slow momentum whose output is used until the next one comes."""
    return rules.chain(rules.every(2, rules.momentum(momentum), hold=True), rules.scale_by_learning_rate(learning_rate))


def mini_batches(learning_rate=None):
    """TTT with the public code's division."""
    return rules.chain(rules.scale_by_learning_rate(learning_rate), rules.running_mean(4))


def windowed(learning_rate=None):
    """Omega as an optimizer: the sum of the last three gradients."""
    return rules.chain(rules.window(3), rules.scale_by_learning_rate(learning_rate))


def deep_momentum(learning_rate=None):
    """A momentum that is an MLP."""
    inner = rules.gated_gradient_descent(0.02, 0.01)
    memory = nj.Memory(nj.networks.MLP(expansion=1), rule=inner, chunk_size=16, step_per="chunk", read="start")
    return rules.chain(rules.deep_momentum(memory, values=lambda g: g), rules.scale_by_learning_rate(learning_rate))


def outer_product_adam(learning_rate=None, momentum=None, second_moment=None):
    """Adam with a matrix for a second moment."""
    return rules.adam(learning_rate, momentum, second_moment, eps_root=1e-2, outer_product=True)


def literal_m3(learning_rate=None, momentum=None, slow_momentum=None, second_moment=None):
    """M3 as printed, without forgetting."""
    return rules.m3(learning_rate, momentum, slow_momentum, second_moment, form="additive", period=3, eps=1e-3)


def quick_m3(learning_rate=None, momentum=None, slow_momentum=None, second_moment=None):
    """M3 with a short period."""
    return rules.m3(learning_rate, momentum, slow_momentum, second_moment, period=3, eps=1e-2)


def bregman(learning_rate=None, decay=None):
    """Weights between 0 and 1."""
    return rules.mirror(rules.gated_gradient_descent(learning_rate, decay), rules.sigmoid_map())


def elastic_net(learning_rate=None, decay=None):
    """Weights that are exactly zero near zero."""
    return rules.mirror(rules.gated_gradient_descent(learning_rate, decay), rules.soft_threshold_map(1e-3))


def local_elastic_net(learning_rate=None, decay=None):
    """The same, from the weights themselves."""
    return rules.chain(
        rules.gated_gradient_descent(learning_rate, decay), rules.proximal(rules.soft_threshold_map(1e-4))
    )


GD = {"learning_rate": 0.2}
GATED = {"learning_rate": 0.2, "decay": 1e-4}
TITANS = {"learning_rate": 0.05, "momentum": 0.8, "decay": 1e-4}
MUON = {"learning_rate": 0.01, "momentum": 0.5}
ADAM = {"learning_rate": 0.01, "momentum": 0.875, "second_moment": 0.984375}  # 1 - gate is exact in float32
M3 = {"learning_rate": 0.01, "momentum": 0.75, "slow_momentum": 0.75, "second_moment": 0.875}
ATLAS = {"learning_rate": 0.01, "momentum": 0.5, "decay": 1e-4}

RULES = (
    RuleCase("scale_by_learning_rate", rules.scale_by_learning_rate, GD),
    RuleCase("momentum", rules.momentum, {"momentum": 0.8}, descends=False),
    RuleCase("retention", rules.retention, {"decay": 0.1}, descends=False),
    RuleCase("newton_schulz", rules.newton_schulz, {}, matrices=True, descends=False),
    RuleCase("gradient_descent", rules.gradient_descent, GD),
    RuleCase("gated_gradient_descent", rules.gated_gradient_descent, GATED),
    RuleCase("titans", rules.titans, TITANS),
    RuleCase("muon", rules.muon, MUON, matrices=True),
    RuleCase("omega", rules.omega, TITANS),
    RuleCase("atlas", rules.atlas, ATLAS, matrices=True),
    RuleCase("every", slow_titans, TITANS),
    RuleCase("add", two_muons, MUON, matrices=True),
    RuleCase("average", rules.average, {"momentum": 0.75}, descends=False),
    RuleCase("accumulate", rules.accumulate, {"momentum": 0.8}, descends=False),
    RuleCase("every hold", held, {"learning_rate": 0.02, "momentum": 0.5}),
    RuleCase("running_mean", mini_batches, GD),
    RuleCase("window", windowed, {"learning_rate": 0.05}),
    RuleCase("hebbian_momentum", rules.hebbian_momentum, {"learning_rate": 0.05}, descends=False),
    RuleCase("preconditioned_momentum", rules.preconditioned_momentum, {"learning_rate": 0.05, "momentum": 0.8}),
    RuleCase("delta_momentum", delta_momentum, {"learning_rate": 0.05, "momentum": 0.8}),
    RuleCase("deep_momentum", deep_momentum, {"learning_rate": 0.02}),
    RuleCase("adam", rules.adam, ADAM),
    RuleCase("adam outer product", outer_product_adam, ADAM),
    RuleCase("adagrad", rules.adagrad, {"learning_rate": 0.2, "momentum": 0.5}),
    RuleCase("m3", quick_m3, M3, partial=False),
    RuleCase("m3 additive", literal_m3, M3, partial=False, descends=False),
    RuleCase("delta_gradient_descent", rules.delta_gradient_descent, GD, descends=False),
    RuleCase("hope", rules.hope, GATED, descends=False),
    RuleCase("moneta", rules.moneta, GATED),
    RuleCase("yaad", rules.yaad, GATED),
    RuleCase("memora", rules.memora, GATED, descends=False, simplex=True),
    RuleCase("bregman", bregman, GATED, descends=False, simplex=True),
    RuleCase("elastic net", elastic_net, GATED),
    RuleCase("local elastic net", local_elastic_net, GATED),
    RuleCase("keep_norms", rules.keep_norms, {}, descends=False),
)
