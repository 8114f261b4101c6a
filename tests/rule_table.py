"""Every rule on one line: its name, its constructor, and values for its gates.

Add a rule here and the properties of `tests/rules` and the laws of the memories run over it.
"""

from collections.abc import Callable
from typing import NamedTuple

from nested_jax import rules


class RuleCase(NamedTuple):
    """A rule under test.

    Attributes:
      name: of the rule.
      build: its constructor; every gate is a keyword that defaults to None.
      gates: keyword -> a value at which the rule descends on a small, well-conditioned least-squares problem.
      matrices: whether all weights must be matrices.
      descends: whether its updates, added to the weights, go downhill (a link by itself need not).
    """

    name: str
    build: Callable[..., rules.Rule]
    gates: dict[str, float]
    matrices: bool = False
    descends: bool = True

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


GD = {"learning_rate": 0.2}
GATED = {"learning_rate": 0.2, "decay": 1e-4}
TITANS = {"learning_rate": 0.05, "momentum": 0.8, "decay": 1e-4}
MUON = {"learning_rate": 0.01, "momentum": 0.5}
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
)
