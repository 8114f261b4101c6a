"""Runs on a task: the loss is of the trained places, the scores are those of the tests, a run goes on as it was."""

import dataclasses
import json
import math
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from nested_jax.data import FastaConfig, TaskConfig, TextConfig, example_batches, examples, load_text
from nested_jax.data.niah import single_1
from nested_jax.data.packing import PackedRows, join
from nested_jax.data.recall_sets import RecallSet
from nested_jax.evals import zero_shot
from nested_jax.evals.bits_per_byte import nats
from nested_jax.evals.questions import QuestionsConfig
from nested_jax.models import AutoEncoderConfig, MemoryConfig, ModelConfig, build
from nested_jax.models.language_model import at
from nested_jax.train import scoring
from nested_jax.train.experiment import Experiment, SampleConfig
from nested_jax.train.loop import train
from nested_jax.train.metrics import read
from nested_jax.train.optimizer import OptimizerConfig
from nested_jax.train.problems import open_problem
from nested_jax.train.step import loss


@dataclasses.dataclass(frozen=True)
class Previous:
    """The symbol before is the answer; the first place is not asked for, and padding is behind the last."""

    vocab_size: int = 5
    train_examples: int = 50

    def train(self, seed):
        return self._draw(seed, self.train_examples, 6)

    def tests(self):
        return {"validation": self._draw(1000, 7, 6), "longer": self._draw(1001, 5, 11)}

    def _draw(self, seed, count, length):
        drawn = np.random.default_rng(seed).integers(0, self.vocab_size, (count, length))
        asked = np.arange(length) > 0
        asked = asked & (np.arange(length) < length - 1)
        return examples(drawn, np.roll(drawn, 1, axis=1), np.tile(asked, (count, 1)))


class Shifted(nn.Module):
    """Has the calls of `LanguageModel`; answers with a learned map of the symbol before."""

    @nn.compact
    def __call__(self, tokens, state=None, reset=None, places=None):
        before = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)))
        return at(nn.Embed(5, 5)(before), places), state


TASK = TaskConfig(task=Previous(), batch_size=8)


@pytest.fixture
def experiment():
    return Experiment(
        model=ModelConfig(vocab_size=5, dim=8, layers=1),
        data=TASK,
        optimizer=OptimizerConfig(learning_rate=0.1, warmup=2),
        steps=40,
        log_every=10,
        eval_every=20,
        checkpoint_every=15,
    )


def test_only_trained_places_count():
    model = Shifted()
    batch = next(example_batches(TASK.examples(), TASK, backend="numpy"))
    params = model.init(jax.random.key(0), batch["inputs"])["params"]
    each = nats(model.apply({"params": params}, batch["inputs"])[0], batch["targets"])
    np.testing.assert_allclose(loss(model, params, batch), np.asarray(each)[:, 1:-1].mean(), rtol=1e-6)
    padded = dict(batch)
    padded["targets"] = np.where(batch["trained"], batch["targets"], 4)
    np.testing.assert_allclose(loss(model, params, padded), loss(model, params, batch))


@pytest.mark.parametrize("config", [ModelConfig, pytest.param(AutoEncoderConfig, marks=pytest.mark.slow)])
def test_logits_are_made_of_the_places_that_count(config, x64):
    model = build(config(vocab_size=97, dim=8, layers=1, dtype="float64"))
    inputs = np.random.default_rng(0).integers(0, 97, (3, 12))
    trained = np.zeros((3, 12), bool)
    trained[0, [2, 11]] = trained[1, 7] = True
    batch = {"inputs": inputs, "targets": np.roll(inputs, -1, 1), "trained": trained}
    params = jax.tree.map(np.float64, jax.jit(model.init)(jax.random.key(0), inputs)["params"])

    def of(answers):
        return jax.value_and_grad(lambda params: loss(model, params, batch, answers=answers))

    few, every = (jax.jit(of(answers))(params) for answers in (2, None))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), few, every)
    assert "3,12,97" in str(jax.make_jaxpr(of(None))(params))
    assert "3,12,97" not in str(jax.make_jaxpr(of(2))(params))


def test_padding_is_a_document_of_its_own():
    """A memory that overflows behind the end of a sequence leaves the gradient of what counts as it is."""
    memory = MemoryConfig(heads=1, max_learning_rate=40.0, conv=0)
    model = build(ModelConfig(vocab_size=5, dim=16, layers=1, memory=memory))
    draw, length, chunk = np.random.default_rng(0), 800, model.config.chunk_size
    inputs = np.concatenate([draw.integers(0, 5, (4, chunk)), np.zeros((4, length - chunk), int)], axis=1)
    found = examples(inputs, np.roll(inputs, 1, 1), np.tile(np.arange(length) < chunk, (4, 1)))
    data = TaskConfig(task=Previous(), batch_size=4)
    bare, given = (next(example_batches(found, data, chunk_size=size)) for size in (None, chunk))
    short = {name: part[:, :chunk] for name, part in bare.items()}
    params = jax.jit(model.init)(jax.random.key(0), inputs[:, :1])["params"]
    gradient = jax.jit(jax.grad(lambda params, batch: loss(model, params, batch)))
    assert not all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient(params, bare)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        gradient(params, given),
        gradient(params, short),
    )
    assert "reset" not in next(example_batches(found, data, chunk_size=length))


def test_padding_behind_packed_documents_is_a_document_of_its_own():
    """The last row of a corpus may be padding but for a few tokens."""
    model = build(
        ModelConfig(vocab_size=5, dim=16, layers=1, memory=MemoryConfig(heads=1, max_learning_rate=4.0, conv=0))
    )
    chunk = model.config.chunk_size
    document = np.random.default_rng(0).integers(0, 5, chunk)
    row, short = (PackedRows(*join([document], None, np.uint8), size, chunk).take([0]) for size in (800, chunk))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    gradient = jax.jit(jax.grad(lambda params, batch: loss(model, params, batch)))
    bare = {name: part for name, part in row.items() if name != "reset"}
    assert not all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient(params, bare)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        gradient(params, row),
        gradient(params, short),
    )


def test_places_are_checked():
    model = build(ModelConfig(dim=8, layers=1))
    with pytest.raises(ValueError, match=r"places must be integers \[B, K\] with B = 2, got float32 of shape \(2, 1\)"):
        model.init(jax.random.key(0), jnp.zeros((2, 4), jnp.int32), None, None, jnp.zeros((2, 1)))


def test_batches_of_examples_are_every_example_once_an_epoch():
    data = dataclasses.replace(TASK, task=Previous(train_examples=16))
    found = data.examples()
    for backend in ("numpy", "grain"):
        stream = example_batches(found, data, backend=backend)
        rows = np.concatenate([next(stream)["inputs"] for _ in range(4)])
        for epoch in (rows[:16], rows[16:]):
            assert sorted(map(bytes, epoch)) == sorted(map(bytes, found.inputs))
        assert not np.array_equal(rows[:16], rows[16:])
    halves = [example_batches(found, data, process_index=index, process_count=2) for index in range(2)]
    np.testing.assert_array_equal(np.concatenate([next(half)["inputs"] for half in halves]), rows[:8])
    state = stream.get_state()
    expected = next(stream)["inputs"]
    again = example_batches(found, data)
    again.set_state(state)
    np.testing.assert_array_equal(next(again)["inputs"], expected)
    other = example_batches(found, dataclasses.replace(data, seed=1))
    with pytest.raises(ValueError, match="its seed is 0, this iterator's is 1"):
        other.set_state(state)


def test_a_task_is_learned_scored_and_reported(experiment, tmp_path):
    lines = []
    report = train(experiment, tmp_path, model=Shifted(), say=lines.append)
    assert report.metrics["validation/sequence"] == report.metrics["longer/token"] == 1.0
    assert report.tokens == 8 * 6
    records = read(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records if "validation_sequence" in record] == [20, 40]
    assert "bits_per_byte" not in records[0]
    assert any(
        line.startswith("data    Previous: 50 examples of 6 symbols; tests: validation (7 of 6)") for line in lines
    )
    assert any("validation sequence 1.000" in line for line in lines)
    assert "longer/macro" in lines[-1]
    assert (tmp_path / "training.png").exists()


def test_a_task_goes_on_to_the_same_bits(experiment, tmp_path):
    whole = train(experiment, tmp_path / "whole", model=Shifted(), say=lambda _: None)

    def crash(line):
        if line.startswith("step 30"):
            raise RuntimeError("lost power")

    with pytest.raises(RuntimeError, match="lost power"):
        train(experiment, tmp_path / "parts", model=Shifted(), say=crash)
    lines = []
    parts = train(experiment, tmp_path / "parts", model=Shifted(), say=lines.append)
    assert "continuing from step 15 of 40" in lines
    assert parts == whole
    one, other = ([r["loss"] for r in read(tmp_path / name / "metrics.jsonl")] for name in ("whole", "parts"))
    assert one == other


def test_a_model_of_too_few_symbols_is_named(experiment):
    small = dataclasses.replace(experiment, model=ModelConfig(vocab_size=4, dim=8, layers=1))
    with pytest.raises(ValueError, match=r"model\.vocab_size must be at least 5, one per symbol of the task; got 4"):
        small.validate()


class Follows(nn.Module):
    """Has the calls of `LanguageModel`; answers with a learned map of the symbol itself."""

    config = SimpleNamespace(chunk_size=4, vocab_size=256, dtype="float32", kinds=())

    def setup(self):
        self.table = nn.Embed(256, 256)

    def __call__(self, tokens, state=None, reset=None):
        if reset is not None:
            assert reset.shape == (len(tokens), -(-tokens.shape[1] // 4))
        return self.table(tokens), jnp.zeros(len(tokens))

    def start(self, batch_size):
        return jnp.zeros(batch_size)

    def step(self, tokens, state, learn=True):
        return self.table(tokens), state


def text_experiment(tmp_path, **data):
    texts = [f"{'ab' * (n % 7 + 2)}" for n in range(400)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    fields = {"path": str(tmp_path / "texts.jsonl"), "cache": str(tmp_path / "cache"), "packed": True} | data
    return Experiment(
        model=ModelConfig(dim=8, layers=1),
        data=TextConfig(sequence_length=24, batch_size=4, **fields),
        optimizer=OptimizerConfig(learning_rate=1.0, warmup=2),
        steps=30,
        log_every=10,
        eval_every=15,
        sample=SampleConfig(prompt="a", length=4, temperature=0.0),
    )


def test_packed_documents_are_learned_and_nothing_between_them(tmp_path):
    """Within a document every letter says the next one: the loss goes to zero, as no prediction crosses documents."""
    lines = []
    report = train(text_experiment(tmp_path), tmp_path / "run", model=Follows(), say=lines.append)
    assert report.metrics["bits_per_byte"] < 0.05
    assert report.sample == "ababa"
    assert any("% padding" in line for line in lines)
    problem = open_problem(text_experiment(tmp_path), Follows(), lines.append)
    begins = load_text(text_experiment(tmp_path).data).validation_begins
    count = int(report.scored.split()[0].replace(",", ""))
    assert count == int(np.diff(begins).sum()) - (len(begins) - 1)
    assert set(next(problem.batches)) == {"tokens", "reset", "trained"}


def test_zero_shot_columns_end_a_run_and_missing_files_are_named_before_it(tmp_path, monkeypatch):
    experiment = dataclasses.replace(text_experiment(tmp_path), zero_shot=str(tmp_path))
    with pytest.raises(ValueError, match=r"directory: no wikitext\.jsonl, lambada\.jsonl, .*boolq\.jsonl in"):
        train(experiment, tmp_path / "run", model=Follows(), say=lambda _: None)
    for task in zero_shot.TEMPLATES:
        (tmp_path / f"{task}.jsonl").touch()
    found = {task: dict.fromkeys(template.columns.values(), 0.25) for task, template in zero_shot.TEMPLATES.items()}
    asked = []

    def score(likelihood, folder, tasks):
        asked.extend(tasks)
        if asked == ["wikitext", "lambada", "piqa"]:
            signal.raise_signal(signal.SIGTERM)
        return {task: found[task] for task in tasks}

    monkeypatch.setattr(scoring, "Likelihood", lambda *_: None)
    monkeypatch.setattr(scoring, "zero_shot", score)
    assert train(experiment, tmp_path / "run", model=Follows(), say=lambda _: None) is None
    report = train(experiment, tmp_path / "run", model=Follows(), say=lambda _: None)
    assert asked == [*zero_shot.TEMPLATES]
    assert list(report.metrics) == ["bits_per_byte", *zero_shot.table_columns()]
    assert report.metrics["piqa/acc"] == report.metrics["average"] == 25
    assert report.metrics["lambada/perplexity"] == 0.25


def test_questions_end_a_run_and_what_they_miss_is_said_before_it(tmp_path):
    """After a space the model writes "ab ab", which answers one of two rows and no needle."""
    (tmp_path / "ab.txt").write_text("ab " * 2000)
    experiment = text_experiment(tmp_path, path=str(tmp_path / "ab.txt"), packed=False)
    asked = (("swde", RecallSet(name="swde")), ("pk/512", single_1(length=512, answer_budget=9)))
    experiment = dataclasses.replace(experiment, questions=QuestionsConfig(asked=asked, count=3))
    unread = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, path="nowhere"))
    with pytest.raises(
        ValueError, match=r"questions\.asked, swde: path: .*with swde\.jsonl.*got None.*questions\.path"
    ):
        train(unread, tmp_path / "run", model=Follows(), say=lambda _: None)
    answers = [{"text": "Two letters:", "value": "B A"}, {"text": "Two others:", "value": "cd"}]
    (tmp_path / "swde.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    placed = dataclasses.replace(experiment.questions, path=str(tmp_path))
    experiment, lines = dataclasses.replace(experiment, questions=placed), []
    report = train(experiment, tmp_path / "run", model=Follows(), say=lines.append)
    assert "asked   swde 50.00; 1 of 2" in lines
    assert list(report.metrics) == ["bits_per_byte", "swde", "pk/512", "questions/average"]
    assert list(report.metrics.values())[1:] == [50, 0, 25]


def test_a_finished_run_that_is_asked_more_is_scored_on_that_and_not_trained_again(tmp_path):
    (tmp_path / "ab.txt").write_text("ab " * 2000)
    experiment = text_experiment(tmp_path, path=str(tmp_path / "ab.txt"), packed=False)
    before = train(experiment, tmp_path / "run", model=Follows(), say=lambda _: None)
    for name, answers in {"fda": ("AB A", "cd"), "swde": ("b a",)}.items():
        rows = [{"text": "Two letters:", "value": answer} for answer in answers]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def asked(*names, count=None):
        sets = tuple((name, RecallSet(name=name)) for name in names)
        questions = QuestionsConfig(asked=sets, count=count, path=str(tmp_path))
        lines, given = [], dataclasses.replace(experiment, questions=questions)
        report = train(given, tmp_path / "run", model=Follows(), say=lines.append)
        return {name: report.metrics[name] for name in report.metrics.keys() - before.metrics.keys()}, lines

    found, lines = asked("fda", count=1)
    assert found == {"fda": 100}
    assert f"{tmp_path / 'run'} is finished, but lacks scores as they are asked for now: fda" in lines
    found, lines = asked("swde", count=1)
    assert found == {"fda": 100, "swde": 100}
    assert [line for line in lines if line.startswith("asked")] == ["asked   swde 100.00; 1 of 1"]
    assert asked("fda", "swde", count=1)[1][0].endswith("For a new run give another --workdir.")
    assert asked("fda", "swde")[0] == {"fda": 50, "swde": 100, "questions/average": 75}
    assert len(read(tmp_path / "run" / "metrics.jsonl")) == experiment.steps


def test_only_models_of_text_are_asked(tmp_path):
    task = TaskConfig(task=Previous(vocab_size=256), batch_size=4)
    questions = QuestionsConfig(asked=(("pk", single_1()),))
    with pytest.raises(ValueError, match=r"are for a TextConfig alone.*got None and \['pk'\] with a TaskConfig"):
        dataclasses.replace(text_experiment(tmp_path), data=task, questions=questions).validate()


def test_a_prompt_that_cannot_be_spelled_is_named_before_training(tmp_path):
    (tmp_path / "a.fa").write_text(">a\n" + "ACGTTGCA" * 400 + "\n")
    data = FastaConfig(path=str(tmp_path / "a.fa"), sequence_length=16, batch_size=2)
    sample = SampleConfig(prompt="def ", length=4)
    experiment = dataclasses.replace(text_experiment(tmp_path), data=data, sample=sample)
    with pytest.raises(ValueError, match=r"sample\.prompt: .*got b'e'"):
        train(experiment, tmp_path / "run", model=Follows(), say=lambda _: None)


def test_an_autoencoder_learns_tasks_alone(tmp_path):
    model = AutoEncoderConfig(dim=8, layers=1)
    with pytest.raises(ValueError, match="model must be no AutoEncoderConfig unless data is a TaskConfig"):
        dataclasses.replace(text_experiment(tmp_path), model=model).validate()


def test_bits_are_per_byte_whatever_a_token_is(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="needs nested_jax[tokenizers]; CI installs it")
    words = tokenizers.models.WordLevel({"ab": 0, "<|endoftext|>": 1, "[UNK]": 2}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("ab", "isolated")
    tokenizer.decoder = tokenizers.decoders.Fuse()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    experiment = text_experiment(tmp_path, packed=False, tokenizer=str(tmp_path / "tokenizer.json"))
    problem = open_problem(experiment, Follows(), lambda _: None)
    text = load_text(experiment.data)
    assert 1 < text.bytes_per_token < 2
    assert problem.units(math.log(2) * text.bytes_per_token)["bits_per_byte"] == pytest.approx(1.0)
    report = train(experiment, tmp_path / "run", model=Follows(), say=lambda _: None)
    assert not report.baselines
    assert report.sample.startswith("aab")
