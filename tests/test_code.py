"""Tests of `code`: which edits change what a notebook computes, and which only what it shows."""

import json
import shutil

import pytest

from drot_utils.study import code
from drot_utils.study.paths import ROOT

NOTEBOOK = "05_self_distill"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Return a copy of the package and the notebooks, to edit."""
    for name in ("drot_utils", "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    monkeypatch.setattr(code, "ROOT", tmp_path)
    return tmp_path


def hashes(checkout, notebook=NOTEBOOK):
    return code.hash_notebook(checkout / "notebooks" / f"{notebook}.ipynb")


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {path.name}"
    path.write_text(text.replace(old, new), encoding="utf-8")


def add_cell(notebook, source):
    content = json.loads(notebook.read_text(encoding="utf-8"))
    content["cells"].append({"cell_type": "code", "source": [source], "metadata": {}, "outputs": []})
    notebook.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "old", "new", "computes", "shows"),
    [
        ("method/prompts", "def student_source", "# why it is so\ndef student_source", False, False),
        ("method/prompts", '"""Write the student', '"""Give the student', False, False),
        ("method/prompts", "import re", "import re\n\n\n\n", False, False),
        ("method/prompts", "Modifier: more", "Direction: more", True, True),
        ("engine/trainer", "loss * weight * world", "loss * weight * world * 2", True, True),
        ("report/figures", "def draw_flow(", "def draw_flow(also=None, *, ", False, True),
        ("report/figures", "def draw_topics(", "def draw_topics(also=None, *, ", False, False),  # 05 draws no topics
        ("analysis/topics", "def find_topics(", "def find_topics(also=None, *, ", False, False),
        ("study/errors", "class DrotError(", "class Another:\n    pass\n\n\nclass DrotError(", False, False),
    ],
)
def test_what_an_edit_of_the_package_changes(checkout, file, old, new, computes, shows):
    before = hashes(checkout)
    edit(checkout / "drot_utils" / f"{file}.py", old, new)
    after = hashes(checkout)
    assert (before[0] != after[0], before[1] != after[1]) == (computes, shows)


def test_prose_metadata_and_outputs_of_a_notebook_do_not_count(checkout):
    path = checkout / "notebooks" / f"{NOTEBOOK}.ipynb"
    before, content = hashes(checkout), json.loads(path.read_text(encoding="utf-8"))
    content["metadata"]["toc"] = {"x": 1}
    content["cells"][0]["source"] = ["# Another title"]
    for cell in content["cells"]:
        cell["metadata"]["collapsed"] = True
        if cell["cell_type"] == "code":
            cell["source"] = [*cell["source"], "\n# a remark"]
            cell["outputs"], cell["execution_count"] = [{"output_type": "stream", "name": "stdout", "text": "x"}], 7
    path.write_text(json.dumps(content, indent=4), encoding="utf-8")
    assert hashes(checkout) == before


@pytest.mark.parametrize(
    ("source", "computes"),
    [
        ("figures.draw_flow({'a': {'kept': 1}}, 'another figure')", False),
        ("import math\nprint(math.pi)", True),  # an import may do anything
        ("print('hello')", False),
        ("kept", False),
        ("table.for_reading(kept)", False),
        ("if len(kept):\n    figures.draw_flow({'a': {'kept': 1}}, 'x')", True),  # the condition is new
        ("kept = kept.head(3)", True),
        ("%matplotlib inline", False),
    ],
)
def test_what_another_cell_changes(checkout, source, computes):
    before = hashes(checkout)[0]
    add_cell(checkout / "notebooks" / f"{NOTEBOOK}.ipynb", source)
    assert (hashes(checkout)[0] != before) == computes


@pytest.mark.parametrize("notebook", ["04_distill_base", NOTEBOOK, "06_final_dataset", "07_evaluation"])
def test_a_readers_own_actions_run_nothing_else_again(checkout, notebook):
    before = hashes(checkout, notebook)
    edit(checkout / "notebooks" / f"{notebook}.ipynb", "Telling a lie", "Stealing a bicycle")
    after = hashes(checkout, notebook)
    assert before[0] == after[0] and before[1] != after[1]


def test_a_hash_of_code_reaches_through_modules(checkout):
    before = code.hash_code("method.student.make_examples"), code.hash_code("method.nli.filter_unique")
    edit(checkout / "drot_utils" / "method" / "prompts.py", "Modifier: more", "Direction: more")
    after = code.hash_code("method.student.make_examples"), code.hash_code("method.nli.filter_unique")
    assert before[0] != after[0] and before[1] == after[1]


def test_each_notebook_reaches_what_it_is_about():
    reached = {name: code.hash_notebook(ROOT / "notebooks" / f"{name}.ipynb")[0] for name in ("02_critic", NOTEBOOK)}
    assert {"engine.classifier.train_classifier", "method.critic.train_critic"} <= set(reached["02_critic"])
    assert {"engine.trainer.train", "method.distill.FILTERS", "method.prompts.student_source"} <= set(reached[NOTEBOOK])
    assert not any(place.startswith(("report", "study", "people")) for hashes in reached.values() for place in hashes)
    assert "method.prompts.student_source" not in reached["02_critic"]
