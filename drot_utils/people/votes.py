"""Votes of several annotators: majority, agreement, the human columns, what is recorded and what becomes gold (appendix B)."""

import numpy as np
import pandas as pd

from drot_utils.data.corpora import read_tsv, read_whole, refuse
from drot_utils.data.gold import count_valid
from drot_utils.data.paper import TABLE2, TABLE4
from drot_utils.data.table import DIRECTIONS, KEY, PROMPT, read_table
from drot_utils.method.nli import FindUnique
from drot_utils.people.forms import CONTENT_FORM, CRITIC_FORM, EVALUATION_FORM, FORMS, Form, check_votes
from drot_utils.study.errors import DataError
from drot_utils.study.graph import VARIANTS, WRITERS, in_order
from drot_utils.study.paths import Run, require

#: What `measure_agreement` returns, and our columns of tables 4 and 2.
AGREEMENT = ["rows", "annotators", "full", "majority", "kappa"]
SHARES = ["rows", "valid_pct", "language_pct", "significant_pct", "slight_pct"]
PAPER_HUMAN = [name for name in TABLE2 if name.startswith("paper_human")]
HUMAN_COLUMNS = ["human_rows", *(name.removeprefix("paper_") for name in PAPER_HUMAN)]
#: What a vote is on, whoever wrote it.
TEXTS = ["action", "moral_variance", "context", "rationale"]
#: The columns of recorded votes before the answers.
RECORDED = ["form", "set", "source", *PROMPT, "candidate", "action", "context", "rationale", "annotator"]
#: Who may have written what was judged: a writer, an ablated one, or the data set.
SOURCE = rf"(?:{'|'.join(WRITERS)}|self_distill_[1-9]\d*)(?:-(?:{'|'.join(VARIANTS)}))?|drot"
#: What a valid context may tell, code to meaning.
CATEGORIES = {code: text for code, text in CONTENT_FORM.questions["q1"].answers.items() if code != "-"}


def make_table4(judged: pd.DataFrame) -> pd.DataFrame:
    """Return table 4 (and table 1's language column): people's answers on the data set, and the paper's.

    Parameters
    ----------
    judged : DataFrame
        As `judge_rows` returns it, of which the set ``dataset`` counts.

    Returns
    -------
    DataFrame
        ``type polarity``, `SHARES` (the last two of the valid ones; null where nobody was asked), and the paper's columns.
    """
    ours, dataset = [], judged[judged["set"] == "dataset"]
    for kind, valid, language in (("Context", "q2", "q1"), ("Rationale", "q4", "q3")):
        for name, variance in (("all", (1, -1)), ("strengthening", (1,)), ("weakening", (-1,))):
            rows = dataset[dataset["moral_variance"].isin(variance)]
            answered = rows[valid].dropna()
            significant = 100 * (answered[answered != "N"] == "Y").mean()
            shares = (100 * (answered != "N").mean(), 100 * (rows[language].dropna() != "N").mean(), significant)
            ours.append((kind, name, len(answered), *shares, 100 - significant))
    return pd.DataFrame(ours, columns=["type", "polarity", *SHARES]).merge(TABLE4, on=["type", "polarity"])


def fill_table2(judged: pd.DataFrame, drawn: pd.DataFrame, find_unique: FindUnique) -> pd.DataFrame:
    """Return the human columns of table 2: people's answers on the models of `drawn`, and the paper's.

    Parameters
    ----------
    judged : DataFrame
        As for `human_table2`, with other sets.
    drawn : DataFrame
        What was drawn to be asked about; its models are the rows, with `HUMAN_COLUMNS`.
    """
    table = pd.DataFrame({"model": in_order(set(drawn["source"]) - {"drot"})})
    shown = judged[judged["set"].isin(["greedy", "sampled"])]
    table = table.merge(human_table2(shown, find_unique), on="model", how="left")
    return table.merge(TABLE2[["model", *PAPER_HUMAN]], on="model", how="left")


def human_table2(judged: pd.DataFrame, find_unique: FindUnique) -> pd.DataFrame:
    """Return ``model`` and `HUMAN_COLUMNS`, people's of table 2, from judged rows of the sets ``greedy`` and ``sampled``.

    Defeasibility is (significant + slight / 2) / all (section 4.2). Of a prompt's sampled contexts, those that people
    call valid and the entailment filter calls different are the unique ones.

    A row that nobody answered is unknown, not invalid: it counts as the answered ones of its model do, so that Vld and #Vld
    are what `inference.estimate_valid` says by votes. A prompt with any unanswered context gives no #Unq.Vld, as how many
    of ten are different cannot be told from some of them. A mean over nothing is NaN.

    Parameters
    ----------
    judged : DataFrame
        As `judge_rows` or `join_valid` returns it, with the rows that did not parse.
    """
    out = []
    for model, rows in judged.groupby("source", sort=False):
        rows = rows.assign(shift=rows["q2"].map({"Y": 1.0, "S": 0.5, "N": 0.0}).astype(float))
        rows["valid"] = rows["shift"].gt(0).astype(float).where(rows["shift"].notna())
        greedy, sampled = rows[rows["set"] == "greedy"], rows[rows["set"] == "sampled"]
        written = greedy["context"].notna()
        prompts = [prompt for _, prompt in sampled.sort_values("candidate").groupby(PROMPT)]
        groups = [p.loc[p["valid"] == 1, "context"].tolist() for p in prompts if p["valid"].notna().all()]
        unique = find_unique(groups).kept
        count = count_valid(sampled["valid"], sampled["context"].notna())
        out.append({
            "model": model,
            "human_rows": (greedy["q2"].notna() & written).sum(),
            "human_vld": count_valid(greedy["valid"], written) / max(len(greedy), 1),
            "human_defease": count_valid(greedy["shift"], written) / max(len(greedy), 1),
            "human_lan": (greedy["q1"].dropna() != "N").mean(),
            "human_rationale": (greedy["q4"].dropna() != "N").mean(),
            "human_n_vld": count / max(len(prompts), 1),
            "human_n_unq_vld": pd.Series([sum(k) for k in unique], dtype=float).mean(),
        })  # fmt: skip
    return pd.DataFrame(out, columns=["model", *HUMAN_COLUMNS])


def read_kept(run: Run, rounds: int) -> dict[str, pd.DataFrame]:
    """Return by set (``kept_1`` and so on) what the filters of each round kept of what its student wrote, for training actions."""
    kept = {}
    for number in range(1, rounds + 1):
        path = require(run.data(f"candidates_d{number}"), f"05_self_distill-{number}")
        kept[f"kept_{number}"] = read_table(path).loc[lambda rows: rows["kept"].fillna(False)]
    return kept


def judge_rows(filled: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows with the majority answer to each question of the evaluation form, and ``valid``: 1, 0, null where unknown.

    A row that nobody answered is unknown; one that did not parse is not valid (``q2`` is N), without anybody being asked.
    """
    questions = EVALUATION_FORM.questions.items()
    judged = {name: majority(spread_votes(filled, name), list(question.answers)) for name, question in questions}
    judged = rows.merge(pd.DataFrame(judged), left_on="row_id", right_index=True, how="left")
    judged["q2"] = judged["q2"].where(judged["context"].notna(), "N")
    return judged.assign(valid=judged["q2"].ne("N").astype(float).where(judged["q2"].notna()))


def join_valid(written: pd.DataFrame, judged: pd.DataFrame) -> pd.DataFrame:
    """Return all that a run wrote (``set`` and `table.CANDIDATES`) with ``valid`` and the answers where it was judged."""
    columns = ["set", *KEY]
    return written.merge(judged[[*columns, "valid", *EVALUATION_FORM.questions]], on=columns, how="left")


def join_levels(table2: pd.DataFrame, human: pd.DataFrame, levels: pd.DataFrame, samples: int) -> pd.DataFrame:
    """Return table 2 with what `figures.draw_rounds` draws of the votes: ``human_vld``, ``human_n_vld``, ``human_n_unq_vld``.

    The first two have intervals, from `inference.estimate_valid` (`levels`). Of a prompt's `samples`, so many times the share
    are valid.
    """
    table = table2.merge(human[["model", "human_n_unq_vld"]], on="model", how="left")
    for part, name, scale in (("greedy", "human_vld", 1), ("sampled", "human_n_vld", samples)):
        rows = levels[levels["set"] == part].set_index("model").filter(regex="^votes_vld") * scale
        rows.columns = rows.columns.str.replace("votes_vld", name)
        table = table.merge(rows, on="model", how="left")
    return table


def record_votes(form: Form, filled: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Return votes with their texts, a line a vote, as `read_recorded` reads them from a file of tab-separated values.

    A row that nobody answered, or that has no context, keeps a line without an annotator.

    Parameters
    ----------
    filled, rows : DataFrame
        As `exchange.Votes` has them.
    """
    votes = rows.merge(filled, on="row_id", how="left").assign(form=form.name)
    votes = votes[[*RECORDED, *form.questions]].sort_values(RECORDED, kind="stable")
    return votes.rename(columns=lambda name: name.replace("_", "-"))


def read_recorded(path: str, form: Form) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the recorded votes on one form: ``filled`` and ``rows``, as `exchange.Votes` has them.

    The file may hold votes on several forms; it is what `record_votes` returns.

    Raises
    ------
    DataError
        A file without votes, an unknown form or source, two texts under one set and key, an answer that the form does not have,
        a second answer of an annotator to a row, or as `corpora.read_tsv`; with the line.
    """
    table = read_tsv(path, [*(name.replace("_", "-") for name in RECORDED), *form.questions])
    if not table["annotator"].ne("").any():
        todo = "name a file of votes in annotation.reference_votes, or null"
        raise DataError("holds no votes", where=path, todo=todo)
    refuse(table, ~table["form"].isin(FORMS), f"have a form other than {', '.join(FORMS)}", path, "form")
    unknown = f"have a source other than {', '.join(WRITERS)}, self_distill_1 ... and drot"
    refuse(table, ~table["source"].str.fullmatch(SOURCE), unknown, path, "source")
    table = table[table["form"] == form.name]
    variance, candidate = read_whole(table, "moral_variance", path, (1, -1)), read_whole(table, "candidate", path)
    table = table.assign(moral_variance=variance.astype("int8"), candidate=candidate.astype("int32"))
    number = table.groupby(["set", *KEY, *TEXTS], sort=False).ngroup().astype(str).str.zfill(5)
    table = table.assign(row_id=f"{form.name}-record-" + number, where=[f"{path}, line {n + 2}" for n in table.index])
    for name, question in form.questions.items():
        table[name] = table[name].map(question.normalize)
    rows = table.drop_duplicates("row_id")
    if (again := rows.duplicated(["set", *KEY])).any():
        first = rows[again].iloc[0]
        text = first[["set", *KEY, "context"]].astype(str).to_dict()
        found = f"{again.sum()} second texts under the set and key of another text; the first is {text}"
        todo = "keep the votes on each run (and seed) in a file of their own, and name it in that run's annotation.reference_votes"
        raise DataError(found, where=first["where"], todo=todo)
    rows = rows[["row_id", *KEY, "set", "action", "context", "rationale"]]
    rows = rows.replace({"context": {"": None}, "rationale": {"": None}}).reset_index(drop=True)
    votes = table[table["annotator"] != ""]
    check_votes(votes, form, rows)
    filled = votes[["row_id", "annotator", *form.questions]].replace("", None).reset_index(drop=True)
    return filled, rows


def is_written(rows: pd.DataFrame, written: pd.DataFrame) -> pd.Series:
    """Return of each row whether a run wrote this text, for this prompt, by the same writer; all are where the run is the same.

    `written` is all that it wrote: `table.KEY` and the texts.
    """
    columns = [*KEY, *TEXTS]
    known = pd.MultiIndex.from_frame(written[columns].fillna(""))
    return pd.Series(pd.MultiIndex.from_frame(rows[columns].fillna("")).isin(known), index=rows.index)


def count_covered(rows: pd.DataFrame, written: pd.DataFrame) -> pd.DataFrame:
    """Return by set how many of a run's contexts have a text that was voted on: ``set contexts covered``.

    The text is the same where action, direction, context and rationale are.
    """
    mine = written[written["context"].notna()]
    seen = pd.MultiIndex.from_frame(rows[TEXTS].fillna(""))
    covered = pd.MultiIndex.from_frame(mine[TEXTS].fillna("")).isin(seen)
    counts = mine.assign(covered=covered).groupby("set", sort=False)["covered"].agg(contexts="size", covered="sum")
    return counts.reset_index()


def find_monotone(filled: pd.DataFrame, question: str, least: int = 10) -> list[str]:
    """Name annotators who gave many rows (`least` or more) one and the same answer, in a sentence each."""
    return [
        f"{annotator} answered {answers.iloc[0]} to {question} on all of {len(answers)} rows"
        for annotator, answers in filled.dropna(subset=[question]).groupby("annotator")[question]
        if len(answers) >= least and answers.nunique() == 1
    ]


def make_gold(filled: pd.DataFrame, key: pd.DataFrame) -> pd.DataFrame:
    """Return filled critic forms as a file of gold that `critic.gold` can name (like ``data/demo/critic_annotations.tsv``).

    Where each answered row has three votes, these; else what more than half of them say, which counts as one vote. A row that
    nobody answered, or about which they are divided, is left out.
    """
    answered = filled.dropna(subset=["q1"])
    by_row, columns = answered.groupby("row_id"), {}
    for name, question in CRITIC_FORM.questions.items():
        given = spread_votes(answered, name)
        if by_row.size().eq(3).all():
            three = by_row[name].agg(list)
            columns |= {f"{name}_a{n + 1}": three.str[n] for n in range(3)}
        else:
            top = majority(given, list(question.answers))
            columns[name] = top.where(given.eq(top, axis=0).sum(axis=1) * 2 > given.notna().sum(axis=1))
    labels = pd.DataFrame(columns)
    labels = labels[labels.iloc[:, 0].notna()].fillna("-")
    rows = key[["row_id", *PROMPT, "action", "context", "rationale", "source"]]
    gold = rows.merge(labels, left_on="row_id", right_index=True).rename(columns={"row_id": "item_id"})
    return gold.sort_values("item_id").rename(columns=lambda name: name.replace("_", "-"))


def draw_content(drot: pd.DataFrame, asked: pd.DataFrame, judged: pd.DataFrame, n: int, seed: int) -> pd.DataFrame:
    """Return rows for the content form: `n` of the data set, half of them each way, and greedy ones of the first and the last student.

    The latter are the set ``invalid`` where they were judged so, else ``greedy``: these are in the key, but are not shown.
    """
    ways = [drot[drot["moral_variance"] == way] for way in (1, -1)]
    parts = [rows.sample(min(n // 2, len(rows)), random_state=seed).assign(set="dataset") for rows in ways]
    greedy = asked[(asked["set"] == "greedy") & asked["source"].isin(["distill_base", "distill_final"])]
    greedy = join_valid(greedy, judged)
    greedy["set"] = greedy["set"].mask(greedy["valid"] == 0, "invalid")
    return pd.concat([*parts, greedy], ignore_index=True)


def share_content(filled: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the mean share of annotators who name each category of the data set's valid contexts, by direction (figure 4)."""
    named = _name_content(filled, rows[rows["set"] == "dataset"])
    shares = named.groupby("moral_variance")[list(CATEGORIES)].mean().reindex([1, -1]).T
    return shares.rename(index=CATEGORIES, columns=DIRECTIONS)


def show_content(filled: pd.DataFrame, rows: pd.DataFrame, seed: int, n: int = 2) -> pd.DataFrame:
    """Return contexts of each category, drawn at random from those in which all annotators name it (figure 5)."""
    named = _name_content(filled, rows)
    parts = []
    for code, text in CATEGORIES.items():
        agreed = named[named[code] == 1]
        parts.append(agreed.sample(min(n, len(agreed)), random_state=seed).assign(category=text))
    return pd.concat(parts, ignore_index=True)[["category", "action", "moral_variance", "context"]]


def count_errors(filled: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Count what is wrong with invalid greedy contexts, by student: a vote is a share of a context."""
    answers = list(CONTENT_FORM.questions["q2"].answers)
    given = filled.dropna(subset=["q2"]).merge(rows.loc[rows["set"] != "dataset", ["row_id", "source"]], on="row_id")
    shares = pd.crosstab([given["source"], given["row_id"]], given["q2"], normalize="index").reindex(columns=answers)
    counts = shares.fillna(0.0).groupby("source").sum().rename(columns={"-": "valid"})
    counts.insert(0, "contexts", counts.sum(axis=1))
    return counts.loc[in_order(counts.index)].rename_axis(columns=None).reset_index(names="model")


def _name_content(filled: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows that at least half of the annotators call valid, with the share of all that names each category."""
    given = filled[filled["q1"].notna()]
    valid = given["q1"].ne("-").groupby(given["row_id"]).transform("mean") >= 0.5
    given = given[valid]
    named = given["q1"].str.get_dummies("+").reindex(columns=list(CATEGORIES), fill_value=0)
    return rows.merge(named.groupby(given["row_id"]).mean(), left_on="row_id", right_index=True)


def agree_on_gold(gold: pd.DataFrame) -> pd.DataFrame:
    """Return how far the annotators of single votes (`gold.read_votes`) agree: ``question source`` and `AGREEMENT`."""
    out = []
    for question, rows in gold.groupby("question"):
        for source, group in [("all", rows), *rows.groupby("source")]:
            answers = group.pivot(index=["file", "row"], columns="annotator", values="answer")
            out.append({"question": question, "source": source, **measure_agreement(answers)})
    return pd.DataFrame(out, columns=["question", "source", *AGREEMENT])


def agree_on_form(filled: pd.DataFrame, form: Form = EVALUATION_FORM) -> pd.DataFrame:
    """Return how far the annotators of a form agree: ``question`` and `AGREEMENT`; answers of which several hold one by one."""
    out = []
    for name, question in form.questions.items():
        votes = spread_votes(filled, name)
        parts = {name: votes}
        if question.several:
            parts = {
                f"{name}: {text}": votes.map(lambda said, code=code: "NY"[code in said.split("+")], na_action="ignore")
                for code, text in question.answers.items()
            }
        out += [{"question": part, **measure_agreement(table)} for part, table in parts.items()]
    return pd.DataFrame(out)


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

    given = votes.notna().sum(axis=1)
    if not (given > 1).any():
        return {"rows": 0, "annotators": votes.shape[1], "full": np.nan, "majority": np.nan, "kappa": np.nan}
    size = int(given[given > 1].mode().max())  # the larger number where two are as common
    voted = votes[given == size]
    counts = _count_answers(voted, sorted(set(voted.to_numpy()[voted.notna()])))
    top = counts.max(axis=1)
    kappa = float(fleiss_kappa(counts)) if counts.shape[1] > 1 else np.nan
    shares = {"full": float((top == size).mean()), "majority": float((top * 2 > size).mean())}
    return {"rows": len(counts), "annotators": size, **shares, "kappa": kappa}


def _count_answers(votes: pd.DataFrame, answers: list[str]) -> np.ndarray:
    """Return how often each answer was given in each row, shape (rows, answers)."""
    given = votes.to_numpy(dtype=object)
    return np.stack([(given == answer).sum(axis=1) for answer in answers], axis=1)


def spread_votes(filled: pd.DataFrame, question: str) -> pd.DataFrame:
    """Return the answers to one question, a row a form row and a column an annotator; null where none was given."""
    return filled.pivot(index="row_id", columns="annotator", values=question)


def majority(votes: pd.DataFrame, answers: list[str]) -> pd.Series:
    """Return the majority answer of each row, null where nobody answered, and where as many say no as do not.

    It is the median of the ordered answers, which is the answer of more than half of the votes where there is one; of yes,
    somewhat and no once each, it is somewhat. Where there are two medians, it is the weaker one, or null if that is the last
    answer (no). The paper does not say what it does with such rows.

    Parameters
    ----------
    votes : DataFrame of str, shape (rows, annotators)
    answers : list of str
        All codes in their order.
    """
    counts = _count_answers(votes, answers)
    given = counts.sum(axis=1)
    twice = counts.cumsum(axis=1) * 2
    lower, upper = (of.argmax(axis=1) for of in (twice >= given[:, None], twice > given[:, None]))
    split = (lower != upper) & (upper == len(answers) - 1)
    return pd.Series(np.array(answers, dtype=object)[upper], index=votes.index).where((given > 0) & ~split)
