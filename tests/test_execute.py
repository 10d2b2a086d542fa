import json
import os
import subprocess
import sys

import pytest
from conftest import write_params

from drot_utils import execute
from drot_utils.errors import DrotError
from drot_utils.paths import ROOT, Run
from drot_utils.profiles import load_params
from drot_utils.stages import list_stages


def stage(name, smoke):
    return next(s for s in list_stages(smoke) if s.name == name)


def run(*arguments, **environment):
    command = [sys.executable, "-m", "drot_utils.execute", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def test_a_notebook_before_its_inputs_names_the_one_to_run(smoke):
    with pytest.raises(DrotError, match=r"MissingInputError.*") as caught:
        execute.execute(stage("04_distill_base", smoke), "params/smoke.yaml", Run("smoke"))
    assert "notebooks/01_seed_generation.ipynb" in str(caught.value)
    assert not (Run("smoke").root / "notebooks" / "04_distill_base.ipynb").exists()
    assert (Run("smoke").root / "notebooks" / "unfinished" / "04_distill_base.ipynb").exists()


def test_command_line_errors_are_one_paragraph(tmp_path):
    done = run("99_nothing", "params/smoke.yaml")
    assert done.returncode == 1 and "no stage '99_nothing'" in done.stderr and "Traceback" not in done.stderr
    bad = write_params(tmp_path / "bad.yaml", "smoke", seed="one")
    done = run("01_seed_generation", str(bad))
    assert done.returncode == 1 and "`seed`" in done.stderr and "Traceback" not in done.stderr


def test_a_stage_is_not_run_twice_at_once(smoke):
    from drot_utils.paths import exclusive

    run_ = Run("smoke")
    with (
        exclusive(run_.work("running") / "01_seed_generation.lock", wait=False),
        pytest.raises(DrotError, match="another process"),
    ):
        execute.execute(stage("01_seed_generation", smoke), "params/smoke.yaml", run_)


def test_a_malformed_corpus_stops_with_file_and_line(tmp_path, output):
    corpus = tmp_path / "actions.tsv"
    corpus.write_text("action\tsplit\trot\trot-judgment\nLying\ttrain\tr\n")
    params = write_params(tmp_path / "p.yaml", "smoke", corpus__actions=str(corpus), teacher__recorded=None)
    done = run("01_seed_generation", str(params))
    assert (
        done.returncode == 1
        and "line 2 has 3 fields instead of 4" in done.stderr
        and str(corpus) in done.stderr
    )


def test_no_key_no_recorded_response(tmp_path, smoke):
    params = write_params(tmp_path / "p.yaml", "smoke", teacher__recorded=None)
    done = run("01_seed_generation", str(params))
    assert done.returncode == 1 and "set the environment variable OPENAI_API_KEY" in done.stderr


def test_papermill_runs_a_notebook_from_any_folder(tmp_path, output):
    command = [
        sys.executable, "-m", "papermill", str(ROOT / "notebooks/01_seed_generation.ipynb"), "out.ipynb",
        "-p", "params_file", "params/smoke.yaml", "--no-progress-bar",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    cells = json.loads((tmp_path / "out.ipynb").read_text())["cells"]
    assert any(
        "160 raw contexts for 40 actions" in str(o.get("text")) for c in cells for o in c.get("outputs", [])
    )
    assert load_params("params/smoke.yaml") == smoke_of(output)


def smoke_of(output):
    from drot_utils.manifest import read_manifest
    from drot_utils.params import Params

    return Params.model_validate(read_manifest(Run("smoke"))["parameters"])
