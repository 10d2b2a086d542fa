"""The answers of all endpoints in one file, by the whole request, and as JSON lines to publish and replay.

A request is asked once in a study's life. The file (SQLite) takes answers from several processes at once and keeps each as it
comes. Keys and headers are never in it.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, get_type_hints

from drot_utils.study.errors import DataError, StorageError
from drot_utils.study.paths import atomic, exclusive, file_system

VERSION = 1
APPLICATION = 0x64526F54  # "dRoT": marks the file as ours
COLUMNS = "key, choice, text, finish, prompt_tokens, completion_tokens, answered_by"

#: Entries of the ledger: what was billed, by the server's count or else at most; what a server ignored (the setting follows).
METERED, UNMETERED, IGNORED = "metered", "unmetered", "ignored: "

#: File systems of one machine. Elsewhere SQLite's write-ahead log is not safe (its memory cannot be shared between machines).
LOCAL = ("ext", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "tmpfs", "ramfs", "overlay", "apfs", "hfs")

_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE requests (key TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE answers (
    key TEXT NOT NULL, choice INTEGER NOT NULL, text TEXT NOT NULL, finish TEXT, prompt_tokens INTEGER,
    completion_tokens INTEGER, answered_by TEXT, PRIMARY KEY (key, choice)
) WITHOUT ROWID;
CREATE TABLE ledger (
    model TEXT NOT NULL, transport TEXT NOT NULL, entry TEXT NOT NULL, times INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, PRIMARY KEY (model, transport, entry)
) WITHOUT ROWID;
CREATE TABLE batches (token TEXT PRIMARY KEY, place TEXT NOT NULL, id TEXT) WITHOUT ROWID;
CREATE TABLE lines (
    token TEXT NOT NULL, id TEXT NOT NULL, key TEXT NOT NULL, choices TEXT NOT NULL, PRIMARY KEY (token, id)
) WITHOUT ROWID;
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
COMMIT;
"""


@dataclass(frozen=True)
class Answer:
    """One choice of an answer, as it is kept; None: not known. Tokens are divided so that their sums are what was billed."""

    text: str
    finish: str | None = None
    prompt_tokens: int | None = None  # a prompt is billed once a response: with its first choice, else 0
    completion_tokens: int | None = None  # shared out over a response's choices by their lengths
    answered_by: str | None = None  # the server's name of the model


def request_key(request: dict[str, Any]) -> str:
    """Return the key of a request: a hash of all of it but `n`, as every choice is kept by its number."""
    return hashlib.sha256(_body(request).encode()).hexdigest()


class Cache:
    """The file of answers; made when it does not exist.

    A `DataError` when it is no cache, is damaged, or was written by another version; a `StorageError` when it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.lock, self.bare = path, path.with_name(f".{path.name}.lock"), False
        with exclusive(self.lock, wait=True) as lock:  # two processes may make it at once: one writes the schema
            self._open(bare=lock is None)
        self.bare = lock is None  # where the file system has no locks, SQLite takes none, and we hold one of our own

    def _open(self, bare: bool) -> None:
        with self.explained_errors():
            place = self.path.absolute().as_uri() + ("?vfs=unix-none" if bare else "")
            # The caller's thread and the one that asks share it, never at once.
            self.file = sqlite3.connect(place, timeout=60, isolation_level=None, check_same_thread=False, uri=True)
            if bare:  # without locks SQLite reads a file that has a write-ahead log only so
                self.file.execute("PRAGMA locking_mode = EXCLUSIVE")
            ask = ("PRAGMA user_version", "PRAGMA application_id", "SELECT count(*) FROM sqlite_master")
            version, application, tables = (self.file.execute(query).fetchone()[0] for query in ask)
            if tables and (application, version) != (APPLICATION, VERSION):
                self.file.close()
                found = f"version {version}" if application == APPLICATION else "a database of another program"
                found = f"expected a cache of version {VERSION}, found {found}"
                todo = "export it with the program that wrote it and import the lines here, or move it away"
                raise DataError(found, where=str(self.path), todo=todo)
            if bare or not file_system(self.path).startswith(LOCAL):
                self.file.execute("PRAGMA journal_mode = DELETE")  # also of a file that was made elsewhere
                self.file.execute("PRAGMA locking_mode = NORMAL")
            else:
                if not tables:
                    self.file.execute("PRAGMA journal_mode = WAL")
                # A kill loses nothing; a power cut may lose the last seconds, and leaves the file whole.
                self.file.execute("PRAGMA synchronous = NORMAL")
            if not tables:
                self.file.executescript(_SCHEMA)
            elif (damage := self.file.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(damage)

    def read(self, keys: Iterable[str]) -> dict[str, dict[int, Answer]]:
        """Return the choices of each key that the cache has, by their numbers."""
        found: dict[str, dict[int, Answer]] = {}
        sql = f"SELECT {COLUMNS} FROM answers WHERE key IN (SELECT value FROM json_each(?))"
        for key, choice, *values in self.query(sql, json.dumps([*keys])):
            found.setdefault(key, {})[choice] = Answer(*values)
        return found

    def put(self, items: Iterable[tuple[dict[str, Any], dict[int, Answer]]], *, replace: bool = False) -> int:
        """Keep choices by request and number, all or none of them, and return how many are new.

        With `replace` they take the place of those that are there; else the earlier ones stay, so that all processes
        go on with the same.
        """
        new, sql = 0, f"INSERT OR {'REPLACE' if replace else 'IGNORE'} INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)"
        with self.transaction():
            for request, choices in items:
                key = request_key(request)
                self.file.execute("INSERT OR IGNORE INTO requests VALUES (?, ?)", (key, _body(request)))
                rows = [(key, number, _join_halves(c.text), *astuple(c)[1:]) for number, c in choices.items()]
                new += self.file.executemany(sql, rows).rowcount
        return new

    def enter(self, model: str, transport: str, entry: str, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        """Add to the line of a model, transport and entry: once more, and so many tokens."""
        self.query(
            "INSERT INTO ledger VALUES (?, ?, ?, 1, ?, ?) ON CONFLICT DO UPDATE SET times = times + 1, prompt_tokens = "
            "prompt_tokens + excluded.prompt_tokens, completion_tokens = completion_tokens + excluded.completion_tokens",
            *(model, transport, entry, prompt_tokens, completion_tokens),
        )

    def list_spent(self) -> list[tuple[str, str, int, int]]:
        """Return the tokens that were billed in the cache's life: model, transport, of prompts, of completions."""
        return self.query(
            "SELECT model, transport, sum(prompt_tokens), sum(completion_tokens) FROM ledger WHERE entry NOT LIKE ? "
            "GROUP BY model, transport ORDER BY model, transport",
            f"{IGNORED}%",
        )

    def list_ignored(self, model: str) -> dict[str, int]:
        """Return what the model's servers were seen to ignore or refuse, with how often."""
        rows = self.query(
            "SELECT entry, sum(times) FROM ledger WHERE model = ? AND entry LIKE ? GROUP BY entry", model, f"{IGNORED}%"
        )
        return {entry.removeprefix(IGNORED): times for entry, times in rows}

    def query(self, sql: str, *values: Any) -> list[tuple]:
        """Return the rows of a query, or change something."""
        with self.explained_errors():
            return self.file.execute(sql, values).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make all changes of the block or none; a block inside another one is part of it."""
        if self.file.in_transaction:
            yield
            return
        with self.explained_errors():
            self.file.execute("BEGIN IMMEDIATE")
            with self.file:  # commits, or rolls back
                yield

    @contextmanager
    def explained_errors(self) -> Iterator[None]:
        """Say what SQLite's errors mean for the study, and let no other process in where SQLite cannot see to that."""
        mine = self.bare and not self.file.in_transaction
        try:
            with exclusive(self.lock, wait=True) if mine else nullcontext():
                yield
        except sqlite3.Error as error:
            name = getattr(error, "sqlite_errorname", "")
            if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_FULL", "SQLITE_BUSY", "SQLITE_IOERR")):
                found = f"the cache could not be written ({error}); what was in it is kept"
                todo = "check that it may be written, the disk has room and no other program holds it, then run again"
                raise StorageError(found, where=str(self.path), todo=todo) from error
            todo = "move the file away and import your export, if you have one (python -m drot_utils answers import)"
            raise DataError(f"is damaged, or no cache ({error})", where=str(self.path), todo=todo) from error


def _body(request: dict[str, Any]) -> str:
    body = {name: value for name, value in request.items() if name != "n"}
    text = json.dumps(body, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    if _join_halves(text) != text:
        raise DataError("a request holds half a character (a lone surrogate)", where=ascii(text[:80]))
    return text


def _join_halves(text: str) -> str:
    # JSON can escape halves of characters; joined where both are there, else replaced: no file can hold half a one.
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


FORMAT = {"format": "drot-answers", "version": VERSION}  # the first line of an export


def export_lines(cache: Cache, file: Path) -> int:
    """Write all answers to `file` as JSON lines, sorted, so that the same answers give the same bytes; return their number."""
    count, columns = 0, COLUMNS.removeprefix("key, ")
    with cache.explained_errors(), atomic(file) as part, part.open("w", encoding="utf-8", newline="\n") as handle:
        handle.write(json.dumps(FORMAT) + "\n")
        rows = cache.file.execute(f"SELECT body, {columns} FROM answers JOIN requests USING (key) ORDER BY key, choice")
        for body, *values in rows:
            count += 1
            line = {"request": json.loads(body), **dict(zip(columns.split(", "), values, strict=True))}
            handle.write(json.dumps(line, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")
    return count


def import_lines(cache: Cache, file: Path) -> tuple[int, int]:
    """Take over the answers of an export; return how many are new, and how many the cache had: these stay as they are.

    A `DataError` names the first line that is no answer; nothing of the file was taken over then.
    """
    items = list(_read_lines(file))
    new = cache.put(items)
    return new, len(items) - new


def _read_lines(file: Path) -> Iterator[tuple[dict[str, Any], dict[int, Answer]]]:
    number = 0
    try:
        with file.open(encoding="utf-8-sig") as handle:
            for number, line in enumerate(handle, start=1):
                values = json.loads(line)
                if number > 1 and "format" not in values:
                    yield _read_answer(**values)
                elif values != FORMAT:
                    raise ValueError(f"expected {json.dumps(FORMAT)}")
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(file), todo="check the path") from error
    except (ValueError, TypeError) as error:
        found = f"is no exported answer ({type(error).__name__}: {error}); nothing was taken over"
        todo = "correct or remove that line, or export again"
        raise DataError(found, where=f"{file}, line {max(1, number)}", todo=todo) from error


def _read_answer(request: Any, choice: Any, **values: Any) -> tuple[dict[str, Any], dict[int, Answer]]:
    answer, types = Answer(**values), get_type_hints(Answer)
    if not isinstance(request, dict) or type(choice) is not int or choice < 0:
        raise ValueError("expected an object `request` and a number `choice`")
    if wrong := [
        name for name, value in vars(answer).items() if isinstance(value, bool) or not isinstance(value, types[name])
    ]:
        raise ValueError(
            f"`{wrong[0]}` must be text (`text`), a whole number or null (the tokens), or text or null (all others)"
        )
    return request, {choice: answer}
