"""The two human forms (appendix B, figures 6 and 7): what they ask, blind export, and import of filled ones."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from drot_utils.errors import DataError
from drot_utils.paths import resolve, write_text
from drot_utils.schema import KEY, PROMPT, check_columns

YES_SOMEWHAT_NO = {"Y": "yes", "S": "somewhat", "N": "no"}


DIRECTIONS = {1: "more acceptable", -1: "less acceptable"}


@dataclass(frozen=True)
class Question:
    """A question with its answers, code to meaning; the codes go into the form, from most to least."""

    text: str
    answers: dict[str, str]


@dataclass(frozen=True)
class Form:
    """A form: what it is for, and its questions by column name."""

    name: str
    purpose: str
    questions: dict[str, Question]


CRITIC_FORM = Form(
    "critic_form",
    "Figure 6: labels from which a critic is trained.",
    {
        "q1": Question(
            "Does the context make the action go in the direction named?",
            {"Y": "yes", "N": "neutral: it does neither", "O": "opposite: it does the other"},
        ),
        "q2": Question(
            "Does the rationale give facts or reasons that explain how the context does that?",
            {**YES_SOMEWHAT_NO, "-": "not applicable: q1 is not Y"},
        ),
    },
)


EVALUATION_FORM = Form(
    "evaluation_form",
    "Figure 7: the human evaluation of students and of the data set.",
    {
        "q1": Question("Is the context fluent and grammatical, taken by itself?", YES_SOMEWHAT_NO),
        "q2": Question(
            "Does the context make the action go in the direction named?",
            {"Y": "yes, significantly", "S": "yes, slightly", "N": "no"},
        ),
        "q3": Question("Is the rationale fluent and grammatical, taken by itself?", YES_SOMEWHAT_NO),
        "q4": Question(
            "Is the rationale a valid reason, by common sense, why the context does that?", YES_SOMEWHAT_NO
        ),
    },
)


#: What a filled row is about; the annotator sees neither who wrote it nor what a model thinks of it.
SHOWN = ["row_id", "action", "direction", "context", "rationale"]


def pick_prompts(rows: pd.DataFrame, n: int, seed: int) -> pd.DataFrame:
    """Return all rows of `n` random prompts (action and moral variance), the same prompts for every source."""
    prompts = rows[PROMPT].drop_duplicates()
    return rows.merge(prompts.sample(min(n, len(prompts)), random_state=seed), on=PROMPT)


def export_form(form: Form, rows: pd.DataFrame, folder: Path, seed: int) -> pd.DataFrame:
    """Write an empty form in random order, its instructions, and apart from it the key.

    Parameters
    ----------
    form : Form
    rows : DataFrame
        ``action_id action moral_variance candidate source context rationale`` and ``set`` (what the row is drawn for).
    folder : Path
        Gets ``<form>.csv`` (to be copied and filled, one ``<form>-<annotator>.csv`` an annotator), ``<form>.md`` and
        ``<form>_key.csv`` (which must not be shown to annotators).

    Returns
    -------
    DataFrame
        The key: ``row_id``, `schema.KEY`, ``set``, and the texts.
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    key = rows.iloc[order].reset_index(drop=True)
    key.insert(0, "row_id", [f"r{i:05d}" for i in range(1, len(key) + 1)])
    blank = key.assign(direction=key["moral_variance"].map(DIRECTIONS), **dict.fromkeys(form.questions, ""))
    write_text(folder / f"{form.name}.csv", blank[[*SHOWN, *form.questions]].to_csv(index=False))
    key = key[["row_id", *KEY, "set", "action", "context", "rationale"]]
    write_text(folder / f"{form.name}_key.csv", key.to_csv(index=False))
    write_text(folder / f"{form.name}.md", _instructions(form))
    return key


def read_filled(form: Form, folder: str | Path, key: pd.DataFrame) -> pd.DataFrame:
    """Read the filled copies ``<form>-<annotator>.csv`` of a form.

    Parameters
    ----------
    folder : str or Path
        Relative paths are relative to the checkout.
    key : DataFrame
        As `export_form` returned it.

    Returns
    -------
    DataFrame
        One row an annotator and form row: ``row_id annotator`` and the questions; an answer not given is null.

    Raises
    ------
    DataError
        No filled copy, a missing column, an unknown or repeated row_id, an answer that the form does not have.
    """
    folder = resolve(folder)
    files = sorted(folder.glob(f"{form.name}-*.csv"))
    if not files:
        raise DataError(
            f"no filled form named {form.name}-<annotator>.csv",
            where=str(folder),
            todo="copy the filled forms there",
        )
    parts = []
    for path in files:
        try:
            table = pd.read_csv(path, dtype=str, keep_default_na=False)
        except (ValueError, OSError) as error:
            raise DataError(
                f"is no CSV text: {error}", where=str(path), todo="save it as CSV (UTF-8)"
            ) from error
        check_columns(table, ["row_id", *form.questions], str(path))
        _check_filled(table, form, key, path)
        answers = table[list(form.questions)].replace("", None)
        parts.append(
            answers.assign(row_id=table["row_id"], annotator=path.stem.removeprefix(f"{form.name}-"))
        )
    return pd.concat(parts, ignore_index=True)[["row_id", "annotator", *form.questions]]


def _check_filled(table: pd.DataFrame, form: Form, key: pd.DataFrame, path: Path) -> None:
    known = set(key["row_id"])
    for number, row_id in enumerate(table["row_id"], start=2):
        if row_id not in known:
            raise DataError(
                f"the row_id {row_id!r} is not in the key", where=f"{path}, line {number}",
                todo="fill the form of this run; a form of another run has other rows",
            )  # fmt: skip
    if table["row_id"].duplicated().any():
        number = int(np.flatnonzero(table["row_id"].duplicated())[0]) + 2
        raise DataError(
            "a second answer to the same row_id", where=f"{path}, line {number}", todo="keep one of them"
        )
    for name, question in form.questions.items():
        bad = ~table[name].isin(["", *question.answers])
        if bad.any():
            number = int(np.flatnonzero(bad)[0])
            raise DataError(
                f"expected one of {', '.join(question.answers)} or nothing, found {table[name][number]!r}",
                where=f"{path}, line {number + 2}, {name}",
                todo="use the codes of the form's instructions",
            )


def _instructions(form: Form) -> str:
    lines = [
        f"# {form.name.replace('_', ' ').capitalize()}",
        "",
        f"{form.purpose} Fill a copy of `{form.name}.csv` named `{form.name}-<your name>.csv`; leave what you cannot answer",
        "empty. The texts are machine-written and some are unpleasant; you may stop at any time. Rows are in random order, and",
        "who wrote a row is not shown. Answer by common sense, for the people around you, not by what you think best.",
        "",
    ]
    for name, question in form.questions.items():
        lines += [
            f"**{name}** {question.text}",
            *(f"- `{code}` {text}" for code, text in question.answers.items()),
            "",
        ]
    return "\n".join(lines)
