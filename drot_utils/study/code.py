"""The code that a notebook reaches, definition by definition, and its hashes: comments, docstrings and layout do not count."""

import ast
import copy
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from drot_utils.study.paths import ROOT

#: Rooms that decide no number of the study: the ground (of which the parameters' values count, not the code), and what is drawn.
GROUND, DRAWN = ("study",), ("study", "report")
SHOWING = ("print", "display", "for_reading", "show")  # calls that only show something

#: A definition: its module such as ``method.prompts``, and its name there (None: all of the module).
Place = tuple[str, str | None]


@dataclass(frozen=True)
class _Module:
    """Its definitions by name ("": what it does at import and binds no name), each with its hash and what it uses."""

    definitions: dict[str, tuple[str, list[Place]]]
    imports: dict[str, Place]


def hash_notebook(notebook: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return the hashes of what a notebook's code cells compute, and of all that they do.

    A statement that calls the room `report`, or only shows something, decides nothing that a later stage reads. It is in the
    second answer only.

    Returns
    -------
    tuple of dict
        Hashes by place: ``cells``, and the reached definitions, such as ``method.prompts.student_source``.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    # IPython's own lines (%matplotlib, !ls) are no Python.
    tree = ast.parse("\n".join("" if line.startswith(("%", "!")) else line for line in source.splitlines()))
    imports = _imports(tree)
    report = {name for name, (module, _) in imports.items() if module.startswith("report")}
    computing = _Without(report).visit(copy.deepcopy(tree))
    return _hash_all(computing, imports, DRAWN), _hash_all(tree, imports, GROUND)


def hash_code(*places: str) -> str:
    """Return one hash of definitions, such as ``engine.trainer.train``, and of all that they reach.

    For fingerprints: what other code made is not used again.
    """
    reached = _reach([tuple(place.rsplit(".", 1)) for place in places], GROUND)
    return _digest(json.dumps(reached, sort_keys=True))


def _hash_all(tree: ast.Module, imports: dict[str, Place], left_out: tuple[str, ...]) -> dict[str, str]:
    start = [place for place in _used(tree, "", imports) if place[0]]
    return {"cells": _digest(_text(tree.body)), **_reach(start, left_out)}


def _reach(start: Iterable[Place], left_out: tuple[str, ...]) -> dict[str, str]:
    waiting, found = list(start), {}
    seen: set[Place] = set()
    while waiting:
        module, name = place = waiting.pop()
        if place in seen or module.split(".")[0] in left_out:
            continue
        seen.add(place)
        here = _read_module(module)
        if here is None:
            continue
        if name is None:
            waiting += [(module, each) for each in here.definitions]
        elif name in here.imports:
            waiting.append(here.imports[name])
        elif name in here.definitions:
            found[f"{module}.{name}".rstrip(".")], used = here.definitions[name]
            waiting += [(module, ""), *used]
    return dict(sorted(found.items()))


def _read_module(name: str) -> _Module | None:
    path = _file(name)
    return _parse_module(name, path.read_text(encoding="utf-8")) if path.is_file() else None


def _file(module: str) -> Path:
    return ROOT.joinpath("drot_utils", *module.split(".")).with_suffix(".py")


@cache
def _parse_module(module: str, source: str) -> _Module:
    tree = ast.parse(source)
    imports = _imports(tree)
    nodes: dict[str, list[ast.stmt]] = {}
    for node in tree.body:
        main = isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)
        if not (main or isinstance(node, ast.Import | ast.ImportFrom) or _is_docstring(node)):
            for name in _bound(node) or [""]:
                nodes.setdefault(name, []).append(node)
    definitions = {
        name: (_digest(_text(each)), sorted({use for node in each for use in _used(node, module, imports)}, key=str))
        for name, each in nodes.items()
    }
    return _Module(definitions, imports)


def _bound(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    return [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]


def _imports(tree: ast.AST) -> dict[str, Place]:
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "drot_utils":
            module = ".".join(node.module.split(".")[1:])
            for alias in node.names:
                inner = f"{module}.{alias.name}".lstrip(".")
                # `from drot_utils.room import file`, or `from drot_utils.room.file import name`.
                is_file = _file(inner).is_file()
                found[alias.asname or alias.name] = (inner, None) if is_file else (module, alias.name)
    return found


def _used(node: ast.AST, module: str, imports: dict[str, Place]) -> Iterator[Place]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
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


class _Without(ast.NodeTransformer):
    """Takes out the statements that draw or show, at any depth; `report` holds the names of that room's modules here."""

    def __init__(self, report: set[str]) -> None:
        self.report = report

    def visit(self, node: ast.AST) -> ast.AST | None:
        """Return the node without such statements, or None if it is one."""
        if isinstance(node, ast.Expr | ast.Assign | ast.AnnAssign | ast.AugAssign):
            draws = any(isinstance(n, ast.Name) and n.id in self.report for n in ast.walk(node))
            return None if draws or (isinstance(node, ast.Expr) and _shows(node.value)) else node
        node = self.generic_visit(node)
        if isinstance(node, ast.stmt) and getattr(node, "body", True) == []:
            node.body = [ast.Pass()]
        return node


def _shows(value: ast.expr) -> bool:
    if not isinstance(value, ast.Call):
        return True
    called = value.func
    return (called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")) in SHOWING


def _text(nodes: Iterable[ast.AST]) -> str:
    # `unparse` and not `dump`, whose form changes with Python's version.
    return "\n".join(ast.unparse(_NoDocstrings().visit(copy.deepcopy(node))) for node in nodes)


class _NoDocstrings(ast.NodeTransformer):
    def generic_visit(self, node: ast.AST) -> ast.AST:
        """Return the node without its docstring."""
        super().generic_visit(node)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and _is_docstring(node.body[0]):
            node.body = node.body[1:] or [ast.Pass()]
        return node


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
