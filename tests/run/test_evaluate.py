"""`eval` and `generate` end to end, with models that know what they say: scores are what they must be."""

import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from nested_jax.data import FastaConfig, TaskConfig, TextConfig
from nested_jax.data.dependencies import Programs
from nested_jax.data.niah import single_1
from nested_jax.data.question_task import QuestionTask, draw
from nested_jax.data.recall_sets import RecallSet
from nested_jax.data.tokenizers import Bytes, load
from nested_jax.evals.questions import SEED
from nested_jax.models import ModelConfig
from nested_jax.run import commands, evaluate
from nested_jax.run.commands import _Spelling, stops
from nested_jax.run.main import main
from nested_jax.run.questions import parse
from nested_jax.train.experiment import Experiment, SampleConfig

SURE = math.log(255)  # what it knows has probability 1/2, every other byte 1/510


@pytest.fixture(autouse=True, scope="module")
def compile_quickly():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


class Knows(nn.Module):
    """Says the byte that follows all that was read, where it knows it, else a line break; texts are told by a hash."""

    config: ModelConfig

    def start(self, rows):
        return jnp.zeros(rows, jnp.uint32)

    def __call__(self, tokens, state=None, reset=None):
        state = self.start(len(tokens)) if state is None else state
        state, states = jax.lax.scan(lambda h, token: (_hash(h, token),) * 2, state, tokens.T)
        return self._logits(states.T), state

    def step(self, tokens, state, learn=True):
        state = _hash(state, tokens)
        return self._logits(state), state

    def _logits(self, states):
        known, following = (self.scope.variables()["params"][name] for name in ("known", "following"))
        match = jnp.expand_dims(states, -1) == jnp.broadcast_to(known, (*states.shape, len(known)))
        said = jnp.where(match.any(-1), following[jnp.argmax(match, axis=-1)], ord("\n"))
        return SURE * jax.nn.one_hot(said, self.config.vocab_size)


def _hash(state, token):
    return state * jnp.uint32(1_000_003) + token.astype(jnp.uint32) + jnp.uint32(1)


def memorised(pairs):
    """Parameters of a model that goes on with the second text after the first."""
    known, following = [], []
    for prompt, answer in pairs:
        state, tokens = 0, (prompt + answer).encode()
        for place, token in enumerate(tokens):
            if place >= len(prompt.encode()):
                known.append(state)
                following.append(token)
            state = (state * 1_000_003 + token + 1) % 2**32
    return {"known": np.array(known, np.uint32), "following": np.array(following, np.int32)}


class Uniform(nn.Module):
    """Every token is as likely as another."""

    config: ModelConfig

    def start(self, rows):
        return jnp.zeros(rows)

    def __call__(self, tokens, state=None, reset=None):
        return jnp.zeros((*tokens.shape, self.config.vocab_size)), self.start(len(tokens))


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Runs a command line on an experiment and a model in place of a run's; returns what it prints."""

    def run(name, experiment, model, params, *options):
        class Trained:
            def __init__(self, experiment, workdir):
                self.experiment, self.model, self.checkpoints = experiment, model, self

            def path(self, step):
                return f"checkpoints/{step}"

            def restore_params(self):
                return 7, params

        file = tmp_path / "experiment.py"
        file.write_text("def get_config(arg=''):\n    return EXPERIMENT\n")
        monkeypatch.setattr("nested_jax.config.load", lambda spec, overrides: experiment)
        for module in (evaluate, commands):
            monkeypatch.setattr(module, "Run", Trained)
        code = main([name, str(file), *options])
        printed = capsys.readouterr()
        return printed.out if code == 0 else printed.err

    return run


def text(**data):
    fields = {"sequence_length": 16, "batch_size": 2} | data
    return Experiment(model=ModelConfig(blocks=("lstm",)), data=TextConfig(**fields), steps=9)


def knows(pairs):
    return Knows(ModelConfig(blocks=("lstm",))), memorised(pairs)


def rows(printed):
    """Cells of the table at the end."""
    lines = printed.splitlines()
    (rule,) = (number for number, line in enumerate(lines) if line.startswith("---"))
    return [re.split(r" {2,}", line.strip()) for line in lines[rule + 1 :]]


def test_questions_are_answered_and_scored(command):
    spec, source = "programs,depth=1,distractors=3", Programs(depth=1, distractors=3)
    asked = draw(source, Bytes(), 4, SEED)
    needles = single_1(length=470, answer_budget=9)
    hidden = draw(needles, Bytes(), 4, SEED)
    learned = [(f"{one.prompt} ", f"{one.answers[0]}\n") for one in [*asked[:3], *hidden[:1]]]
    wrong = [(f"{one.prompt} ", f"{one.answers[0]}0") for one in asked[3:]]
    options = [f"--questions={spec}", "--questions=niah:single_1,length=470,answer_budget=9", "--count=4"]
    printed = command("eval", text(), *knows(learned + wrong), *options)
    assert printed.startswith("checkpoints/7: step 7 of 9\n")
    assert rows(printed) == [[spec, "75.00", "4"], ["niah:single_1,length=470,answer_budget=9", "25.00", "4"]]


def test_scores_by_group(command):
    asked = draw(Programs(depth=0, distractors=1), Bytes(), 6, SEED)
    far = [one for one in asked if one.about["distance"] == 1]
    assert 0 < len(far) < 6
    learned = knows([(f"{one.prompt} ", f"{one.answers[0]}\n") for one in far])
    printed = command(
        "eval", text(), *learned, "--questions=programs,depth=0,distractors=1", "--count=6", "--by=distance"
    )
    whole, *groups = (row[1:] for row in rows(printed))
    assert whole == [f"{100 * len(far) / 6:.2f}", "6"]
    assert groups == [["distance 0", "0.00", str(6 - len(far))], ["distance 1", "100.00", str(len(far))]]


def test_a_task_of_questions_has_the_score_of_what_is_written(command):
    """Teacher-forced, as the training loop scores it, and by writing: the same questions, the same number."""
    source = Programs(depth=1, distractors=3)
    asked = draw(source, Bytes(), 4, SEED)
    task = QuestionTask(trained=(source,), tested=(("test", source),), train_examples=4, test_examples=4)
    examples = task.tests()["test"]
    tested = []
    for row in range(4):
        places = np.flatnonzero(examples.scored[row])
        prompt = bytes(examples.inputs[row, : places[0] + 1].astype(np.uint8)).decode()
        tested.append((prompt, bytes(examples.targets[row, places].astype(np.uint8)).decode()))
    written = [(f"{one.prompt} ", f"{one.answers[0]}\n") for one in asked]
    model, params = knows([*tested[:3], *written[:3]])
    experiment = Experiment(model=model.config, data=TaskConfig(task=task, batch_size=3), steps=9)
    printed = command("eval", experiment, model, params)
    assert re.search(r"test/sequence +0\.7500", printed)
    assert re.search(r"validation/sequence +0\.0000", printed)
    printed = command("eval", experiment, model, params, "--questions=programs,depth=1,distractors=3", "--count=4")
    assert rows(printed)[0][1:] == ["75.00", "4"]


def test_zero_shot_columns(command, tmp_path):
    passages = [{"text": "to be or not to be"}, {"text": "all that ends"}, {"text": "left out by the limit"}]
    (tmp_path / "lambada.jsonl").write_text("".join(json.dumps(row) + "\n" for row in passages))
    goals = [{"goal": goal, "sol1": "this", "sol2": "or that", "label": 1} for goal in ("open", "shut")]
    (tmp_path / "piqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in goals))
    known = [("to be or not to", " be"), ("Question: open\nAnswer:", " or that")]
    options = [f"--zero-shot={tmp_path}", "--tasks=lambada,piqa", "--limit=2"]
    printed = command("eval", text(), *knows(known), *options)
    (heading, perplexity, count), *others = rows(printed)
    assert (heading, count) == ("LMB ppl", "2")
    assert float(perplexity) == pytest.approx(math.sqrt(2**3 * 510**5), rel=1e-5)  # " be" is known, " ends" is not
    assert others == [["LMB acc", "50.00", "2"], ["PIQA acc", "50.00", "2"]]
    assert "accuracies in %" in printed


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--limit=3"], ["--limit belongs to --zero-shot"]),
        (["--by=depth"], ["--by belongs to --questions"]),
        (["--count=3", "--zero-shot=a"], ["--count belongs to --questions"]),
        (["--questions=niah"], ["--questions takes one of niah:single_1, ", "got 'niah'"]),
        (["--questions=programs,depht=1"], ["--questions=programs,depht=1: unknown field", "did you mean 'depth'"]),
        (["--questions=programs,depth=-1"], ["depth: expected at least 0, got -1"]),
        (["--questions=niah:single_2"], ["background: expected the path of an essay haystack"]),
        (["--questions=niah:single_1,length=300"], ["length: expected at least"]),
        (["--questions=programs", "--count=0"], ["--count is a number of questions, at least 1; got 0"]),
        (["--questions=programs", "--count=1", "--by=hops"], ["fields: expected some of depth, distance"]),
        (["--zero-shot=nowhere"], ["directory: no wikitext.jsonl, lambada.jsonl", "load_dataset"]),
        (["--zero-shot=nowhere", "--tasks=lambda"], ["tasks: expected names among", "'lambda'"]),
        (["--zero-shot=nowhere", "--limit=0"], ["limit: expected None or at least 1, got 0"]),
    ],
)
def test_bad_options_are_named(options, parts, command):
    printed = command("eval", text(), *knows([("a", "b")]), *options)
    assert printed.startswith("nested-jax: ")
    for part in parts:
        assert part in printed


def test_what_a_task_cannot_be_asked(command):
    task = TaskConfig(task=QuestionTask(trained=(Programs(),), tested=(("test", Programs()),)))
    experiment = Experiment(model=ModelConfig(blocks=("lstm",)), data=task, steps=9)
    stub = knows([("a", "b")])
    assert "--zero-shot takes a model of text; this one learns QuestionTask" in command(
        "eval", experiment, *stub, "--zero-shot=a"
    )
    assert "generate continues a text" in command("generate", experiment, *stub)


def test_bases_are_spelled_by_their_own_tokenizer():
    experiment = Experiment(model=ModelConfig(blocks=("lstm",)), data=FastaConfig(path="a.fa"), steps=1)
    assert evaluate.tokenizer_of(experiment).encode("ACGT").tolist() == [0, 1, 2, 3]


def test_one_thing_at_a_time():
    with pytest.raises(SystemExit):
        main(["eval", "a.py", "--questions=programs", "--zero-shot=b"])


def test_questions_are_read():
    assert parse("niah:multi_query").queries == 4
    assert parse("code,depths=(0,1),paths=(a,b),max_lines=9").paths == ("a", "b")
    assert parse("babilong:qa3,length=0").task == "qa3"
    assert parse("recall:fda,path=here") == RecallSet(name="fda", path="here")


@pytest.fixture
def words(tmp_path):
    """A folder with a tokenizer of words that begin with their space, some texts, and how many bytes a token has."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs nested_jax[tokenizers]; CI installs it")
    vocabulary = {"▁to": 0, "▁be": 1, "▁or": 2, "<eos>": 3, "▁é": 4}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="▁or"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    made.decoder = tokenizers.decoders.Metaspace()
    made.add_special_tokens(["<eos>"])
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("to be or to " * 99)
    return tmp_path


def in_words(folder):
    data = {"path": str(folder / "text"), "tokenizer": str(folder), "cache": str(folder / "cache")}
    return text(sequence_length=4, **data)


def test_bits_per_byte_of_tokens(command, words):
    experiment = in_words(words)
    model = Uniform(ModelConfig(vocab_size=8, blocks=("lstm",)))
    printed = command("eval", experiment, model, {}, "--contexts=2,4", "--bytes=80")
    size = float(re.search(r"validation [\d,]+, ([\d,]+), ([\d,]+);", printed)[2])
    bytes_per_token = size / float(re.search(r"validation [\d,]+, ([\d,]+),", printed)[1])
    expected = f"{3 / bytes_per_token:.4f}"
    assert 2.5 < bytes_per_token < 3
    assert [row[:2] for row in rows(printed)] == [["2", expected], ["4", expected]]
    assert re.search(r"\n(\d+) validation tokens", printed)[1] == str((round(80 / bytes_per_token) - 1) // 4 * 4)
    printed = command("eval", experiment, model, {}, "--stream=60", "--chunk=20")
    assert re.search(rf"tokens read.*\n +60 +{expected}", printed)
    assert "asks for more than" in command("eval", experiment, model, {}, "--stream=6000")


class Next(Uniform):
    """After each token comes the next one."""

    def __call__(self, tokens, state=None, reset=None):
        return jax.nn.one_hot(tokens + 1, self.config.vocab_size), state

    def step(self, tokens, state, learn=True):
        return jax.nn.one_hot(tokens + 1, self.config.vocab_size), state


def test_generate_in_words(command, words):
    experiment = in_words(words)
    model = Next(ModelConfig(vocab_size=8, blocks=("lstm",)))
    options = ["--temperature=0", "--length=6"]
    assert command("generate", experiment, model, {}, "--prompt=to", *options) == "to be or\n"
    assert command("generate", experiment, model, {}, "--prompt=to", "--stop=b", *options) == "to be\n"
    several = command("generate", experiment, model, {}, "--prompt=to", "--prompt=or to", *options)
    assert several == "== 1 of 2 ==\nto be or\n== 2 of 2 ==\nor to be or\n"


def test_tokens_that_stop(words):
    tokenizer = load(str(words))
    assert stops(tokenizer, "") == [3]
    assert stops(tokenizer, "bé") == [1, 3, 4]
    assert stops(Bytes(), "é") == [0xA9, 0xC3]


@pytest.mark.parametrize("size", [1, 3, 50])
def test_a_text_is_spelled_as_a_whole_whatever_its_pieces(size, words):
    for tokenizer, whole in ((Bytes(), "né€ 😀 and so on, ünd só fort" * 3), (load(str(words)), "to be or é be " * 9)):
        tokens = tokenizer.encode(whole).tolist()
        spelling = _Spelling(tokenizer)
        parts = [spelling.add(tokens[first : first + size]) for first in range(0, len(tokens), size)]
        assert "".join([*parts, spelling.add([], final=True)]) == tokenizer.decode(np.array(tokens))
        assert all("\ufffd" not in part for part in parts)


def test_the_sample_of_the_config_is_the_prompt(command):
    experiment = Experiment(
        model=ModelConfig(blocks=("lstm",)),
        data=TextConfig(),
        steps=9,
        sample=SampleConfig(prompt="é ", length=3, temperature=0.0),
    )
    assert command("generate", experiment, *knows([("é ", "ü!")])) == "é ü!\n"
