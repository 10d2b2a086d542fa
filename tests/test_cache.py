"""The file of answers: whole requests as keys, several processes at once, and every way in which a file can be wrong."""

import errno
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drot_utils.__main__ import main
from drot_utils.llm.cache import VERSION, Answer, Cache, export_lines, import_lines, request_key
from drot_utils.study.errors import DataError, StorageError
from drot_utils.study.paths import ROOT

BODY = {"model": "m", "messages": [{"role": "user", "content": "Ça va?"}], "n": 2, "temperature": 1.0, "seed": 7}


def test_the_key_is_the_whole_request_but_n():
    changed = [
        {**BODY, name: value} for name, value in (("model", "o"), ("temperature", 0.5), ("seed", 8), ("top_p", 0.9))
    ]
    changed.append({**BODY, "messages": [{"role": "user", "content": "Ça va!"}]})
    assert len({request_key(body) for body in [BODY, *changed]}) == 6
    assert request_key(BODY) == request_key({**BODY, "n": 9}) == request_key(dict(reversed(BODY.items())))


def test_choices_are_kept_by_number_and_the_first_ones_stay(cache):
    assert cache.put([(BODY, {0: Answer("a", "stop", 10, 3, "m-1"), 1: Answer("b")})]) == 2
    assert cache.put([(BODY, {1: Answer("other"), 2: Answer("c")})]) == 1
    key = request_key(BODY)
    assert list(cache.read([key, "nobody"])) == [key]
    assert cache.read([key])[key] == {0: Answer("a", "stop", 10, 3, "m-1"), 1: Answer("b"), 2: Answer("c")}
    cache.put([(BODY, {1: Answer("other")})], replace=True)
    assert Cache(cache.path).read([key])[key][1] == Answer("other")


def test_more_keys_than_one_query_takes(cache):
    bodies = [{**BODY, "seed": k} for k in range(1000)]
    cache.put((body, {0: Answer(str(body["seed"]))}) for body in bodies)
    kept = cache.read(request_key(body) for body in bodies)
    assert [kept[request_key(body)][0].text for body in bodies] == [str(k) for k in range(1000)]


@given(st.text(st.characters(codec="utf-8")))
def test_any_text_comes_back(text):
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(Path(folder) / "c.sqlite")
        body = {**BODY, "prompt": text}
        cache.put([(body, {0: Answer(text)})])
        assert cache.read([request_key(body)])[request_key(body)][0].text == text


def test_halves_of_characters_are_joined_or_replaced_and_refused_in_a_request(cache):
    cache.put([(BODY, {0: Answer("\ud83d\ude00 \ud83d \x00 end")})])
    assert cache.read([request_key(BODY)])[request_key(BODY)][0].text == "\U0001f600 \ufffd \x00 end"
    with pytest.raises(DataError, match="half a character"):
        request_key({**BODY, "prompt": "\ud83d"})


def test_all_of_a_transaction_or_nothing(cache):
    with pytest.raises(ZeroDivisionError), cache.transaction():
        cache.put([(BODY, {0: Answer("a")})])
        raise ZeroDivisionError
    assert cache.read([request_key(BODY)]) == {}


def test_several_processes_make_and_fill_it_at_once(tmp_path):
    code = (
        "import sys; from pathlib import Path; from drot_utils.llm.cache import Cache, Answer\n"
        "cache = Cache(Path(sys.argv[1]))\n"
        "for k in range(200): cache.put([({'model': 'm', 'seed': k}, {0: Answer(sys.argv[2])}), "
        "({'model': 'm', 'seed': f'{sys.argv[2]}-{k}'}, {0: Answer('own')})])\n"
    )
    path = tmp_path / "new" / "c.sqlite"
    started = [subprocess.Popen([sys.executable, "-c", code, str(path), str(k)], cwd=ROOT) for k in range(3)]
    assert [process.wait(60) for process in started] == [0, 0, 0]
    cache = Cache(path)
    assert cache.query("SELECT count(*) FROM answers") == [(200 + 3 * 200,)]


def test_a_cache_of_another_version_says_which(cache):
    cache.query(f"PRAGMA user_version = {VERSION + 6}")
    cache.file.close()
    with pytest.raises(
        DataError, match=f"expected a cache of version {VERSION}, found version {VERSION + 6}"
    ) as caught:
        Cache(cache.path)
    assert str(cache.path) in str(caught.value) and "import" in caught.value.todo


def test_another_programs_database_is_left_alone(tmp_path):
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE mine (x)")
    before = path.read_bytes()
    with pytest.raises(DataError, match="database of another program"):
        Cache(path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_and_a_damaged_one(cache, tmp_path):
    text = tmp_path / "text.sqlite"
    text.write_text("no database at all, and long enough to be looked at as one " * 20)
    with pytest.raises(DataError, match=r"is damaged, or no cache .*\n.*move the file away"):
        Cache(text)
    cache.put(({**BODY, "seed": k}, {0: Answer("long text " * 50)}) for k in range(200))
    cache.query("PRAGMA wal_checkpoint(TRUNCATE)")
    cache.file.close()
    with cache.path.open("r+b") as file:
        file.seek(8192)
        file.write(os.urandom(40_000))
    with pytest.raises(DataError, match="is damaged"):
        Cache(cache.path)


def test_a_cache_that_cannot_be_written(cache, tmp_path):
    cache.file.close()
    cache.file = sqlite3.connect(f"file:{cache.path}?mode=ro", uri=True, isolation_level=None)
    with pytest.raises(StorageError, match=r"could not be written \(attempt to write a readonly database\).*is kept"):
        cache.put([(BODY, {0: Answer("a")})])
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="could not be written"):
        Cache(tmp_path / "file" / "c.sqlite")


@pytest.mark.parametrize(("file", "folder"), [(0o444, 0o777), (0o444, 0o555)], ids=["file", "file and folder"])
def test_a_read_only_file_for_somebody_who_is_not_root(file, folder):
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "c.sqlite"
        Cache(path).file.close()
        for other in (path.with_name(".c.sqlite.lock"), path):
            other.chmod(0o666 if other != path else file)
        Path(place).chmod(folder)
        user = os.geteuid()
        os.seteuid(65534 if user == 0 else user)
        try:
            with pytest.raises(StorageError, match="could not be written") as caught:
                Cache(path).put([(BODY, {0: Answer("a")})])
            assert str(path) in str(caught.value)
        finally:
            os.seteuid(user)
            Path(place).chmod(0o777)


def test_a_full_disk_is_one_error_and_the_rest_is_kept(cache):
    cache.put([(BODY, {0: Answer("a")})])
    cache.query("PRAGMA max_page_count = 12")
    with pytest.raises(StorageError, match="full"):
        cache.put(({**BODY, "seed": -k}, {0: Answer("long text " * 500)}) for k in range(100))
    assert cache.query("SELECT count(*) FROM answers") == [(1,)]


def test_on_a_shared_disk_no_log_that_needs_shared_memory(tmp_path, monkeypatch):
    path = tmp_path / "c.sqlite"
    first = Cache(path)
    first.put([(BODY, {0: Answer("a")})])
    assert first.query("PRAGMA journal_mode") == [("wal",)]
    first.file.close()
    monkeypatch.setattr("drot_utils.llm.cache.file_system", lambda _: "nfs4")
    second = Cache(path)  # brought there from elsewhere
    assert second.query("PRAGMA journal_mode") == [("delete",)] and second.read([request_key(BODY)])
    assert Cache(tmp_path / "new.sqlite").query("PRAGMA journal_mode") == [("delete",)]


def test_without_locks_processes_still_come_one_at_a_time(tmp_path, no_locks):
    path = tmp_path / "c.sqlite"
    before = Cache(path)  # where there were locks
    before.put([(BODY, {0: Answer("a")})])
    before.file.close()
    code = (
        "import errno, fcntl, sys; from pathlib import Path; from drot_utils.llm.cache import Cache, Answer\n"
        "def no(*_): raise OSError(errno.ENOLCK, 'no')\n"
        "fcntl.flock = no\n"
        "cache = Cache(Path(sys.argv[1]))\n"
        "for k in range(20): cache.put([({'model': 'm', 'seed': k}, {0: Answer(sys.argv[2])}), "
        "({'model': 'm', 'seed': f'{sys.argv[2]}-{k}'}, {0: Answer('own')})])\n"
    )
    started = [subprocess.Popen([sys.executable, "-c", code, str(path), str(k)], cwd=ROOT) for k in range(3)]
    assert [process.wait(60) for process in started] == [0, 0, 0]
    no_locks(errno.ENOLCK)
    cache = Cache(path)
    with cache.transaction():
        cache.put([({**BODY, "seed": 8}, {0: Answer("inside")})])
    assert cache.query("SELECT count(*) FROM answers") == [(1 + 20 + 3 * 20 + 1,)]
    assert cache.query("PRAGMA integrity_check") == [("ok",)]
    assert cache.query("PRAGMA journal_mode") == [("delete",)]
    assert not list(tmp_path.glob("*.held"))


def test_what_was_spent_adds_up_over_restarts(cache):
    cache.enter("m", "direct", "metered", 10, 5)
    Cache(cache.path).enter("m", "direct", "metered", 20, 6)
    cache.enter("m", "direct", "unmetered", 1, 1)
    cache.enter("m", "batch", "metered", 1, 1)
    cache.enter("o", "direct", "unmetered", 7, 0)
    assert cache.list_spent() == [("m", "batch", 1, 1), ("m", "direct", 31, 12), ("o", "direct", 7, 0)]


def test_what_was_ignored_is_counted_over_transports(cache):
    for transport in ("direct", "batch", "direct"):
        cache.enter("m", transport, "ignored: n")
    cache.enter("o", "direct", "ignored: seed")
    cache.enter("m", "direct", "metered", 1, 1)
    assert cache.list_ignored("m") == {"n": 3} and cache.list_ignored("o") == {"seed": 1}


BODIES = [{"model": "m", "prompt": f"Ça va {k}?\n\u2028", "n": 2, "seed": k} for k in range(20)]


@pytest.fixture
def filled(cache):
    cache.put(
        (body, {0: Answer(f"a{k}\n", "stop", 5, 2, "m-1"), 1: Answer("é", None, 0, 2)}) for k, body in enumerate(BODIES)
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
    other.put([(BODIES[0], {0: Answer("mine")})])
    assert import_lines(other, tmp_path / "x.jsonl") == (39, 1)
    assert other.read([request_key(BODIES[0])])[request_key(BODIES[0])][0] == Answer("mine")


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
    assert main(["answers", "export", str(filled.path), str(file)]) == 0
    assert main(["answers", "import", str(new), str(file), str(file)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{file}: 40 answers", f"{file}: 40 answers taken over, 0 were there already",
        f"{file}: 0 answers taken over, 40 were there already",
    ]  # fmt: skip
    assert main(["answers", "export", str(tmp_path / "nothing.sqlite"), str(file)]) == 1
    assert "error: " in capsys.readouterr().err and not (tmp_path / "nothing.sqlite").exists()


def test_it_is_called_cache_on_the_command_line(filled, tmp_path):
    import subprocess
    import sys

    from drot_utils.study.paths import ROOT

    command = [sys.executable, "-m", "drot_utils", "answers", "export", str(filled.path), str(tmp_path / "x.jsonl")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "40 answers" in done.stdout, done.stderr
