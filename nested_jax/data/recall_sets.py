"""Recall in context: a document, the beginning of a sentence about it, and the value in it that goes on from there.

    Capital: Paris. Area: 543,940 km2. ... Capital:          Paris

The six sets of Arora et al. 2024 (arXiv 2402.18668, and 2407.05483 for the last three), zero-shot, in local JSON lines.
An answer is at most `ANSWER_TOKENS` tokens and ends with the line; the scorer is `evals.answers.contains_any`.
"""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from nested_jax.data.questions import Question

ANSWER_TOKENS = 48


class Origin(NamedTuple):
    """Where the rows of a set come from.

    Attributes:
      dataset: on the Hugging Face hub; its split is "validation".
      marks: marks of the layout that are no text, as a regular expression.
    """

    dataset: str
    marks: str = ""


COMPLETED: Mapping[str, Origin] = {
    "swde": Origin("hazyresearch/based-swde-v2"),
    "fda": Origin("hazyresearch/based-fda"),
    "squad": Origin("hazyresearch/based-squad"),
}
"""Sets whose rows hold the whole prompt, `text`, and its `value`."""
ASKED: Mapping[str, Origin] = {
    "nq": Origin("hazyresearch/based_nq_2048"),
    "drop": Origin("hazyresearch/based_drop"),
    "tqa": Origin("hazyresearch/based_triviaqa", r"\[PAR\]|\[DOC\]|\[TLE\]"),
}
"""Sets whose rows hold a `context`, a `question`, a sentence to complete, and `answers`, any of which counts."""
SETS: Mapping[str, Origin] = {**COMPLETED, **ASKED}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecallSet:
    """One of the sets, row by row in the order of its file.

    Attributes:
      name: "swde", "fda", "squad", "nq", "drop" or "tqa".
      path: folder that holds `NAME.jsonl`. Of NQ, whose documents come cut to 512, 1,024 or 2,048 tokens, any will do;
        papers do not print which.

    Example:
      >>> import tempfile
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> row = '{"context": "Ann ran.", "question": "The runner is", "answers": ["Ann"]}'
      >>> _ = (folder / "drop.jsonl").write_text(row)
      >>> RecallSet(name="drop", path=folder).questions()
      [Question(prompt='Ann ran. The runner is', answers=('Ann',), about={'set': 'drop'})]
    """

    name: str
    path: str | os.PathLike[str] | None = None

    def validate(self) -> None:
        """Raise `ValueError` if there is no such set."""
        if self.name not in SETS:
            raise ValueError(f"name: expected one of {', '.join(SETS)}, got {self.name!r}")

    def questions(self, count: int | None = None) -> list[Question]:
        """The first `count` rows, None for all; fewer where the file has no more.

        Raises:
          ValueError: if the file is missing or empty, or a row lacks something; it says what the file should hold.
        """
        self.validate()
        if count is not None and count < 1:
            raise ValueError(f"count: expected None or at least 1, got {count}")
        file = pathlib.Path("" if self.path is None else self.path).expanduser() / f"{self.name}.jsonl"
        if self.path is None or not file.is_file():
            raise ValueError(f"path: expected {self._layout()}; " + ("got None" if self.path is None else f"no {file}"))
        found: list[Question] = []
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if len(found) == count:
                    break
                if line.strip():
                    found.append(self._question(line, f"{file}, line {number}"))
        if not found:
            raise ValueError(f"path: expected {self._layout()}; no rows in {file}")
        return found

    def _question(self, line: str, place: str) -> Question:
        try:
            row: dict[str, Any] = json.loads(line)
            if self.name in COMPLETED:
                parts, answers = [row["text"].strip()], [row["value"].strip()]
            else:
                context = re.sub(ASKED[self.name].marks, "", row["context"])
                parts, answers = [context.strip(), row["question"].strip()], row["answers"]
                if not isinstance(answers, list):
                    raise ValueError(f"answers: expected a list of texts, got {answers!r}")
                answers = [answer.strip() for answer in answers]
            if "" in parts or not answers or "" in answers:
                raise ValueError("expected texts and answers that are not empty")
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ValueError(f"{place}: {error!r}; path: expected {self._layout()}") from error
        return Question(parts[0] if len(parts) == 1 else _asked(*parts), tuple(answers), {"set": self.name})

    def _layout(self) -> str:
        completed = self.name in COMPLETED
        fields = '{"text": ..., "value": ...}' if completed else '{"context": ..., "question": ..., "answers": [...]}'
        dataset = SETS[self.name].dataset
        return (
            f"a folder with {self.name}.jsonl, of lines {fields}; with the package `datasets`: "
            f'load_dataset("{dataset}", split="validation").to_json("{self.name}.jsonl")'
        )


def _asked(context: str, question: str) -> str:
    """A document, ended by one full stop, and the sentence to complete, which is taken from the document's end."""
    while context.lower().endswith(question.lower()):
        context = context[: -len(question)].strip()
    return f"{context.strip('.')}. {question}"
