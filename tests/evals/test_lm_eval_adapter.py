"""The harness, on its own templates and metrics over local files, gives what our own scorer gives."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nested_jax.data.tokenizers import Bytes
from nested_jax.evals import lm_eval_adapter
from nested_jax.evals.generation import Generator
from nested_jax.evals.likelihood import Likelihood, rolling_rows
from nested_jax.evals.lm_eval_adapter import HARNESS_NAMES, HarnessModel, local_tasks
from nested_jax.evals.question_answering import write
from nested_jax.evals.sampling import Sampling
from nested_jax.evals.zero_shot import TEMPLATES, Choice, clean_hellaswag, detokenize_wikitext, zero_shot
from nested_jax.models import AttentionConfig, LanguageModel, ModelConfig

WITHOUT = "the cross-check needs lm-evaluation-harness: pip install 'nested_jax[lm-eval]'"
WORDS = ["red", "green", "stone", "river", "walks", "under the", "old", "bridge and", "sings", "to every small", "bird"]


def text(draw, least=2, most=6):
    return " ".join(draw.choice(WORDS, draw.integers(least, most + 1)))


def rows(draw):
    """One row for each task, drawn so that answers differ in length."""
    label = [str(n) for n in "ABCD"]
    arc = {"question": text(draw) + "?", "choices": {"text": [text(draw, 1) for _ in label], "label": label}}
    return {
        "wikitext": {"page": f' = {text(draw)} = \n \n {text(draw)} @-@ {text(draw)} , ( " {text(draw)} " ) \'s .\n'},
        "lambada": {"text": text(draw, 3)},
        "piqa": {"goal": text(draw), "sol1": text(draw, 1), "sol2": text(draw, 1), "label": int(draw.integers(2))},
        "hellaswag": {
            "activity_label": text(draw, 1, 2),
            "ctx_a": f"[header] {text(draw)} [title] {text(draw)}.",
            "ctx_b": text(draw, 1),
            "endings": [f"{text(draw, 1)} [step]  {text(draw, 1)}." for _ in range(4)],
            "label": str(draw.integers(4)),
        },
        "winogrande": {
            "sentence": f"{text(draw)} _ {text(draw)}.",
            "option1": text(draw, 1, 2),
            "option2": text(draw, 1, 2),
            "answer": str(draw.integers(1, 3)),
        },
        "arc_easy": {**arc, "answerKey": str(draw.choice(label))},
        "arc_challenge": {**arc, "answerKey": str(draw.choice(label))},
        "siqa": {
            "context": text(draw),
            "question": text(draw) + "?",
            **{f"answer{letter}": text(draw, 1) for letter in "ABC"},
            "label": str(draw.integers(1, 4)),
        },
        "boolq": {"passage": text(draw), "question": text(draw), "label": int(draw.integers(2))},
    }


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A file of 12 rows for every task."""
    folder, draw = tmp_path_factory.mktemp("rows"), np.random.default_rng(0)
    drawn = [rows(draw) for _ in range(12)]
    for task in TEMPLATES:
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(each[task]) + "\n" for each in drawn))
    return folder


@pytest.fixture(scope="module")
def likelihood():
    model = LanguageModel(ModelConfig(dim=16, layers=1, blocks=("lstm",)))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    draw = np.random.default_rng(1)
    params = jax.tree.map(lambda x: np.float32(0.4 * draw.standard_normal(x.shape)), shapes)
    return Likelihood(model, params, Bytes())


@pytest.fixture(scope="module")
def evaluate(tmp_path_factory):
    """`lm_eval.simple_evaluate`, off the network and with caches of its own."""
    pytest.importorskip("lm_eval", reason=WITHOUT)
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"):
            patch.setenv(name, "1")
        patch.setenv("HF_HOME", str(cache))
        import lm_eval

        yield lambda **options: lm_eval.simple_evaluate(bootstrap_iters=0, **options)


@pytest.mark.filterwarnings("ignore")
def test_the_harness_agrees_with_our_own_scorer(evaluate, directory, likelihood):
    """Its own templates, metrics and aggregation on the left, ours on the right; every request is the same text."""
    ours = zero_shot(likelihood, directory)
    theirs = evaluate(model=HarnessModel(likelihood), tasks=local_tasks(directory))
    for task, metrics in ours.items():
        name = HARNESS_NAMES[task]
        found = {key.removesuffix(",none"): value for key, value in theirs["results"][name].items()}
        assert theirs["n-samples"][name]["original"] == metrics.pop("count") == 12
        expected = {metric: found[metric] for metric in metrics if metric in found}
        assert {metric: metrics[metric] for metric in expected} == pytest.approx(expected, rel=1e-6), task
        assert set(TEMPLATES[task].columns.values()) <= set(expected)
        lines = (directory / f"{task}.jsonl").read_text().splitlines()
        items = [TEMPLATES[task].read(json.loads(line)) for line in lines]
        for sample in theirs["samples"][name]:
            item = items[sample["doc_id"]]
            pairs = item.pairs if isinstance(item, Choice) else [item[:1] if task == "wikitext" else item]
            assert [tuple(each) for each in sample["arguments"]] == pairs
    choices = [metrics for metrics in ours.values() if "acc_norm" in metrics]
    assert any(metrics["acc"] != metrics["acc_norm"] for metrics in choices)
    assert len({metrics["acc"] for metrics in choices}) > 2


@pytest.mark.filterwarnings("ignore")
def test_the_harness_scores_what_is_written(evaluate, likelihood, tmp_path):
    generator = Generator(likelihood.model, likelihood.params, Sampling(0))
    prompts = ["red", "green stone", ""]
    written = [write(generator, Bytes(), [Bytes().encode(prompt or "\n")], 6)[0] for prompt in prompts]
    stop = written[0][3]
    answers = [text.split(stop)[0] for text in written[:2]] + ["something else"]
    lines = [json.dumps({"q": q, "a": a}) for q, a in zip(prompts, answers, strict=True)]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(lines))
    task = {
        "task": "written",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        "generation_kwargs": {"until": [stop], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    found = evaluate(model=HarnessModel(likelihood, generator, batch_size=2), tasks=[task])
    outputs = [sample["resps"][0][0] for sample in found["samples"]["written"]]
    assert outputs == [text.split(stop)[0] for text in written]
    assert found["results"]["written"]["exact_match,none"] == pytest.approx(2 / 3)


@pytest.mark.filterwarnings("ignore")
def test_windows_are_those_of_the_harness():
    utils = pytest.importorskip("lm_eval.utils", reason=WITHOUT)
    for length in range(12):
        for limit in range(1, 7):
            tokens = list(range(length))
            windows = utils.get_rolling_token_windows(tokens, -1, limit, 1)
            pairs = map(utils.make_disjoint_window, windows)
            expected = [([*context, *after], len(after)) for context, after in pairs]
            rows = rolling_rows(np.arange(length), -1, limit)
            assert [(row.tokens.tolist(), row.scored) for row in rows] == expected


@pytest.mark.filterwarnings("ignore")
def test_text_is_cleaned_as_in_the_harness():
    wikitext = pytest.importorskip("lm_eval.tasks.wikitext.preprocess_wikitext", reason=WITHOUT)
    hellaswag = pytest.importorskip("lm_eval.tasks.hellaswag.utils", reason=WITHOUT)
    draw = np.random.default_rng(0)
    parts = [" ", " ", "a", "s", "N", "=", "\n", "'", '"', "(", ")", "[", "]", "{", "}", "@-@", "@,@", "@.@", "°"]
    parts += [*":;.!?,", "title", "[title]"]
    for _ in range(2000):
        text = "".join(draw.choice(parts, 40))
        assert detokenize_wikitext(text) == wikitext.wikitext_detokenizer({"page": text})
        assert clean_hellaswag(text) == hellaswag.preprocess(text)


def request(*args):
    return types.SimpleNamespace(args=args)


def test_requests_are_answered_in_their_order(likelihood):
    pytest.importorskip("lm_eval", reason=WITHOUT)
    model = HarnessModel(likelihood, batch_size=2)
    pairs = [("red", " green"), ("", "stone"), ("a long context", " b")]
    assert model.loglikelihood([request(*pair) for pair in pairs]) == likelihood.loglikelihood(pairs)
    assert model.loglikelihood_rolling([request("red green"), request("")]) == likelihood.rolling(["red green", ""])
    options = [{"max_gen_toks": 3}, {"max_gen_toks": 5, "until": "zz"}, {"max_gen_toks": 3, "temperature": 0.0}]
    prompts = ["red", "green", "stone"]
    outputs = model.generate_until([request(*each) for each in zip(prompts, options, strict=True)])
    for prompt, each, output in zip(prompts, options, outputs, strict=True):
        alone = write(model.generator, Bytes(), [Bytes().encode(prompt)], each["max_gen_toks"])
        assert [output] == alone
    assert model.tokenizer_name == "bytes"


def test_long_contexts_lose_their_beginning():
    pytest.importorskip("lm_eval", reason=WITHOUT)
    attention = AttentionConfig(heads=2, max_length=12)
    model = LanguageModel(ModelConfig(dim=16, layers=1, blocks=("attention",), attention=attention))
    adapter = HarnessModel(Likelihood(model, {}, Bytes()))
    assert bytes(adapter._prompt("red green stone", 4).astype(np.uint8)) == b"en stone"
    assert bytes(adapter._prompt("", 4).astype(np.uint8)) == b"\n"
    with pytest.raises(ValueError, match="max_gen_toks: expected fewer than the model's context of 12 tokens, got 12"):
        adapter._prompt("red", 12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"do_sample": True, "temperature": 0.7}, "expected greedy generation"),
        ({"num_beams": 4}, r"expected some of .*, got \['num_beams'\]"),
    ],
)
def test_other_ways_to_write_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        lm_eval_adapter._options(options)


def test_options_of_writing():
    assert lm_eval_adapter._options({}) == (256, ())
    assert lm_eval_adapter._options({"until": "ab", "do_sample": True, "temperature": 0}) == (256, ("ab",))
    assert lm_eval_adapter._options({"until": ["a", "b"], "max_gen_toks": 5}) == (5, ("a", "b"))


def test_a_missing_harness_is_named(likelihood, monkeypatch):
    monkeypatch.setattr(lm_eval_adapter, "LM", object)
    with pytest.raises(ImportError, match=r"nested_jax\[lm-eval\]"):
        HarnessModel(likelihood)


def test_local_tasks_name_what_is_missing(directory, tmp_path):
    ((first, second),) = (group["task"] for group in local_tasks(directory, ["arc_easy", "lambada"]))
    assert first == {
        "task": "arc_easy",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(directory / "arc_easy.jsonl")}},
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
    }
    assert second["task"] == "lambada_openai"
    with pytest.raises(ValueError, match=r"no piqa\.jsonl in .*\n  piqa\.jsonl: goal"):
        local_tasks(tmp_path, ["piqa"])
    with pytest.raises(ValueError, match=r"expected names among .*, got 'squad'"):
        local_tasks(directory, ["squad"])
