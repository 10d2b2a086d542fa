"""The house rules of the project, as far as a program can check them."""

import ast
import re
import subprocess
import sys
import time

import pytest
from notebook_hygiene import problems_of, rebound_names

from drot_utils.paths import NOTEBOOKS, ROOT

MODULES = sorted((ROOT / "drot_utils").glob("*.py"))


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
    cells = [
        "for x in y:\n    a = x",
        "x = 2\nprint(x)",
        "b = [x for x in y if x]",
        "print({x: a for x in y})",
    ]
    assert rebound_names(cells) == []
    assert rebound_names([*cells, "print(lambda x: x, x)"]) == ["x"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda cells: cells[1]["outputs"].append(
                {"output_type": "stream", "name": "stdout", "text": "x"}
            ),
            "has outputs",
        ),
        (lambda cells: cells[1].update(source=["x = 1\n"] * 16), "code cell of 16 lines"),
        (lambda cells: cells[1].update(source=["def f():\n", "    pass"]), "defines something"),
        (lambda cells: cells[1]["metadata"].update(tags=[]), "tagged `parameters`"),
        (lambda cells: cells.pop(0), "0 text cells for 1 code cells"),
        (lambda cells: cells.extend([code("x = 2"), code("print(x)")]), "assigns 'x' in several cells"),
        (lambda cells: cells.append(code("x = x + 1")), "assigns 'x' in several cells"),
        (lambda cells: cells.append(code("for x in [x]:\n    pass")), "assigns 'x' in several cells"),
        (lambda cells: cells.append(code("x += 1")), "assigns 'x' in several cells"),
    ],
)
def test_the_notebook_check_can_fail(tmp_path, change, message):
    import json

    cells = [{"cell_type": "markdown", "source": ["prose"], "metadata": {}}, code("x = 1", "parameters")]
    change(cells)
    (tmp_path / "n.ipynb").write_text(json.dumps({"cells": cells}))
    assert any(message in problem for problem in problems_of(tmp_path / "n.ipynb"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_public_functions_have_docstrings(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    public = [
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")
    ]
    inner = [n for n in public if any(n in f.body for f in ast.walk(tree) if isinstance(f, ast.FunctionDef))]
    assert [
        n.name for n in public if n not in inner and not ast.get_docstring(n)
    ] == [] and ast.get_docstring(tree)


def test_modules_import_downwards():
    floors = [
        {"errors", "markup", "memory", "precision", "compiling"}, {"settings", "params", "paths", "progress", "paper", "parsing", "consensus", "dissent", "scores"},
        {"profiles", "schema", "manifest", "executors", "checkpoint"},
        {"corpora", "gold", "prompts", "tiny", "models", "shards", "nucleus", "slots", "study", "cards"},
        {"cache", "replay", "ledger", "limits", "tokens", "usage"}, {"faults", "prices"}, {"answers"},
        {"forecast", "intake", "parcels", "transport"}, {"direct"}, {"batches"}, {"endpoint"}, {"probes"},
        {"teacher", "encoder", "fitting", "critic", "nli", "student", "generation"},
        {"toxicity", "scoring", "training", "parallel", "vllm_writer", "judges", "panel", "opinions"},
        {"writing", "baselines", "distill"},
        {"evaluation", "forms", "spreadsheet", "mturk", "labelstudio", "potato", "exchange", "annotation"},
        {"topics", "bias", "statistics", "export"},
        {"charts", "figures", "tables"}, {"stages", "execute", "quotes", "plan", "__main__"},
    ]  # fmt: skip
    floor_of = {name: k for k, names in enumerate(floors) for name in names}
    assert set(floor_of) == {p.stem for p in MODULES} - {"__init__"}
    for path in MODULES:
        for name in re.findall(
            r"^from drot_utils\.(\w+) import|^from drot_utils import (.+)$", path.read_text(), re.MULTILINE
        ):
            for used in re.findall(r"\w+", " ".join(name)):
                assert floor_of.get(used, 0) <= floor_of.get(path.stem, 99), f"{path.stem} imports {used}"


def test_import_is_light():
    began = time.perf_counter()
    code = "import drot_utils, sys; assert not {'torch', 'pandas', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert (
        time.perf_counter() - began < 5
    )  # generous: the claim is about what is imported, not about this machine


def test_nothing_of_ours_is_pickled_or_trusts_remote_code():
    source = "\n".join(p.read_text() for p in MODULES)
    assert (
        "trust_remote_code" not in source
        and "torch.load" not in source
        and not re.search(r"^import pickle", source, re.MULTILINE)
    )


def test_locks_are_hashed_and_torch_is_pinned_apart():
    for name in ("core", "dev", "models", "extras", "annotate"):
        text = (ROOT / f"requirements/{name}.txt").read_text()
        pins = re.findall(r"^[a-z0-9][\w.\[\]-]*==", text, re.MULTILINE)
        assert (
            pins and text.count("--hash=") >= len(pins) and not re.search("^torch==|://", text, re.MULTILINE)
        )
    assert (
        "torch==2.13.0" in (ROOT / "pyproject.toml").read_text()
        and "torch==2.13.0" in (ROOT / "Makefile").read_text()
    )


def test_builtin_data_is_what_its_datasheet_describes():
    import pandas as pd

    rows = {
        "actions": 790,
        "teacher_plain": 3160,
        "teacher_rich": 3160,
        "critic_annotations": 1800,
        "critic_annotations_single": 1600,
    }
    for name, expected in rows.items():
        assert (
            len(pd.read_csv(ROOT / f"data/demo/{name}.tsv", sep="\t", quoting=3, keep_default_na=False))
            == expected
        )
    sheet = (ROOT / "data/demo/README.md").read_text()
    assert "CC BY 4.0" in sheet and "machine-written and machine-labelled" in sheet
