import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_params

from drot_utils import execute
from drot_utils.errors import DrotError
from drot_utils.paths import ROOT, Run
from drot_utils.profiles import load_params
from drot_utils.stages import Stage, list_stages


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
    monkeypatch.setattr(execute, "NOTEBOOKS", tmp_path)
    return Stage("small", "small", (), (), 1)


def test_another_environments_kernel_is_not_used(tmp_path, monkeypatch, output):
    folder = tmp_path / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True)
    other = {"argv": ["/bin/false", "{connection_file}"], "display_name": "other", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(other))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    executed = execute.execute(
        small(tmp_path, monkeypatch, "import sys\nprint(sys.executable)"), "params/smoke.yaml", Run("smoke")
    )
    cells = json.loads(executed.read_text())["cells"]
    assert [o["text"] for c in cells for o in c["outputs"]] == [[f"{sys.executable}\n"]]


def test_a_kernel_that_does_not_start_is_no_matter_of_memory(tmp_path, monkeypatch, output):
    (tmp_path / "ipykernel_launcher.py").write_text("raise SystemExit(3)")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with pytest.raises(DrotError, match=r"small: the notebook's kernel did not start") as caught:
        execute.execute(small(tmp_path, monkeypatch, "1"), "params/smoke.yaml", Run("smoke"))
    assert "memory" not in str(caught.value) and "-m ipykernel_launcher" in caught.value.todo


def test_a_kernel_that_was_killed_is(tmp_path, monkeypatch, output):
    with pytest.raises(DrotError, match="kernel died") as caught:
        execute.execute(
            small(tmp_path, monkeypatch, "import os\nos.kill(os.getpid(), 9)"),
            "params/smoke.yaml",
            Run("smoke"),
        )
    assert "memory" in caught.value.todo


def test_a_kernel_has_ten_minutes_to_start(tmp_path, monkeypatch, output):
    import papermill

    seen = {}
    monkeypatch.setattr(
        papermill, "execute_notebook", lambda _, path, *__, **options: seen.update(options) or path.touch()
    )
    execute.execute(small(tmp_path, monkeypatch, "1"), "params/smoke.yaml", Run("smoke"))
    assert seen["start_timeout"] >= 600


@pytest.mark.parametrize("home", [None, "/nonexistent"])
def test_caches_of_a_user_without_name_and_home_go_below_work(monkeypatch, output, home):
    def unknown():
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("getpass.getuser", unknown)
    monkeypatch.setattr("os.path.expanduser", lambda path: path.replace("~", home) if home else path)
    for name in ("USER", "HF_HOME", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MPLCONFIGDIR", "/mine")
    monkeypatch.setenv("IPYTHONDIR", "")
    found = execute.run_environment(Run("smoke"))
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


def test_models_of_the_hub_and_the_token_stay_in_a_home_that_is_there(monkeypatch, tmp_path, output):
    for name in ("HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    found = execute.run_environment(Run("smoke"))
    assert found["HF_HOME"] == str(tmp_path / ".cache" / "huggingface") and found["HOME"] == str(tmp_path)
    assert Path(found["XDG_CACHE_HOME"]).is_relative_to(output)
