"""Tests of `ask`, from the command line."""

import io
import json
import re
import subprocess
import sys

import pandas as pd
import pytest
from conftest import NASTY
from test_distill import keyboard  # noqa: F401  (a fixture)

from drot_utils.__main__ import main
from drot_utils.data.table import say_contexts
from drot_utils.method import distill
from drot_utils.study.errors import ParamsError
from drot_utils.study.outputs import BY_HAND, Finished, finish, read_params
from drot_utils.study.paths import ROOT, Run, sha256


@pytest.fixture
def run(keyboard):  # noqa: F811
    """A run with a student, a critic and an entailment model."""
    (keyboard.run.model("distill_base") / "training.json").write_text("{}")
    record = {"files": {}, "parameters": keyboard.params.model_dump(mode="json")}
    finish(keyboard.run, "04_distill_base", BY_HAND, record)
    return keyboard.run


def ask(*options):
    return main(["ask", "--student", "distill_base", "--run", "smoke", "--n", "1", *options])


def hashes(run):
    return {path: sha256(path) for path in run.root.rglob("*") if path.is_file()}


def test_a_run_answers_and_is_not_written_to(run, capsys):
    before = hashes(run)
    assert ask("Setting a fire", "Telling a lie") == 0
    said = capsys.readouterr().out
    assert "never advice" in said and "distill_base of the run smoke" in said and hashes(run) == before
    for words in ("Setting a fire: more acceptable (4 written", "Telling a lie: less acceptable", "score", "rationale"):
        assert words in said
    assert Finished("smoke").work("shards").is_dir() and not Run("smoke-play").root.joinpath("stages").exists()


def test_asking_imports_no_library_that_it_does_not_need():
    unneeded = {"sklearn", "matplotlib", "openai", "papermill", "datasets", "peft"}
    imports = "import sys, drot_utils.method.distill, drot_utils.data.table"
    subprocess.run([sys.executable, "-c", f"{imports}; assert not {unneeded} & {{*sys.modules}}"], check=True, cwd=ROOT)


def test_the_threshold_is_the_critics_and_one_filter_of_several(run, keyboard, capsys):  # noqa: F811
    assert ask("Setting a fire") == 0
    assert re.search(r"In the rounds, what scored below \d\.\d\d was not kept", capsys.readouterr().out)
    parameters = keyboard.params.model_dump(mode="json")
    parameters["judges"]["filter"] = "judges"
    finish(run, "04_distill_base", BY_HAND, {"files": {}, "parameters": parameters})
    assert ask("Setting a fire") == 0
    assert "In the rounds" not in capsys.readouterr().out


def test_programs_get_a_json_object_a_line(run, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Setting a fire\n\nTelling a lie\n"))
    assert ask("--json") == 0
    said = capsys.readouterr()
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert [row["action"] for row in rows] == ["Setting a fire"] * 2 + ["Telling a lie"] * 2
    assert {"run", "student", *distill.ANSWER} == set(rows[0]) and "never advice" in said.err
    monkeypatch.setattr("sys.stdin", io.StringIO("Setting a fire"))
    assert ask("--json", "--raw") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 8 and {"nli_kept", "same_as", "raw"} < set(rows[0])


def test_all_that_is_written_can_be_seen(run, capsys):
    assert ask("--raw", "Setting a fire") == 0
    said = capsys.readouterr().out
    assert "keeps it" in said and "| NLI filter" in said and said.count("4 written") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([""], "number 1, '', is empty"),
        (["x" * 2000], "is too long"),
        ([], "at least one action"),
        (["--n", "0", "x"], "at least one action and one context"),
        (["--run", "../smoke", "x"], "choose among: smoke"),
        (["--student", "../critic", "x"], "choose among: distill_base"),
        (["--student", "distill_final", "x"], "choose among: distill_base"),
    ],
)
def test_what_cannot_be_asked_is_said_in_a_sentence(run, capsys, monkeypatch, options, message):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert ask(*options) == 1
    said = capsys.readouterr().err
    assert message in said and "what to do" in said and len(said) < 600


def test_damaged_weights_are_said_in_a_sentence(run, capsys):
    path = run.model("critic") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    assert ask("Setting a fire") == 1 and "weights are damaged" in capsys.readouterr().err


def test_missing_weights_and_missing_runs_are_named(run, capsys):
    for name, notebook in (("nli", "03_nli_filter"), ("critic", "02_critic"), ("distill_base", "04_distill_base")):
        (run.model(name) / "model.safetensors").unlink()
        assert ask("Setting a fire") == 1 and f"notebooks/{notebook}" in capsys.readouterr().err
    (run.root / "stages").rename(run.root / "gone")
    assert ask("Setting a fire") == 1 and "make demo" in capsys.readouterr().err


def test_a_run_is_opened_with_the_parameters_it_was_made_with(study):
    stamped = {"nli": {**study.params.nli.model_dump(mode="json"), "threshold": 0.4}, "stage": {"round": 1}, "seed": 7}
    finish(Run("other"), "03_nli_filter", "look", {"files": {}, "inputs": {"parameters": stamped}})
    params = read_params(Run("other"))
    assert params.profile == "other" and params.nli.threshold == 0.4 and params.seed == 7
    finish(Run("other"), "04_distill_base", "look", {"files": {}, "inputs": {"parameters": {"later": {"key": 1}}}})
    with pytest.raises(ParamsError, match="another version made this run"):
        read_params(Run("other"))


HOSTILE = "\x1b[2J\x1b]0;x\x07 a\rb \u202egnol\u202c \u2028 " + NASTY.replace("|", "/")


def test_no_text_breaks_the_table():
    rows = pd.DataFrame({"action": HOSTILE, "moral_variance": [1, 1, -1], "context": [HOSTILE, None, "שלום"]})
    rows = rows.assign(rationale=HOSTILE, critic_score=[0.5, None, 0.25], nli_kept=None, same_as=[None, None, "x"])
    for best in (None, rows[rows["context"].notna()]):
        said = say_contexts(rows.assign(raw="\x1bwords"), best, 90)
        assert all(c.isprintable() or c in "\n\u200e" for c in said) and "\\x1b[2J" in said and "\\u202egnol" in said
        tables = [line for line in said.splitlines() if "|" in line]
        assert len(tables) > 6 and {line.count("|") for line in tables} == {3 if best is None else 2}
        turned = [line for line in said.splitlines() if "שלום" in line]
        assert turned and all(line.startswith("\u200e") and "\u200e|\u200e" in line for line in turned)
        assert ("drops it: x" in said) == (best is None) == ("\\x1bwords" in said)
