"""Tests of `graph`."""

import ast
import dataclasses
import json
import os
import shutil
from functools import cache

import pytest

from drot_utils.study import code, graph, paths
from drot_utils.study.errors import DrotError
from drot_utils.study.params import Params, load_params
from drot_utils.study.paths import NOTEBOOKS, ROOT, Run


@pytest.fixture(scope="module")
def demo():
    return load_params("params/demo.yaml")


def test_every_notebook_is_run_and_order_is_kept(smoke):
    listed = graph.list_stages(smoke)
    assert {s.notebook for s in listed} == set(NOTEBOOKS.glob("*.ipynb"))
    seen = set()
    for stage in listed:
        assert set(stage.needs) <= seen, f"{stage.name} runs before what it needs"
        seen.add(stage.name)
    assert len(seen) == len(listed) == 19 and listed[-1].name == "12_judges"


def test_ablations_run_when_asked_for_or_when_they_exist(demo):
    assert len(graph.list_stages(demo)) == 13 and len(graph.list_stages(demo, ablations=True)) == 19
    Run("demo").model("self_distill_1-no_nli").mkdir(parents=True)
    assert len(graph.list_stages(demo)) == 19


@pytest.mark.parametrize(
    ("filters", "evaluates", "needed"),
    [("critic", "same", set()), ("judges", "same", {"04_distill_base"}), ("critic", "judges", {"07_evaluation"}),
     ("judges", "judges", {"04_distill_base", "07_evaluation"})],
)  # fmt: skip
def test_only_what_the_judges_score_waits_for_them(demo, filters, evaluates, needed):
    section = {name: getattr(demo, name) for name in ("judges", "evaluation")}
    listed = graph.list_stages(
        demo.model_copy(
            update={
                "judges": section["judges"].model_copy(update={"filter": filters}),
                "evaluation": section["evaluation"].model_copy(update={"critic": evaluates}),
            }
        )
    )
    assert {stage.name for stage in listed if "12_judges" in stage.needs} == needed
    names = [stage.name for stage in listed]
    assert len(names) == 13 and all(names.index("12_judges") < names.index(name) for name in needed)


@cache
def parse_file(room, file):
    return ast.parse((ROOT / "drot_utils" / room / f"{file}.py").read_text(encoding="utf-8")).body


def sections_used(notebook):
    """Return the sections of the parameters that a notebook's code reads, in its cells or in what it reaches."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    trees = [ast.parse(source.replace("%", ""))]
    for place in set(code.hash_notebook(notebook)[1]) - {"cells"}:
        if place.startswith(code.FILES):
            continue
        room, file, *name = place.split(".")
        trees += [node for node in parse_file(room, file) if name == [getattr(node, "name", None)]]
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Attribute) and getattr(node.value, "attr", getattr(node.value, "id", "")) == "params":
            yield node.attr


def test_a_stage_names_all_sections_that_its_notebook_reads(smoke):
    for stage in graph.list_stages(smoke):
        named = {section.split(".")[0] for section in stage.sections}
        assert named <= set(type(smoke).model_fields)
        read = set(sections_used(stage.notebook)) & set(type(smoke).model_fields) - {"profile", "ablations"}
        if "teacher" not in named:  # it can be asked zero-shot, or as a judge, only where these are named
            read -= {"teacher", "requests"}
        assert read <= named, f"{stage.name} also reads {sorted(read - named)}"


def test_a_stage_depends_on_its_data_and_on_filled_forms(demo, tmp_path):
    def data_of(params, stage):
        return set(graph.stamp_stages(graph.list_stages(params), params)[stage].inputs["data"])

    gold = {f"data/demo/{name}.tsv" for name in ("critic_annotations", "critic_annotations_single", "dev_votes")}
    assert {"data/demo/actions.tsv", "data/demo/teacher_plain.tsv", *gold} == data_of(demo, "02_critic")
    assert data_of(demo, "09_toxicity") == {"data/profanity.txt"}
    (tmp_path / "evaluation_form-ann.csv").write_text("row_id\n")
    state = tmp_path / "annotation_output" / "bob" / "user_state.json"
    state.parent.mkdir(parents=True)
    state.write_text("{}")
    forms = demo.model_copy(update={"annotation": demo.annotation.model_copy(update={"filled": str(tmp_path)})})
    found = data_of(forms, "11_human_evaluation")
    assert {str(tmp_path / "evaluation_form-ann.csv"), str(state)} <= found
    for name in ("a/evaluation_form-bob.CSV", "c.jsonl", "d.xlsx", "._e.csv"):  # what is read, refused or counted
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    more = data_of(forms, "11_human_evaluation") - found
    assert {name.rsplit("/", 1)[1] for name in more} == {"evaluation_form-bob.CSV", "c.jsonl", "d.xlsx"}


def test_files_and_folders_count_however_they_are_named(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    for name in ("forms/evaluation_form-ann.csv", "mine/model.safetensors", "data/x.tsv", "gpt2/model.safetensors"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("x")
    (tmp_path / "actions.tsv").write_text("x")

    def data_of(**sections):
        values = {"stage": {}, **sections}
        return set(graph._hash_data(values))

    base = {"base": {"source": "folder", "name": "mine"}}
    assert data_of(annotation={"filled": "forms"}) == {"forms/evaluation_form-ann.csv"}
    assert data_of(student=base) == {"mine/model.safetensors"}
    assert data_of(student={"base": {"source": "package", "name": "gpt2"}}) == set()
    assert data_of(**{"corpus.actions": "actions.tsv", "teacher": {"name": "data"}, "topics": {"word_list": None}}) == {
        "actions.tsv"
    }


def test_a_file_that_many_stages_need_is_read_once(demo, monkeypatch):
    read = []
    monkeypatch.setattr(graph, "sha256", lambda path: read.append(path) or "x")
    graph.stamp_stages(graph.list_stages(demo), demo)
    assert len(read) == len(set(read)) > 3


def test_every_parameter_that_is_a_path_is_known_as_one():
    texts = set()
    schema = Params.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        for name, kind in section["properties"].items():
            kinds = [kind, *kind.get("anyOf", [])]
            kinds += [each["items"] for each in kinds if "items" in each]
            if any(each.get("type") == "string" and not {"enum", "const"} & set(each) for each in kinds):
                texts.add(name)
    others = {"action", "address", "api_key_env", "base_url", "countries", "exchange", "model", "name", "note", "profile",
              "revision", "target"}  # fmt: skip
    assert texts == others | set(graph.PATHS) - {"folder"}, "a new key: is it a path (graph.PATHS), or not (this test)?"


def test_a_path_that_the_runner_gets_has_no_braces(tmp_path):
    graph.refuse_braces(tmp_path)
    with pytest.raises(DrotError, match=r"{x}: a path with a brace"):
        graph.refuse_braces(tmp_path / "{x}")


@pytest.mark.parametrize("rounds", [[30], [30, 20, 10], [10] * 11])
def test_any_number_of_rounds(demo, rounds):
    params = demo.model_copy(update={"corpus": demo.corpus.model_copy(update={"round_actions": rounds})})
    names = [stage.name for stage in graph.list_stages(params)]
    assert [name for name in names if name.startswith("05")] == [f"05_self_distill-{i + 1}" for i in range(len(rounds))]
    by_name = {stage.name: stage for stage in graph.list_stages(params, ablations=True)}
    assert by_name["06_final_dataset"].needs == (f"05_self_distill-{len(rounds)}",)
    assert len(by_name) == 11 + len(rounds) + 1 + 2 * len(rounds) + (len(rounds) > 1)
    students = graph.list_students(params)
    middle = [f"self_distill_{i + 1}" for i in range(len(rounds))]
    assert students == ["distill_base", *middle, "distill_final"] and len(set(map(graph.label, students))) == len(
        students
    )
    assert graph.list_training_sets(params) == [f"d{i}" for i in range(len(rounds) + 1)]


ALL = {stage.name for stage in graph.list_stages(load_params("params/demo.yaml"))}
AFTER_STUDENTS = ALL - {"01_seed_generation", "02_critic", "03_nli_filter", "12_judges"}
AFTER_CRITIC = AFTER_STUDENTS | {"02_critic", "12_judges"}


def edit_text(name, old, new):
    def edit(checkout):
        path = checkout / name
        text = path.read_text(encoding="utf-8")
        assert old in text, f"{old!r} is not in {name}"
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    return edit


def edit_weights(checkout):
    (checkout / "my-student" / "model.safetensors").write_text("other weights")


#: What is edited, and which stages run again: all of their work and what follows it, or only their own drawing.
EDITS = {
    "prose of a notebook": (edit_text("notebooks/02_critic.ipynb", "Figure 8", "Figure 8 (the curve)"), set(), set()),
    "metadata of a notebook": (edit_text("notebooks/02_critic.ipynb", '"nbformat_minor": 5', '"nbformat_minor": 4'), set(), set()),
    "a comment": (edit_text("drot_utils/method/prompts.py", "\ndef ", "\n# why\ndef "), set(), set()),
    "a docstring": (edit_text("drot_utils/method/prompts.py", '"""Fill', '"""Fill in'), set(), set()),
    "a prompt's text": (edit_text("drot_utils/method/prompts.py", "Modifier: more", "Modifier: much more"), AFTER_STUDENTS, set()),
    "the critic's head": (edit_text("drot_utils/engine/classifier.py", "nn.GELU()", "nn.ReLU()"), ALL - {"01_seed_generation"}, set()),
    "table 2": (edit_text("drot_utils/analysis/evaluation.py", "def make_table2(", "def make_table2(more=None, *, "), {"07_evaluation", "11_human_evaluation"}, set()),
    "drawing code": (edit_text("drot_utils/report/figures.py", "def draw_topics(", "def draw_topics(more=None, *, "), set(), {"08_topics"}),
    "a figure in a notebook": (edit_text("notebooks/02_critic.ipynb", 'run, \\"figure8', 'run, \\"figure_8'), set(), {"02_critic"}),
    "a cell's work": (edit_text("notebooks/07_evaluation.ipynb", "settings.sampled_actions or len(test)", "settings.sampled_actions or 7"), {"07_evaluation", "11_human_evaluation"}, set()),
    "a threshold": (edit_text("params/demo.yaml", "threshold_dataset: {share: 0.35}", "threshold_dataset: {share: 0.3}"), AFTER_CRITIC | {"11_human_evaluation"}, set()),
    "a parameter at the end": (edit_text("params/demo.yaml", "permutations: 2000", "permutations: 99"), {"10_cultural_bias"}, set()),
    "who does the shards": (edit_text("params/demo.yaml", "executor: {kind: local, workers: 1", "executor: {kind: processes, workers: 2"), set(), set()),
    "a remark in the parameters": (edit_text("params/demo.yaml", "# section 3.2", "# section 3.2, of course"), set(), set()),
    "a data file": (edit_text("data/demo/entailment_groups.jsonl", '"', ' "'), AFTER_STUDENTS | {"03_nli_filter"}, set()),
    "votes on students": (edit_text("data/demo/dev_votes.tsv", "\tY\n", "\tN\n"), AFTER_CRITIC | {"11_human_evaluation"}, set()),
    "a cap": (edit_text("params/demo.yaml", "max_per_prompt: 3", "max_per_prompt: 4"), AFTER_STUDENTS, set()),
    "a folder of weights": (edit_weights, AFTER_STUDENTS, set()),
}  # fmt: skip


def copy_checkout(place, monkeypatch):
    for name in ("drot_utils", "notebooks", "params", "data"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    (place / "my-student").mkdir()
    (place / "my-student" / "model.safetensors").write_text("weights")
    edit_text(
        "params/demo.yaml",
        "base: {source: package, name: smollm2-135m-instruct}",
        "base: {source: folder, name: ./my-student}",
    )(place)
    point_at(place, monkeypatch)
    return place


def point_at(place, monkeypatch):
    for module, name, value in (
        (paths, "ROOT", place),
        (code, "ROOT", place),
        (graph, "NOTEBOOKS", place / "notebooks"),
    ):
        monkeypatch.setattr(module, name, value)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Return a copy of the checkout whose student starts from a folder of weights."""
    return copy_checkout(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """Return the stamps of such a copy, which are the same wherever it lies."""
    with pytest.MonkeyPatch.context() as patch:
        copy_checkout(tmp_path_factory.mktemp("before"), patch)
        return stamp_all()


def stamp_all():
    params = load_params("params/demo.yaml")
    return graph.stamp_stages(graph.list_stages(params), params)


@pytest.mark.parametrize("name", EDITS)
def test_what_runs_again_after_an_edit(checkout, before, name):
    edit, works, draws = EDITS[name]
    edit(checkout)
    after = stamp_all()
    worked = {name for name in before if before[name].value != after[name].value}
    looked = {name for name in before if before[name].look != after[name].look}
    assert (worked, looked - worked) == (works, draws)


def test_a_checkout_that_moved_or_changed_its_times_runs_nothing(checkout, before, tmp_path_factory, monkeypatch):
    for path in checkout.rglob("*"):  # as `git checkout` there and back leaves them
        os.utime(path)
    assert stamp_all() == before
    moved = shutil.move(checkout, tmp_path_factory.mktemp("elsewhere") / "here")
    point_at(moved, monkeypatch)
    assert stamp_all() == before


@pytest.mark.parametrize("changes", [{"round": 2}, {"variant": "no_critic"}])
def test_a_changed_round_or_variant_runs_the_stage_and_what_follows_it(demo, changes):
    stages = graph.list_stages(demo)
    place = next(i for i, stage in enumerate(stages) if stage.name.startswith("05"))
    others = [*stages]
    others[place] = dataclasses.replace(stages[place], parameters={**stages[place].parameters, **changes})
    before, after = graph.stamp_stages(stages, demo), graph.stamp_stages(others, demo)
    changed = {name for name in before if before[name].value != after[name].value}
    assert changed == AFTER_STUDENTS - {"04_distill_base"}


def test_versions_of_libraries_are_recorded_and_run_nothing_again(checkout, before, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99")
    assert stamp_all() == before


@pytest.mark.slow
def test_the_slurm_profile_submits_a_job_a_notebook(output):
    import os
    import subprocess
    import sys

    from drot_utils.study.paths import ROOT

    pytest.importorskip("snakemake_executor_plugin_slurm", reason="extra: make extras")
    command = [
        sys.executable, "-m", "snakemake", "--profile", "params/slurm", "--dry-run",
        "--config", "params_file=params/paper.yaml", "--directory", str(output),
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "11_human_evaluation" in done.stdout and "slurm_partition=gpu" in done.stdout
