"""The README's examples run, and its table of compositions is what the rules are."""

import doctest
import pathlib
import re

import pytest

import nested_jax as nj
from nested_jax import rules

README = pathlib.Path(__file__).parent.parent / "README.md"


def test_examples():
    result = doctest.testfile(str(README), module_relative=False)
    assert result.attempted > 10
    assert result.failed == 0


MEMORY = nj.Memory(rule=rules.gradient_descent(0.1))
RECIPES = {
    "gradient descent": rules.gradient_descent(),
    "Titans": rules.titans(),
    "Gated DeltaNet": rules.gated_gradient_descent(),
    "exponential average": rules.average(),
    "Hebbian momentum": rules.hebbian_momentum(),
    "preconditioned momentum": rules.preconditioned_momentum(),
    "delta momentum": rules.delta_momentum(),
    "deep momentum": rules.chain(rules.deep_momentum(MEMORY), rules.scale_by_learning_rate()),
    "Omega as an optimizer": rules.chain(rules.window(4), rules.scale_by_learning_rate()),
    "Muon": rules.muon(),
    "Adam": rules.adam(),
    "AdaGrad": rules.adagrad(),
    "M3": rules.m3(),
    "OmegaNet": rules.omega(),
    "Atlas": rules.atlas(),
    "DGD": rules.delta_gradient_descent(),
    "Hope": rules.hope(),
    "LaCT": rules.lact(),
    "Moneta": rules.moneta(),
    "Yaad": rules.yaad(),
    "Memora": rules.memora(),
}
GLUE = {"chain", "partition", "scale"}
OTHERS = {"DeltaNet", "linear attention", "TTT-Linear", "continuum memory (CMS)"}


def rows():
    """Name -> composition, of the table."""
    table = README.read_text().split("| name | composition |")[1].split("\n\n")[0]
    return dict(re.findall(r"^\| ([^|]+) \| ([^|]*) \|$", table, re.MULTILINE))


@pytest.mark.parametrize("name", RECIPES)
def test_compositions(name):
    """The parts that the table names are those of the rule's description, in order."""
    printed = [part for part in re.findall(r"`(\w+)`", rows()[name]) if hasattr(rules, part)]
    described = re.sub(r"memory=.*\), scale_by", "), scale_by", RECIPES[name].description)  # what the memory is made of
    described = re.sub(r"'other': .*\}\)", "", described)  # M3 leaves vectors to Adam
    assert printed == [part for part in re.findall(r"(\w+)\(", described) if part not in GLUE]


def test_every_line_of_the_table_is_tested():
    """Those that are not rules alone are literal references in tests/memory and tests/rules/test_closed_forms.py."""
    assert set(rows()) == set(RECIPES) | OTHERS
