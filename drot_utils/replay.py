"""A cache's answers as JSON lines, to be published with a study and replayed from: ``python -m drot_utils.cache``."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from drot_utils.cache import VERSION, Cache, Entry
from drot_utils.errors import DataError, DrotError, escape_output
from drot_utils.paths import atomic

FORMAT = {"format": "drot-answers", "version": VERSION}  # the first line of an export


def export_lines(cache: Cache, file: Path) -> int:
    """Write all answers to `file` as JSON lines, sorted, so that the same answers give the same bytes; return their number."""
    columns = "choice, text, finish, prompt_tokens, completion_tokens, answered_by"
    count = 0
    with (
        cache.said(),
        atomic(file) as temporary,
        temporary.open("w", encoding="utf-8", newline="\n") as handle,
    ):
        handle.write(json.dumps(FORMAT) + "\n")
        rows = cache.file.execute(
            f"SELECT body, {columns} FROM answers JOIN requests USING (key) ORDER BY key, choice"
        )
        for body, *values in rows:
            count += 1
            line = {"request": json.loads(body), **dict(zip(columns.split(", "), values, strict=True))}
            handle.write(json.dumps(line, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")
    return count


def import_lines(cache: Cache, file: Path) -> tuple[int, int]:
    """Take over the answers of an export; those that the cache has already stay as they are.

    Returns
    -------
    new, known : int

    Raises
    ------
    DataError
        A line that is no answer, named by its number; nothing of the file was taken over then.
    """
    new = total = 0
    with cache.transaction():
        for request, number, entry in _read_lines(file):
            new += cache.put([(request, {number: entry})])
            total += 1
    return new, total - new


def _read_lines(file: Path) -> Iterator[tuple[dict[str, Any], int, Entry]]:
    number = 0
    try:
        with file.open(encoding="utf-8-sig") as handle:
            for number, line in enumerate(handle, start=1):
                values = json.loads(line)
                if number == 1 or "format" in values:
                    if values != FORMAT:
                        raise ValueError(f"expected {json.dumps(FORMAT)}")
                    continue
                yield _read_answer(values)
    except OSError as error:
        raise DataError(
            f"cannot be read ({error.strerror})", where=str(file), todo="check the path"
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"is no exported answer ({type(error).__name__}: {error}); nothing was taken over",
            where=f"{file}, line {max(1, number)}",
            todo="mend or remove that line, or export again",
        ) from error


def _read_answer(values: dict[str, Any]) -> tuple[dict[str, Any], int, Entry]:
    request, number = values.pop("request"), values.pop("choice")
    entry = Entry(**values)
    texts, counts = (entry.finish, entry.answered_by), (entry.prompt_tokens, entry.completion_tokens)
    if (
        not isinstance(request, dict)
        or type(number) is not int
        or number < 0
        or not isinstance(entry.text, str)
    ):
        raise ValueError("expected an object `request`, a number `choice` and a text `text`")
    if not all(isinstance(t, str | None) for t in texts) or not all(
        type(c) in (int, type(None)) for c in counts
    ):
        raise ValueError("expected texts in `finish` and `answered_by` and whole numbers of tokens, or null")
    return request, number, entry


def main(arguments: Sequence[str] | None = None) -> int:
    """Export a cache as JSON lines or import such files; 1 on a known error, said in one paragraph."""
    parser = argparse.ArgumentParser(prog="python -m drot_utils.cache", description=__doc__)
    parser.add_argument("what", choices=["export", "import"])
    parser.add_argument("cache", type=Path, help="such as runs/demo/data/answers.sqlite")
    parser.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="JSON lines; one file for an export"
    )
    options = parser.parse_args(arguments)
    escape_output()
    try:
        if options.what == "export":
            if not options.cache.exists() or len(options.files) > 1:
                raise DataError(
                    "expected a cache that exists and one file to write", where=str(options.cache)
                )
            count = export_lines(Cache(options.cache), options.files[0])
            print(f"{options.files[0]}: {count} answers")
            return 0
        cache = Cache(options.cache)
        for file in options.files:
            new, known = import_lines(cache, file)
            print(f"{file}: {new} answers taken over, {known} were there already")
    except DrotError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
