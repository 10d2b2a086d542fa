"""Annotation exchange: the two human forms as projects of annotation tools, and the tools' results as one table of votes."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from drot_utils import labelstudio, mturk, potato, spreadsheet
from drot_utils.errors import DataError
from drot_utils.forms import FORMS, Filled, Form, check_votes, form_of, make_key
from drot_utils.paths import resolve, write_text

#: Writes a form, whose rows are those of a key (as `forms.make_key` returned it), into a folder.
Export = Callable[[Form, pd.DataFrame, Path], None]
#: Who writes which format, and where, below the folder of the forms.
WRITERS: dict[str, tuple[Export, str]] = {
    "csv": (spreadsheet.export, "."),
    "mturk": (mturk.export, "mturk"),
    "labelstudio": (labelstudio.export, "labelstudio"),
    "potato": (potato.export, "potato"),
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


def read_filled(form: Form, folder: str | Path, key: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Read all filled forms in a folder, whatever tools they come from.

    Parameters
    ----------
    folder : str or Path
        Relative paths are relative to the checkout. Holds ``<form>-<annotator>.csv``, results of Mechanical Turk batches
        (``.csv``), Label Studio exports (``.json``), and Potato's ``annotation_output`` (there or deeper), in any mixture.
    key : DataFrame
        As `export_form` returned it.

    Returns
    -------
    votes : DataFrame
        One row an annotator and form row: ``row_id annotator`` and the questions; an answer not given is null.
    counts : dict
        ``files``, ``votes``, ``annotators``, ``unanswered`` (questions without an answer), and what was left out: ``rejected``,
        ``skipped``, ``other_form`` (votes on the rows of the other form).

    Raises
    ------
    DataError
        No filled form, a file that is none, and what `forms.check_votes` refuses.
    """
    folder = resolve(folder)
    read = list(_read_all(form, folder))
    votes = pd.concat([filled.votes for filled in read], ignore_index=True) if read else pd.DataFrame()
    other = votes["row_id"].map(form_of).isin(set(FORMS) - {form.name}) if len(votes) else votes.index < 0
    ours = votes[~other]
    if ours.empty:
        raise DataError(
            f"no filled form named {form.name}-<annotator>.csv, and no results of a tool for it",
            where=str(folder),
            todo="copy the filled forms there",
        )
    check_votes(ours, form, key)
    table = ours[["row_id", "annotator", *form.questions]].replace("", None).reset_index(drop=True)
    counts = {
        "files": len(read),
        "votes": len(table),
        "annotators": table["annotator"].nunique(),
        "unanswered": int(table[list(form.questions)].isna().sum().sum()),
        "other_form": int(other.sum()),
    }
    for name in ("rejected", "skipped"):
        counts[name] = sum(filled.counts.get(name, 0) for filled in read)
    return table, counts


def _read_all(form: Form, folder: Path) -> Iterator[Filled]:
    for path in sorted(folder.glob("*.csv")):
        table = spreadsheet.read_csv(path)
        if "WorkerId" in table.columns:
            yield mturk.read(form, path)
        elif path.stem.startswith(f"{form.name}-"):
            yield spreadsheet.read(form, path)
        else:
            _check_beside(form, path, table)
    for path in sorted(folder.glob("*.json")):
        if path.name != potato.STATE:
            yield labelstudio.read(form, path)
    for path in sorted(folder.rglob(potato.STATE)):
        yield potato.read(form, path)


def _check_beside(form: Form, path: Path, table: pd.DataFrame) -> None:
    """Refuse a table that nobody would read; the empty form, the key, and the other form's files may lie there."""
    answered = path.stem == form.name and table.filter(items=list(form.questions)).ne("").any(axis=None)
    if answered or not path.stem.startswith(tuple(FORMS)):
        raise DataError(
            "is not named as a filled form",
            where=str(path),
            todo=f"name it {form.name}-<annotator>.csv, or move it elsewhere",
        )
