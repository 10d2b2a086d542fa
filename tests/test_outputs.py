"""Tests of `outputs`: what a run has, what it takes over, and what a notebook run by hand leaves alone."""

import json
import os
import shutil

import pytest
from conftest import files_and_hashes

from drot_utils.study import outputs
from drot_utils.study.graph import Stage, Stamp
from drot_utils.study.paths import WRITTEN, Run, atomic, output_root, replace_folder, write_text

A, B = Stage("01_a", (), ("seed",), 1), Stage("02_b", ("01_a",), ("nli",), 2)
INPUTS = {"code": {"cells": "1"}, "parameters": {"nli": {"threshold": 0.5}}, "data": {}, "needs": {}, "look": {}}


def stamps(a="a1", b="b1"):
    return {"01_a": Stamp(a, a, INPUTS), "02_b": Stamp(b, b, INPUTS)}


def make(run, stage, look, text):
    """Do what a stage does: a table, a model of two files and a figure, and its record."""
    table, figure = run.data(stage.name), run.figures / f"{stage.name}.png"
    write_text(table, text)
    write_text(figure, f"figure of {text}")
    model = replace_folder(run.model(stage.name), lambda place: [(place / n).write_text(text) for n in ("x", "y")])
    files = outputs.list_files(run, [table, figure, model, run.work("shards") / "z"])
    outputs.finish(run, stage.name, look, {"files": files, "look": look, "inputs": INPUTS, "seconds": 3.0})


def test_a_record_names_the_results_and_no_unfinished_work():
    run = Run("demo")
    make(run, A, "a1", "text")
    record = outputs.read_records(run)["01_a"]
    assert record["files"] == {
        "figures/01_a.png": 14, "run/data/01_a.parquet": 4, "run/models/01_a/x": 4, "run/models/01_a/y": 4,
    }  # fmt: skip
    assert json.loads(run.manifest.read_text())["stages"] == {"01_a": record}


def test_what_is_written_is_noticed(tmp_path):
    run, start = Run("demo"), len(WRITTEN)
    write_text(run.data("a"), "x")
    replace_folder(run.model("m"), lambda place: (place / "w").write_text("12"))
    write_text(tmp_path / "elsewhere", "x")
    with pytest.raises(ZeroDivisionError), atomic(run.data("b")) as temporary:
        temporary.write_text("never finished")
        _ = 1 / 0
    assert outputs.list_files(run, WRITTEN[start:]) == {"run/data/a.parquet": 1, "run/models/m/w": 2}


def test_only_what_is_not_there_runs():
    run = Run("demo")
    assert outputs.settle(run, [A, B], stamps()) == ["01_a", "02_b"]
    make(run, A, "a1", "text")
    assert outputs.settle(run, [A, B], stamps()) == ["02_b"]
    make(run, B, "b1", "more")
    assert outputs.settle(run, [A, B], stamps()) == []
    assert outputs.settle(run, [A, B], stamps(b="b2")) == ["02_b"]
    assert outputs.settle(run, [A, B], stamps()) == []  # back again, and nothing was made in between
    make(run, B, "b2", "other")
    assert outputs.settle(run, [A, B], stamps()) == ["02_b"]  # its files are the other's now


@pytest.mark.parametrize(
    "spoil", [lambda p: p.unlink(), lambda p: p.write_text("tex"), lambda p: p.write_text("text+")]
)
@pytest.mark.parametrize("name", ["data/01_a.parquet", "models/01_a/y"])
def test_files_that_are_gone_or_truncated_are_made_anew_and_nothing_else(spoil, name):
    run = Run("demo")
    make(run, A, "a1", "text")
    make(run, B, "b1", "more")
    spoil(run.root / name)
    assert outputs.find_broken(run, outputs.read_records(run)["01_a"]) == f"run/{name}"
    assert outputs.settle(run, [A, B], stamps()) == ["01_a"]


def test_another_run_takes_over_by_links_what_is_the_same():
    demo, other = Run("demo"), Run("nli04")
    make(demo, A, "a1", "text")
    make(demo, B, "b1", "more")
    before = files_and_hashes(demo)
    assert outputs.settle(other, [A, B], stamps(b="b2")) == ["02_b"]
    assert outputs.read_records(other)["01_a"]["from"] == "demo"
    assert (other.model("01_a") / "x").samefile(demo.model("01_a") / "x")
    assert (other.figures / "01_a.png").read_text() == "figure of text"
    make(other, B, "b2", "mine")
    make(other, A, "a2", "changed here")  # every file is replaced, none is changed in place
    assert files_and_hashes(demo) == before
    shutil.rmtree(demo.root)
    assert (other.model("01_a") / "x").read_text() == "changed here"


def test_two_runs_may_take_over_from_each_other():
    one, other = Run("one"), Run("other")
    make(one, A, "a1", "text")
    make(other, B, "b1", "more")
    assert outputs.settle(one, [A, B], stamps()) == outputs.settle(other, [A, B], stamps()) == []
    assert outputs.read_records(one)["02_b"]["from"] == "other" and outputs.read_records(other)["01_a"]["from"] == "one"
    shutil.rmtree(one.root)
    assert outputs.settle(other, [A, B], stamps()) == []
    third = Run("third")
    assert outputs.settle(third, [A, B], stamps()) == []
    assert outputs.read_records(third)["01_a"]["from"] == "one"  # who made it, not who passed it on


def test_a_broken_run_is_not_taken_over_from():
    make(Run("demo"), A, "a1", "text")
    Run("demo").data("01_a").unlink()
    assert outputs.settle(Run("other"), [A], stamps()) == ["01_a"]


def test_where_there_are_no_hard_links_symbolic_ones_do(monkeypatch):
    def refuse(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    make(Run("demo"), A, "a1", "text")
    other = Run("other")
    assert outputs.settle(other, [A], stamps()) == []
    assert other.data("01_a").is_symlink() and other.data("01_a").read_text() == "text"
    make(other, A, "a2", "changed here")
    assert not other.data("01_a").is_symlink() and Run("demo").data("01_a").read_text() == "text"


@pytest.mark.parametrize("how", [shutil.copytree, shutil.move])
def test_a_copied_or_moved_output_folder_runs_nothing(how, tmp_path, monkeypatch):
    make(Run("demo"), A, "a1", "text")
    outputs.settle(Run("other"), [A], stamps())
    how(output_root(), tmp_path / "new")
    monkeypatch.setenv("DROT_OUTPUT", str(tmp_path / "new"))
    assert outputs.settle(Run("demo"), [A], stamps()) == outputs.settle(Run("other"), [A], stamps()) == []


def test_a_run_by_hand_is_an_overlay():
    demo, play = Run("demo"), Run("demo-play")
    make(demo, A, "a1", "text")
    make(demo, B, "b1", "more")
    before = files_and_hashes(demo)
    outputs.overlay(play, demo)
    assert play.data("01_a").read_text() == "text" and play.data("02_b").read_text() == "more"
    make(play, A, outputs.BY_HAND, "by hand")
    outputs.overlay(play, demo)  # the next notebook by hand
    assert play.data("01_a").read_text() == "by hand" and play.data("02_b").read_text() == "more"
    assert files_and_hashes(demo) == before
    make(demo, B, "b2", "made anew")
    outputs.overlay(play, demo)
    assert play.data("02_b").read_text() == "made anew" and play.data("01_a").read_text() == "by hand"
    shutil.rmtree(play.root)
    outputs.overlay(play, demo)
    assert play.data("01_a").read_text() == "text"


def test_answers_are_copied_as_they_are_written_in_place():
    demo, play = Run("demo"), Run("demo-play")
    make(demo, A, "a1", "text")
    answers = demo.root / "data" / "answers.sqlite"
    answers.write_text("answers")
    outputs.overlay(play, demo)
    copy = play.root / "data" / "answers.sqlite"
    assert copy.read_text() == "answers" and not copy.samefile(answers)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"parameters": {"nli": {"threshold": 0.4}}}, ["nli.threshold: 0.5 -> 0.4"]),
        ({"data": {"data/x.tsv": "2"}}, ["data/x.tsv changed"]),
        ({"code": {"cells": "2", "method.nli.filter": "1"}}, ["the notebook changed", "method.nli.filter changed"]),
        ({"needs": {"01_a": "2"}}, ["after 01_a"]),
        ({"look": {"report.figures.draw": "2"}}, ["report.figures.draw changed (drawing only)"]),
    ],
)
def test_why_a_stage_runs(changes, said):
    stamp = Stamp("x", "x", {**INPUTS, **changes})
    assert outputs.explain(stamp, {"inputs": INPUTS}) == said
    assert outputs.explain(stamp, None) == outputs.explain(stamp, {"seconds": 1}) == ["has not run"]
