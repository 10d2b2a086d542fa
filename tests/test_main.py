"""The smoke study end to end, as a user gets it: every notebook, both kinds of student, and what is left on disk."""

import json
import re
import shutil

import pandas as pd
import pytest
from conftest import run_study, write_params

from drot_utils.paths import exclusive
from drot_utils.profiles import load_params
from drot_utils.schema import CANDIDATES, check_candidates, read_table
from drot_utils.stages import list_stages

FIGURES = [
    "figure3",
    "figure8",
    "rounds",
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
        assert not any(o["output_type"] == "stream" and o["name"] == "stderr" for o in shown), (
            f"{stage.name} is noisy"
        )
        record = manifest["stages"][stage.name]
        assert record["rows"]["in"] == record["rows"]["kept"] + sum(record["rows"]["dropped"].values())
        assert record["summary"] and record["seconds"] > 0


def test_figures_and_tables_are_all_there(smoke_run):
    folder = smoke_run / "figures/smoke"
    for name in FIGURES:
        assert (folder / f"{name}.png").stat().st_size > 5_000 and (
            folder / f"{name}.pdf"
        ).stat().st_size > 2_000
    for name in TABLES:
        for end in (".csv", ".tex", ".md"):
            assert (folder / f"{name}{end}").exists(), name + end


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


def test_data_keep_the_schema_and_no_row_is_lost(smoke_run, smoke):
    data = smoke_run / "runs/smoke/data"
    for name in (
        "d0",
        "d1",
        "d2",
        "drot",
        "candidates_d0",
        "candidates_d1",
        "candidates_d2",
        "candidates_drot",
    ):
        rows = check_candidates(read_table(data / f"{name}.parquet"), name)
        assert list(rows) == CANDIDATES.names and len(rows)
    for k, n in enumerate(smoke.corpus.round_actions, start=1):
        everything = read_table(data / f"candidates_d{k}.parquet")
        assert len(everything) == n * 2 * smoke.generation.candidates
        kept = everything[everything["kept"]].reset_index(drop=True)
        pd.testing.assert_frame_equal(kept, read_table(data / f"d{k}.parquet"))


def test_no_test_action_was_learnt_from(smoke_run):
    data = smoke_run / "runs/smoke/data"
    test = set(read_table(data / "candidates_test_greedy.parquet")["action_id"])
    learnt = set().union(
        *(read_table(data / f"{d}.parquet")["action_id"] for d in ("d0", "d1", "d2", "drot"))
    )
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
    assert (
        re.search(r"^\[\d+/18\] \d\d_\w+", text, re.MULTILINE)
        and "manifest" in text
        and "Distill_final" in text
    )


def test_a_second_run_does_nothing_and_a_changed_parameter_only_what_hangs_on_it(smoke_run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(smoke_run, copy, symlinks=True, copy_function=shutil.copy2)
    notebooks = copy / "runs/smoke/notebooks"
    before = {p.name: p.stat().st_mtime_ns for p in notebooks.glob("*.ipynb")}
    # Snakemake knows outputs by their paths, so the copy is first taken over as it is.
    assert run_study("params/smoke.yaml", smoke_run, "--cores", "2").returncode == 0
    originals = smoke_run / "runs/smoke/notebooks"
    assert before == {p.name: p.stat().st_mtime_ns for p in originals.glob("*.ipynb")}
    changed = write_params(tmp_path / "changed.yaml", "smoke", bias__permutations=50)
    done = run_study(changed, smoke_run, "--cores", "2")
    assert done.returncode == 0, done.stderr
    after = {p.name: p.stat().st_mtime_ns for p in originals.glob("*.ipynb")}
    assert {name for name in after if after[name] != before[name]} == {"10_cultural_bias.ipynb"}


def test_a_seq2seq_student_beams_and_the_binary_critic_go_the_same_way(seq2seq_run):
    from drot_utils.models import load_folder

    run = seq2seq_run / "runs/seq2seq"
    model, _ = load_folder(run / "models/distill_final", "student")
    assert model.config.is_encoder_decoder
    rows = read_table(run / "data/candidates_d1.parquet")
    assert rows.groupby(["action_id", "moral_variance"]).size().eq(10).all()
    table = pd.read_csv(seq2seq_run / "figures/seq2seq/table2.csv")
    assert "independent_vld" not in table and len(table) == 6
    assert pd.read_csv(
        seq2seq_run / "figures/seq2seq/agreement.csv"
    ).empty  # the published gold holds no votes


def test_errors_of_the_command_line(tmp_path):
    done = run_study("params/none.yaml", tmp_path)
    assert done.returncode == 1 and "no such parameter file" in done.stderr and "Traceback" not in done.stderr
    bad = write_params(tmp_path / "few.yaml", "smoke", profile="few", corpus__seed_actions=5000)
    done = run_study(bad, tmp_path)
    assert done.returncode == 1 and "asked for 5040 actions of the train split, found 670" in done.stderr
    assert load_params(bad).profile == "few"


def test_any_name_of_a_parameter_file_and_any_terminal(tmp_path):
    name = "a: {b}, [run] #2 – 'é'"
    params = write_params(tmp_path / f"{name}.yaml", "smoke")
    table = tmp_path / "out/figures/smoke/table2_short.md"  # what a finished run shows
    table.parent.mkdir(parents=True)
    table.write_text("0.53 / –\n", encoding="utf-8")
    plain = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run_study(params, tmp_path / "out", "--until", "01_seed_generation", **plain)
    assert done.returncode == 0 and r"0.53 / \u2013" in done.stdout, done.stderr
    assert (tmp_path / "out/runs/smoke/notebooks/01_seed_generation.ipynb").exists()


def test_a_folder_whose_name_snakemake_would_misread_is_refused(tmp_path):
    done = run_study("params/smoke.yaml", tmp_path / "{b}", "--until", "01_seed_generation")
    assert done.returncode == 1 and "{b}/runs/smoke: a path with a brace" in done.stderr
    assert not (tmp_path / "{b}").exists()


@pytest.mark.parametrize("profile", ["smoke"])
def test_numbers_of_random_models_are_said_to_mean_nothing(profile, smoke_run):
    assert "mean nothing" in (smoke_run / "stdout.txt").read_text()


def test_filled_forms_fill_the_human_columns(smoke_run, tmp_path):
    """Last in this file, as it runs notebook 11 again in the shared run."""
    import os
    import subprocess
    import sys

    from drot_utils.paths import ROOT

    form = pd.read_csv(
        smoke_run / "runs/smoke/data/forms/evaluation_form.csv", dtype=str, keep_default_na=False
    )
    for name, shift in (("ann", "Y"), ("bob", "Y"), ("cyd", "N")):
        filled = form.assign(q1="Y", q2=shift, q3="S", q4="Y")
        filled.to_csv(tmp_path / f"evaluation_form-{name}.csv", index=False)
    params = write_params(tmp_path / "filled.yaml", "smoke", annotation__filled=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "drot_utils.execute", "11_human_evaluation", str(params)],
        cwd=ROOT, env={**os.environ, "DROT_OUTPUT": str(smoke_run)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table4 = pd.read_csv(smoke_run / "figures/smoke/table4.csv")
    assert table4.loc[0, ["valid_pct", "significant_pct", "language_pct"]].tolist() == [100, 100, 100]
    human = pd.read_csv(smoke_run / "figures/smoke/table2_human.csv").set_index("model")
    assert human.loc["teacher", "human_vld"] == 1 and human["human_vld"].dropna().between(0, 1).all()
    assert human.loc["base", "human_vld"] < 1  # what does not parse is not valid


def test_a_second_run_beside_the_first_is_refused(tmp_path):
    held = tmp_path / "runs" / "smoke" / "work" / ".lock"
    with exclusive(held, wait=False):
        done = run_study("params/smoke.yaml", tmp_path, "--cores", "1")
    assert done.returncode == 1 and "running this study" in done.stderr
    assert [p.name for p in held.parent.iterdir()] == [".lock"]  # and it touched nothing


@pytest.mark.slow
def test_a_user_without_name_and_home_and_a_checkout_that_is_read_only(tmp_path):
    import os
    import subprocess
    import sys

    from drot_utils.paths import ROOT

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
            [*user, sys.executable, "-m", "drot_utils", "params/smoke.yaml", "--until", "03_nli_filter"],
            cwd=place, env={**kept, "HOME": "/nonexistent", "DROT_OUTPUT": "out", "PYTHONPATH": str(copy)},
            capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
    finally:
        subprocess.run(["chmod", "-R", "u+w", copy], check=True)
    assert done.returncode == 0, done.stderr + done.stdout
    assert (place / "out/runs/smoke/notebooks/03_nli_filter.ipynb").exists()
    assert {p.name for p in place.iterdir()} == {"out"}
