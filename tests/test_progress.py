"""Tests of `progress`."""

import json

from drot_utils.study.progress import Progress, rate_of


def test_status_file_for_the_runner(tmp_path, monkeypatch):
    status = tmp_path / "s.json"
    monkeypatch.setenv("DROT_PROGRESS", str(status))
    with Progress("sampling", 10, "candidates", done=4) as progress:
        progress.update(6)
    found = json.loads(status.read_text())
    assert rate_of(found, found["began"] + 2) == 3
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


def test_the_rate_falls_while_nothing_is_done_and_counts_this_run_only():
    status = {"n": 30, "total": 100, "start_n": 10, "began": 1000.0}
    assert rate_of(status, 1020.0) == 1 and rate_of(status, 1200.0) == 0.1
    assert rate_of({**status, "n": 10}, 1020.0) == 0
