"""Questions in words by name, as `eval --questions` takes them."""

import functools
import re
from collections.abc import Callable, Mapping

from nested_jax import config as configs
from nested_jax.data import niah
from nested_jax.data.babi import LABELS
from nested_jax.data.babilong import Babilong
from nested_jax.data.code_dependencies import CodeDependencies
from nested_jax.data.dependencies import Programs, VariableTracking
from nested_jax.data.hash_hop import HashHop
from nested_jax.data.recall_sets import SETS, RecallSet
from nested_jax.evals.questions import Asked

_NEEDLES = ("single_1", "single_2", "single_3", "multi_key_1", "multi_key_2", "multi_key_3", "multi_value")
_KINDS: Mapping[str, Callable[[], Asked]] = {
    **{f"niah:{name}": getattr(niah, name) for name in (*_NEEDLES, "multi_query")},
    "variable_tracking": VariableTracking,
    "hash_hop": HashHop,
    "programs": Programs,
    "code": CodeDependencies,
    **{f"babilong:{task}": functools.partial(Babilong, task=task) for task in LABELS},
    **{f"recall:{name}": functools.partial(RecallSet, name=name) for name in SETS},
}


def parse(text: str) -> Asked:
    """Reads `NAME[,FIELD=VALUE...]`: a benchmark, and settings of it that differ from its own.

    Raises:
      ValueError: for an unknown benchmark or field, or a value that does not fit.

    Example:
      >>> parse("niah:single_1,length=512,depth=50").length
      512
      >>> parse("code,depths=(0,1)").depths
      (0, 1)
    """
    name, *settings = re.split(r",(?=\s*\w+\s*=)", text)
    if name not in _KINDS:
        raise ValueError(f"--questions takes one of {', '.join(_KINDS)}, then its settings; got {text!r}")
    fields = {field.strip(): value for field, _, value in (setting.partition("=") for setting in settings)}
    try:
        source = configs.override(_KINDS[name](), fields)
        configs.validate(source)
    except ValueError as error:
        raise ValueError(f"--questions={text}: {error}") from error
    return source
