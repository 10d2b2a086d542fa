"""The human forms as spreadsheets: a CSV file for each annotator to copy and fill, and its instructions in Markdown."""

from pathlib import Path

import pandas as pd

from drot_utils.errors import DataError
from drot_utils.forms import INTRODUCTION, Filled, Form, show_rows
from drot_utils.paths import write_text
from drot_utils.schema import check_columns


def export(form: Form, key: pd.DataFrame, folder: Path) -> None:
    """Write the empty form and its instructions (see `exchange.Export`).

    The folder gets ``<form>.csv`` (to be copied and filled, one ``<form>-<annotator>.csv`` an annotator) and ``<form>.md``.
    """
    blank = show_rows(key).assign(**dict.fromkeys(form.questions, ""))
    write_text(folder / f"{form.name}.csv", blank.to_csv(index=False))
    write_text(folder / f"{form.name}.md", _instructions(form))


def read(form: Form, path: Path) -> Filled:
    """Read a filled copy named ``<form>-<annotator>.csv``.

    Raises
    ------
    DataError
        A file that is no CSV text, or lacks a column.
    """
    table = read_csv(path)
    check_columns(table, ["row_id", *form.questions], str(path))
    where = [f"{path}, line {number}" for number in range(2, len(table) + 2)]
    annotator = path.stem.removeprefix(f"{form.name}-")
    return Filled(table[["row_id", *form.questions]].assign(annotator=annotator, where=where))


def read_csv(path: Path) -> pd.DataFrame:
    """Read a CSV file as text, with or without a byte order mark; empty cells are "".

    Raises
    ------
    DataError
        When it is none.
    """
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, OSError) as error:
        raise DataError(f"is no CSV text: {error}", where=str(path), todo="save it as CSV (UTF-8)") from error


def _instructions(form: Form) -> str:
    lines = [f"# {form.name.replace('_', ' ').capitalize()}", "", *(f"{text}\n" for text in INTRODUCTION)]
    lines += [f"Fill a copy of `{form.name}.csv` named `{form.name}-<your name>.csv`, with these codes:", ""]
    for name, question in form.questions.items():
        answers = (f"- `{code}` {text}" for code, text in question.answers.items())
        lines += [f"**{name}** {question.text}", *answers, ""]
    return "\n".join(lines)
