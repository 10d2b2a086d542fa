"""Tests of `outputs`: what a run has, what it takes over, and what a notebook run by hand leaves alone."""

import json
import os
import shutil

import pytest
from conftest import files_and_hashes

from drot_utils.llm.cache import Answer, Cache, request_key
from drot_utils.study import outputs, runner
from drot_utils.study.graph import Stage, Stamp
from drot_utils.study.outputs import branch_run
from drot_utils.study.params import load_params
from drot_utils.study.paths import WRITTEN, Run, atomic, output_root, replace_folder, write_text

A, B = Stage("01_a", (), ("seed",), 1), Stage("02_b", ("01_a",), ("nli",), 2)
INPUTS = {"code": {"cells": "1"}, "parameters": {"nli": {"threshold": 0.5}}, "data": {}, "needs": {}, "look": {}}


@pytest.fixture(autouse=True)
def even_small_files_are_linked(monkeypatch):
    monkeypatch.setattr(outputs, "SMALL", 0)


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


def test_a_table_that_a_stage_makes_no_more_is_not_shown():
    run = Run("demo")
    make(run, B, "b1", "more")
    for begun in (True, False):  # by the runner; by hand, where only the end is known
        votes = write_text(run.figures / "vld_by_votes.md", "votes")
        write_text(run.figures / "01_a.png", "old")
        files = outputs.list_files(run, [votes, run.figures / "01_a.png"])
        outputs.finish(run, "01_a", "a1", {"files": files})
        assert votes.exists()
        if begun:
            outputs.begin(run, "01_a")
        make(run, A, "a2", "no votes")
        assert {path.name: path.read_text() for path in run.figures.iterdir()} == {
            "01_a.png": "figure of no votes", "02_b.png": "figure of more",
        }  # fmt: skip


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


def test_where_there_are_no_hard_links_files_are_copied(monkeypatch):
    def refuse(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    make(Run("demo"), A, "a1", "text")
    other = Run("other")
    assert outputs.settle(other, [A], stamps()) == []
    assert not other.data("01_a").is_symlink() and other.data("01_a").read_text() == "text"
    make(Run("demo"), A, "a2", "tex2")
    assert other.data("01_a").read_text() == "text" and outputs.settle(other, [A], stamps()) == []


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


@pytest.mark.parametrize("take", [outputs.overlay, lambda run, base: outputs.settle(run, [A], stamps())])
def test_another_run_begins_with_a_copy_of_the_answers(take):
    demo, other = Run("demo"), Run("other")
    make(demo, A, "a1", "text")
    first = (make_question("one"), {0: Answer("yes")})
    cache = Cache(demo.answers)  # stays open: what it wrote is still in the write-ahead log
    cache.put([first])
    take(other, demo)
    copy = Cache(other.answers)
    assert copy.read([request_key(first[0])]) == cache.read([request_key(first[0])]) != {}
    copy.put([(make_question("two"), {0: Answer("no")})])
    take(other, demo)
    assert len(copy.read([request_key(make_question("two"))])) == 1
    assert not cache.read([request_key(make_question("two"))])


def make_question(text):
    return {"model": "m", "messages": [{"role": "user", "content": text}], "n": 1}


def test_small_files_are_copied_as_editors_write_in_place(monkeypatch):
    demo, other = Run("demo"), Run("other")
    make(demo, A, "a1", "text")
    monkeypatch.setattr(outputs, "SMALL", 10)
    assert outputs.settle(other, [A], stamps()) == []
    assert not other.data("01_a").samefile(demo.data("01_a"))
    assert (other.figures / "01_a.png").samefile(demo.figures / "01_a.png")  # 14 bytes


@pytest.mark.parametrize("after", range(4))
def test_a_kill_while_a_stage_is_taken_over_leaves_no_record_of_a_mixture(after, monkeypatch):
    demo, other = Run("demo"), Run("other")
    make(demo, A, "a1", "text")
    make(other, A, "a2", "tex2")  # of the same sizes
    linked, link = [], outputs.link

    def killed(source, target):
        if len(linked) == after:
            raise KeyboardInterrupt
        linked.append(target)
        link(source, target)

    monkeypatch.setattr(outputs, "link", killed)
    with pytest.raises(KeyboardInterrupt):
        outputs.settle(other, [A], stamps())
    monkeypatch.setattr(outputs, "link", link)
    assert outputs.find_made(other, A.name, "a2") is None
    assert outputs.settle(other, [A], stamps()) == [] and (other.model("01_a") / "y").read_text() == "text"


def test_a_file_that_vanishes_meanwhile_is_made_here(monkeypatch):
    demo, other = Run("demo"), Run("other")
    make(demo, A, "a1", "text")
    monkeypatch.setattr(outputs, "find_broken", lambda run, record: None)  # it was whole a moment ago
    (demo.model("01_a") / "y").unlink()
    assert outputs.settle(other, [A], stamps()) == ["01_a"] and outputs.read_records(other) == {}
    outputs.overlay(Run("demo-play"), demo)
    assert outputs.read_records(Run("demo-play")) == {}
    assert not [path for path in other.root.rglob("*") if path.is_symlink() or path.name.endswith(".tmp")]


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"seconds": 3}', '{"files": null}', "\x00\x00"])
def test_a_record_that_is_damaged_or_of_another_form_is_none(content):
    run, other = Run("demo"), Run("other")
    make(run, A, "a1", "text")
    outputs.record_path(run, A.name, "a1").write_text(content)
    made = {A.name: outputs.find_made(run, A.name, "a1")}
    assert outputs.read_records(run) == {} and "has not run" in outputs.describe_stages(run, [A], stamps(), made)
    outputs.overlay(Run("demo-play"), run)
    assert outputs.settle(other, [A], stamps()) == outputs.settle(run, [A], stamps()) == ["01_a"]


def test_a_record_with_fewer_inputs_than_now_is_explained():
    stamp = Stamp("x", "x", INPUTS)
    assert outputs.explain(stamp, {"inputs": {"parameters": INPUTS["parameters"]}}) == ["the notebook changed"]


def test_what_was_run_by_hand_is_not_taken_over():
    demo, play = Run("demo"), Run("demo-play")
    make(demo, A, "a1", "text")
    outputs.overlay(play, demo)
    write_text(play.data("01_a"), "tex2")  # half a notebook by hand, of the same size
    shutil.rmtree(demo.root)
    made = {A.name: outputs.find_made(demo, A.name, "a1")}
    assert "01_a                               runs, about 00:01: has not run" in outputs.describe_stages(
        demo, [A], stamps(), made
    )
    assert outputs.settle(Run("other"), [A], stamps()) == ["01_a"]


def test_a_stages_folder_without_its_data_is_nothing():
    demo = Run("demo")
    make(demo, A, "a1", "text")
    shutil.rmtree(demo.root / "data")
    shutil.rmtree(demo.figures)
    outputs.overlay(Run("demo-play"), demo)
    assert outputs.read_records(Run("demo-play")) == {} and outputs.settle(Run("b"), [A], stamps()) == ["01_a"]


def test_a_read_only_run_is_taken_over_from_with_its_answers():
    demo, other = Run("demo"), Run("other")
    make(demo, A, "a1", "text")
    cache = Cache(demo.answers)
    cache.put([(make_question("one"), {0: Answer("yes")})])
    cache.file.close()
    places = [demo.root, *demo.root.rglob("*")]
    for path in places:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert outputs.settle(other, [A], stamps()) == []
        assert len(Cache(other.answers).read([request_key(make_question("one"))])) == 1
        make(other, A, "a2", "mine")
    finally:
        for path in places:
            path.chmod(0o755)


def test_a_training_is_borrowed_whole_or_not_at_all(monkeypatch):
    demo, other = Run("demo"), Run("other")
    make(demo, A, "a1", "text")
    for name in ("model.safetensors", "settings.json"):
        write_text(demo.work("trained/k") / name, name)
    link = outputs.link

    def killed(source, target):
        if source.name.startswith("model"):
            raise KeyboardInterrupt
        link(source, target)

    monkeypatch.setattr(outputs, "link", killed)
    with pytest.raises(KeyboardInterrupt):
        outputs.borrow_whole(other, "trained/k")
    assert not other.work("trained/k").exists()
    monkeypatch.setattr(outputs, "link", link)
    assert len(list(outputs.borrow_whole(other, "trained/k").iterdir())) == 2


def test_a_finished_run_lends_its_work_to_its_own_reading():
    demo = Run("demo")
    make(demo, A, "a1", "text")
    unpacked = write_text(demo.work("base/x") / "model.safetensors", "weights")
    before = files_and_hashes(demo)
    lent = outputs.borrow_whole(outputs.Finished("demo"), "base/x")
    assert lent == Run("demo-play").work("base/x") and (lent / unpacked.name).read_text() == "weights"
    assert files_and_hashes(demo) == before


def test_linking_a_file_to_itself_leaves_it_and_nothing_else(tmp_path):
    source = write_text(tmp_path / "a", "x")
    outputs.link(source, tmp_path / "b")
    outputs.link(source, tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["a", "b"]


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


def test_another_run_begins_with_the_answers_of_the_first_whatever_is_changed():
    Cache(Run("smoke").answers).put([(make_question("one"), {0: Answer("yes")})])
    branch_run("params/smoke.yaml", "more", {"requests.budget_usd": 50.0}, dry=True)
    assert not Run("more").answers.exists()
    branch_run("params/smoke.yaml", "more", {"requests.budget_usd": 50.0})
    assert Cache(Run("more").answers).read([request_key(make_question("one"))])


def test_another_runs_parameters_are_found_where_runs_is_a_link(output, tmp_path):
    (tmp_path / "scratch" / "deep" / "runs").mkdir(parents=True)
    output.mkdir()
    (output / "runs").symlink_to(tmp_path / "scratch" / "deep" / "runs")
    assert load_params(branch_run("params/smoke.yaml", "linked", {"seed": 7})).seed == 7


def test_a_dry_run_of_another_run_leaves_what_another_process_began(output, call, monkeypatch):
    arguments = ("run", "params/smoke.yaml", "--set", "seed=7", "--as", "tried", "--dry-run")
    assert call(*arguments).returncode == 0 and not Run("tried").root.exists()
    monkeypatch.setattr(runner, "run_study", lambda *_: write_text(Run("tried").data("d0"), "x"))
    call(*arguments)
    assert Run("tried").data("d0").exists() and load_params(Run("tried").root / "params.yaml").seed == 7
