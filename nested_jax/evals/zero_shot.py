"""Zero-shot scores over local files: the columns of the papers' language tables, from their templates.

choice      argmax over continuations of log p(continuation | context), for `acc_norm` divided by their characters
last word   is the last word the likeliest text, and the perplexity of it, exp(−mean log p)
document    perplexity per word and per byte of whole documents
"""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from nested_jax.evals.likelihood import Likelihood, count_bytes, count_words, perplexity

Row = Mapping[str, Any]


class Choice(NamedTuple):
    """Continuations of which one is right.

    Attributes:
      pairs: of a context and a continuation each.
      gold: which one is right.
      characters: of each answer, without the space before it.
    """

    pairs: list[tuple[str, str]]
    gold: int
    characters: list[int]


class Document(NamedTuple):
    """A text to score as a whole.

    Attributes:
      scored: what the model reads.
      counted: what words and bytes are counted in.
    """

    scored: str
    counted: str


@dataclasses.dataclass(frozen=True)
class Template:
    """One benchmark: how its rows are read.

    Attributes:
      fields: what each row must hold, and of which shape, for people.
      source: dataset, configuration and split on the Hugging Face hub that the rows come from.
      read: from a row to a `Choice`, to one pair of which the continuation is the last word, or to a `Document`.
      columns: as the papers print it: the heading → the metric.
    """

    fields: Mapping[str, str]
    source: tuple[str, str, str]
    read: Callable[[Row], Choice | tuple[str, str] | Document]
    columns: Mapping[str, str]


def _choice(context: str, answers: Sequence[str], gold: int) -> Choice:
    return Choice([(context, f" {answer}") for answer in answers], gold, [len(answer) for answer in answers])


def _lambada(row: Row) -> tuple[str, str]:
    before, _, last = row["text"].rpartition(" ")
    return before, f" {last}"


def _piqa(row: Row) -> Choice:
    return _choice(f"Question: {row['goal']}\nAnswer:", [row["sol1"], row["sol2"]], int(row["label"]))


def clean_hellaswag(text: str) -> str:
    """HellaSwag's text without the marks of WikiHow: ``[title]`` ends a sentence, other brackets go.

    Example:
      >>> clean_hellaswag(" Clean a pan [title] Rinse it. [step] Use hot water.")
      'Clean a pan. Rinse it. Use hot water.'
    """
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _hellaswag(row: Row) -> Choice:
    context = clean_hellaswag(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")
    return _choice(context, [clean_hellaswag(ending) for ending in row["endings"]], int(row["label"]))


def _winogrande(row: Row) -> Choice:
    before, blank, after = row["sentence"].partition("_")
    if not blank:
        raise ValueError(f"sentence: expected a blank, _, got {row['sentence']!r}")
    options = [row["option1"], row["option2"]]
    pairs = [(before + option, f" {after.strip()}") for option in options]
    return Choice(pairs, int(row["answer"]) - 1, [len(option) for option in options])


def _arc(row: Row) -> Choice:
    choices = row["choices"]
    gold = list(choices["label"]).index(row["answerKey"])
    return _choice(f"Question: {row['question']}\nAnswer:", choices["text"], gold)


def _siqa(row: Row) -> Choice:
    answers = [row["answerA"], row["answerB"], row["answerC"]]
    return _choice(f"Q: {row['context']} {row['question']}\nA:", answers, int(row["label"]) - 1)


def _boolq(row: Row) -> Choice:
    context = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
    return _choice(context, ["no", "yes"], int(row["label"]))


_PLAIN = (
    [("s '", "s'"), (" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", ".")] + [(f" {mark} ", f"{mark} ") for mark in ":;.!?,"],
    [("= = = =", "===="), ("= = =", "==="), ("= =", "=="), (" ° ", "°"), (" \n", "\n"), ("\n ", "\n")]
    + [(" N ", " 1 "), (" 's", "'s")],
)
_PAIRS = [
    r"\(\s*([^\)]*?)\s*\)",
    r"\[\s*([^\]]*?)\s*\]",
    r"\{\s*([^}]*?)\s*\}",
    r'"\s*([^"]*?)\s*"',
    r"'\s*([^']*?)\s*'",
]


def detokenize_wikitext(page: str) -> str:
    """A page of WikiText as people write: punctuation at its words, brackets and quotes around theirs.

    The replacements and their order are those of lm-evaluation-harness, on which the published perplexities depend; the
    one whose pattern stands between slashes, which no prose holds, is left out.

    Example:
      >>> detokenize_wikitext("It fell 3 @.@ 5 % , to 1 @,@ 000 ( see ' below ' ) .")
      "It fell 3.5 %, to 1,000 (see 'below') ."
    """
    for old, new in _PLAIN[0]:
        page = page.replace(old, new)
    for pattern in _PAIRS:
        page = re.sub(pattern, lambda found: found[0][0] + found[1] + found[0][-1], page)
    for old, new in _PLAIN[1]:
        page = page.replace(old, new)
    return page


def _wikitext(row: Row) -> Document:
    return Document(detokenize_wikitext(row["page"]), row["page"])


_TEXT = "text"
_ARC = {"question": _TEXT, "choices": '{"text": [texts], "label": [texts]}', "answerKey": "one of the labels"}

TEMPLATES: Mapping[str, Template] = {
    "wikitext": Template(
        {"page": "a whole article, as tokenized"},
        ("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1", "test"),
        _wikitext,
        {"Wiki ppl": "word_perplexity"},
    ),
    "lambada": Template(
        {"text": "a passage with its last word"},
        ("EleutherAI/lambada_openai", "default", "test"),
        _lambada,
        {"LMB ppl": "perplexity", "LMB acc": "acc"},
    ),
    "piqa": Template(
        {"goal": _TEXT, "sol1": _TEXT, "sol2": _TEXT, "label": "0 or 1"},
        ("baber/piqa", "default", "validation"),
        _piqa,
        {"PIQA acc": "acc"},
    ),
    "hellaswag": Template(
        {
            "activity_label": _TEXT,
            "ctx_a": _TEXT,
            "ctx_b": _TEXT,
            "endings": "[texts]",
            "label": "place of the right one",
        },
        ("Rowan/hellaswag", "default", "validation"),
        _hellaswag,
        {"HellaSwag acc_n": "acc_norm"},
    ),
    "winogrande": Template(
        {"sentence": "text with a blank, _", "option1": _TEXT, "option2": _TEXT, "answer": "1 or 2"},
        ("allenai/winogrande", "winogrande_xl", "validation"),
        _winogrande,
        {"WinoGrande acc": "acc"},
    ),
    "arc_easy": Template(_ARC, ("allenai/ai2_arc", "ARC-Easy", "test"), _arc, {"ARC-e acc": "acc"}),
    "arc_challenge": Template(_ARC, ("allenai/ai2_arc", "ARC-Challenge", "test"), _arc, {"ARC-c acc_n": "acc_norm"}),
    "siqa": Template(
        {"context": _TEXT, "question": _TEXT, "answerA": _TEXT, "answerB": _TEXT, "answerC": _TEXT, "label": "1 to 3"},
        ("lighteval/siqa", "default", "validation"),
        _siqa,
        {"SIQA acc": "acc"},
    ),
    "boolq": Template(
        {"passage": _TEXT, "question": "text without the question mark", "label": "0 (no) or 1 (yes)"},
        ("aps/super_glue", "boolq", "validation"),
        _boolq,
        {"BoolQ acc": "acc"},
    ),
}


def layout(tasks: Sequence[str] = tuple(TEMPLATES)) -> str:
    """The files that `zero_shot` reads, what they hold and where they come from, for people.

    Example:
      >>> print(layout(["lambada"]))
      A file per task, one JSON object per line:
        lambada.jsonl: text (a passage with its last word)
          from EleutherAI/lambada_openai, default, split test
      With the package `datasets`: load_dataset(NAME, CONFIGURATION, split=SPLIT).to_json(FILE)
    """
    lines = ["A file per task, one JSON object per line:"]
    for task in tasks:
        template = TEMPLATES[task]
        fields = ", ".join(f"{name} ({shape})" for name, shape in template.fields.items())
        name, configuration, split = template.source
        lines += [f"  {task}.jsonl: {fields}", f"    from {name}, {configuration}, split {split}"]
    return "\n".join(
        [*lines, "With the package `datasets`: load_dataset(NAME, CONFIGURATION, split=SPLIT).to_json(FILE)"]
    )


def zero_shot(
    likelihood: Likelihood, directory: str | pathlib.Path, tasks: Sequence[str] | None = None, limit: int | None = None
) -> dict[str, dict[str, float]]:
    """Scores a model on benchmarks whose files are at hand.

    Args:
      likelihood: the model and how it is run.
      directory: holds `TASK.jsonl` for every task, see `layout`.
      tasks: names among `TEMPLATES`; None for all.
      limit: only so many rows from the beginning of each file; None for all.

    Returns:
      Task → its metrics, and `count`, the number of rows. Choices have `acc` and `acc_norm` (of which WinoGrande, whose
      continuations are equal, has only the first), LAMBADA `acc` and `perplexity`, WikiText `word_perplexity`,
      `byte_perplexity` and `bits_per_byte`. Accuracies are fractions; of equal scores the first counts as the larger.

    Raises:
      ValueError: if a task is unknown, a file is missing or empty, or a row does not fit its template.

    Example:
      >>> import tempfile
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from nested_jax.data.tokenizers import Bytes
      >>> from nested_jax.models import LanguageModel, ModelConfig
      >>> model = LanguageModel(ModelConfig(dim=8, layers=1, blocks=("lstm",)))
      >>> params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> _ = (folder / "lambada.jsonl").write_text('{"text": "to be or not to be"}')
      >>> found = zero_shot(Likelihood(model, params, Bytes()), folder, ["lambada"])
      >>> found["lambada"]["acc"], found["lambada"]["perplexity"] > 1
      (0.0, True)

    References:
      Templates and metrics: EleutherAI/lm-evaluation-harness 0.4.13, zero-shot.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected None or at least 1, got {limit}")
    read = {task: [*_items(path, TEMPLATES[task], limit)] for task, path in files(directory, tasks).items()}
    return {task: {**_metrics(likelihood, task, items), "count": len(items)} for task, items in read.items()}


def files(directory: str | pathlib.Path, tasks: Sequence[str] | None = None) -> dict[str, pathlib.Path]:
    """Where the rows of each task are.

    Args:
      directory: with a file `TASK.jsonl` for each.
      tasks: names of `TEMPLATES`; None for all.

    Returns:
      Task → file.

    Raises:
      ValueError: if a task is unknown or a file is missing; then it says what the file should hold.
    """
    chosen, folder = tuple(TEMPLATES if tasks is None else tasks), pathlib.Path(directory).expanduser()
    for task in chosen:
        if task not in TEMPLATES:
            raise ValueError(f"tasks: expected names among {list(TEMPLATES)}, got {task!r}")
    missing = [task for task in chosen if not (folder / f"{task}.jsonl").is_file()]
    if missing:
        names = ", ".join(f"{task}.jsonl" for task in missing)
        raise ValueError(f"directory: no {names} in {folder}. {layout(missing)}")
    return {task: folder / f"{task}.jsonl" for task in chosen}


def columns(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Scores as the papers print them.

    Args:
      scores: from `zero_shot`.

    Returns:
      Heading → perplexity, or accuracy in percent; and, where all eight accuracies are there, their mean, `Avg`.

    Example:
      >>> columns({"lambada": {"acc": 0.25, "perplexity": 30.0, "count": 4}})
      {'LMB ppl': 30.0, 'LMB acc': 25.0}
    """
    found, accuracies = {}, []
    for task, template in TEMPLATES.items():
        for heading, metric in template.columns.items() if task in scores else ():
            accuracy = metric.startswith("acc")
            found[heading] = scores[task][metric] * (100 if accuracy else 1)
            accuracies += [found[heading]] if accuracy else []
    if len(accuracies) == 8:
        found["Avg"] = math.fsum(accuracies) / 8
    return found


def table_columns() -> dict[str, str]:
    """The columns of the papers' tables of language models: metric, as `task/score`, → heading.

    Example:
      >>> list(table_columns().items())[:2]
      [('wikitext/word_perplexity', 'Wiki ppl'), ('lambada/perplexity', 'LMB ppl')]
    """
    found = {
        f"{task}/{metric}": heading
        for task, template in TEMPLATES.items()
        for heading, metric in template.columns.items()
    }
    return {**found, "average": "Avg"}


def _items(path: pathlib.Path, template: Template, limit: int | None) -> Iterator[Any]:
    """What the rows of a file ask, checked."""
    count = 0
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            if count == limit:
                return
            count += 1
            try:
                row = json.loads(line)
                absent = [name for name in template.fields if name not in row]
                if absent:
                    raise ValueError(f"expected fields {list(template.fields)}, got none of {absent}")
                item = template.read(row)
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                raise ValueError(f"{path}, line {number}: {error}. {layout([path.stem])}") from error
            if isinstance(item, Choice) and not 0 <= item.gold < len(item.pairs):
                raise ValueError(f"{path}, line {number}: expected the right answer, got an unlabelled row")
            yield item
    if not count:
        raise ValueError(f"{path}: expected at least one row, got none. {layout([path.stem])}")


def _metrics(likelihood: Likelihood, task: str, items: list[Any]) -> dict[str, float]:
    if isinstance(items[0], Document):
        found = likelihood.rolling([item.scored for item in items])
        counted = [item.counted for item in items]
        per_byte = perplexity(found, counted, count_bytes)
        return {
            "word_perplexity": perplexity(found, counted, count_words),
            "byte_perplexity": per_byte,
            "bits_per_byte": math.log2(per_byte),
        }
    if not isinstance(items[0], Choice):
        numbers, greedy = zip(*likelihood.loglikelihood(items), strict=True)
        words = [continuation for _, continuation in items]
        return {"acc": sum(greedy) / len(items), "perplexity": perplexity(numbers, words, lambda _: 1)}
    results = iter(likelihood.loglikelihood([pair for item in items for pair in item.pairs]))
    right = right_per_character = 0
    for item in items:
        numbers = [next(results)[0] for _ in item.pairs]
        per_character = [n / size if size else -math.inf for n, size in zip(numbers, item.characters, strict=True)]
        right += numbers.index(max(numbers)) == item.gold
        right_per_character += per_character.index(max(per_character)) == item.gold
    found = {"acc": right / len(items)}
    return found if task == "winogrande" else {**found, "acc_norm": right_per_character / len(items)}
