"""The code that a notebook reaches, definition by definition, and its hashes: comments, docstrings and layout do not count."""

import ast
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from drot_utils.study.errors import DrotError
from drot_utils.study.paths import ROOT, files_below, sha256

GROUND = "study"  # the room that decides no number: of the parameters the values count, not the code
READING = "for_reading"  # what it is called with is for the reader alone
SHOWING = ("print", "display", "show", READING)  # calls that only show something

FILES = ("data/", "figures/")  # how the names of files begin that code reads, whatever the parameters say

#: A definition: its module such as ``method.prompts``, and its name there (None: all of the module, or a file of `FILES`).
Place = tuple[str, str | None]


UNSAID = ("ctx", "kind", "type_comment")  # fields of a syntax tree on which nothing depends that its others do not say
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class _Module:
    """Its definitions by name ("": what it does at import and binds no name), each with its hash and what it uses."""

    definitions: dict[str, tuple[str, list[Place]]]
    imports: dict[str, Place]


def hash_notebook(notebook: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return the hashes of what a notebook's code cells compute, and of all that they do.

    A statement that only calls the room `report`, or only shows something, decides nothing that a later stage reads. It is in
    the second answer only; so is what `for_reading` is called with, whatever that is.

    Returns
    -------
    tuple of dict
        Hashes by place: ``cells``, and the reached definitions, such as ``method.prompts.student_source``.

    Raises
    ------
    DrotError
        For a cell that is not Python, or an import that cannot be followed.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    # IPython's own lines (%matplotlib, !ls) are no Python.
    lines = ["" if line.startswith(("%", "!")) else line for line in source.splitlines()]
    python = "\n".join(lines)
    try:
        tree = _parse(python)
    except SyntaxError as error:
        line = lines[error.lineno - 1].strip() if error.lineno else ""
        todo = "correct it; IPython's % and ! are allowed only at the start of a line"
        raise DrotError(f"a cell is not Python ({error.msg}): {line}", where=str(notebook), todo=todo) from error
    imports = _imports(tree)
    computing, needed = _Without(imports, set()).visit(_parse(python)), None
    while needed != (names := {node.id for node in ast.walk(computing) if isinstance(node, ast.Name)}):
        needed, computing = names, _Without(imports, names).visit(_parse(python))
    return _hash_all(computing, imports), _hash_all(tree, imports)


def hash_code(*places: str) -> str:
    """Return one hash of definitions, such as ``engine.trainer.train``, and of all that they reach.

    For fingerprints: what other code made is not used again. The code is the one that runs (see `read_package`).
    """
    reached = _reach((tuple(place.rsplit(".", 1)) for place in places), read_package().get)
    if missing := set(places) - set(reached):
        raise DrotError(f"no definitions at the top of a file: {', '.join(sorted(missing))}", where="hash_code")
    return _digest(json.dumps(reached, sort_keys=True))


def refuse_edited(place: str) -> None:
    """Raise a `DrotError` where what a definition (see `hash_code`) reaches was edited since this process read the package.

    For those who start other processes: these would run what is there now, and its results would be kept under the old code.
    """
    start = [tuple(place.rsplit(".", 1))]
    before, now = _reach(start, read_package().get), _reach(start)
    if edited := [name for name in {**before, **now} if before.get(name) != now.get(name)]:
        found = f"edited since this notebook began, which now needs worker processes: {', '.join(edited)}"
        raise DrotError(found, where="the package", todo="run the same command again")


@cache
def read_package() -> dict[str, str]:
    """Return the source of the package's files by module, such as ``engine.trainer``, as it was at the first call in a process.

    A file may be edited while a process runs what was in it before.
    """
    folder = ROOT / "drot_utils"
    files = {
        ".".join(file.relative_to(folder).with_suffix("").parts): file
        for file in files_below(folder)
        if file.suffix == ".py"
    }
    return {module: file.read_text(encoding="utf-8") for module, file in files.items()}


def _read(module: str) -> str | None:
    path = _file(module)
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _hash_all(tree: ast.Module, imports: dict[str, Place]) -> dict[str, str]:
    start = [place for place in _used(tree, "", imports) if place[0]]
    return {"cells": _digest(_text(tree.body)), **_reach(start)}


def _reach(start: Iterable[Place], read: Callable[[str], str | None] = _read) -> dict[str, str]:
    waiting, found = list(start), {}
    seen: set[Place] = set()
    modules: dict[str, _Module | None] = {}  # each file is read once
    while waiting:
        module, name = place = waiting.pop()
        if place in seen or module.split(".")[0] == GROUND:
            continue
        seen.add(place)
        if module.startswith(FILES):
            if (path := ROOT / module).is_file():
                found[module] = sha256(path)[:12]
            continue
        if module not in modules:
            source = read(module)
            modules[module] = None if source is None else _parse_module(module, source)
        here = modules[module]
        if here is None:
            continue
        if name is None:
            waiting += [(module, each) for each in here.definitions]
        if name in here.imports:
            waiting.append(here.imports[name])
        if name in here.definitions:
            found[f"{module}.{name}".rstrip(".")], used = here.definitions[name]
            waiting += [(module, ""), *used]
    return dict(sorted(found.items()))


def _file(module: str) -> Path:
    return ROOT.joinpath("drot_utils", *module.split(".")).with_suffix(".py")


@cache
def _parse_module(module: str, source: str) -> _Module:
    tree = _parse(source)
    imports = _imports(tree)
    nodes: dict[str, list[ast.stmt]] = {}
    own = {*imports, *(name for node in tree.body for name in _bound(node))}
    for node in tree.body:
        main = isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)
        if not (main or isinstance(node, ast.Import | ast.ImportFrom) or _is_docstring(node)):
            # A decorator of the package's own may register what it decorates.
            registers = any(_root(each) in own for each in getattr(node, "decorator_list", []))
            for name in _bound(node) | ({""} if registers else set()):
                nodes.setdefault(name, []).append(node)
    definitions = {
        name: (_digest(_text(each)), sorted({use for node in each for use in _used(node, module, imports)}, key=str))
        for name, each in nodes.items()
    }
    return _Module(definitions, imports)


def _bound(node: ast.stmt) -> set[str]:
    # "" too for what may do more than bind names: loops, conditions, calls, values put into something.
    if isinstance(node, DEFINITIONS):
        return {node.name}
    found = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    found |= {n.name for n in ast.walk(node) if isinstance(n, DEFINITIONS)}
    binds = isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign)
    targets = (getattr(node, "targets", None) or [node.target]) if binds else []
    parts = [part for target in targets for part in ast.walk(target)]
    plain = binds and all(isinstance(part, ast.Name | ast.Tuple | ast.Store) for part in parts)
    return found if plain else {*found, ""}


def _imports(tree: ast.AST) -> dict[str, Place]:
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "drot_utils" for alias in node.names):
            _refuse(node)
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "drot_utils"):
            if node.level or any(alias.name == "*" for alias in node.names):
                _refuse(node)
            module = ".".join(node.module.split(".")[1:])
            for alias in node.names:
                inner = f"{module}.{alias.name}".lstrip(".")
                # `from drot_utils.room import file`, or `from drot_utils.room.file import name`.
                is_file = _file(inner).is_file()
                found[alias.asname or alias.name] = (inner, None) if is_file else (module, alias.name)
    return found


def _refuse(node: ast.stmt) -> None:
    todo = "write `from drot_utils.room import file`, or `from drot_utils.room.file import name`"
    raise DrotError("an import that cannot be followed to the code it brings", where=ast.unparse(node), todo=todo)


def _used(node: ast.AST, module: str, imports: dict[str, Place]) -> Iterator[Place]:
    if isinstance(node, DEFINITIONS):
        imports = imports | _imports(node)
    whole = set()
    for each in ast.walk(node):
        if isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name):
            place = imports.get(each.value.id)
            if place and place[1] is None:
                whole.add(id(each.value))
                yield place[0], each.attr
        elif isinstance(each, ast.Name) and id(each) not in whole:
            yield imports.get(each.id, (module, each.id))
        elif isinstance(each, ast.Constant) and isinstance(each.value, str) and each.value.startswith(FILES):
            yield each.value, None


class _Without(ast.NodeTransformer):
    """Takes out the statements that only draw or show, at any depth, unless they bind or change one of the `needed` names."""

    def __init__(self, imports: dict[str, Place], needed: set[str]) -> None:
        self.report = {name for name, (module, _) in imports.items() if module.startswith("report")}
        self.ours, self.needed = set(imports) - self.report, needed

    def visit(self, node: ast.AST) -> ast.AST | None:
        """Return the node without such statements, or None if it is one."""
        if isinstance(node, ast.Expr | ast.Assign | ast.AnnAssign | ast.AugAssign):
            return None if self._is_one(node) else node
        node = self.generic_visit(node)
        if isinstance(node, ast.stmt) and getattr(node, "body", True) == []:
            node.body = [ast.Pass()]
        return node

    def _is_one(self, node: ast.stmt) -> bool:
        names = [n for n in ast.walk(node) if isinstance(n, ast.Name)]
        stored = {_root(n) for n in ast.walk(node) if isinstance(getattr(n, "ctx", None), ast.Store)}
        shown = isinstance(node, ast.Expr) and _shows(node.value)
        if isinstance(node, ast.Expr) and not shown:  # `kept.update(...)` may change `kept`, as an assignment does
            stored |= {_root(node.value)} - self.ours - self.report
        if stored & self.needed:
            return False
        # `for_reading(student.write(...))` is for the reader alone; `print(teacher.ask(...))` may do what others need.
        calls = [n for n in ast.walk(node) if isinstance(n, ast.Call)]
        told = {id(n) for call in calls if _name(call) == READING for n in ast.walk(call)}
        if any(n.id in self.ours for n in names if id(n) not in told):
            return False
        return shown or any(n.id in self.report for n in names)


def _shows(value: ast.expr) -> bool:
    if isinstance(value, ast.Call):
        return _name(value) in SHOWING
    return not any(isinstance(n, ast.Call | ast.Await) for n in ast.walk(value))


def _root(node: ast.AST) -> str:
    # `rows` of `rows`, of `rows.loc[0]["x"]`, and of `rows.pop("x")`.
    while inner := getattr(node, "value", None) or getattr(node, "func", None):
        node = inner
    return getattr(node, "id", "")


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _text(nodes: Iterable[ast.AST]) -> str:
    return json.dumps([_plain(node) for node in nodes])


def _plain(value: object) -> Any:
    # `ast.unparse` and `ast.dump` write some trees otherwise in another version of Python; a field that is empty may be new in one.
    if isinstance(value, ast.AST):
        said = [(name, part) for name, part in ast.iter_fields(value) if name not in UNSAID and part not in (None, [])]
        return [type(value).__name__, *([name, _plain(part)] for name, part in said)]
    return [_plain(part) for part in value] if isinstance(value, list) else ascii(value)


def _parse(source: str) -> ast.Module:
    return _NoDocstrings().visit(ast.parse(source))


class _NoDocstrings(ast.NodeTransformer):
    def generic_visit(self, node: ast.AST) -> ast.AST:
        """Return the node without its docstring."""
        super().generic_visit(node)
        if isinstance(node, DEFINITIONS) and _is_docstring(node.body[0]):
            node.body = node.body[1:] or [ast.Pass()]
        return node


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
