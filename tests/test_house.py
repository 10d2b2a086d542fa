"""The house rules of the project, as far as a program can check them."""

import ast
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from notebook_hygiene import problems_of, rebound_names

from drot_utils.study.paths import NOTEBOOKS, ROOT

MODULES = sorted((ROOT / "drot_utils").rglob("*.py"))


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda p: p.stem)
def test_committed_notebooks_are_for_reading(path):
    assert problems_of(path) == []


def code(source, *tags):
    return {
        "cell_type": "code",
        "source": [source],
        "metadata": {"tags": list(tags)},
        "outputs": [],
        "execution_count": None,
    }


def test_names_that_each_cell_assigns_for_itself_are_no_hidden_state():
    cells = ["for x in y:\n    a = x", "x = 2\nprint(x)", "b = [x for x in y if x]", "print({x: a for x in y})"]
    assert rebound_names(cells) == []
    assert rebound_names([*cells, "print(lambda x: x, x)"]) == ["x"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda cells: cells[1]["outputs"].append({"output_type": "stream", "name": "stdout", "text": "x"}),
            "has outputs",
        ),
        (lambda cells: cells[1].update(source=["x = 1\n"] * 16), "code cell of 16 lines"),
        (lambda cells: cells[1].update(source=["def f():\n", "    pass"]), "defines something"),
        (lambda cells: cells[1]["metadata"].update(tags=[]), "tagged `parameters`"),
        (lambda cells: cells.pop(0), "does not open with prose"),
        (lambda cells: cells[0].update(source=["text\n", "#Vld is"]), "looks like a heading"),
        (lambda cells: cells[0].update(source=["## The model"]), "does not open with prose: '## The model'"),
        (lambda cells: cells.extend([code("x = 2"), code("print(x)")]), "assigns 'x' in several cells"),
        (lambda cells: cells.append(code("x = x + 1")), "assigns 'x' in several cells"),
        (lambda cells: cells.append(code("for x in [x]:\n    pass")), "assigns 'x' in several cells"),
        (lambda cells: cells.append(code("x += 1")), "assigns 'x' in several cells"),
    ],
)
def test_the_notebook_check_can_fail(tmp_path, change, message):
    cells = [{"cell_type": "markdown", "source": ["prose"], "metadata": {}}, code("x = 1", "parameters")]
    change(cells)
    (tmp_path / "n.ipynb").write_text(json.dumps({"cells": cells}))
    assert any(message in problem for problem in problems_of(tmp_path / "n.ipynb"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_public_functions_have_docstrings(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    public = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")]
    inner = [n for n in public if any(n in f.body for f in ast.walk(tree) if isinstance(f, ast.FunctionDef))]
    assert [n.name for n in public if n not in inner and not ast.get_docstring(n)] == [] and ast.get_docstring(tree)


ROOMS = ("study", "data", "engine", "llm", "method", "analysis", "people", "report")
APART = ({"engine", "llm"}, {"analysis", "people", "report"})


def list_imports(path: Path, package: Path) -> set[str]:
    """Return the package's modules that a file imports, at its top or inside functions, as ``room/file``."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:  # relative
                above = path.relative_to(package.parent).parts[: -node.level]
                module = ".".join([*above, *filter(None, [module])])
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == package.name and (package.joinpath(*parts[1:]).with_suffix(".py")).is_file():
                found.add("/".join(parts[1:]))
    return found


def list_problems(package: Path) -> list[str]:
    """Return each import that goes up, sideways between rooms that do not know each other, or round in a circle."""
    uses = {f"{path.parent.name}/{path.stem}": list_imports(path, package) for path in sorted(package.glob("*/*.py"))}
    problems = []
    for name, used in uses.items():
        room = name.split("/")[0]
        for other in sorted({u.split("/")[0] for u in used} - {room}):
            if ROOMS.index(other) > ROOMS.index(room):
                problems.append(f"{name} imports upwards, from {other}")
            elif any({room, other} <= apart for apart in APART):
                problems.append(f"{name} imports from {other}, and the two do not know each other")
    for name in uses:
        seen, waiting = set(), set(uses[name])
        while waiting:
            one = waiting.pop()
            seen.add(one)
            waiting |= uses.get(one, set()) - seen
        if name in seen:
            problems.append(f"{name} is part of a circle")
    return problems


def test_rooms_import_downwards():
    assert list_problems(ROOT / "drot_utils") == []


#: Files of more than 400 lines, and why.
LONG = {"study/params": "one schema, section by section"}


def test_files_are_few_and_none_is_long_without_a_reason():
    files = [path for path in MODULES if path.name != "__init__.py"]
    assert len(files) <= 59
    long = {f"{path.parent.name}/{path.stem}" for path in files if len(path.read_text().splitlines()) > 400}
    assert long == set(LONG), "more than 400 lines: thin it, or say in LONG why it is one thing"


def test_notebooks_see_no_machinery():
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        assert not re.findall(r"drot_utils\.(?:engine|llm)\b.*|from drot_utils import .*\b(?:engine|llm)\b", source), (
            path.name
        )


@pytest.mark.parametrize(
    ("file", "line", "problem"),
    [
        ("study/paths", "from drot_utils.method import critic", "study/paths imports upwards, from method"),
        ("data/table", "def f():\n    from drot_utils.report.tables import save_table", "imports upwards, from report"),
        ("llm/cache", "import drot_utils.engine.load", "llm/cache imports from engine"),
        ("people/forms", "from ..analysis import bias", "people/forms imports from analysis"),
        ("data/table", "def f():\n    from drot_utils.data import gold", "data/table is part of a circle"),
    ],
)
def test_a_planted_import_is_found(tmp_path, file, line, problem):
    package = shutil.copytree(ROOT / "drot_utils", tmp_path / "drot_utils")
    path = package / f"{file}.py"
    path.write_text(path.read_text(encoding="utf-8") + f"\n\n{line}\n", encoding="utf-8")
    assert any(problem in found for found in list_problems(package))


def test_import_is_light():
    began = time.perf_counter()
    code = "import drot_utils, sys; assert not {'torch', 'pandas', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert time.perf_counter() - began < 5  # generous: the claim is about what is imported, not about this machine


def test_nothing_of_ours_is_pickled_or_trusts_remote_code():
    source = "\n".join(p.read_text() for p in MODULES)
    assert (
        "trust_remote_code" not in source
        and "torch.load" not in source
        and not re.search(r"^import pickle", source, re.MULTILINE)
    )


def test_locks_are_hashed_and_torch_is_pinned_apart():
    for name in ("core", "dev", "models", "extras", "annotate", "site", "atlas"):
        text = (ROOT / f"requirements/{name}.txt").read_text()
        pins = re.findall(r"^[a-z0-9][\w.\[\]-]*==", text, re.MULTILINE)
        assert pins and text.count("--hash=") >= len(pins) and not re.search("^torch==|://", text, re.MULTILINE)
    assert (
        "torch==2.13.0" in (ROOT / "pyproject.toml").read_text() and "torch==2.13.0" in (ROOT / "Makefile").read_text()
    )


def test_builtin_data_is_what_its_datasheet_describes():
    import pandas as pd

    rows = {
        "actions": 910,
        "teacher_plain": 3640,
        "teacher_rich": 3640,
        "critic_annotations": 3619,
        "critic_annotations_single": 9832,
        "dev_votes": 12186,
    }
    for name, expected in rows.items():
        assert len(pd.read_csv(ROOT / f"data/demo/{name}.tsv", sep="\t", quoting=3, keep_default_na=False)) == expected
    sheet = (ROOT / "data/demo/README.md").read_text()
    assert "CC BY 4.0" in sheet and "machine-written and machine-labelled" in sheet
