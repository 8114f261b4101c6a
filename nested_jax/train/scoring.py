"""What the end of a run is asked for: zero-shot benchmarks and questions, each kept as soon as it is known.

A run that is killed while it is scored goes on with the next benchmark, and a finished one that is asked for more is
scored on that alone.
"""

import functools
import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn

from nested_jax import description
from nested_jax.data.tokenizers import Tokenizer
from nested_jax.evals.generation import Generator
from nested_jax.evals.likelihood import Likelihood
from nested_jax.evals.questions import CHUNK, QuestionsConfig, score
from nested_jax.evals.sampling import Sampling
from nested_jax.evals.zero_shot import TEMPLATES, columns, table_columns, zero_shot
from nested_jax.train.experiment import Experiment
from nested_jax.train.multiprocess import first

FILE = "scores.json"
_ZERO_SHOT = "zero_shot/"


def benchmarks(experiment: Experiment) -> dict[str, str]:
    """What an experiment asks for: name → hash of all that the score depends on beside the parameters."""
    found = {}
    if experiment.zero_shot is not None:
        found = {f"{_ZERO_SHOT}{task}": experiment.zero_shot for task in TEMPLATES}
    questions = experiment.questions
    for name, source in questions.sources.items():
        found[name] = description.digest(QuestionsConfig(asked=((name, source),), count=questions.count))
    return found


def missing(experiment: Experiment, workdir: pathlib.Path) -> list[str]:
    """The benchmarks whose scores a run's directory does not hold."""
    return _missing(benchmarks(experiment), _read(workdir))


def run(
    experiment: Experiment,
    model: nn.Module,
    tokenizer: Tokenizer,
    params: Any,
    workdir: pathlib.Path,
    say: Callable[[str], None],
    stopped: Callable[[], bool],
) -> dict[str, float] | None:
    """Scores a model on what is missing.

    Args:
      experiment: says what is asked for.
      model: whose parameters they are.
      tokenizer: of its text.
      params: trained parameters.
      workdir: of the run, where scores are kept.
      say: takes a line for each benchmark.
      stopped: whether to leave the rest for another time.

    Returns:
      All scores that the directory holds then, the mean of the papers' eight accuracies if all are there, and that of
      the questions if there are several; None if stopped.
    """
    asked, kept = benchmarks(experiment), _read(workdir)
    left, questions = _missing(asked, kept), experiment.questions

    @functools.cache
    def likelihood() -> Likelihood:
        return Likelihood(model, params, tokenizer)

    @functools.cache
    def generator() -> Generator:
        return Generator(model, params, Sampling(0), alphabet=tokenizer.vocab_size, chunk=CHUNK)

    for number, name in enumerate(left, 1):
        if stopped():
            return None
        if name.startswith(_ZERO_SHOT):
            assert experiment.zero_shot is not None
            found = _columns(zero_shot(likelihood(), experiment.zero_shot, [name.removeprefix(_ZERO_SHOT)]))
        else:
            answers = score(generator(), tokenizer, [(name, questions.sources[name])], questions.count)
            found = {name: answers[0].percent}
        kept[name] = {"asked": asked[name], "metrics": found}
        _keep(workdir, kept)
        shown = ", ".join(f"{metric} {value:.2f}" for metric, value in found.items())
        say(f"asked   {shown}; {number} of {len(left)}")
    return _with_means(experiment, kept)


def _missing(asked: Mapping[str, str], kept: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [name for name, told in asked.items() if kept.get(name, {}).get("asked") != told]


def _with_means(experiment: Experiment, kept: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for one in kept.values():
        found |= one["metrics"]
    accuracies = [found.get(name, math.nan) for name in table_columns() if "/acc" in name]
    if not any(map(math.isnan, accuracies)):
        found["average"] = math.fsum(accuracies) / len(accuracies)
    answered = [found[name] for name, _ in experiment.questions.asked]
    if len(answered) > 1:
        found["questions/average"] = math.fsum(answered) / len(answered)
    return found


def _columns(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """What the papers' tables print of benchmarks; accuracies in percent."""
    found = columns(scores)
    return {name: found[heading] for name, heading in table_columns().items() if heading in found}


def _read(workdir: pathlib.Path) -> dict[str, dict[str, Any]]:
    try:
        return json.loads((workdir / FILE).read_text())
    except FileNotFoundError:
        return {}


def _keep(workdir: pathlib.Path, kept: Mapping[str, Mapping[str, Any]]) -> None:
    if first():
        temporary = workdir / f"{FILE}.tmp"
        temporary.write_text(json.dumps(kept, indent=1))
        temporary.replace(workdir / FILE)
