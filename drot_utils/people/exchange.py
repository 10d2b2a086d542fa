"""Annotation exchange: the human forms as projects of annotation tools, and the tools' results as one table of votes.

Another tool is another module like `potato`, and its name in `TOOLS`. A tool's module has two functions:

``export(form, key, folder)``
    Write a form, whose rows are those of a key (as `forms.make_key` returned it), below the folder of the forms.
``read(form, path)``
    Return the votes in a file, unchecked; None when it is not the tool's; raise a `DataError` when it is and cannot be read.
    A vote is a dict: ``row_id annotator``, the questions (a code, or "" where none was given), and ``where`` (file and line,
    for errors); or only ``left_out``, one of `LEFT_OUT`.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from drot_utils.people import labelstudio, mturk, potato, spreadsheet
from drot_utils.people.forms import FORMS, Form, check_votes, form_of, make_key
from drot_utils.people.votes import is_written, read_recorded
from drot_utils.study.errors import DataError, ParamsError
from drot_utils.study.params import Annotation
from drot_utils.study.paths import files_below, resolve, sha256, write_text

#: The tools by the names that `annotation.exchange` knows; a file is read by the first that takes it for its own.
TOOLS = {"potato": potato, "mturk": mturk, "csv": spreadsheet, "labelstudio": labelstudio}
#: How the name of an annotator begins that is a language model.
MACHINE = "machine-"
#: Why a tool leaves a vote out.
LEFT_OUT = ("rejected", "skipped")
_AS_CSV = "save each of its sheets as CSV (UTF-8), put that there, and move this file elsewhere"
#: Kinds of files that may hold answers and are not read, and what to do about it.
UNREAD = {
    **dict.fromkeys([".xlsx", ".xls", ".xlsm", ".xlsb", ".ods", ".numbers", ".parquet"], _AS_CSV),
    ".jsonl": "put the tool's own results there as docs/annotation.md names them (Potato 2's, not Potato 1's), not this file",
    **dict.fromkeys([".zip", ".gz", ".tgz", ".tar", ".7z", ".rar"], "unpack it there, and move it elsewhere"),
}


@dataclass(frozen=True)
class Votes:
    """Votes on rows: this run's own, or the recorded ones of another run; without a vote where nobody has answered.

    Attributes
    ----------
    filled : DataFrame
        As `read_filled` returns it.
    rows : DataFrame
        What was drawn to be asked about: as a key, with the rows that have no context, whose ``row_id`` is null.
    own : bool
        Whether there are votes, and this run wrote the rows: the votes are then on a random part of what it wrote.
    counts : dict
        As `read_filled` returns it, or ``no votes``: why.
    """

    filled: pd.DataFrame
    rows: pd.DataFrame
    own: bool
    counts: dict[str, int | str | list[str]]

    def __str__(self) -> str:
        """Say whose votes these are, and how many, or why there are none."""
        return "\n".join([self.whose, ", ".join(f"{name}: {count}" for name, count in self.counts.items())])

    @property
    def voters(self) -> str:
        """Who voted, as their names say: annotators whose names begin with `MACHINE` are language models."""
        machine = self.filled["annotator"].drop_duplicates().str.startswith(MACHINE)
        if machine.empty:
            return "nobody"
        if machine.all():
            return "a language model"
        return "annotators and a language model" if machine.any() else "annotators"

    @property
    def whose(self) -> str:
        """Whose contexts and whose votes these are, for captions."""
        if self.filled.empty:
            return "Nobody has answered in this run."
        return f"On {'this' if self.own else 'the reference'} run's contexts, by votes of {self.voters}."


def find_votes(form: Form, settings: Annotation, key: pd.DataFrame, written: pd.DataFrame) -> Votes:
    """Return the votes on a form: from filled ones where there are some, else the recorded ones, else none.

    Parameters
    ----------
    key : DataFrame
        As `export_form` returned it, with the rows that were drawn and have no context.
    written : DataFrame
        All that this run wrote, as for `votes.is_written`.
    """
    if settings.filled:
        filled, counts = read_filled(form, settings.filled, key[key["row_id"].notna()])
        if len(filled):
            return Votes(filled, key, True, counts)
    if settings.reference_votes is not None:
        filled, rows = read_recorded(settings.reference_votes, form)
        if len(filled):
            counts = {"votes": len(filled), "annotators": filled["annotator"].nunique()}
            return Votes(filled, rows, bool(is_written(rows, written).all()), counts)
    places = {"annotation.filled": settings.filled, "annotation.reference_votes": settings.reference_votes}
    said = [f"{name} {'is null' if at is None else f'({at}) holds none'}" for name, at in places.items()]
    nothing = pd.DataFrame(columns=["row_id", "annotator", *form.questions], dtype="str")
    return Votes(nothing, key, own=False, counts={"no votes": f"{form.name}: {' and '.join(said)}"})


def export_form(
    form: Form,
    rows: pd.DataFrame,
    folder: Path,
    seed: int,
    formats: Sequence[str] = ("csv",),
    sets: Collection[str] | None = None,
) -> pd.DataFrame:
    """Write an empty form in random order, in the formats asked for, and apart from it the key; return the key.

    Parameters
    ----------
    rows : DataFrame
        As for `forms.make_key`.
    folder : Path
        Gets ``<form>_key.csv`` (which must not be shown to annotators) and what the formats' modules write.
    formats : sequence of str
        Names in `TOOLS`; a `ParamsError` for others.
    sets : collection of str, optional
        The sets whose rows annotators are shown; by default all. The key holds all rows, so that answers stay known when later
        votes put a row into another set.
    """
    for name in formats:
        if name not in TOOLS:
            found = f"expected some of {', '.join(sorted(TOOLS))}, found {name!r}"
            raise ParamsError(found, where="annotation.exchange")
    key = make_key(form, rows, seed)
    write_text(folder / f"{form.name}_key.csv", key.to_csv(index=False))
    for name in formats:
        TOOLS[name].export(form, key if sets is None else key[key["set"].isin(sets)].reset_index(drop=True), folder)
    return key


def read_filled(form: Form, folder: str | Path, key: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int | list[str]]]:
    """Read all filled forms in a folder and in those below it, whatever tools they come from.

    Parameters
    ----------
    folder : str or Path
        Relative to the checkout; what it may hold is in docs/annotation.md.
    key : DataFrame
        As `export_form` returned it.

    Returns
    -------
    votes : DataFrame
        One row an annotator and form row: ``row_id annotator`` and the questions; an answer not given is null.
    counts : dict
        ``files`` (that hold votes), ``votes``, ``annotators``, and what docs/annotation.md says is left out and counted.

    Raises
    ------
    DataError
        No filled form of any kind, a file that may be one but cannot be read, and what `forms.check_votes` refuses.
    """
    folder, questions = resolve(folder), list(form.questions)
    read = {path.relative_to(folder).as_posix(): _read(form, path) for path in files_below(folder)}
    rows = [{**vote, "file": name} for name, votes in read.items() for vote in votes]
    found = pd.DataFrame(rows, columns=["row_id", "annotator", *questions, "where", "left_out", "file"])
    votes = _join_copies(folder, found[found["left_out"].isna()], questions)
    for name, question in form.questions.items():
        votes[name] = votes[name].map(question.normalize)
    other = votes["row_id"].map(form_of).isin(set(FORMS) - {form.name})
    ours = votes[~other]
    if votes.empty and not any(spreadsheet.is_named(FORMS[name], folder / path) for name in FORMS for path in read):
        found = f"no filled form, such as {form.name}-<annotator>.csv, and no results of a tool"
        raise DataError(found, where=str(folder), todo="copy the filled forms there")
    blank = ours[questions].eq("").all(axis=1)
    again = ours[~blank].duplicated(["row_id", "annotator", *questions])
    once = ours[~blank][~again]
    check_votes(once, form, key)
    table = once[["row_id", "annotator", *questions]].replace("", None).reset_index(drop=True)
    return table, {
        "files": sum(map(bool, read.values())),
        "votes": len(table),
        "annotators": table["annotator"].nunique(),
        "unanswered": int(table[questions].isna().sum().sum()),
        "blank": int(blank.sum()),
        "other_form": int(other.sum()),
        "repeated": int(again.sum()),
        "copies": sorted(set(ours.loc[~blank, "file"]) - set(once["file"])),
        "not_read": [name for name, votes in read.items() if not votes],
        **{why: int((found["left_out"] == why).sum()) for why in LEFT_OUT},
    }


def _read(form: Form, path: Path) -> list[dict[str, str]]:
    for tool in TOOLS.values():
        if (votes := tool.read(form, path)) is not None:
            return votes
    kind = path.suffix.lower()
    if kind in UNREAD or spreadsheet.is_named(form, path):
        todo = UNREAD.get(kind, f"save it as {form.name}-<annotator>.csv (UTF-8), or move it elsewhere")
        raise DataError("may hold answers, but is of a kind that is not read", where=str(path), todo=todo)
    return []


def _join_copies(folder: Path, votes: pd.DataFrame, questions: list[str]) -> pd.DataFrame:
    """Give files that are the same byte for byte one annotator; not where all answers are one, which two people may give."""
    votes, first = votes.copy(), {}
    for name, rows in votes.groupby("file", sort=False):
        if (rows[questions].nunique() > 1).any():
            votes.loc[rows.index, "annotator"] = first.setdefault(sha256(folder / name), rows["annotator"].to_numpy())
    return votes
