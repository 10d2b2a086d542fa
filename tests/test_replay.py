"""A cache as JSON lines: the same bytes from the same answers, and nothing lost by a bad line."""

import json

import pytest

from drot_utils.cache import Cache, Entry, request_key
from drot_utils.errors import DataError
from drot_utils.replay import export_lines, import_lines, main

BODIES = [{"model": "m", "prompt": f"Ça va {k}?\n\u2028", "n": 2, "seed": k} for k in range(20)]


@pytest.fixture
def filled(cache):
    cache.put(
        (body, {0: Entry(f"a{k}\n", "stop", 5, 2, "m-1"), 1: Entry("é", None, 0, 2)})
        for k, body in enumerate(BODIES)
    )
    return cache


def test_there_and_back_gives_the_same_bytes_whatever_the_order(filled, tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    assert export_lines(filled, one) == 40
    lines = one.read_text(encoding="utf-8").split("\n")[:-1]
    assert json.loads(lines[1])["request"]["prompt"].startswith("Ça va") and len(lines) == 41
    other = Cache(tmp_path / "other.sqlite")
    one.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n", encoding="utf-8")
    assert import_lines(other, one) == (40, 0) and import_lines(other, one) == (0, 40)
    assert export_lines(other, two) == 40
    assert two.read_text(encoding="utf-8").split("\n")[:-1] == lines
    keys = [request_key(body) for body in BODIES]
    assert other.read(keys) == filled.read(keys)


def test_a_mark_before_the_first_line_is_skipped(filled, tmp_path):
    export_lines(filled, tmp_path / "x.jsonl")
    text = (tmp_path / "x.jsonl").read_bytes()
    (tmp_path / "x.jsonl").write_bytes(b"\xef\xbb\xbf" + text)
    assert import_lines(Cache(tmp_path / "other.sqlite"), tmp_path / "x.jsonl") == (40, 0)


def test_what_is_there_stays(filled, tmp_path):
    export_lines(filled, tmp_path / "x.jsonl")
    other = Cache(tmp_path / "other.sqlite")
    other.put([(BODIES[0], {0: Entry("mine")})])
    assert import_lines(other, tmp_path / "x.jsonl") == (39, 1)
    assert other.read([request_key(BODIES[0])])[request_key(BODIES[0])][0] == Entry("mine")


GOOD = json.dumps({"request": {"model": "m", "prompt": "new"}, "choice": 0, "text": "t"})


@pytest.mark.parametrize(
    "line",
    [
        "{", "", "[]", "3", "null", '{"request": 1, "choice": 0, "text": "t"}', '{"request": {}, "choice": -1, "text": "t"}',
        '{"request": {}, "choice": true, "text": "t"}', '{"request": {}, "choice": 0}', '{"choice": 0, "text": "t"}',
        '{"request": {}, "choice": 0, "text": null}', '{"request": {}, "choice": 0, "text": "t", "key": "sk-1"}',
        '{"request": {}, "choice": 0, "text": "t", "prompt_tokens": "5"}', '{"request": {}, "choice": 0, "text": "t", "finish": 5}',
        '{"format": "drot-answers", "version": 99}',
    ],
)  # fmt: skip
def test_a_malformed_line_is_named_and_nothing_is_lost(filled, tmp_path, line):
    file = tmp_path / "x.jsonl"
    file.write_text("\n".join(['{"format": "drot-answers", "version": 1}', GOOD, line, GOOD]) + "\n")
    with pytest.raises(DataError, match=r"nothing was taken over") as caught:
        import_lines(filled, file)
    assert f"{file}, line 3" in str(caught.value)
    assert filled.query("SELECT count(*) FROM answers") == [(40,)]


def test_files_of_other_kinds(filled, tmp_path):
    (tmp_path / "x.jsonl").write_text(GOOD + "\n")
    with pytest.raises(DataError, match=r'expected \{"format": "drot-answers"'):
        import_lines(filled, tmp_path / "x.jsonl")
    (tmp_path / "x.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="line 1"):
        import_lines(filled, tmp_path / "x.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        import_lines(filled, tmp_path / "nothing.jsonl")


def test_command_line(filled, tmp_path, capsys):
    file, new = tmp_path / "x.jsonl", tmp_path / "new.sqlite"
    assert main(["export", str(filled.path), str(file)]) == 0
    assert main(["import", str(new), str(file), str(file)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{file}: 40 answers", f"{file}: 40 answers taken over, 0 were there already",
        f"{file}: 0 answers taken over, 40 were there already",
    ]  # fmt: skip
    assert main(["export", str(tmp_path / "nothing.sqlite"), str(file)]) == 1
    assert "error: " in capsys.readouterr().err and not (tmp_path / "nothing.sqlite").exists()


def test_it_is_called_cache_on_the_command_line(filled, tmp_path):
    import subprocess
    import sys

    from drot_utils.paths import ROOT

    command = [
        sys.executable,
        "-m",
        "drot_utils.cache",
        "export",
        str(filled.path),
        str(tmp_path / "x.jsonl"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "40 answers" in done.stdout, done.stderr
