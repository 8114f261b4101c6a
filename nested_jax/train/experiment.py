"""What one training run is: model, data, optimizer, mesh and how often things happen, as a typed config."""

import re
from dataclasses import dataclass, field

from nested_jax.data import FastaConfig, SeriesConfig, TaskConfig, TextConfig
from nested_jax.data.dna import BASES
from nested_jax.data.text import check_path
from nested_jax.evals.questions import QuestionsConfig
from nested_jax.evals.sampling import Sampling
from nested_jax.evals.zero_shot import table_columns
from nested_jax.models import AutoEncoderConfig, ForecasterConfig, ModelConfig
from nested_jax.train.metrics import NAMES as WRITERS
from nested_jax.train.optimizer import OptimizerConfig
from nested_jax.train.sharding import MeshConfig


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """The text a finished run shows.

    Attributes:
      prompt: where it begins, at least one byte of UTF-8.
      length: bytes generated after the prompt, ≥ 0.
      temperature: of the softmax, ≥ 0; 0 takes the likeliest byte.
      top_k: draw among so many likeliest bytes; None for all.
      top_p: then among the fewest that have this probability together; None for all.
    """

    prompt: str = "def "
    length: int = 300
    temperature: float = 0.7
    top_k: int | None = None
    top_p: float | None = None

    @property
    def sampling(self) -> Sampling:
        """How bytes are drawn."""
        return Sampling(self.temperature, self.top_k, self.top_p)

    def validate(self) -> None:
        """Raises a `ValueError` that names the first field out of range."""
        if not self.prompt:
            raise ValueError("prompt must hold at least one character; got an empty one")
        if self.length < 0:
            raise ValueError(f"length is a number of bytes, at least 0; got {self.length}")
        _ = self.sampling


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A training run.

    Attributes:
      model: the language model; over bytes, `vocab_size` is 256, of a task as many as its symbols. Of a series it is a
        `ForecasterConfig`.
      data: the text and how it is cut into batches, or a task, or a series of numbers.
      optimizer: what trains the parameters.
      steps: updates in all, ≥ 1.
      microbatches: parts into which a batch's rows are split, ≥ 1, read one after the other for each update: memory for
        one part's activations, the same gradient.
      seed: of the initial parameters and the sample; the order of the data has its own, `data.seed`.
      parameters_from: directory of another run, whose newest parameters this one begins with; None begins anew. The
        models may differ in all that is no parameter: chunks, rules, windows, how gates are scaled.
      mesh: devices.
      log_every: steps between progress lines; the loss of every step is recorded all the same.
      eval_every: steps between evaluations on the validation text or set; 0 evaluates at the end only.
      eval_windows: windows of `data.sequence_length` bytes in such an evaluation.
      final_bytes: validation bytes that the last evaluation, and the count models beside it, are measured on; None
        takes all.
      checkpoint_every: steps between checkpoints; there is one at step 0 and one at the end, too.
      keep: latest checkpoints that are kept, ≥ 1.
      zero_shot: folder of benchmarks in JSON lines that the trained model is scored on, see
        `nested_jax.evals.zero_shot`; None for none.
      questions: of a text, what the trained model is asked, to be answered in words.
      writers: where metrics go besides metrics.jsonl: any of "tensorboard" and "wandb".
      sample: the text shown at the end.
    """

    model: ModelConfig
    data: TextConfig | TaskConfig | SeriesConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    steps: int
    microbatches: int = 1
    seed: int = 0
    parameters_from: str | None = None
    mesh: MeshConfig = field(default_factory=MeshConfig)
    log_every: int = 10
    eval_every: int = 100
    eval_windows: int = 32
    final_bytes: int | None = None
    checkpoint_every: int = 100
    keep: int = 3
    zero_shot: str | None = None
    questions: QuestionsConfig = field(default_factory=QuestionsConfig)
    writers: tuple[str, ...] = ()
    sample: SampleConfig = field(default_factory=SampleConfig)

    @property
    def asked(self) -> tuple[str, ...]:
        """Metrics that the end of a run has because `zero_shot` or `questions` ask for them."""
        columns = () if self.zero_shot is None else table_columns()
        return (*columns, *(name for name, _ in self.questions.asked))

    def validate(self) -> None:
        """Raises a `ValueError` that names the first field out of range."""
        for name in ("steps", "microbatches", "log_every", "eval_windows", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        check_path("parameters_from", self.parameters_from)
        if self.eval_every < 0:
            raise ValueError(f"eval_every must be at least 0; got {self.eval_every}")
        if isinstance(self.data, SeriesConfig) != isinstance(self.model, ForecasterConfig):
            raise ValueError(
                "model must be a ForecasterConfig where data is a SeriesConfig, and only there; got "
                f"{type(self.model).__name__} and {type(self.data).__name__}"
            )
        if isinstance(self.model, AutoEncoderConfig) and not isinstance(self.data, TaskConfig):
            raise ValueError("model must be no AutoEncoderConfig unless data is a TaskConfig: it reads what it tells")
        if self.asked and not isinstance(self.data, TextConfig):
            raise ValueError(
                "zero_shot and questions.asked are for a TextConfig alone, other data have tests of their own; "
                f"got {self.zero_shot!r} and {[name for name, _ in self.questions.asked]} with a "
                f"{type(self.data).__name__}"
            )
        if isinstance(self.data, SeriesConfig):
            symbols, what = 0, "–"
        elif isinstance(self.data, TaskConfig):
            symbols, what = self.data.task.vocab_size, "symbol of the task"
        else:
            symbols, what = (256, "byte") if self.data.tokenizer is None else (1, "token")
            if isinstance(self.data, FastaConfig):
                symbols, what = len(BASES), "base"
            if self.final_bytes is not None and self.final_bytes <= self.data.sequence_length:
                raise ValueError(f"final_bytes must be above data.sequence_length, or None; got {self.final_bytes}")
        if self.model.vocab_size < symbols:
            raise ValueError(
                f"model.vocab_size must be at least {symbols}, one per {what}; got {self.model.vocab_size}"
            )
        rows = self.mesh.data * self.mesh.fsdp * self.microbatches
        if self.data.batch_size % rows:
            raise ValueError(
                f"data.batch_size must be a multiple of mesh.data · mesh.fsdp · microbatches = {rows}; "
                f"got {self.data.batch_size}"
            )
        for group in self.optimizer.groups if self.model.stacked else ():
            if any(int(number) >= self.model.pattern for number in re.findall(r"blocks_(\d+)", group.parameters)):
                raise ValueError(
                    f"optimizer.groups: the stacked model has {self.model.pattern} blocks, which stand for all layers; "
                    f"got {group.parameters!r}"
                )
        unknown = [name for name in self.writers if name not in WRITERS]
        if unknown:
            raise ValueError(f"writers takes any of {', '.join(WRITERS)}; got {unknown[0]!r}")


FREE = (
    "mesh",
    "microbatches",
    "log_every",
    "eval_every",
    "eval_windows",
    "final_bytes",
    "checkpoint_every",
    "keep",
    "zero_shot",
    "questions",
    "writers",
    "sample",
    "data.cache",
)
"""Fields of an `Experiment` that may change when a run is continued: none of them enters the sequence of updates.

(Another mesh, or another number of microbatches, adds the same numbers in another order, so losses then agree to
rounding, not to the bit.)
"""
