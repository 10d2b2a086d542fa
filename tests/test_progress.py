"""Tests of `progress`."""

import json

from hypothesis import given
from hypothesis import strategies as st

from drot_utils.study.progress import Progress, bar_left, study_left


def test_status_file_for_the_runner(tmp_path, monkeypatch):
    status = tmp_path / "s.json"
    monkeypatch.setenv("DROT_PROGRESS", str(status))
    with Progress("sampling", 10, "candidates", done=4) as progress:
        progress.update(6)
    found = json.loads(status.read_text())
    assert bar_left(found, found["began"] + 1) == 0 and found["start_n"] == 4
    assert (found["what"], found["n"], found["total"], found["unit"]) == ("sampling", 10, 10, "candidates")


def test_a_log_file_is_not_flooded(capfd):
    with Progress("counting", 1000) as progress:
        for _ in range(1000):
            progress.update()
    out, err = capfd.readouterr()
    assert out == err == ""


def test_work_continues_when_the_status_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("DROT_PROGRESS", str(tmp_path / "no" / "folder" / "s.json"))
    with Progress("x", 2) as progress:
        progress.update(2)
    assert progress.n == 2


USUAL = {"a": 10.0, "b": 100.0, "c": 50.0}
NEEDS = {"a": (), "b": ("a",), "c": ("b", "not planned")}


def test_time_left_is_the_usual_time_at_the_pace_of_what_is_finished():
    # a took twice its usual time, so b and c will too; b has run 30 s.
    assert study_left(USUAL, NEEDS, {"a": 20}, {"b": (30, 0)}, 1) == 200 - 30 + 100
    assert study_left(USUAL, NEEDS, {"a": 20}, {}, 1) == 300


def test_a_stage_has_at_least_what_is_left_of_its_bar():
    assert study_left(USUAL, NEEDS, {"a": 10}, {"b": (80, 300)}, 1) == 350
    assert study_left(USUAL, NEEDS, {"a": 10}, {"b": (80, 3)}, 1) == 70


def test_a_late_stage_sets_the_pace_of_those_that_follow():
    assert study_left(USUAL, NEEDS, {"a": 10}, {"b": (210, 70)}, 1) == 70 + 100
    assert study_left(USUAL, NEEDS, {"a": 10}, {"b": (210, 0)}, 1) == 100
    assert study_left(USUAL, NEEDS, {"a": 10, "b": 100}, {"c": (60, 0)}, 1) == 0  # not known


def test_stages_side_by_side():
    usual = {"a": 10.0, "b": 100.0, "c": 50.0, "d": 20.0}
    needs = {"a": (), "b": (), "c": (), "d": ("b", "c")}
    assert study_left(usual, needs, {"a": 10}, {"b": (0, 0), "c": (0, 0)}, 2) == 120
    assert study_left(usual, needs, {"a": 10}, {}, 1) == 170


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.floats(1, 1e4), min_size=2),
    st.floats(0, 1e4),
    st.floats(0, 1e4),
    st.integers(1, 3),
)
def test_time_left_shrinks_as_time_goes_by_until_a_stage_is_late(usual, so_far, bar, cores):
    first, second, *_ = usual
    needs = dict.fromkeys(usual, ())
    so_far = min(so_far, max(usual[second] - 60, 0))
    took = {first: usual[first]}
    now, later = (
        study_left(usual, needs, took, {second: (so_far + more, max(bar - more, 0))}, cores) for more in (0, 60)
    )
    late = so_far + 60 > usual[second]
    assert late or later <= now + 1e-6
    assert now >= (sum(usual.values()) - usual[first] - usual[second]) / cores - 1e-6


def test_the_rest_of_a_bar_grows_while_nothing_is_done():
    status = {"n": 30, "total": 100, "start_n": 10, "began": 1000.0}
    assert bar_left(status, 1020.0) == 70
    assert bar_left(status, 1200.0) == 700
    assert bar_left({**status, "n": 10}, 1020.0) == 0  # what an earlier run did says nothing of the rate
    assert bar_left({**status, "n": 100}, 1020.0) == 0
    assert bar_left({"what": "starting", "n": 0, "start_n": 0, "total": 0}, 1.0) == 0
