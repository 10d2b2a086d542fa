"""Tests of `code`: which edits change what a notebook computes, and which only what it shows."""

import json
import re
import shutil
import sys
import threading
import time

import pandas as pd
import pytest
from conftest import run_cells

from drot_utils.engine.shards import map_shards
from drot_utils.method import student
from drot_utils.study import code, graph
from drot_utils.study.errors import DrotError
from drot_utils.study.params import Executor, Params, Section
from drot_utils.study.paths import ROOT, Run
from drot_utils.study.record import open_study

NOTEBOOK = "05_self_distill"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Return a copy of the package and the notebooks, to edit."""
    for name in ("drot_utils", "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    monkeypatch.setattr(code, "ROOT", tmp_path)
    code.read_package.cache_clear()
    yield tmp_path
    code.read_package.cache_clear()


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
        ("print(student.write_contexts(study, name, kept, 'd0', 1, 'greedy'))", True),  # it shows, and it works
        ("figures.draw_losses(student.read_training(study, name))", True),
        ("[run.data(each).unlink() for each in kept]", True),
        ("drawn = figures.draw_flow({}, 'x')\ndrawn.set_dpi(100)", True),
        ("drawn = figures.draw_flow({}, 'x')\ndrawn.title = figures.draw_flow({}, 'y')", False),
        ("kept['drawn'] = figures.draw_flow({}, 'x')", True),  # other cells compute with `kept`
        ("kept.attrs.update(drawn=figures.draw_flow({}, 'x'))", True),
        ("kept.attrs['at'][0].drawn, other = figures.draw_flow({}, 'x')", True),
        (
            "from drot_utils.report import tables\nshort = tables.shape_table(kept, 2)\nshort.to_csv(run.root / 'x')",
            True,
        ),
    ],
)
def test_what_another_cell_changes(checkout, source, computes):
    before = hashes(checkout)[0]
    add_cell(checkout / "notebooks" / f"{NOTEBOOK}.ipynb", source)
    assert (hashes(checkout)[0] != before) == computes


@pytest.mark.parametrize("notebook", ["04_distill_base", NOTEBOOK, "06_final_dataset"])
def test_a_readers_own_actions_run_nothing_else_again(checkout, notebook):
    before = hashes(checkout, notebook)
    edit(checkout / "notebooks" / f"{notebook}.ipynb", "Telling a lie", "Stealing a bicycle")
    after = hashes(checkout, notebook)
    assert before[0] == after[0] and before[1] != after[1]


def test_code_of_the_room_report_counts_where_a_stage_works_on_what_it_returns(checkout):
    source = "from drot_utils.report import tables\nshort = tables.shape_table(kept, 2)\nshort.to_csv(run.root / 'x')"
    add_cell(checkout / "notebooks" / f"{NOTEBOOK}.ipynb", source)
    assert "report.tables.shape_table" in hashes(checkout)[0] and "report.figures.draw_flow" not in hashes(checkout)[0]


@pytest.mark.parametrize(
    ("body", "reached"),
    [
        ("for each in range(3):\n    KNOWN[each] = helper", {"", "each", "helper"}),
        (
            "if len(KNOWN) > 1:\n    def main(): return helper()\nelse:\n    def main(): return 2",
            {"main", "helper", ""},
        ),
        ("KNOWN['x'] = helper", {"", "helper"}),
        ("KNOWN.update(x=helper)", {"", "helper"}),
        ("try:\n    import x\nexcept ImportError:\n    x = helper", {"", "x", "helper"}),
        ("def main(default=helper): pass", {"main", "helper"}),
        ("@helper\ndef main(): pass", {"main", "helper"}),
        ("class main:\n    key = helper", {"main", "helper"}),
        ("main = lambda: [helper(x) for x in KNOWN]", {"main", "helper", "KNOWN"}),
        (
            "def main():\n    from drot_utils.method.prompts import helper as other\n    return other()",
            {"main", "helper"},
        ),
        ("main = 1\nmain += helper()", {"main", "helper"}),
        ("def main():\n    return f'{helper(3)}'", {"main", "helper"}),
    ],
)
def test_what_a_file_s_code_reaches(checkout, body, reached):
    path = checkout / "drot_utils" / "method" / "prompts.py"
    path.write_text(
        f"KNOWN = {{}}\n\n\ndef helper():\n    pass\n\n\n{body}\n\n\ndef student_source():\n    return main()\n"
    )
    found = {
        place.removeprefix("method.prompts").lstrip(".")
        for place in code._reach([("method.prompts", "student_source")])
    }
    assert reached | {"student_source"} <= found


@pytest.mark.parametrize(
    ("decorator", "counts"),
    [("register('one')", True), ("student_source.register", True), ("functools.cache", False), ("cache", False)],
)
def test_what_a_decorator_of_the_package_registers_counts(checkout, decorator, counts):
    path = checkout / "drot_utils" / "method" / "prompts.py"
    path.write_text(
        "import functools\nfrom functools import cache, singledispatch\nKNOWN = {}\n"
        "def register(name):\n    return lambda made: KNOWN.setdefault(name, made)\n"
        f"@singledispatch\ndef student_source(x):\n    return KNOWN\n@{decorator}\ndef one(x: int):\n    return helper()\n"
        "def helper():\n    return 1\n"
    )
    before = code._reach([("method.prompts", "student_source")])
    edit(path, "return 1", "return 2")
    assert (code._reach([("method.prompts", "student_source")]) != before) == counts


@pytest.mark.parametrize("name", ["data/published.yaml", "figures/drot.mplstyle"])
def test_files_that_code_names_count(checkout, name):
    for folder in ("data", "figures"):
        shutil.copytree(
            ROOT / folder,
            checkout / folder,
            ignore=lambda place, names: [] if "data" in place else [n for n in names if "." not in n],
        )
    before = hashes(checkout, "08_topics")
    with (checkout / name).open("a") as handle:
        handle.write("# more\n")
    after = hashes(checkout, "08_topics")
    assert before[1] != after[1] and (before[0] != after[0]) == (name == "data/published.yaml")


@pytest.mark.parametrize(
    "line", ["import drot_utils.method.nli", "from drot_utils.method.nli import *", "from .nli import x"]
)
def test_an_import_that_cannot_be_followed_is_refused(checkout, line):
    add_cell(checkout / "notebooks" / f"{NOTEBOOK}.ipynb", line)
    with pytest.raises(DrotError, match="an import that cannot be followed"):
        hashes(checkout)


def test_a_cell_that_is_not_python_is_named(checkout):
    add_cell(checkout / "notebooks" / f"{NOTEBOOK}.ipynb", "kept = !ls")
    with pytest.raises(DrotError, match=r"a cell is not Python .*kept = !ls"):
        hashes(checkout)


def hash_source(source):
    return code._digest(code._text(code._parse(source).body))


def test_hashes_are_the_same_with_any_version_of_python():
    source = (
        "@cache\ndef f(a, /, *b: 'int', c=u'é', **d) -> None:\n    x = f\"{a!r:>{b}d} {', '.join(d['x'])} {c=}\"\n"
        "    match a:\n        case {'x': [1, *_]} | None:\n            return lambda: (-1, 1.0, 1j, b'', ..., {**d, '': None})\n"
    )
    assert hash_source(source) == "b3dfce6544bc"  # by 3.11, 3.12 and 3.13


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("x = 'a'", 'x = u"a"', True), ("x = (1)", "x = 0x1", True), ("x = f'{a}'", 'x = f"{a}"', True),
     ("x = 1", "x = True", False), ("x = 1", "x = 1.0", False), ("x = '1'", "x = 1", False), ("f(a)", "f(*a)", False),
     ("x = None", "x: None", False), ("{**a}", "{a: a}", False), ("f('')", "f()", False), ("return_ = a", "a = return_", False)],
)  # fmt: skip
def test_only_what_python_reads_counts(one, other, same):
    assert (hash_source(one) == hash_source(other)) == same


def test_a_hash_of_code_that_is_not_there_is_refused():
    with pytest.raises(DrotError, match=r"method\.student\.make_exmples"):
        code.hash_code("method.student.make_exmples")


def hash_both():
    return code.hash_code("method.student.make_examples"), code.hash_code("method.nli.filter_unique")


def test_a_hash_of_code_reaches_through_modules_and_is_of_the_code_that_runs(checkout):
    open_study("02_critic", "params/smoke.yaml")
    edit(checkout / "drot_utils" / "method" / "prompts.py", "Modifier: more", "Direction: more")
    before = hash_both()
    code.read_package.cache_clear()  # as in a process that begins now
    after = hash_both()
    assert before[0] != after[0] and before[1] == after[1]


def test_no_process_is_started_that_would_run_edited_code(checkout, tmp_path):
    code.read_package()
    edit(checkout / "drot_utils" / "method" / "prompts.py", "Modifier: more", "Direction: more")
    code.refuse_edited("method.nli.filter_unique")  # does not reach it
    rows, workers = pd.DataFrame({"x": [1]}), Executor(kind="processes", workers=1, address=None)
    with pytest.raises(DrotError, match=r"edited .*method\.prompts\.\w+\n"):
        map_shards(rows, 1, student._open_writing, tmp_path, seed=0, stage="x", executor=workers)
    with pytest.raises(DrotError, match=r"edited .*method\.prompts\.\w+\n"):
        student.launch(None, rows, {}, tmp_path)


def test_each_notebook_reaches_what_it_is_about():
    reached = {name: code.hash_notebook(ROOT / "notebooks" / f"{name}.ipynb")[0] for name in ("02_critic", NOTEBOOK)}
    assert {"engine.classifier.train_classifier", "method.critic.train_critic"} <= set(reached["02_critic"])
    assert {"engine.trainer.train", "method.distill.FILTERS", "method.prompts.student_source"} <= set(reached[NOTEBOOK])
    assert not any(place.startswith(("report", "study", "people")) for hashes in reached.values() for place in hashes)
    assert "method.prompts.student_source" not in reached["02_critic"]


def test_a_stamp_has_no_look_of_tables_and_figures_and_each_parameter_that_is_read(smoke):
    for stage in {stage.notebook: stage for stage in graph.list_stages(smoke)}.values():
        computing = code.hash_notebook(stage.notebook)[0]
        assert not [place for place in computing if place.startswith(("report.tables", "report.figures"))], stage.name
        source = stage.notebook.read_text(encoding="utf-8")
        read = set(re.findall(r"\bparams\.((\w+)\.\w+)", source))
        assert not [key for key, section in read if not {key, section} & {*stage.sections}], stage.name


class Watch:
    """Notes which functions of the package are called, and which parameters are read, while a notebook runs."""

    def __init__(self, monkeypatch):
        self.called, self.read, read = set(), set(), Section.__getattribute__

        def get(section, name):
            if name in type(section).model_fields and sys._getframe(1).f_code.co_name not in ("_check", "list_stages"):
                self.read.add((type(section), name))
            return read(section, name)

        monkeypatch.setattr(Section, "__getattribute__", get)

    def __enter__(self):
        sys.setprofile(self.note)
        threading.setprofile(self.note)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)
        threading.setprofile(None)

    def note(self, frame, event, _):
        # What a module does when it is imported is not called: a notebook may import more than it uses.
        if (
            event == "call"
            and frame.f_code.co_filename.startswith(PACKAGE)
            and frame.f_back.f_code.co_name != "<module>"
        ):
            module = frame.f_code.co_filename.removeprefix(PACKAGE).removesuffix(".py").replace("/", ".")
            name = frame.f_code.co_qualname.split(".")[0]
            if not name.startswith("<"):
                self.called.add(f"{module}.{name}")


PACKAGE = f"{ROOT}/drot_utils/"
#: What notebooks call for the reader alone: `for_reading`, and a student asked about the reader's own actions within it.
READERS = {
    "data.table.for_reading",
    "method.distill.ask_student",
    "method.distill.choose_best",
    "method.distill._read_actions",
    "method.student.find_cut",
}
#: Stages, and what of the finished run is removed first, so that the work is done and not read.
WATCHED = {
    "01_seed_generation": ["data/answers.sqlite"],
    "02_critic": ["work/trained", "work/shards"],
    "03_nli_filter": ["work/trained", "work/shards"],
    "04_distill_base": ["models/distill_base", "work/shards"],
    "05_self_distill-1-no_nli": ["work/shards"],
    "09_toxicity": [],
    "10_cultural_bias": [],
    "11_human_evaluation": [],
    "12_judges": ["work/shards"],
    "06_final_dataset": [],
    "07_evaluation": [],
}


@pytest.mark.slow
def test_all_that_a_running_notebook_calls_and_reads_is_in_its_stamp(smoke, smoke_run, tmp_path, monkeypatch):
    """Runs the code of notebooks in this process on a copy of the finished smoke run, until 80 seconds have passed."""
    shutil.copytree(smoke_run, tmp_path / "copy", symlinks=True, ignore=shutil.ignore_patterns("*.socket"))
    monkeypatch.setenv("DROT_OUTPUT", str(tmp_path / "copy"))
    stages, began, seen = {stage.name: stage for stage in graph.list_stages(smoke)}, time.monotonic(), 0
    sections = {
        field.annotation: name for name, field in Params.model_fields.items() if isinstance(field.annotation, type)
    }
    for name, remade in WATCHED.items():
        if time.monotonic() - began > 80:
            break
        for place in (Run("smoke").root / each for each in remade):
            shutil.rmtree(place, ignore_errors=True) if place.suffix == "" else place.unlink()
        stage, watch, seen = stages[name], Watch(monkeypatch), seen + 1
        monkeypatch.setenv("DROT_STAGE", name)
        with watch:
            run_cells(stage.notebook.stem, "params/smoke.yaml", by_hand=True, display=print, **stage.parameters)
        computing, everything = code.hash_notebook(stage.notebook)
        called = {place for place in watch.called if not place.startswith("study.")}
        assert len(called) > 20 and called <= set(everything), f"{name}: {sorted(called - set(everything))}"
        shown = {place for place in called - set(computing) if not place.startswith("report.")}
        assert shown <= READERS, f"{name}: {sorted(shown)} would not run it again"
        whole = {*stage.sections, "profile", "ablations", *sections.values()} - {"seed"}
        parts = {section for section in whole if f"{section}." in " ".join(f"{each} " for each in stage.sections)}
        for kind, key in watch.read:
            if kind in sections and sections[kind] in parts and sections[kind] not in stage.sections:
                assert f"{sections[kind]}.{key}" in stage.sections, f"{name} reads {sections[kind]}.{key}"
    assert seen >= 3, f"only {seen} notebooks in 80 seconds"
