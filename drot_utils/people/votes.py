"""Votes of several annotators: majority, agreement, and the human columns of the paper's tables (appendix B)."""

import numpy as np
import pandas as pd

from drot_utils.data.gold import count_valid
from drot_utils.data.paper import TABLE2, TABLE4
from drot_utils.data.table import PROMPT
from drot_utils.method.nli import Entails, filter_unique
from drot_utils.people.forms import EVALUATION_FORM
from drot_utils.study.graph import in_order

#: What `measure_agreement` returns, and our columns of tables 4 and 2.
AGREEMENT = ["rows", "annotators", "full", "majority", "kappa"]
SHARES = ["rows", "valid_pct", "language_pct", "significant_pct", "slight_pct"]
PAPER_HUMAN = [name for name in TABLE2 if name.startswith("paper_human")]
HUMAN_COLUMNS = ["human_rows", *(name.removeprefix("paper_") for name in PAPER_HUMAN)]


def make_table4(judged: pd.DataFrame | None) -> pd.DataFrame:
    """Return table 4 (and table 1's language column): people's answers on the data set, and the paper's.

    Parameters
    ----------
    judged : DataFrame or None
        As `judge_rows` returns it, of which the set ``dataset`` counts; None where nobody was asked.

    Returns
    -------
    DataFrame
        ``type polarity``, `SHARES` (the last two of the valid ones; null where nobody was asked), and the paper's columns.
    """
    if judged is None:
        return TABLE4.reindex(columns=["type", "polarity", *SHARES, *TABLE4.columns[2:]])
    ours, dataset = [], judged[judged["set"] == "dataset"]
    for kind, valid, language in (("Context", "q2", "q1"), ("Rationale", "q4", "q3")):
        for name, variance in (("all", (1, -1)), ("strengthening", (1,)), ("weakening", (-1,))):
            rows = dataset[dataset["moral_variance"].isin(variance)]
            answered = rows[valid].dropna()
            significant = 100 * (answered[answered != "N"] == "Y").mean()
            shares = (100 * (answered != "N").mean(), 100 * (rows[language].dropna() != "N").mean(), significant)
            ours.append((kind, name, len(answered), *shares, 100 - significant))
    return pd.DataFrame(ours, columns=["type", "polarity", *SHARES]).merge(TABLE4, on=["type", "polarity"])


def fill_table2(judged: pd.DataFrame | None, chosen: pd.DataFrame, entails: Entails, threshold: float) -> pd.DataFrame:
    """Return the human columns of table 2: people's answers on the models of `chosen`, and the paper's.

    Parameters
    ----------
    judged : DataFrame or None
        As `judge_rows` returns it; None where nobody was asked.
    chosen : DataFrame
        All rows that were drawn, also those that did not parse, which count as not valid without being asked about.

    Returns
    -------
    DataFrame
        ``model``, `HUMAN_COLUMNS` (null where nobody was asked), and the paper's columns.
    """
    table = pd.DataFrame({"model": in_order(set(chosen["source"]) - {"drot"})})
    if judged is None:
        table = table.reindex(columns=["model", *HUMAN_COLUMNS])
    else:
        unparsed = chosen[chosen["context"].isna()].assign(q2="N")  # nobody is asked where there is no context to show
        rows = pd.concat([judged[judged["set"] != "dataset"], unparsed], ignore_index=True)
        table = table.merge(human_table2(rows, entails, threshold), on="model", how="left")
    return table.merge(TABLE2[["model", *PAPER_HUMAN]], on="model", how="left")


def human_table2(judged: pd.DataFrame, entails: Entails, threshold: float) -> pd.DataFrame:
    """Return ``model`` and `HUMAN_COLUMNS`, people's of table 2, from judged rows of the sets ``greedy`` and ``sampled``.

    Defeasibility is (significant + slight / 2) / all (section 4.2). Of a prompt's sampled contexts, those that people
    call valid and the entailment filter calls different are the unique ones.

    A row that nobody answered is unknown, not invalid: it counts as the answered ones of its model do (of its prompt, for
    #Vld); a prompt of whose sampled contexts fewer than half are answered gives no #Vld, and one with any unanswered no
    #Unq.Vld, as how many of ten are different cannot be told from some of them. A mean over nothing is NaN.

    Parameters
    ----------
    judged : DataFrame
        As `judge_rows` returns it, with the rows that did not parse, whose ``q2`` is N.
    """
    out = []
    for model, rows in judged.groupby("source", sort=False):
        rows = rows.assign(shift=rows["q2"].map({"Y": 1.0, "S": 0.5, "N": 0.0}).astype(float))
        rows["valid"] = rows["shift"].gt(0).astype(float).where(rows["shift"].notna())
        greedy, sampled = rows[rows["set"] == "greedy"], rows[rows["set"] == "sampled"]
        written = greedy["context"].notna()
        prompts = [prompt for _, prompt in sampled.sort_values("candidate").groupby(PROMPT)]
        groups = [p.loc[p["valid"] == 1, "context"].tolist() for p in prompts if p["valid"].notna().all()]
        unique = filter_unique(groups, entails, threshold, what="unique contexts").kept
        count = [count_valid(p["valid"], p["context"].notna(), least=0.5) for p in prompts]
        out.append({
            "model": model,
            "human_rows": greedy["q2"].notna().sum(),
            "human_vld": count_valid(greedy["valid"], written) / max(len(greedy), 1),
            "human_defease": count_valid(greedy["shift"], written) / max(len(greedy), 1),
            "human_lan": (greedy["q1"].dropna() != "N").mean(),
            "human_rationale": (greedy["q4"].dropna() != "N").mean(),
            "human_n_vld": pd.Series(count, dtype=float).mean(),
            "human_n_unq_vld": pd.Series([sum(k) for k in unique], dtype=float).mean(),
        })  # fmt: skip
    return pd.DataFrame(out, columns=["model", *HUMAN_COLUMNS])


def judge_rows(filled: pd.DataFrame, key: pd.DataFrame) -> pd.DataFrame:
    """Return the key with the majority answer to each question of the evaluation form; null where nobody answered."""
    questions = EVALUATION_FORM.questions.items()
    judged = {name: majority(spread_votes(filled, name), list(question.answers)) for name, question in questions}
    return key.merge(pd.DataFrame(judged), left_on="row_id", right_index=True, how="left")


def agree_on_gold(gold: pd.DataFrame) -> pd.DataFrame:
    """Return how far the annotators of single votes (`gold.read_votes`) agree: ``question source`` and `AGREEMENT`."""
    out = []
    for question, rows in gold.groupby("question"):
        for source, group in [("all", rows), *rows.groupby("source")]:
            answers = group.pivot(index=["file", "row"], columns="annotator", values="answer")
            out.append({"question": question, "source": source, **measure_agreement(answers)})
    return pd.DataFrame(out, columns=["question", "source", *AGREEMENT])


def agree_on_form(filled: pd.DataFrame) -> pd.DataFrame:
    """Return how far the annotators of the evaluation form agree: ``question`` and `AGREEMENT`."""
    questions = EVALUATION_FORM.questions
    return pd.DataFrame([{"question": name, **measure_agreement(spread_votes(filled, name))} for name in questions])


def measure_agreement(votes: pd.DataFrame) -> dict[str, float | int]:
    """Return how far annotators agree, over the rows that have the commonest number of votes (two or more).

    These are the rows that all answered where everybody is asked about all of them, and those with three votes where a
    crowd gives three a row (Fleiss' kappa does not ask whose they are).

    Returns
    -------
    dict
        ``rows``, ``annotators`` (votes a row), ``full`` (share of rows with one answer), ``majority`` (more than half the
        same) and Fleiss' ``kappa`` (NaN when all answers are the same, where it is not defined).
    """
    from statsmodels.stats.inter_rater import fleiss_kappa

    rows, columns = votes.notna().to_numpy().nonzero()
    counts = pd.crosstab(rows, votes.to_numpy()[rows, columns])
    given = counts.sum(axis=1)
    if not (given > 1).any():
        return {"rows": 0, "annotators": votes.shape[1], "full": np.nan, "majority": np.nan, "kappa": np.nan}
    size = int(given[given > 1].mode().max())  # the larger number where two are as common
    counts = counts[given == size].loc[:, lambda chosen: chosen.any()]
    top = counts.max(axis=1)
    kappa = float(fleiss_kappa(counts)) if counts.shape[1] > 1 else np.nan
    shares = {"full": float((top == size).mean()), "majority": float((top * 2 > size).mean())}
    return {"rows": len(counts), "annotators": size, **shares, "kappa": kappa}


def spread_votes(filled: pd.DataFrame, question: str) -> pd.DataFrame:
    """Return the answers to one question, a row a form row and a column an annotator; null where none was given."""
    return filled.pivot(index="row_id", columns="annotator", values=question)


def majority(votes: pd.DataFrame, answers: list[str]) -> pd.Series:
    """Return the majority answer of each row, null where nobody answered.

    It is the median of the ordered answers, which is the answer of more than half of the votes where there is one; of yes,
    somewhat and no once each, it is somewhat. The paper does not say what it does with such rows.

    Parameters
    ----------
    votes : DataFrame of str, shape (rows, annotators)
    answers : list of str
        All codes in their order.
    """
    counts = np.stack([votes.eq(answer).sum(axis=1) for answer in answers], axis=1)
    given = counts.sum(axis=1)
    median = (counts.cumsum(axis=1) * 2 >= given[:, None]).argmax(axis=1)
    return pd.Series(np.array(answers, dtype=object)[median], index=votes.index).where(given > 0)
