"""The two human forms (appendix B, figures 6 and 7): what they ask, which rows are shown, and what a filled one may hold."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from drot_utils.data.table import KEY, PROMPT
from drot_utils.engine.shards import fingerprint
from drot_utils.study.errors import DataError

DIRECTIONS = {1: "more acceptable", -1: "less acceptable"}
YES_SOMEWHAT_NO = {"Y": "yes", "S": "somewhat", "N": "no"}
#: What annotators read before the questions, in every format.
INTRODUCTION = (
    "Each row shows an everyday action, and a context in which somebody may do it. The context is meant to make the action more or "
    "less acceptable, as the direction says; the rationale is meant to say why.",
    "Answer by common sense, for the people around you, not by what you think best. Rows are in random order, and who wrote "
    "a row is not shown.",
    "The texts are machine-written, and some are unpleasant. You may skip any row, and stop at any time.",
)

#: What a filled row is about; the annotator sees neither who wrote it nor what a model thinks of it.
SHOWN = ["row_id", "action", "direction", "context", "rationale"]


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

    @property
    def title(self) -> str:
        """The form's name as annotators see it."""
        return self.name.replace("_", " ").capitalize()


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
            {**YES_SOMEWHAT_NO, "-": "not applicable: the answer above is not yes"},
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
        "q4": Question("Is the rationale a valid reason, by common sense, why the context does that?", YES_SOMEWHAT_NO),
    },
)
FORMS = {form.name: form for form in (CRITIC_FORM, EVALUATION_FORM)}
_ROW_ID = re.compile(rf"({'|'.join(FORMS)})-[0-9a-f]{{6}}-\d{{5}}")
_CONTROL = dict.fromkeys([*range(32), *range(127, 160)], " ")


def pick_prompts(rows: pd.DataFrame, n: int, seed: int) -> pd.DataFrame:
    """Return all rows of `n` random prompts (action and moral variance), the same prompts for every source."""
    prompts = rows[PROMPT].drop_duplicates()
    return rows.merge(prompts.sample(min(n, len(prompts)), random_state=seed), on=PROMPT)


def make_key(form: Form, rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Shuffle rows and number them.

    Parameters
    ----------
    rows : DataFrame
        ``action_id action moral_variance candidate source context rationale`` and ``set`` (what the row is drawn for).

    Returns
    -------
    DataFrame
        The key, not to be shown to annotators: ``row_id``, `table.KEY`, ``set``, and the texts. A row_id names the form, these
        texts in this order, and the row, so that answers to another form or of another run are not taken for this one's.
    """
    key = rows.iloc[np.random.default_rng(seed).permutation(len(rows))].reset_index(drop=True)
    key = key[[*KEY, "set", "action", "context", "rationale"]]
    print_ = fingerprint(key[["action", "moral_variance", "context", "rationale"]])[:6]
    key.insert(0, "row_id", [f"{form.name}-{print_}-{i:05d}" for i in range(1, len(key) + 1)])
    return key


def show_rows(key: pd.DataFrame) -> pd.DataFrame:
    """Return the columns `SHOWN` of a key; control characters, which no tool takes, as blanks."""
    shown = key.assign(direction=key["moral_variance"].map(DIRECTIONS))[SHOWN]
    return shown.map(lambda text: text.translate(_CONTROL))


@contextmanager
def refusing(where: Path | str, found: str, todo: str) -> Iterator[None]:
    """Raise a `DataError` where what is read in the block is not of the shape that it is taken for."""
    try:
        yield
    except (ValueError, OSError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{found} ({error!r})", where=str(where), todo=todo) from error


def check_votes(votes: pd.DataFrame, form: Form, key: pd.DataFrame) -> None:
    """Check votes (with ``where``, see `exchange`) against the key that `make_key` returned.

    Raises
    ------
    DataError
        An unknown row_id, a second answer of an annotator to a row, an answer that the form does not have; where it stands.
    """
    known, seen = set(key["row_id"]), set()
    for vote in votes.to_dict("records"):
        row_id, who, where = vote["row_id"], vote["annotator"], vote["where"]
        if row_id not in known:
            foreign = form_of(row_id) and not key["row_id"].str.startswith(row_id[: -len("00001")]).any()
            found = f"the row_id {row_id!r} is {'of the form of another run' if foreign else 'not in the key'}"
            raise DataError(found, where=where, todo="fill the form of this run; a form of another run has other rows")
        if (row_id, who) in seen:
            raise DataError(f"a second answer to the same row_id by {who}", where=where, todo="keep one of them")
        seen.add((row_id, who))
        for name, question in form.questions.items():
            if vote[name] not in ("", *question.answers):
                found = f"expected one of {', '.join(question.answers)} or nothing, found {vote[name]!r}"
                raise DataError(found, where=f"{where}, {name}", todo="use the codes of the form's instructions")


def form_of(row_id: str) -> str | None:
    """Return the name of the form that a row_id belongs to, None when it has not the shape of one."""
    parts = _ROW_ID.fullmatch(row_id)
    return parts[1] if parts else None
