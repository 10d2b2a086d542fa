"""The smoke study end to end, as a user gets it: every notebook, both kinds of student, and what is left on disk."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from chaos import differences, files_of, run_disturbed
from conftest import NEEDS_TEX, run_study, typeset, write_params
from hypothesis import given
from hypothesis import strategies as st
from papermill.cli import papermill
from pytest import approx

from drot_utils.data.table import CANDIDATES, SCORED, check_candidates, read_table
from drot_utils.study import graph, outputs, runner
from drot_utils.study.errors import DrotError
from drot_utils.study.graph import Stage, list_stages, stamp_stages
from drot_utils.study.kernels import kernel_command
from drot_utils.study.params import Params, load_params
from drot_utils.study.paths import ROOT, Run, exclusive
from drot_utils.study.runner import time_left


def stage(name, smoke):
    return next(s for s in list_stages(smoke) if s.name == name)


def test_a_notebook_before_its_inputs_names_the_one_to_run(smoke):
    with pytest.raises(DrotError, match=r"MissingInputError.*") as caught:
        runner.execute(stage("04_distill_base", smoke), "params/smoke.yaml", Run("smoke"))
    assert "notebooks/01_seed_generation.ipynb" in str(caught.value)
    assert not (Run("smoke").root / "notebooks" / "04_distill_base.ipynb").exists()
    assert (Run("smoke").root / "notebooks" / "unfinished" / "04_distill_base.ipynb").exists()


def test_command_line_errors_are_one_paragraph(tmp_path, call):
    command = [sys.executable, "-m", "drot_utils", "stage", "99_nothing", "params/smoke.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "no stage '99_nothing'" in done.stderr and "Traceback" not in done.stderr
    bad = write_params(tmp_path / "bad.yaml", "smoke", seed="one")
    done = call("stage", "01_seed_generation", bad)
    assert done.returncode == 1 and "`seed`" in done.stderr and "Traceback" not in done.stderr


def test_a_stage_runs_only_on_what_would_be_made_now(tmp_path, call, monkeypatch):
    ran = []
    monkeypatch.setattr(runner, "execute", lambda stage, *_: ran.append(stage.name))
    params = load_params("params/smoke.yaml")
    stamps = stamp_stages(list_stages(params), params)
    changed = write_params(tmp_path / "p.yaml", "smoke", critic__learning_rate=0.005)
    for name in ("01_seed_generation", "02_critic", "03_nli_filter"):
        done = call("stage", "04_distill_base", "params/smoke.yaml")
        assert done.returncode == 1 and f"04_distill_base: needs {name} as it would" in done.stderr, done.stderr
        assert "has not run" in done.stderr and f"run the stage {name} first" in done.stderr
        stamp = stamps[name]
        record = {"files": {}, "stamp": stamp.value, "look": stamp.look, "inputs": stamp.inputs}
        outputs.finish(Run("smoke"), name, "drawn-otherwise", record)  # how its figures look does not matter
    done = call("stage", "04_distill_base", changed)
    assert done.returncode == 1 and "needs 02_critic" in done.stderr and "-> 0.005" in done.stderr and not ran
    look = stamps["04_distill_base"].look  # as Snakemake's jobs call it
    assert call("stage", "04_distill_base", "params/smoke.yaml", "--look", look).returncode == 0
    assert call("stage", "02_critic", changed).returncode == 0 and ran == ["04_distill_base", "02_critic"]


def test_a_stage_is_not_run_twice_at_once(smoke):
    run_ = Run("smoke")
    with (
        exclusive(run_.work("running") / "01_seed_generation.lock", wait=False),
        pytest.raises(DrotError, match="another process"),
    ):
        runner.execute(stage("01_seed_generation", smoke), "params/smoke.yaml", run_)


def test_a_malformed_corpus_stops_with_file_and_line(tmp_path, call):
    corpus = tmp_path / "actions.tsv"
    corpus.write_text("action\tsplit\trot\trot-judgment\nLying\ttrain\tr\n")
    params = write_params(tmp_path / "p.yaml", "smoke", corpus__actions=str(corpus), teacher__recorded=None)
    done = call("stage", "01_seed_generation", params)
    assert done.returncode == 1 and "Row #2: Expected 4 columns, got 3" in done.stderr and str(corpus) in done.stderr


def test_no_key_no_recorded_response(tmp_path, call):
    params = write_params(tmp_path / "p.yaml", "smoke", teacher__recorded=None)
    done = call("stage", "01_seed_generation", params)
    assert done.returncode == 1 and "set the environment variable OPENAI_API_KEY" in done.stderr


def test_papermill_runs_a_notebook_from_any_folder(tmp_path, output):
    command = [
        sys.executable, "-m", "papermill", str(ROOT / "notebooks/01_seed_generation.ipynb"), "out.ipynb",
        "-p", "params_file", "params/smoke.yaml", "--no-progress-bar",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    cells = json.loads((tmp_path / "out.ipynb").read_text())["cells"]
    assert any("160 raw contexts for 40 actions" in str(o.get("text")) for c in cells for o in c.get("outputs", []))
    record = json.loads(Run("smoke-play").manifest.read_text())["stages"]["01_seed_generation"]
    assert (
        Params.model_validate(record["parameters"]) == load_params("params/smoke.yaml")
        and not Run("smoke").root.exists()
    )


def test_papermill_can_set_any_parameter(tmp_path, monkeypatch):
    """As it is started above, but in this process, and with a kernel that has the libraries."""
    write_kernel(tmp_path, monkeypatch, kernel_command())
    command = [
        str(ROOT / "notebooks/01_seed_generation.ipynb"), str(tmp_path / "out.ipynb"),
        "-p", "params_file", "params/smoke.yaml", "-y", "overrides: {corpus.seed_actions: 7}", "--no-progress-bar",
    ]  # fmt: skip
    papermill(command, standalone_mode=False)
    assert len(read_table(Run("smoke-play").data("teacher"))) == 28


def write_kernel(folder, monkeypatch, command):
    """Let Jupyter find this kernel under the name of the usual one."""
    place = folder / "jupyter" / "kernels" / "python3"
    place.mkdir(parents=True)
    (place / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "other", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(folder / "jupyter"))


def small(tmp_path, monkeypatch, source):
    """A stage with a notebook of one cell."""
    cell = {
        "cell_type": "code",
        "source": source,
        "metadata": {"tags": ["parameters"]},
        "outputs": [],
        "execution_count": None,
    }
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    notebook = {"cells": [cell], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "small.ipynb").write_text(json.dumps(notebook))
    monkeypatch.setattr(graph, "NOTEBOOKS", tmp_path)
    return Stage("small", (), (), 1)


def test_another_environments_kernel_is_not_used(tmp_path, monkeypatch, output):
    write_kernel(tmp_path, monkeypatch, ["/bin/false", "{connection_file}"])
    executed = runner.execute(
        small(tmp_path, monkeypatch, "import sys\nprint(sys.executable)"), "params/smoke.yaml", Run("smoke")
    )
    cells = json.loads(executed.read_text())["cells"]
    assert [o["text"] for c in cells for o in c["outputs"]] == [[f"{sys.executable}\n"]]


def test_a_kernel_that_does_not_start_is_no_matter_of_memory(tmp_path, monkeypatch, output):
    (tmp_path / "ipykernel_launcher.py").write_text("raise SystemExit(3)")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("DROT_KERNELS", "fresh")
    with pytest.raises(DrotError, match=r"small: the notebook's kernel did not start") as caught:
        runner.execute(small(tmp_path, monkeypatch, "1"), "params/smoke.yaml", Run("smoke"))
    assert "memory" not in str(caught.value) and "-m ipykernel_launcher" in caught.value.todo


def test_a_kernel_that_was_killed_is(tmp_path, monkeypatch, output):
    with pytest.raises(DrotError, match="kernel died") as caught:
        runner.execute(
            small(tmp_path, monkeypatch, "import os\nos.kill(os.getpid(), 9)"), "params/smoke.yaml", Run("smoke")
        )
    assert "memory" in caught.value.todo


def test_a_kernel_has_ten_minutes_to_start(tmp_path, monkeypatch, output):
    import papermill

    seen = {}
    monkeypatch.setattr(
        papermill, "execute_notebook", lambda _, path, *__, **options: seen.update(options) or path.touch()
    )
    runner.execute(small(tmp_path, monkeypatch, "1"), "params/smoke.yaml", Run("smoke"))
    assert seen["start_timeout"] >= 600


@pytest.mark.parametrize("mine", [None, "active"])
def test_threads_that_wait_sleep_unless_the_user_says_otherwise(monkeypatch, mine):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if mine:
        monkeypatch.setenv("OMP_WAIT_POLICY", mine)
    assert runner.run_environment(Run("smoke"))["OMP_WAIT_POLICY"] == (mine or "passive")


@pytest.mark.parametrize("home", [None, "/nonexistent"])
def test_caches_of_a_user_without_name_and_home_go_below_work(monkeypatch, output, home):
    monkeypatch.setattr("os.path.expanduser", lambda path: path.replace("~", home) if home else path)
    for name in ("USER", "HF_HOME", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MPLCONFIGDIR", "/mine")
    monkeypatch.setenv("IPYTHONDIR", "")
    found = runner.run_environment(Run("smoke"))
    cache = Run("smoke").work("cache")
    for name in (
        "HOME",
        "HF_HOME",
        "HF_DATASETS_CACHE",
        "XDG_CACHE_HOME",
        "IPYTHONDIR",
        "JUPYTER_RUNTIME_DIR",
        "TORCHINDUCTOR_CACHE_DIR",
    ):
        assert Path(found[name]).is_relative_to(cache), name
    assert Path(found["HOME"]).is_dir() and found["USER"] and found["MPLCONFIGDIR"] == "/mine"
    assert found["DROT_OUTPUT"] == str(output) and found["PATH"] == os.environ["PATH"]


def test_a_home_that_may_not_be_entered_is_as_good_as_none(monkeypatch, tmp_path, output):
    may = os.access
    monkeypatch.setattr(
        "os.access", lambda path, mode: Path(path) != tmp_path and may(path, mode)
    )  # root may enter all
    for name in ("HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    found = runner.run_environment(Run("smoke"))
    assert all(Path(found[name]).is_relative_to(output) and found[name] for name in ("HOME", "HF_HOME"))


def test_models_of_the_hub_and_the_token_stay_in_a_home_that_is_there(monkeypatch, tmp_path, output):
    for name in ("HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    found = runner.run_environment(Run("smoke"))
    assert found["HF_HOME"] == str(tmp_path / ".cache" / "huggingface") and found["HOME"] == str(tmp_path)
    assert Path(found["XDG_CACHE_HOME"]).is_relative_to(output)


PLAN = [Stage("a", (), (), 10), Stage("b", ("a",), (), 100), Stage("c", ("b", "not planned"), (), 50)]


def test_time_left_is_the_usual_time_at_the_pace_of_what_is_finished():
    # The plan has 160 s, so 16 are believed: a took twice its usual time, so b and c are expected to take 36/26 of it.
    pace = (20 + 16) / (10 + 16)
    assert time_left(PLAN, {"a": 20}, {"b": (30, 0)}, 1) == approx(150 * pace - 30)
    assert time_left(PLAN, {"a": 20}, {}, 1) == approx(150 * pace)
    assert time_left(PLAN, {}, {"a": (4, 0)}, 1) == 6 + 150  # none is finished yet
    assert time_left(PLAN, {"a": 20, "b": 200}, {}, 1) == approx(50 * 236 / 126)  # most of it took twice its time


def test_a_short_stage_says_little_of_a_long_study():
    plan = [Stage("a", (), (), 2), Stage("b", (), (), 6000)]
    assert 6000 < time_left(plan, {"a": 10}, {}, 1) < 6100


def test_a_stage_has_at_least_what_is_left_of_its_bar():
    assert time_left(PLAN, {"a": 10}, {"b": (80, 300)}, 1) == 350
    assert time_left(PLAN, {"a": 10}, {"b": (80, 3)}, 1) == 70


def test_a_late_stage_sets_the_pace_of_those_that_follow():
    pace = (10 + 210 + 16) / (10 + 100 + 16)
    assert time_left(PLAN, {"a": 10}, {"b": (210, 70)}, 1) == approx(70 + 50 * pace)
    assert time_left(PLAN, {"a": 10}, {"b": (210, 0)}, 1) == approx(50 * pace)
    assert time_left(PLAN, {"a": 10, "b": 100}, {"c": (60, 0)}, 1) == 0  # not known


def test_stages_side_by_side():
    plan = [Stage("a", (), (), 10), Stage("b", (), (), 100), Stage("c", (), (), 50), Stage("d", ("b", "c"), (), 20)]
    assert time_left(plan, {"a": 10}, {"b": (0, 0), "c": (0, 0)}, 2) == 120
    assert time_left(plan, {"a": 10}, {}, 1) == 170


@given(
    st.lists(st.integers(1, 10_000), min_size=2, max_size=6), st.floats(0, 1e4), st.floats(0, 1e4), st.integers(1, 3)
)
def test_time_left_shrinks_as_time_goes_by_until_a_stage_is_late(usual, so_far, bar, cores):
    plan = [Stage(str(k), (), (), seconds) for k, seconds in enumerate(usual)]
    so_far = min(so_far, max(usual[1] - 60, 0))
    now, later = (
        time_left(plan, {"0": usual[0]}, {"1": (so_far + more, max(bar - more, 0))}, cores) for more in (0, 60)
    )
    assert so_far + 60 > usual[1] or later <= now + 1e-6
    assert now >= (sum(usual) - usual[0] - usual[1]) / cores - 1e-6


FIGURES = [
    "figure3",
    "figure8",
    "rounds",
    "rounds_critics",
    "differences",
    "flow",
    "losses",
    "critic_calibration",
    "nli_confusion",
    "topics_by_variance",
    "bias",
    "votes",
]
TABLES = [
    "table1",
    "table2",
    "table3",
    "table4",
    "table5",
    "table7",
    "table8",
    "table9",
    "table10",
    "table2_human",
    "agreement",
]


def test_every_stage_leaves_its_notebook_and_its_record(smoke_run, smoke):
    manifest = json.loads((smoke_run / "runs/smoke/manifest.json").read_text())
    for stage in list_stages(smoke):
        cells = json.loads((smoke_run / f"runs/smoke/notebooks/{stage.name}.ipynb").read_text())["cells"]
        code = [c for c in cells if c["cell_type"] == "code"]
        assert all(c["execution_count"] for c in code if "".join(c["source"]).strip())
        shown = [o for c in code for o in c["outputs"]]
        assert any("data" in o for o in shown), f"{stage.name} shows nothing"
        assert not any(o["output_type"] == "stream" and o["name"] == "stderr" for o in shown), f"{stage.name} is noisy"
        record = manifest["stages"][stage.name]
        assert record["rows"]["in"] == record["rows"]["kept"] + sum(record["rows"]["dropped"].values())
        assert record["summary"] and record["seconds"] > 0


def test_figures_and_tables_are_all_there(smoke_run):
    folder = smoke_run / "figures/smoke"
    for name in FIGURES:
        assert (folder / f"{name}.png").stat().st_size > 5_000 and (folder / f"{name}.pdf").stat().st_size > 2_000
    for name in TABLES:
        for end in (".csv", ".tex", ".md"):
            assert (folder / f"{name}{end}").exists(), name + end
        assert "random, so these numbers mean nothing." in (folder / f"{name}.md").read_text().splitlines()[0]


@NEEDS_TEX
def test_the_tables_compile_and_fit_a_text_width(smoke_run, tmp_path):
    paths = sorted((smoke_run / "figures/smoke").glob("*.tex"))
    assert len(paths) > 15 and typeset(paths, tmp_path) == []


def test_table2_has_a_row_a_model_and_the_papers_numbers(smoke_run):
    table = pd.read_csv(smoke_run / "figures/smoke/table2.csv")
    assert len(table) == 12 and table["model"].is_unique
    for metric in ("vld", "avg", "n_vld", "n_unq_vld"):
        for end in ("", "_low", "_high"):
            assert f"auto_{metric}{end}" in table and f"independent_{metric}{end}" in table
        known = table[table[f"auto_{metric}"].notna()]
        assert (known[f"auto_{metric}_low"] <= known[f"auto_{metric}"] + 1e-12).all()
        assert f"paper_auto_{metric}" in table
    assert (table["auto_n_unq_vld"].dropna() <= table["auto_n_vld"].dropna()).all()


def test_each_student_that_repeats_itself_is_named_distill_final_too(smoke_run):
    table = pd.read_csv(smoke_run / "figures/smoke/variety.csv").set_index("model")
    repeats = (
        100 - table.loc[["distill_base", "self_distill_1", "self_distill_2", "distill_final"], "different_per_100"]
    )
    loud = repeats.index[1:][repeats.iloc[1:] >= max(5, 2 * repeats.iloc[0])]
    record = json.loads((smoke_run / "runs/smoke/manifest.json").read_text())["stages"]["07_evaluation"]
    assert [text.split(" repeats")[0] for text in record["warnings"]] == [f"Warning: {graph.label(m)}" for m in loud]


def test_the_final_student_learns_from_the_teacher_only_what_passes_the_threshold_of_all_others(smoke_run):
    rows = read_table(smoke_run / "runs/smoke/data/drot.parquet")
    record = json.loads((smoke_run / "runs/smoke/manifest.json").read_text())["stages"]["06_final_dataset"]
    passed = rows["source"].ne("teacher") | rows["critic_score"].ge(record["threshold"])
    assert 0 < record["training"]["rows"] == passed.sum() < len(rows)


def test_data_keep_the_schema_and_no_row_is_lost(smoke_run, smoke):
    data = smoke_run / "runs/smoke/data"
    for name in ("d0", "d1", "d2", "drot", "candidates_d0", "candidates_d1", "candidates_d2", "candidates_drot"):
        rows = check_candidates(read_table(data / f"{name}.parquet"), name)
        assert list(rows) == CANDIDATES.names and len(rows)
    for name in ("greedy", "samples", "baselines"):  # with both opinions
        rows = check_candidates(read_table(data / f"candidates_test_{name}.parquet"), name)
        assert list(rows) == SCORED.names and rows["context"].notna().any()
        for score in ("critic_score", "independent_score"):
            assert rows[score].between(0, 1).eq(rows["context"].notna()).all()
    for k, n in enumerate(smoke.corpus.round_actions, start=1):
        everything = read_table(data / f"candidates_d{k}.parquet")
        assert len(everything) == n * 2 * smoke.generation.candidates
        kept = everything[everything["kept"]].reset_index(drop=True)
        pd.testing.assert_frame_equal(kept, read_table(data / f"d{k}.parquet"))


def test_no_test_action_was_learnt_from(smoke_run):
    data = smoke_run / "runs/smoke/data"
    test = set(read_table(data / "candidates_test_greedy.parquet")["action_id"])
    learnt = set().union(*(read_table(data / f"{d}.parquet")["action_id"] for d in ("d0", "d1", "d2", "drot")))
    assert test and learnt and not test & learnt


def test_no_key_in_any_file(smoke_run):
    for path in smoke_run.rglob("*"):
        if path.is_file():
            assert b"sk-marked-secret" not in path.read_bytes(), path


def test_nothing_is_written_elsewhere(smoke_run):
    assert {p.name for p in smoke_run.iterdir()} == {"runs", "figures", "stdout.txt"}


def test_the_log_of_a_batch_run_is_short_and_says_where_things_are(smoke_run):
    text = (smoke_run / "stdout.txt").read_text()
    assert len(text.splitlines()) < 60 and "\r" not in text
    assert re.search(r"Tiny models: about \d+ minutes; longest: ", text.splitlines()[0])
    assert re.search(r"^\[\d+/19\] \d\d_\w+", text, re.MULTILINE) and "manifest" in text and "Distill_final" in text


def test_a_second_run_does_nothing_and_a_changed_parameter_only_what_depends_on_it(smoke_run, call, monkeypatch):
    monkeypatch.setenv("DROT_OUTPUT", str(smoke_run))

    def executed(profile):
        return {p.name: p.stat().st_mtime_ns for p in (smoke_run / f"runs/{profile}/notebooks").glob("*.ipynb")}

    before = executed("smoke")
    assert call("run", "params/smoke.yaml", "--cores", "2").returncode == 0
    assert executed("smoke") == before
    said = call("run", "params/smoke.yaml", "--dry-run").stdout
    assert said.count(" is there\n") == 19 and said.endswith("nothing to run\n")
    changes = ("--set", "bias.permutations=50", "--as", "bias50")
    said = call("run", "params/smoke.yaml", *changes, "--dry-run").stdout
    assert (
        said.count("is taken over from runs/smoke") == 18
        and "10_cultural_bias" in said.split("runs, about")[0].splitlines()[-1]
    )
    assert "bias.permutations: 100 -> 50" in said and not (smoke_run / "runs/bias50").exists()
    done = call("run", "params/smoke.yaml", *changes)
    assert done.returncode == 0, done.stderr
    after = executed("bias50")
    stages = json.loads((smoke_run / "runs/bias50/manifest.json").read_text())["stages"]
    assert [name for name, record in stages.items() if "from" not in record] == ["10_cultural_bias"]
    assert executed("smoke") == before
    assert call("run", "params/smoke.yaml", *changes).returncode == 0
    assert executed("bias50") == after
    done = call("run", "params/smoke.yaml", "--set", "bias.permutations=60", "--as", "bias50")
    assert done.returncode == 1 and "has other parameters (bias.permutations: 50, not 60)" in done.stderr


def test_a_file_that_is_cut_is_made_again_from_what_is_there(smoke_run, output, call):
    shutil.copytree(smoke_run, output, ignore=shutil.ignore_patterns("*.socket", "bias50"))
    student, data = output / "runs/smoke/models/self_distill_1/model.safetensors", output / "runs/smoke/data/d1.parquet"
    expected, weights = data.read_bytes(), student.stat().st_mtime_ns
    data.write_bytes(expected[:100])
    said = call("run", "params/smoke.yaml", "--dry-run").stdout
    assert said.count(" is there\n") == 18 and "run/data/d1.parquet is not as it was written" in said
    done = call("run", "params/smoke.yaml")
    assert done.returncode == 0, done.stderr
    assert data.read_bytes() == expected and student.stat().st_mtime_ns == weights  # it was not trained again


def test_a_round_that_is_killed_twice_ends_with_the_same_bytes(smoke_run, tmp_path):
    """What `make chaos` does with the whole study: here the round writes, scores, filters and trains again, from nothing kept."""
    output = shutil.copytree(smoke_run, tmp_path / "killed", ignore=shutil.ignore_patterns("work", "bias50"))
    expected = files_of(output)
    round_ = [name for name in expected if re.search(r"d1\.parquet|models/self_distill_1/", name)]
    assert len(round_) > 3 and any(name.endswith(".safetensors") for name in round_)
    for name in round_:
        (output / name).unlink()
    until = ["--until", "05_self_distill-1"]
    assert run_disturbed("params/smoke.yaml", output, random.Random(1), 2, 14, until) >= 1
    assert differences(expected, files_of(output)) == []


def test_errors_of_the_command_line(tmp_path, call):
    done = call("run", "params/none.yaml")
    assert done.returncode == 1 and "no such parameter file" in done.stderr and "Traceback" not in done.stderr
    bad = write_params(tmp_path / "few.yaml", "smoke", profile="few", corpus__seed_actions=5000)
    done = call("run", bad, "--until", "01_seed_generation")
    assert done.returncode == 1 and "asked for 5040 actions of the train split, found 670" in done.stderr
    assert load_params(bad).profile == "few"


def test_any_name_of_a_parameter_file_and_any_terminal(tmp_path):
    name = "a: {b}, [run] #2 – 'é'"
    params = write_params(tmp_path / f"{name}.yaml", "smoke")
    table = tmp_path / "out/figures/smoke/table2.md"  # what a finished run shows
    table.parent.mkdir(parents=True)
    table.write_text("0.53 / –\n", encoding="utf-8")
    plain = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run_study(params, tmp_path / "out", "--until", "01_seed_generation", **plain)
    assert done.returncode == 0 and r"0.53 / \u2013" in done.stdout, done.stderr
    assert (tmp_path / "out/runs/smoke/notebooks/01_seed_generation.ipynb").exists()


def test_a_folder_whose_name_snakemake_would_misread_is_refused(tmp_path, monkeypatch, call):
    monkeypatch.setenv("DROT_OUTPUT", str(tmp_path / "{b}"))
    done = call("run", "params/smoke.yaml", "--until", "01_seed_generation")
    assert done.returncode == 1 and "{b}/runs/smoke: a path with a brace" in done.stderr
    assert not (tmp_path / "{b}").exists()


@pytest.mark.parametrize("profile", ["smoke"])
def test_numbers_of_random_models_are_said_to_mean_nothing(profile, smoke_run):
    assert "mean nothing" in (smoke_run / "stdout.txt").read_text()


def test_filled_forms_fill_the_human_columns(smoke_run, tmp_path):
    """Last in this file, as it runs notebook 11 again in the shared run."""
    form = pd.read_csv(smoke_run / "runs/smoke/data/forms/evaluation_form.csv", dtype=str, keep_default_na=False)
    for name, shift in (("ann", "Y"), ("bob", "Y"), ("cyd", "N")):
        filled = form.assign(q1="Y", q2=shift, q3="S", q4="Y")
        filled.to_csv(tmp_path / f"evaluation_form-{name}.csv", index=False)
    params = write_params(tmp_path / "filled.yaml", "smoke", annotation__filled=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "drot_utils", "stage", "11_human_evaluation", str(params)],
        cwd=ROOT, env={**os.environ, "DROT_OUTPUT": str(smoke_run)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table4 = pd.read_csv(smoke_run / "figures/smoke/table4.csv")
    assert table4.loc[0, ["valid_pct", "significant_pct", "language_pct"]].tolist() == [100, 100, 100]
    human = pd.read_csv(smoke_run / "figures/smoke/table2_human.csv").set_index("model")
    assert human.loc["teacher", "human_vld"] == 1 and human["human_vld"].dropna().between(0, 1).all()
    assert human.loc["base", "human_vld"] < 1  # what does not parse is not valid


def test_a_second_run_beside_the_first_is_refused(output, call):
    held = output / "runs" / "smoke" / "work" / ".lock"
    with exclusive(held, wait=False):
        done = call("run", "params/smoke.yaml", "--cores", "1")
    assert done.returncode == 1 and "running this study" in done.stderr
    assert [p.name for p in held.parent.iterdir()] == [".lock"]  # and it touched nothing


@pytest.mark.slow
def test_a_user_without_name_and_home_and_a_checkout_that_is_read_only(tmp_path):
    copy, place = tmp_path / "checkout", tmp_path / "place"
    for name in ("drot_utils", "notebooks", "params", "data", "figures", "requirements"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Snakefile", copy)
    place.mkdir(mode=0o777)
    place.chmod(0o777)
    user = []
    if (
        os.geteuid() == 0
    ):  # for whom no folder is read-only; whoever takes the place may read all, wherever the interpreter lies
        if not shutil.which("setpriv"):
            pytest.skip("no setpriv")
        read = "+dac_read_search"
        user = [
            "setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", f"--inh-caps={read}", f"--ambient-caps={read}",
            f"--bounding-set={read}",
        ]  # fmt: skip
    subprocess.run(["chmod", "-R", "a-w", copy], check=True)
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    try:
        done = subprocess.run(
            [*user, sys.executable, "-m", "drot_utils", "run", "params/smoke.yaml", "--until", "03_nli_filter"],
            cwd=place, env={**kept, "HOME": "/nonexistent", "DROT_OUTPUT": "out", "PYTHONPATH": str(copy)},
            capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
    finally:
        subprocess.run(["chmod", "-R", "u+w", copy], check=True)
    assert done.returncode == 0, done.stderr + done.stdout
    assert (place / "out/runs/smoke/notebooks/03_nli_filter.ipynb").exists()
    assert {p.name for p in place.iterdir()} == {"out"}
