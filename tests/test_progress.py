import json

from drot_utils.progress import Progress, track


def test_status_file_for_the_runner(tmp_path, monkeypatch):
    status = tmp_path / "s.json"
    monkeypatch.setenv("DROT_PROGRESS", str(status))
    with Progress("sampling", 10, "candidates", done=4) as progress:
        progress.update(6)
    found = json.loads(status.read_text())
    assert (found["what"], found["n"], found["total"], found["unit"]) == ("sampling", 10, 10, "candidates")


def test_a_log_file_is_not_flooded(capfd):
    assert list(track(range(1000), "counting", 1000)) == list(range(1000))
    out, err = capfd.readouterr()
    assert out == err == ""


def test_work_goes_on_when_the_status_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("DROT_PROGRESS", str(tmp_path / "no" / "folder" / "s.json"))
    with Progress("x", 2) as progress:
        progress.update(2)
    assert progress.n == 2
