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
    assert bar_left(found, found["began"] + 1) is None and found["done"] == 4
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
    assert study_left(USUAL, NEEDS, {"a": 20}, {"b": (30, None)}, 1) == 200 - 30 + 100
    assert study_left(USUAL, NEEDS, {"a": 20}, {}, 1) == 300
    assert study_left(USUAL, NEEDS, {}, {"a": (4, None)}, 1) == 156


def test_a_stage_beyond_its_estimate_counts_by_its_own_rate_or_not_at_all():
    assert study_left(USUAL, NEEDS, {"a": 10}, {"b": (130, 70)}, 1) == 70 + 50
    assert study_left(USUAL, NEEDS, {"a": 10}, {"b": (130, None)}, 1) is None
    # What its own rate says is the least that is left of it before, too.
    assert study_left(USUAL, NEEDS, {"a": 10}, {"b": (80, 300)}, 1) == 350
    assert study_left(USUAL, NEEDS, {"a": 10}, {"b": (80, 3)}, 1) == 70


def test_stages_side_by_side():
    usual = {"a": 10.0, "b": 100.0, "c": 50.0, "d": 20.0}
    needs = {"a": (), "b": (), "c": (), "d": ("b", "c")}
    assert study_left(usual, needs, {"a": 10}, {"b": (0, None), "c": (0, None)}, 2) == 120
    assert study_left(usual, needs, {"a": 10}, {}, 1) == 170


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.floats(1, 1e4), min_size=1),
    st.floats(0, 2e4),
    st.none() | st.floats(0, 1e4),
)
def test_time_left_never_stands_still(usual, so_far, bar):
    needs = dict.fromkeys(usual, ())
    first, *_ = usual
    now, later = (
        study_left(usual, needs, {}, {first: (so_far + more, None if bar is None else max(bar - more, 0.0))}, 1)
        for more in (0, 60)
    )
    assert later is None or later <= now - 59.9
    assert now is None or now >= sum(usual.values()) - usual[first] - 1e-6  # as 256.1 - 1 is more than 255.1


def test_the_rest_of_a_bar_grows_while_nothing_is_done():
    status = {"n": 30, "total": 100, "done": 10, "began": 1000.0}
    assert bar_left(status, 1020.0) == 70
    assert bar_left(status, 1200.0) == 700
    assert bar_left({**status, "n": 10}, 1020.0) is None  # what an earlier run did says nothing of the rate
    assert bar_left({**status, "n": 100}, 1020.0) is None  # what follows it is not known
    assert bar_left({"what": "starting", "n": 0, "total": 0, "unit": "", "rate": 0}, 1.0) is None
