"""The human forms (appendix B, section 5): what they ask, which rows are shown, and what a filled one may hold."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from drot_utils.data.paper import SAMPLES
from drot_utils.data.table import KEY, PROMPT, WAYS
from drot_utils.engine.shards import fingerprint
from drot_utils.study.errors import DataError

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
    """A question with its answers, code to meaning; the codes go into the form, from most to least.

    Of some questions several answers may hold: their codes are joined by a plus.
    """

    text: str
    answers: dict[str, str]
    several: bool = False

    def normalize(self, answer: str) -> str:
        """Return several codes, however they stand beside each other, once each and in order; a single answer as it is."""
        if not self.several:
            return answer
        given = dict.fromkeys(re.findall(r"[^\s+,;|/]+", answer))
        return "+".join(
            [*(code for code in self.answers if code in given), *(code for code in given if code not in self.answers)]
        )


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
CONTENT_FORM = Form(
    "content_form",
    "Figures 4 and 5, and the error analysis (section 5.2): what contexts are made of, and what is wrong with invalid ones.",
    {
        "q1": Question(
            "If the context makes the action go in the direction named: what does it tell? Choose all that it tells.",
            {
                "own": "the role of the one who acts",
                "others": "the role of others",
                "relation": "an interaction or relationship",
                "object": "the setting: an object",
                "time": "the setting: the time",
                "location": "the setting: the location",
                "manner": "the manner or purpose",
                "else": "something else",
                "-": "not applicable: it does not make the action go in that direction",
            },
            several=True,
        ),
        "q2": Question(
            "If it does not: what is wrong with it?",
            {
                "trivial": "trivial: it may matter to other actions, not to this one",
                "infeasible": "infeasible, unlikely or unnatural, by itself or with this action",
                "opposite": "opposite: it makes the action go in the other direction",
                "unclear": "it cannot be understood",
                "-": "not applicable: the context makes the action go in the direction named",
            },
        ),
    },
)
FORMS = {form.name: form for form in (CRITIC_FORM, EVALUATION_FORM, CONTENT_FORM)}
_ROW_ID = re.compile(rf"({'|'.join(FORMS)})-[0-9a-f]{{6}}-\d{{5}}")
_CONTROL = dict.fromkeys([*range(32), *range(127, 160)], " ")


def pick_prompts(rows: pd.DataFrame, n: int, seed: int) -> pd.DataFrame:
    """Return all rows of `n` random prompts (action and moral variance), the same prompts for every source."""
    prompts = rows[PROMPT].drop_duplicates()
    return rows.merge(prompts.sample(min(n, len(prompts)), random_state=seed), on=PROMPT)


def count_samples(rows: pd.DataFrame) -> int:
    """Return how many samples each of the prompts has that were drawn to be asked about."""
    sampled = rows.loc[rows["set"] == "sampled", "candidate"]
    return int(sampled.max()) + 1 if len(sampled) else SAMPLES


def pick_candidates(rows: pd.DataFrame, uncertain: int, repeated: int, random: int, seed: int) -> pd.DataFrame:
    """Return candidates of a round that teach a critic most: rows of `table.CANDIDATES` with ``set``, why each was picked.

    They are those about which the critic is least certain, one of each of the commonest texts, and some drawn at random, each
    text of a prompt once.
    """
    rows = rows[rows["context"].notna()].sample(frac=1, random_state=seed)
    text = rows["context"].str.casefold()
    order = rows.assign(doubt=(rows["critic_score"] - 0.5).abs(), text=text, often=text.map(text.value_counts()))
    order = order.drop_duplicates([*PROMPT, "text"])
    common = order.sort_values("often", ascending=False, kind="stable").drop_duplicates("text").head(repeated)
    rest = order.drop(index=common.index).sort_values("doubt", kind="stable")
    left = rest.iloc[uncertain:]
    drawn = left.sample(min(random, len(left)), random_state=seed)
    parts = {"uncertain": rest.head(uncertain), "repeated": common, "random": drawn}
    return pd.concat([part.assign(set=name) for name, part in parts.items()], ignore_index=True)


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
    numbers = [f"{form.name}-{print_}-{i:05d}" for i in range(1, len(key) + 1)]
    key.insert(0, "row_id", pd.Series(numbers, dtype="str"))
    return key


def show_rows(key: pd.DataFrame) -> pd.DataFrame:
    """Return the columns `SHOWN` of a key; control characters, which no tool takes, as blanks."""
    shown = key.assign(direction=key["moral_variance"].map(WAYS))[SHOWN]
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
            given = vote[name].split("+") if question.several else [vote[name]]
            if not {"", *question.answers} >= set(given) or ("-" in given and len(given) > 1):
                how = "some (joined by +)" if question.several else "one"
                found = f"expected {how} of {', '.join(question.answers)} or nothing, found {vote[name]!r}"
                raise DataError(found, where=f"{where}, {name}", todo="use the codes of the form's instructions")


def form_of(row_id: str) -> str | None:
    """Return the name of the form that a row_id belongs to, None when it has not the shape of one."""
    parts = _ROW_ID.fullmatch(row_id)
    return parts[1] if parts else None
