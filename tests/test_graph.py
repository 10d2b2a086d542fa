"""Tests of `graph`."""

import pytest

from drot_utils.study import graph
from drot_utils.study.errors import DrotError
from drot_utils.study.params import load_params
from drot_utils.study.paths import NOTEBOOKS, Run


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


def test_sections_exist(smoke):
    for stage in graph.list_stages(smoke):
        assert set(stage.sections) <= set(type(smoke).model_fields)


def test_a_stage_depends_on_its_data_and_on_filled_forms(demo, tmp_path):
    by_name = {s.name: s for s in graph.list_stages(demo)}
    names = {p.name for p in graph.inputs_of(by_name["02_critic"], Run("demo"), demo)}
    assert {"actions.tsv", "critic_annotations.tsv", "critic_annotations_single.tsv", "teacher_plain.tsv"} <= names
    assert "entailment_groups.jsonl" not in names
    assert "profanity.txt" in {p.name for p in graph.inputs_of(by_name["09_toxicity"], Run("demo"), demo)}
    (tmp_path / "evaluation_form-ann.csv").write_text("row_id\n")
    state = tmp_path / "annotation_output" / "bob" / "user_state.json"
    state.parent.mkdir(parents=True)
    state.write_text("{}")
    forms = demo.model_copy(update={"annotation": demo.annotation.model_copy(update={"filled": str(tmp_path)})})
    found = graph.inputs_of(by_name["11_human_evaluation"], Run("demo"), forms)
    assert {tmp_path / "evaluation_form-ann.csv", state} <= set(found)
    for name in ("a/evaluation_form-bob.CSV", "c.jsonl", "d.xlsx", "._e.csv"):  # what is read, refused or counted
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    more = set(graph.inputs_of(by_name["11_human_evaluation"], Run("demo"), forms)) - set(found)
    assert {p.name for p in more} == {"evaluation_form-bob.CSV", "c.jsonl", "d.xlsx"}
    graph.refuse_braces(Run("demo"), forms)
    (tmp_path / "evaluation_form-{x}.csv").write_text("x")
    with pytest.raises(DrotError, match=r"evaluation_form-{x}.csv: a path with a brace"):
        graph.refuse_braces(Run("demo"), forms)


def test_a_stage_depends_on_the_modules_its_notebook_imports_and_no_others():
    names = {p.stem for p in graph.modules_of(NOTEBOOKS / "03_nli_filter.ipynb")}
    assert {"nli", "classifier", "parsing", "errors"} <= names and not {"teacher", "topics", "student"} & names
    assert "shards" in {p.stem for p in graph.modules_of(NOTEBOOKS / "05_self_distill.ipynb")}


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
