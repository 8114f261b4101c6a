"""Where a value in real Python code comes from: def-use chains through the assignments of a function, by `ast`.

     1  def area(text):
     2      words = text.split()
     3      width = int(words[0])
     4      return width * width
    # Line 4 reads `width`. ...  source: line 1, depth 2 (width at 3, words at 2)

Everything in it is our choice; there is no published number. The scorer is `evals.answers.exact_match`; report by depth
and distance. A variable is asked about only where one assignment alone can have given it its value, whatever branches
are taken, so an answer is a fact about the code.
"""

import ast
import dataclasses
import pathlib
import sysconfig
import textwrap
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from nested_jax.data.questions import Question

# name → lines of the bindings that may have given it its value
_Reaching = dict[str, frozenset[int]]
_NOWHERE: frozenset[int] = frozenset()
_Comprehensions = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_Scopes = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, *_Comprehensions)
_Refused = (ast.Global, ast.Nonlocal, ast.NamedExpr, ast.Match, ast.AsyncFor, ast.AsyncWith, ast.TryStar)


class Source(NamedTuple):
    """Where a variable has its value from.

    Attributes:
      line: that reads the variable, 1 being the line of `def`.
      name: of the variable.
      source_line: of the binding at the beginning of the chain.
      source_name: the variable that is bound there.
      depth: assignments between the two.
    """

    line: int
    name: str
    source_line: int
    source_name: str
    depth: int

    @property
    def distance(self) -> int:
        """Lines from the source to the line that reads the variable."""
        return self.line - self.source_line


def sources(code: str) -> list[Source]:
    """All that can be asked about a function.

    The chain of a variable begins with the binding that gave it its value. If that is an assignment whose right side
    reads one local variable and no other, it goes on with that variable; else it ends there: at a parameter, at an
    assignment of something that reads no or several local variables, at an import, `for`, `with` or `except`. Names in
    lambdas, comprehensions and inner functions are not asked about and end the search. Functions with `global`,
    `nonlocal`, `:=` or `match` are left out.

    Args:
      code: a function, beginning with its `def` in the first column.

    Returns:
      Sources in the order of lines and names, each of a line below its source; empty if nothing can be asked.

    Raises:
      ValueError: if it is not a function.

    Example:
      >>> for found in sources("def f(a, b):\\n    c = a + 1\\n    d = c\\n    return d + b"):
      ...     print(found.name, found.line, "from", found.source_name, found.source_line, "depth", found.depth)
      a 2 from a 1 depth 0
      c 3 from a 1 depth 1
      b 4 from b 1 depth 0
      d 4 from a 1 depth 2
    """
    function = _parse(code)
    if function is None:
        raise ValueError("code: expected one function in Python that begins with `def` in the first column")
    return _Function(function).sources()


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeDependencies:
    """Questions about functions of real files.

    Attributes:
      paths: Python files, or folders of them; () is the top folder of the running interpreter's standard library, whose
        questions differ from version to version. Files that do not parse are left out.
      answer: "line", the number of the line where the chain begins, or "variable", the name that is bound there.
      depths: assignments of a chain after its first binding; each gets an equal share of the questions.
      max_lines: of a function.
    """

    paths: tuple[str, ...] = ()
    answer: Literal["line", "variable"] = "line"
    depths: tuple[int, ...] = (0, 1, 2)
    max_lines: int = 40

    def validate(self) -> None:
        """Raise `ValueError` if a field is out of range."""
        if self.answer not in ("line", "variable"):
            raise ValueError(f"answer: expected 'line' or 'variable', got {self.answer!r}")
        if not self.depths or min(self.depths) < 0 or len(set(self.depths)) < len(self.depths):
            raise ValueError(f"depths: expected different numbers of 0 or more, got {self.depths}")
        if self.max_lines < 2:
            raise ValueError(f"max_lines: expected at least 2, got {self.max_lines}")

    def questions(self, count: int = 100, seed: int = 0) -> list[Question]:
        """Draw questions, of one function at most one for each depth.

        Args:
          count: how many, at least 1.
          seed: 0 or more; of the order of files and functions and of the choice within a function.

        Returns:
          Questions with one answer: the function with numbered lines, then the question. `about`: depth, distance,
          answer, lines (of the function) and file.

        Raises:
          ValueError: if a field is out of range, a path is missing, or the code does not hold so many.
        """
        self.validate()
        if count < 1 or seed < 0:
            raise ValueError(f"count and seed: expected at least 1 and 0, got {count} and {seed}")
        wanted = {depth: len(range(place, count, len(self.depths))) for place, depth in enumerate(self.depths)}
        rng = np.random.default_rng(seed)
        found: list[Question] = []
        files = self._files()
        for place in rng.permutation(len(files)):
            functions = list(_functions(files[place], self.max_lines))
            for code, function in (functions[i] for i in rng.permutation(len(functions))):
                known = _Function(function).sources()
                for depth in self.depths:
                    choices = [source for source in known if source.depth == depth]
                    if choices and wanted[depth]:
                        wanted[depth] -= 1
                        chosen = choices[int(rng.integers(len(choices)))]
                        found.append(self._question(code, chosen, files[place].name))
            if not any(wanted.values()):
                return found
        raise ValueError(f"paths: expected {count} questions in {len(files)} files, too few by depth: {wanted}")

    def _files(self) -> list[pathlib.Path]:
        if not self.paths:
            return sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py"))
        found = []
        for path in map(pathlib.Path, self.paths):
            if not path.exists():
                raise ValueError(f"paths: expected Python files or folders of them; no such file or folder: {path}")
            found += [path] if path.is_file() else sorted(path.rglob("*.py"))
        return found

    def _question(self, code: str, source: Source, file: str) -> Question:
        lines = code.splitlines()
        numbered = "\n".join(f"{number:>4}  {line}" for number, line in enumerate(lines, 1))
        asked = "On which line is it bound?" if self.answer == "line" else "What is its name?"
        prompt = (
            f"{numbered}\n# Line {source.line} reads {source.name}. Go back from it through assignments that read one "
            f"local variable and no other, as far as they lead, to the variable where the chain begins. {asked}"
        )
        about = {
            "depth": source.depth,
            "distance": source.distance,
            "answer": self.answer,
            "lines": len(lines),
            "file": file,
        }
        return Question(prompt, (str(source.source_line) if self.answer == "line" else source.source_name,), about)


def _functions(path: pathlib.Path, max_lines: int) -> Iterator[tuple[str, ast.FunctionDef]]:
    """The functions and methods of a file, from their `def`, moved to the first column, in the order of their lines."""
    try:
        text = path.read_text(encoding="utf-8")
        found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    except (SyntaxError, ValueError):
        return
    lines = text.splitlines()
    for node in sorted(found, key=lambda node: node.lineno):
        code = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
        function = _parse(code) if code.count("\n") < max_lines else None
        if function is not None:
            yield code, function


def _parse(code: str) -> ast.FunctionDef | None:
    try:
        body = ast.parse(code).body
    except SyntaxError:
        return None
    return body[0] if len(body) == 1 and isinstance(body[0], ast.FunctionDef) else None


class _Function:
    """Reaching bindings of one function, never too few: a set may hold more lines than can reach, not fewer.

    `reads` holds the bindings that reach each (line, name), once for each time that the line reads it, none where it is
    read out of sight. `right` holds for each (name, line) of a binding what its right side reads: a variable and the
    bindings that reach it, None if it is a source; ("", {}) is out of sight.
    """

    def __init__(self, function: ast.FunctionDef):
        arguments = function.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        named += [found for found in (arguments.vararg, arguments.kwarg) if found]
        self.function = function
        self.start: _Reaching = {argument.arg: frozenset({argument.lineno}) for argument in named}
        self.local = {*self.start, *_bindings(function.body)}
        self.reads: dict[tuple[int, str], list[frozenset[int]]] = {}
        self.right: dict[tuple[str, int], list[tuple[str, frozenset[int]] | None]] = {}

    def sources(self) -> list[Source]:
        if any(isinstance(node, _Refused) for node in ast.walk(self.function)):
            return []
        self.block(self.function.body, self.start)
        found = []
        for (line, name), states in sorted(self.reads.items()):
            if len(set(states)) == 1 and len(states[0]) == 1:
                source = self.follow(line, name, next(iter(states[0])))
                if source is not None and source.source_line < line:
                    found.append(source)
        return found

    def follow(self, line: int, name: str, binding: int) -> Source | None:
        depth, at = 0, name
        while depth <= len(self.right):
            rights = self.right.get((at, binding), [None])
            if len(rights) != 1:
                return None
            if rights[0] is None:
                return Source(line, name, binding, at, depth)
            at, reaching = rights[0]
            if len(reaching) != 1:
                return None
            binding = next(iter(reaching))
            depth += 1
        return None

    def block(self, statements: list[ast.stmt], state: _Reaching) -> _Reaching:
        for statement in statements:
            state = self.statement(statement, state)
        return state

    def statement(self, node: ast.stmt, state: _Reaching) -> _Reaching:
        match node:
            case ast.Assign(targets=targets, value=value):
                self.read(value, state)
                return self.bind(targets, state, self.reading(value, state))
            case ast.AnnAssign(target=target, value=value):
                if value is None:
                    return state
                self.read(value, state)
                return self.bind([target], state, self.reading(value, state))
            case ast.AugAssign(target=target, value=value):
                self.read(value, state)
                old = [ast.Name(target.id, ast.Load(), lineno=target.lineno)] if isinstance(target, ast.Name) else []
                for name in old:
                    self.read(name, state)
                return self.bind([target], state, self.reading(ast.Tuple([*old, value], ast.Load()), state))
            case ast.If(test=test, body=body, orelse=other):
                self.read(test, state)
                return _union(self.block(body, state), self.block(other, state))
            case ast.While(test=test, body=body, orelse=other):
                state = _union(state, _bindings(body))
                self.read(test, state)
                self.block(body, state)
                return _union(state, self.block(other, state))
            case ast.For(target=target, iter=iterated, body=body, orelse=other):
                self.read(iterated, state)
                state = _union(state, _bindings([node]))
                self.block(body, self.bind([target], state, None))
                return _union(state, self.block(other, state))
            case ast.With(items=items, body=body):
                within = state
                for item in items:
                    self.read(item.context_expr, within)
                    within = self.bind([item.optional_vars], within, None) if item.optional_vars else within
                return _union(self.block(body, within), state, _bindings([node]))
            case ast.Try():
                return self.attempt(node, state)
            case ast.Delete(targets=targets):
                for target in targets:
                    self.read(target, state)
                gone = {target.id for target in targets if isinstance(target, ast.Name)}
                return {name: lines for name, lines in state.items() if name not in gone}
            case _:
                self.read(node, state)
                return {**state, **_bindings([node])}

    def attempt(self, node: ast.Try, state: _Reaching) -> _Reaching:
        caught = _union(state, _bindings(node.body))
        ends = [self.block(node.orelse, self.block(node.body, state))]
        for handler in node.handlers:
            if handler.type is not None:
                self.read(handler.type, caught)
            named = {handler.name: frozenset({handler.lineno})} if handler.name else {}
            end = self.block(handler.body, {**caught, **named})
            ends.append({name: lines for name, lines in end.items() if name != handler.name})
        if node.finalbody:
            return self.block(node.finalbody, _union(state, _bindings([node]), *ends))
        return _union(*ends)

    def read(self, node: ast.AST, state: _Reaching) -> None:
        if isinstance(node, (*_Scopes, ast.JoinedStr)):
            for name in {found.id for found in ast.walk(node) if isinstance(found, ast.Name)}:
                for line in range(node.lineno, (node.end_lineno or node.lineno) + 1):
                    self.reads.setdefault((line, name), []).append(_NOWHERE)
        elif isinstance(node, ast.Name):
            if isinstance(node.ctx, ast.Load) and node.id in self.local:
                self.reads.setdefault((node.lineno, node.id), []).append(state.get(node.id, _NOWHERE))
        else:
            for child in ast.iter_child_nodes(node):
                self.read(child, state)

    def reading(self, value: ast.expr, state: _Reaching) -> tuple[str, frozenset[int]] | None:
        if any(isinstance(node, _Scopes) for node in ast.walk(value)):
            return "", _NOWHERE
        names = {node.id for node in ast.walk(value) if isinstance(node, ast.Name)} & self.local
        name = next(iter(names), "")
        return (name, state.get(name, _NOWHERE)) if len(names) == 1 else None

    def bind(self, targets: list[ast.expr], state: _Reaching, right: tuple[str, frozenset[int]] | None) -> _Reaching:
        bound = _bindings(targets)
        before = {name: lines for name, lines in state.items() if name not in bound}
        for target in targets:
            self.read(target, before)
        for name, lines in bound.items():
            for line in lines:
                self.right.setdefault((name, line), []).append(right)
        return {**state, **bound}


def _bindings(nodes: Sequence[ast.AST]) -> _Reaching:
    """Lines of all bindings in some nodes, those of inner scopes left out."""
    found: dict[str, set[int]] = {}
    todo = list(nodes)
    while todo:
        node = todo.pop()
        name, line = "", 0
        if isinstance(node, ast.Name):
            name, line = node.id if isinstance(node.ctx, ast.Store) else "", node.lineno
        elif isinstance(node, ast.ExceptHandler | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name, line = node.name or "", node.lineno
        elif isinstance(node, ast.alias):
            name, line = node.asname or node.name.split(".")[0], node.lineno
        if name:
            found.setdefault(name, set()).add(line)
        if not isinstance(node, _Scopes):
            todo.extend(ast.iter_child_nodes(node))
    return {name: frozenset(lines) for name, lines in found.items()}


def _union(*states: _Reaching) -> _Reaching:
    names = {name for state in states for name in state}
    return {name: frozenset().union(*(state.get(name, _NOWHERE) for state in states)) for name in names}
