"""Annotation exchange: the two human forms as projects of annotation tools, and the tools' results as one table of votes."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from drot_utils.people import labelstudio, mturk, potato, spreadsheet
from drot_utils.people.forms import FORMS, Filled, Form, check_votes, form_of, make_key
from drot_utils.study.errors import DataError
from drot_utils.study.paths import files_below, resolve, sha256, write_text

#: Writes a form, whose rows are those of a key (as `forms.make_key` returned it), into a folder.
Export = Callable[[Form, pd.DataFrame, Path], None]
#: Who writes which format, and where, below the folder of the forms.
WRITERS: dict[str, tuple[Export, str]] = {
    "csv": (spreadsheet.export, "."),
    "mturk": (mturk.export, "mturk"),
    "labelstudio": (labelstudio.export, "labelstudio"),
    "potato": (potato.export, "potato"),
}
_AS_CSV = "save each of its sheets as CSV (UTF-8), put that there, and move this file elsewhere"
#: Kinds of files that may hold answers and are not read, and what to do about it.
UNREAD = {
    **dict.fromkeys([".xlsx", ".xls", ".xlsm", ".xlsb", ".ods", ".numbers", ".parquet"], _AS_CSV),
    ".jsonl": "put the tool's own results there as the form's notebook names them, and move this file elsewhere",
    **dict.fromkeys([".zip", ".gz", ".tgz", ".tar", ".7z", ".rar"], "unpack it there, and move it elsewhere"),
}


def export_form(
    form: Form, rows: pd.DataFrame, folder: Path, seed: int, formats: Sequence[str] = ("csv",)
) -> pd.DataFrame:
    """Write an empty form in random order, in the formats asked for, and apart from it the key.

    Parameters
    ----------
    form : Form
    rows : DataFrame
        As for `forms.make_key`.
    folder : Path
        Gets ``<form>_key.csv`` (which must not be shown to annotators) and what the formats' modules write.
    formats : sequence of {"csv", "mturk", "labelstudio", "potato"}

    Returns
    -------
    DataFrame
        The key.
    """
    key = make_key(form, rows, seed)
    write_text(folder / f"{form.name}_key.csv", key.to_csv(index=False))
    for name in formats:
        write, place = WRITERS[name]
        write(form, key, folder / place)
    return key


def read_filled(form: Form, folder: str | Path, key: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int | list[str]]]:
    """Read all filled forms in a folder and in those below it, whatever tools they come from.

    The same answers by the same annotator, such as those of a batch that was downloaded twice, count once. So do two
    spreadsheets that are the same byte for byte, whoever they are named after, unless each question has one answer
    throughout, which two people may well give.

    Parameters
    ----------
    folder : str or Path
        Relative paths are relative to the checkout. Holds, in any mixture, ``<form>-<annotator>.csv``, results of Mechanical
        Turk batches (``.csv``), Label Studio exports (``.json``), and Potato's ``annotation_output``.
    key : DataFrame
        As `export_form` returned it.

    Returns
    -------
    votes : DataFrame
        One row an annotator and form row: ``row_id annotator`` and the questions; an answer not given is null.
    counts : dict
        ``files`` (that were read), ``votes``, ``annotators``, ``unanswered`` (questions without an answer), and what was left
        out: ``rejected``, ``skipped``, ``other_form`` (votes on the rows of the other form), ``repeated`` (votes that came
        again), and by name: ``copies`` (files all of whose votes came again), ``not_read`` (files that hold no answers to
        this form).

    Raises
    ------
    DataError
        No filled form, a file that is none or cannot be read but may be one, and what `forms.check_votes` refuses.
    """
    folder = resolve(folder)
    files = {path.relative_to(folder).as_posix(): _read(form, path) for path in files_below(folder)}
    read = {name: filled.votes for name, filled in files.items() if filled is not None}
    _join_copies(form, folder, read)
    named = [rows.assign(file=name) for name, rows in read.items()]
    votes = pd.concat(named, ignore_index=True) if named else pd.DataFrame()
    other = votes["row_id"].map(form_of).isin(set(FORMS) - {form.name}) if len(votes) else votes.index < 0
    ours = votes[~other]
    if ours.empty:
        raise DataError(
            f"no filled form named {form.name}-<annotator>.csv, and no results of a tool for it",
            where=str(folder),
            todo="copy the filled forms there",
        )
    again = ours.duplicated(["row_id", "annotator", *form.questions])
    once = ours[~again]
    check_votes(once, form, key)
    table = once[["row_id", "annotator", *form.questions]].replace("", None).reset_index(drop=True)
    counts = {
        "files": len(read),
        "votes": len(table),
        "annotators": table["annotator"].nunique(),
        "unanswered": int(table[list(form.questions)].isna().sum().sum()),
        "other_form": int(other.sum()),
        "repeated": int(again.sum()),
        "copies": sorted(set(ours["file"]) - set(once["file"])),
        "not_read": [name for name, filled in files.items() if filled is None],
    }
    for name in ("rejected", "skipped"):
        counts[name] = sum(filled.counts.get(name, 0) for filled in files.values() if filled is not None)
    return table, counts


def _read(form: Form, path: Path) -> Filled | None:
    """Read a file with the module that knows it; None when it holds no answers to this form.

    Raises
    ------
    DataError
        When it may hold some and no module knows it.
    """
    kind, named = path.suffix.lower(), path.stem.lower().startswith(f"{form.name}-")
    if path.name == potato.STATE:
        return potato.read(form, path)
    if path.stem == potato.OLD_STATE:
        todo = (
            f"ask again with the project in {WRITERS['potato'][1]}/, which needs Potato 2, or move the file elsewhere"
        )
        raise DataError("comes from Potato 1, whose answers are not read", where=str(path), todo=todo)
    if kind in (".csv", ".tsv") or (kind == ".txt" and named):
        return _read_table(form, path, named)
    if kind in (".json", ".jsonl") and potato.keeps(path):
        return None
    if kind == ".json":
        return labelstudio.read(form, path)
    if named or kind in UNREAD:
        todo = UNREAD.get(kind, f"save it as {form.name}-<annotator>.csv (UTF-8), or move it elsewhere")
        raise DataError("may hold answers, but is of a kind that is not read", where=str(path), todo=todo)
    return None


def _read_table(form: Form, path: Path, named: bool) -> Filled | None:
    table = spreadsheet.read_csv(path)
    if "WorkerId" in table.columns:
        return mturk.read(form, path)
    if named:
        return spreadsheet.read(form, path)
    # What else may lie there: the empty form, the key, Mechanical Turk's input, and the other form's files.
    answered = table.filter(items=list(form.questions)).ne("").any(axis=None)
    others = tuple(set(FORMS) - {form.name})
    if path.stem.startswith(others) or (path.stem.startswith(form.name) and not answered):
        return None
    raise DataError(
        "is not named as a filled form",
        where=str(path),
        todo=f"name it {form.name}-<annotator>.csv, or move it elsewhere",
    )


def _join_copies(form: Form, folder: Path, read: dict[str, pd.DataFrame]) -> None:
    """Put one annotator's name on files that are the same byte for byte, where their answers differ from row to row."""
    first: dict[str, pd.DataFrame] = {}
    for name, votes in read.items():
        if (votes[list(form.questions)].nunique() > 1).any():
            original = first.setdefault(sha256(folder / name), votes)
            read[name] = votes.assign(annotator=original["annotator"])
