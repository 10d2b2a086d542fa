"""Which contexts are kept: the filters of Algorithm 1, in order, and whose scores they go by.

To add a filter, write its function and enter it into `FILTERS`: the counts, the flow figure and the notebooks follow.
The names in capitals in the docstrings are those of appendix C.
"""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from drot_utils.data.table import PROMPT
from drot_utils.engine.shards import fingerprint
from drot_utils.method.critic import list_rules, score_contexts
from drot_utils.method.judges import load_panel
from drot_utils.method.nli import filter_groups
from drot_utils.method.student import find_cut, write_contexts
from drot_utils.study.errors import DataError
from drot_utils.study.outputs import read_records
from drot_utils.study.paths import require
from drot_utils.study.record import Study

TEACHER = "teacher"  # the source of its rows
NAMES = {"critic": "the critic", "critic_independent": "the independent critic", "judges": "the panel of judges"}


@dataclass(frozen=True)
class Scorer:
    """Who says how probably a context is valid, what that one is called, and where its thresholds lie."""

    label: str
    score: Callable[[pd.DataFrame], np.ndarray]  # of rows with ``action moral_variance context``
    thresholds: dict[str, float]
    known_by: str = ""  # changes with who that is, not with the thresholds


def load_scorer(study: Study, name: str | None = None) -> Scorer:
    """Load a critic (``critic``, ``critic_independent``) or the panel (``judges``); by default, who filters."""
    name = name or study.params.judges.filter
    made_by = "12_judges" if name == "judges" else "02_critic"
    path = require(study.run.model(name) / "settings.json", made_by)
    score = load_panel(study).score if name == "judges" else partial(score_contexts, study, name)
    label = NAMES[name] + " that filtered" * (name == study.params.judges.filter)
    record = json.loads(path.read_text(encoding="utf-8"))  # a critic's has its losses
    rules = list_rules(study.params.critic)
    if (found := record.pop("rules", rules)) != rules:  # by hand: a run's stages would have run again
        other = {f"critic.{key}": value for key, value in rules.items() if found.get(key) != value}
        todo = f"run {made_by} with these parameters first, or take them back"
        raise DataError(f"its thresholds were made with other values of {', '.join(other)}", where=str(path), todo=todo)
    return Scorer(label, score, record.pop("thresholds"), fingerprint(name, record))


def load_scorers(study: Study) -> dict[str, Scorer]:
    """Load those who score the students (section 4), by the prefix of their columns in table 2.

    ``auto_`` is whom `evaluation.critic` names. A second one is ``independent_``, the independent critic, or, where that one
    is the first or there is none, ``filter_``: who filtered, if that is not the first.
    """
    params = study.params
    by = {"same": params.judges.filter, "independent": "critic_independent", "judges": "judges"}
    first = by[params.evaluation.critic]
    others = {"independent_": "critic_independent" if params.critic.independent_share else first, "filter_": by["same"]}
    second = [(prefix, name) for prefix, name in others.items() if name != first][:1]
    return {prefix: load_scorer(study, name) for prefix, name in [("auto_", first), *second]}


Found = tuple[dict[str, pd.Series], dict[str, pd.Series]]
#: Takes the rows that passed the filters before, the study, and the score that each row must reach to be valid. Returns
#: the columns that it sets, and for each reason to drop a row, whether it holds.
Filter = Callable[[pd.DataFrame, Study, pd.Series], Found]


def find_unparsed(rows: pd.DataFrame, study: Study, limits: pd.Series) -> Found:
    """Drop what has no context."""
    return {}, {"unparsed": rows["context"].isna()}


def find_repeats(rows: pd.DataFrame, study: Study, limits: pd.Series) -> Found:
    """Set ``nli_kept``: does a context say something that no accepted earlier one of its group says? (MUTUALNLI)"""
    groups, contexts = rows.groupby(PROMPT, sort=False).indices.values(), rows["context"].to_numpy()
    filtered = filter_groups(study, [contexts[index].tolist() for index in groups])
    kept = pd.Series(False, index=rows.index, dtype="boolean")
    for index, flags in zip(groups, filtered.kept, strict=True):
        kept.iloc[index] = flags
    return {"nli_kept": kept}, {"nli": ~kept}


def find_invalid(rows: pd.DataFrame, study: Study, limits: pd.Series) -> Found:
    """Drop what scores below its limit, the threshold (FILTER), and what has no score, as when a judge's answer cannot be read."""
    score = rows["critic_score"]
    return {}, {"unscored": score.isna(), "critic": score < limits}


def find_surplus(rows: pd.DataFrame, study: Study, limits: pd.Series) -> Found:
    """Drop what is not among the best of its prompt (`distill.max_per_prompt`): kept rows would crowd on easy prompts."""
    best_first = rows.sort_values("critic_score", ascending=False, kind="stable")
    return {}, {"per_prompt": _beyond(best_first, study.params.distill.max_per_prompt, [rows[name] for name in PROMPT])}


def find_stock(rows: pd.DataFrame, study: Study, limits: pd.Series) -> Found:
    """Drop what a writer wrote more often than `distill.max_repeats`, whatever the case, so that no text is learnt for all.

    Which of them stay is drawn by the seed.
    """
    shuffled = rows.iloc[np.random.default_rng(study.params.seed).permutation(len(rows))]
    same = [rows["source"], rows["context"].str.casefold()]
    return {}, {"repeats": _beyond(shuffled, study.params.distill.max_repeats, same)}


def _beyond(rows: pd.DataFrame, most: int | None, groups: list[pd.Series]) -> pd.Series:
    """Tell which of the students' rows, in this order, come after the first `most` of their group; none where it is null."""
    if most is None:
        return pd.Series(False, index=rows.index)
    return rows.groupby(groups, sort=False).cumcount().ge(most) & rows["source"].ne(TEACHER)


#: The filters in order, by the name under which they are left out. A row is counted under the first reason that holds.
#: The last two are not the paper's, and for what students write only.
FILTERS: dict[str, Filter] = {
    "unparsed": find_unparsed, "nli": find_repeats, "critic": find_invalid, "per_prompt": find_surplus, "repeats": find_stock,
}  # fmt: skip


def apply_filters(
    study: Study, rows: pd.DataFrame, scorer: Scorer, threshold: str, leave_out: Collection[str] = ()
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """Score rows (columns of `table.CANDIDATES`), flag them by all filters, and say which are kept.

    Rows that have a score, as those of an earlier round, are not scored again: a run has one scorer.

    Parameters
    ----------
    threshold : {"seed", "distill", "dataset"}
        Which of the scorer's thresholds a valid context reaches. Where `distill.teacher_stays`, the teacher's need no other
        than ``seed``, with which they entered D0.
    leave_out : collection of str
        Filters of `FILTERS` that are not applied; scores are set all the same.

    Returns
    -------
    rows, kept : DataFrame
        All rows with their flags, ``kept``, and ``dropped``, the reason (null for kept rows); and those that pass.
    dropped : dict of int
        See `count_dropped`.
    """
    unscored = rows[rows["critic_score"].isna()]
    scores = pd.Series(scorer.score(unscored), unscored.index)
    rows = rows.assign(critic_score=rows["critic_score"].astype(float).fillna(scores))
    limits = pd.Series(scorer.thresholds[threshold], index=rows.index)
    if study.params.distill.teacher_stays:
        limits[rows["source"] == TEACHER] = scorer.thresholds["seed"]
    first, order = pd.Series(None, index=rows.index, dtype=object), []
    for name, find in FILTERS.items():
        passed = rows[first.isna()]
        nothing = ({}, {name: pd.Series(False, index=passed.index)})
        columns, reasons = nothing if name in leave_out else find(passed, study, limits[passed.index])
        rows = rows.assign(**{column: values.reindex(rows.index) for column, values in columns.items()})
        for reason, holds in reasons.items():
            first[first.isna() & holds.reindex(rows.index, fill_value=False)] = reason
            order.append(reason)
    rows = rows.assign(kept=first.isna().astype("boolean"), dropped=pd.Categorical(first, order))
    return rows, rows[rows["kept"]], count_dropped(rows)


def count_dropped(rows: pd.DataFrame) -> dict[str, int]:
    """Count the dropped rows by the first reason that holds: each filter's, and others where there are any."""
    counts = rows["dropped"].value_counts(sort=False)
    return {reason: int(count) for reason, count in counts.items() if count or reason in FILTERS}


def warn_mixed(study: Study, scorer: Scorer, stages: Sequence[str]) -> list[str]:
    """Return a sentence that names those of `stages` whose rows another one scored (noted as ``scored_by``); none if all agree.

    By hand that happens: notebook 2 trains another critic, and what stands beside it is from before.
    """
    records = read_records(study.run)
    others = [name for name in stages if records.get(name, {}).get("scored_by", scorer.known_by) != scorer.known_by]
    said = f"Warning: another critic scored the rows of {', '.join(others)}. Run these notebooks again, then this one."
    return [said] if others else []


PER_CONTEXT = 4  # candidates that a student writes for each context that `ask_student` is to return
ANSWER = ["action", "moral_variance", "context", "rationale", "critic_score"]


def ask_student(study: Study, name: str, actions: Sequence[str], n: int = 3, *, raw: bool = False) -> pd.DataFrame:
    """Ask a student about actions of one's own: for each one and both directions, its best contexts that differ.

    The student samples ``4 * n`` candidates of each prompt, with the parameters' `top_p` and `temperature`. The critic scores
    them (also where `judges.filter` names the panel: no server is asked). The NLI filter goes through a prompt's candidates
    from the highest score to the lowest, and the first `n` that it keeps are returned. No threshold is applied.

    Parameters
    ----------
    name : str
        A trained student, such as ``distill_base``.
    actions : sequence of str
        White space and a final stop make no difference, and an action that is given twice counts once.
    n : int
        Contexts of each prompt; where fewer parse and differ, fewer are returned.
    raw : bool
        Return all candidates instead.

    Returns
    -------
    DataFrame
        ``action moral_variance context rationale critic_score``: actions in the order given, +1 before -1, the best first. With
        `raw` also ``nli_kept`` (null for what does not parse), ``same_as``, the better context that a dropped one says the
        same as, and ``raw``, the student's own words.

    Raises
    ------
    DataError
        For no action at all, actions that are empty or too long for the student's ``max_prompt_length``, and an `n` below 1.

    Notes
    -----
    The same actions get the same contexts each time, in whatever order they are given: they are written in alphabetical order.
    With other actions beside it an action may get other contexts, as a draw depends on its prompt's place among all.
    """
    texts = _read_actions(study, name, [actions] if isinstance(actions, str) else actions, n)
    asked = pd.DataFrame({"action_id": sorted(texts), "action": sorted(texts)})
    rows = write_contexts(study, name, asked, "ask", PER_CONTEXT * n, "nucleus")
    rows = rows.assign(critic_score=load_scorer(study, "critic").score(rows), place=rows["action"].map(texts.index))
    best_first = {"place": True, "moral_variance": False, "critic_score": False, "candidate": True}
    rows = rows.sort_values(list(best_first), ascending=list(best_first.values()), ignore_index=True)
    parsed = rows[rows["context"].notna()]
    groups = list(parsed.groupby(PROMPT, sort=False).groups.values())
    filtered = filter_groups(study, [parsed["context"][index].tolist() for index in groups])
    same_as = pd.Series(None, index=rows.index, dtype="str")
    for index, blocked_by in zip(groups, filtered.blocked_by, strict=True):
        same_as[index] = [None if by is None else rows["context"][index[by]] for by in blocked_by]
    nli_kept = same_as.isna().astype("boolean").mask(rows["context"].isna())
    rows = rows.assign(nli_kept=nli_kept, same_as=same_as)
    rows = rows[[*ANSWER, "nli_kept", "same_as", "raw"]]
    return rows if raw else choose_best(rows, n)


def choose_best(rows: pd.DataFrame, n: int) -> pd.DataFrame:
    """Return the first `n` rows of each prompt that the NLI filter keeps, of all candidates that `ask_student` returns."""
    kept = rows[rows["nli_kept"].fillna(False)]
    return kept.groupby(["action", "moral_variance"], sort=False).head(n)[ANSWER].reset_index(drop=True)


def _read_actions(study: Study, name: str, actions: Sequence[str], n: int) -> list[str]:
    texts = [" ".join(action.split()).removesuffix(".").strip() for action in actions]
    wrong = [f"number {place}, {actions[place - 1]!r}, is empty" for place, text in enumerate(texts, 1) if not text]
    cut = find_cut(study, name, list(filter(None, texts)))
    wrong += [f"{text[:60]!r}{'...' * (len(text) > 60)} is too long" for text in cut]
    if n < 1 or not texts:
        wrong.append(f"expected at least one action and one context, found {len(texts)} and {n}")
    if wrong:
        tokens = study.params.student.max_prompt_length
        todo = f"give each action in a few words, such as Setting a fire: a prompt may have {tokens} tokens"
        raise DataError("; ".join(wrong), where="the actions asked about", todo=todo)
    return list(dict.fromkeys(texts))
