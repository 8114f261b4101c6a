"""A language model as EleutherAI's lm-evaluation-harness wants it, and its tasks over local files; the extra `lm-eval`.

model = HarnessModel(Likelihood(model, params, tokenizer))
lm_eval.simple_evaluate(model=model, tasks=local_tasks(directory), bootstrap_iters=0)
"""

import importlib.util
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nested_jax.evals.generation import Generator
from nested_jax.evals.likelihood import Likelihood, context_limit
from nested_jax.evals.question_answering import write
from nested_jax.evals.sampling import Sampling
from nested_jax.evals.zero_shot import TEMPLATES, layout

if importlib.util.find_spec("lm_eval"):
    from lm_eval.api.model import LM  # pyrefly: ignore[missing-import]
else:
    LM: Any = object

HARNESS_NAMES: Mapping[str, str] = {
    **{task: task for task in TEMPLATES},
    "lambada": "lambada_openai",
    "siqa": "social_iqa",
}


def local_tasks(directory: str | pathlib.Path, tasks: Sequence[str] = tuple(TEMPLATES)) -> list[dict[str, Any]]:
    """The harness's own tasks, reading the files of `zero_shot` instead of the Hugging Face hub.

    Args:
      directory: holds `TASK.jsonl` for every task, see `nested_jax.evals.zero_shot.layout`.
      tasks: names among `TEMPLATES`.

    Returns:
      A list of one group, for `lm_eval.simple_evaluate(tasks=...)`; inside a group the harness takes a task's templates
      and metrics from its registry and only what is given here from the dict.

    Raises:
      ValueError: if a task is unknown or its file is missing.

    Example:
      >>> import tempfile
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> _ = (folder / "siqa.jsonl").write_text("{}")
      >>> ((task,),) = (group["task"] for group in local_tasks(folder, ["siqa"]))
      >>> task["task"], task["dataset_path"], *task["dataset_kwargs"]["data_files"]
      ('social_iqa', 'json', 'validation')
    """
    found = []
    for name in tasks:
        if name not in TEMPLATES:
            raise ValueError(f"tasks: expected names among {list(TEMPLATES)}, got {name!r}")
        path = pathlib.Path(directory).expanduser() / f"{name}.jsonl"
        if not path.is_file():
            raise ValueError(f"directory: no {path.name} in {path.parent}. {layout([name])}")
        split = TEMPLATES[name].source[2]
        splits = {f"{other}_split": other if other == split else None for other in ("training", "validation", "test")}
        files = {"data_files": {split: str(path)}}
        found.append(
            {
                "task": HARNESS_NAMES[name],
                "dataset_path": "json",
                "dataset_name": None,
                "dataset_kwargs": files,
                **splits,
            }
        )
    return [{"group": "local_files", "task": found}]


class HarnessModel(LM):
    """A model for `lm_eval.simple_evaluate(model=...)`: log-likelihoods by a `Likelihood`, text by a `Generator`.

    Needs no network where the tasks need none, see `local_tasks`. Text is written greedily; a task that asks for
    sampling is refused. Where attention has no window, contexts lose their beginning so that what is written fits.

    Args:
      likelihood: the model, its parameters and its tokenizer.
      generator: of the same model, with a temperature of 0; None for one of the tokenizer's tokens.
      batch_size: prompts that are continued at once.

    Raises:
      ImportError: if lm-evaluation-harness is not installed.

    References:
      EleutherAI/lm-evaluation-harness 0.4.13, `lm_eval.api.model.LM`.
    """

    def __init__(self, likelihood: Likelihood, generator: Generator | None = None, *, batch_size: int = 16):
        if LM is object:
            raise ImportError('HarnessModel needs: pip install "nested_jax[lm-eval]"')
        super().__init__()
        self.likelihood = likelihood
        self.generator = generator or Generator(
            likelihood.model, likelihood.params, Sampling(temperature=0), alphabet=likelihood.tokenizer.vocab_size
        )
        self.batch_size = batch_size

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's caches."""
        return self.likelihood.tokenizer.name

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """The harness's requests of a context and a continuation, see `Likelihood.loglikelihood`."""
        return self.likelihood.loglikelihood([request.args[:2] for request in requests])

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """The harness's requests of a whole text, see `Likelihood.rolling`."""
        return self.likelihood.rolling([request.args[0] for request in requests])

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The harness's requests of a context and of how it is continued.

        `until` (a text or several, none by default) ends the output and is left out of it, `max_gen_toks` (256 by
        default, as in the harness) bounds its tokens; `do_sample` and `temperature` must ask for the likeliest text.
        """
        outputs = [""] * len(requests)
        groups: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(_options(request.args[1]), []).append(number)
        for (length, stop), numbers in groups.items():
            prompts = [self._prompt(requests[number].args[0], length) for number in numbers]
            written = write(
                self.generator, self.likelihood.tokenizer, prompts, length, stop=stop, batch_size=self.batch_size
            )
            for number, text in zip(numbers, written, strict=True):
                outputs[number] = text
        return outputs

    def _prompt(self, context: str, length: int) -> np.ndarray:
        """Its tokens, as many of the last as leave room for what is written."""
        tokens = self.likelihood.tokenizer.encode(context)
        tokens = tokens if len(tokens) else np.array([self.likelihood.prefix], np.int32)
        limit = context_limit(self.likelihood.model.config)
        if limit is None:
            return tokens
        if length >= limit:
            raise ValueError(f"max_gen_toks: expected fewer than the model's context of {limit} tokens, got {length}")
        return tokens[-(limit - length) :]


def _options(options: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
    """Length and stops."""
    known = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p"}
    if not known.issuperset(options):
        raise ValueError(f"generation_kwargs: expected some of {sorted(known)}, got {sorted(set(options) - known)}")
    if options.get("do_sample", False) and options.get("temperature", 1.0) > 0:
        raise ValueError(f"generation_kwargs: expected greedy generation, got {dict(options)}")
    until = options.get("until") or ()
    return options.get("max_gen_toks", 256), (until,) if isinstance(until, str) else tuple(until)
