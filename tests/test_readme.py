"""The README's examples run, and its table of compositions is what the rules are."""

import doctest
import pathlib
import re

import pytest

from nested_jax import rules

README = pathlib.Path(__file__).parent.parent / "README.md"


def test_examples():
    result = doctest.testfile(str(README), module_relative=False)
    assert result.attempted > 10
    assert result.failed == 0


RECIPES = {
    "gradient descent": rules.gradient_descent(),
    "Titans": rules.titans(),
    "Gated DeltaNet": rules.gated_gradient_descent(),
    "Muon": rules.muon(),
    "OmegaNet": rules.omega(),
    "Atlas": rules.atlas(),
}


@pytest.mark.parametrize("name", RECIPES)
def test_compositions(name):
    (row,) = re.findall(rf"^\| {name} \| (.*) \|$", README.read_text(), re.MULTILINE)
    printed = [part for part in re.findall(r"`(\w+)`", row) if hasattr(rules, part)]
    assert printed == [link.description.split("(")[0] for link in RECIPES[name].links]
