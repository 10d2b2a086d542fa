"""The two human forms (appendix B, figures 6 and 7): blind export, import of filled ones, votes and agreement."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from drot_utils.errors import DataError
from drot_utils.nli import Entails, filter_unique
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
HUMAN_COLUMNS = [
    "human_rows",
    "human_vld",
    "human_defease",
    "human_lan",
    "human_rationale",
    "human_n_vld",
    "human_n_unq_vld",
]
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


def spread_votes(filled: pd.DataFrame, question: str) -> pd.DataFrame:
    """Return the answers to one question, a row a form row and a column an annotator; null where none was given."""
    return filled.pivot(index="row_id", columns="annotator", values=question)


def majority(votes: pd.DataFrame, answers: list[str]) -> pd.Series:
    """Return the majority answer of each row.

    Where no answer has more than half of the votes, the median of the ordered answers is taken: of yes, somewhat and no
    once each, somewhat. The paper does not say what it does with such rows.

    Parameters
    ----------
    votes : DataFrame of str, shape (rows, annotators)
    answers : list of str
        All codes in their order.

    Returns
    -------
    Series of str
        Null where nobody answered.
    """
    ranks = votes.apply(lambda column: column.map({code: i for i, code in enumerate(answers)})).astype(float)
    counts = np.stack([(ranks == i).sum(axis=1) for i in range(len(answers))], axis=1)
    given = counts.sum(axis=1)
    median = ((counts.cumsum(axis=1) * 2) >= given[:, None]).argmax(axis=1)
    best = np.where(counts.max(axis=1) * 2 > given, counts.argmax(axis=1), median)
    return pd.Series(np.array(answers, dtype=object)[best], index=votes.index).where(given > 0)


def agreement(votes: pd.DataFrame) -> dict[str, float | int]:
    """Return how far annotators agree, over the rows that all of them answered.

    Returns
    -------
    dict
        ``rows``, ``annotators``, ``full`` (share of rows with one answer), ``majority`` (more than half the same) and
        Fleiss' ``kappa`` (NaN when all answers are the same, where it is not defined).
    """
    from statsmodels.stats.inter_rater import aggregate_raters, fleiss_kappa

    complete = votes.dropna()
    if complete.empty:
        return {"rows": 0, "annotators": votes.shape[1], "full": np.nan, "majority": np.nan, "kappa": np.nan}
    counts, _ = aggregate_raters(complete.to_numpy(dtype=str))
    top = counts.max(axis=1)
    kappa = float(fleiss_kappa(counts)) if counts.shape[1] > 1 else np.nan
    shares = {
        "full": float((top == votes.shape[1]).mean()),
        "majority": float((top * 2 > votes.shape[1]).mean()),
    }
    return {"rows": len(complete), "annotators": votes.shape[1], **shares, "kappa": kappa}


def judge_rows(filled: pd.DataFrame, key: pd.DataFrame) -> pd.DataFrame:
    """Return the key with the majority answer to each question of the evaluation form that anyone answered."""
    judged = {
        name: majority(spread_votes(filled, name), list(question.answers))
        for name, question in EVALUATION_FORM.questions.items()
    }
    return key.merge(pd.DataFrame(judged), left_on="row_id", right_index=True, how="inner")


def as_invalid(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows that nobody was asked about, as there is no context to show, in the form of judged ones: not valid."""
    return rows.assign(q1=None, q2="N", q3=None, q4=None)


def table4(judged: pd.DataFrame) -> pd.DataFrame:
    """Return table 4 (and table 1's language column) from judged rows of the data set.

    Returns
    -------
    DataFrame
        ``type polarity rows valid_pct language_pct significant_pct slight_pct``, the last two of the valid ones.
    """
    out = []
    for kind, valid, language in (("Context", "q2", "q1"), ("Rationale", "q4", "q3")):
        for name, variance in (("all", (1, -1)), ("strengthening", (1,)), ("weakening", (-1,))):
            rows = judged[judged["moral_variance"].isin(variance)]
            answered = rows[valid].dropna()
            yes = answered[answered != "N"]
            significant = _percent(yes == "Y")
            fluent = _percent(rows[language].dropna() != "N")
            slight = 100 - significant
            out.append((kind, name, len(answered), _percent(answered != "N"), fluent, significant, slight))
    columns = ["type", "polarity", "rows", "valid_pct", "language_pct", "significant_pct", "slight_pct"]
    return pd.DataFrame(out, columns=columns)


def human_table2(judged: pd.DataFrame, entails: Entails, threshold: float) -> pd.DataFrame:
    """Return the human columns of table 2 from judged rows of the sets ``greedy`` and ``sampled``.

    Defeasibility is (significant + slight / 2) / all (section 4.2). Of a prompt's sampled contexts, those that people
    call valid and the entailment filter calls different are the unique ones.

    Returns
    -------
    DataFrame
        ``model human_rows human_vld human_defease human_lan human_rationale human_n_vld human_n_unq_vld``.
    """
    out = []
    for model, rows in judged.groupby("source", sort=False):
        greedy, sampled = rows[rows["set"] == "greedy"], rows[rows["set"] == "sampled"]
        shift = greedy["q2"].map({"Y": 1.0, "S": 0.5, "N": 0.0})
        groups = [g.loc[g["q2"].isin(["Y", "S"]), "context"].tolist() for _, g in sampled.groupby(PROMPT)]
        unique = filter_unique(groups, entails, threshold, what="unique contexts").kept
        out.append({
            "model": model,
            "human_rows": len(greedy),
            "human_vld": (shift.dropna() > 0).mean(),
            "human_defease": shift.mean(),
            "human_lan": (greedy["q1"].dropna() != "N").mean(),
            "human_rationale": (greedy["q4"].dropna() != "N").mean(),
            "human_n_vld": np.mean([len(g) for g in groups]) if groups else np.nan,
            "human_n_unq_vld": np.mean([sum(k) for k in unique]) if groups else np.nan,
        })  # fmt: skip
    return pd.DataFrame(out)


def _percent(flags: pd.Series) -> float:
    return 100 * float(flags.mean()) if len(flags) else np.nan


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
