"""The human forms as spreadsheets: a CSV file for each annotator to copy and fill, and its instructions in Markdown."""

import csv
import io
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from pathlib import Path

import pandas as pd

from drot_utils.data.table import check_columns
from drot_utils.people.forms import FORMS, INTRODUCTION, Form, show_rows
from drot_utils.study.errors import DataError
from drot_utils.study.paths import write_text

#: What systems append to the name of a copy: ``ann (1)``, ``ann - Copy (2)``, ``ann copy 3``.
_COPY = re.compile(r"(\s*\(\d+\)|[ _-]+(copy|kopie|copie|copia|cópia)(\s*\(?\d+\)?)?)+$", re.IGNORECASE)


def export(form: Form, key: pd.DataFrame, folder: Path) -> None:
    """Write the empty form, ``<form>.csv`` (to be copied and filled, one an annotator), and its instructions, ``<form>.md``."""
    blank = show_rows(key).assign(**dict.fromkeys(form.questions, ""))
    write_text(folder / f"{form.name}.csv", blank.to_csv(index=False))
    write_text(folder / f"{form.name}.md", _instructions(form))


def is_named(form: Form, path: Path) -> bool:
    """Return whether a file is named as a filled form."""
    return path.stem.lower().startswith(f"{form.name}-")


def is_table(form: Form, path: Path) -> bool:
    """Return whether a file is a table by its name."""
    kind = path.suffix.lower()
    return kind in (".csv", ".tsv") or (kind == ".txt" and is_named(form, path))


def read(form: Form, path: Path) -> list[dict[str, str]] | None:
    """Read a filled copy named ``<form>-<annotator>.csv``; what marks a copy of it, such as `` (1)``, is no part of the name.

    What else may lie there holds no answers: the empty form, the key, Mechanical Turk's input, and other forms' files.
    """
    if not is_table(form, path):
        return None
    table = read_csv(path)
    if not is_named(form, path):
        answered = table.filter(items=list(form.questions)).ne("").any(axis=None)
        others = tuple(set(FORMS) - {form.name})
        if path.stem.startswith(others) or (path.stem.startswith(form.name) and not answered):
            return []
        todo = f"name it {form.name}-<annotator>.csv, or move it elsewhere"
        raise DataError("is not named as a filled form", where=str(path), todo=todo)
    check_columns(table, ["row_id", *form.questions], str(path))
    where = [f"{path}, line {number}" for number in table.index]
    annotator = _COPY.sub("", path.stem[len(form.name) + 1 :]).strip()
    return table[["row_id", *form.questions]].assign(annotator=annotator, where=where).to_dict("records")


def read_csv(path: Path) -> pd.DataFrame:
    """Read a CSV file as text, as programs and countries write it.

    Commas, semicolons or tabs; UTF-8, UTF-16, or an older encoding of one byte, whichever (row_ids and codes are ASCII in all of
    them). Rows without any text are left out, and so are empty cells at the end of a row, which programs add as they like.
    Other text, a row with more cells than the header, and two columns of one name are a `DataError`.

    Returns
    -------
    DataFrame of str
        Indexed by line number; empty and missing cells are "".
    """
    todo = "save it as CSV (UTF-8)"
    try:
        text = _decode(path.read_bytes())
        first = text.partition("\n")[0]
        told = re.fullmatch(r"sep=(.)\s*", first)  # a line of Excel's own above the header
        delimiter = told[1] if told else max(",;\t", key=first.count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        lines = [(reader.line_num, row) for row in reader]
    except (ValueError, OSError, csv.Error) as error:
        raise DataError(f"is not CSV text: {error}", where=str(path), todo=todo) from error
    rows = {number: row for number, row in lines[bool(told) :] if any(map(str.strip, row))}
    if not rows:
        raise DataError("is not CSV text: it is empty", where=str(path), todo=todo)
    header, *_ = rows.values()
    while not header[-1]:
        header.pop()
    for name in header:
        if name and header.count(name) > 1:
            raise DataError(f"there are two columns {name}", where=str(path), todo="keep one of them")
    for number, row in rows.items():
        if any(row[len(header) :]):
            found = f"{len(row)} cells, but the header has {len(header)}"
            quote = "put quotes around text that contains the delimiter, and add no columns to those of the form"
            raise DataError(found, where=f"{path}, line {number}", todo=quote)
    cells = [row[: len(header)] + [""] * (len(header) - len(row)) for row in rows.values()]
    table = pd.DataFrame(cells[1:], index=list(rows)[1:], columns=header, dtype="str")
    return table.loc[:, [bool(name) for name in header]]


def _decode(data: bytes) -> str:
    if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        text = data.decode("utf-16")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
    if "\0" in text:
        raise ValueError("it holds zero bytes, as files of other kinds do")
    return text


def _instructions(form: Form) -> str:
    lines = [f"# {form.title}", "", *(f"{text}\n" for text in INTRODUCTION)]
    lines += [f"Fill a copy of `{form.name}.csv` named `{form.name}-<your name>.csv`, with these codes:", ""]
    for name, question in form.questions.items():
        answers = (f"- `{code}` {text}" for code, text in question.answers.items())
        hint = " Join several codes with a plus." if question.several else ""
        lines += [f"**{name}** {question.text}{hint}", *answers, ""]
    return "\n".join(lines)
