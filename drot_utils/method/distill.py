"""Which contexts are kept: the filters of Algorithm 1, in order, and whose scores they go by.

To add a filter, write its function and enter it into `FILTERS`: the counts, the flow figure and the notebooks follow.
The names in capitals in the docstrings are those of appendix C.
"""

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from drot_utils.data.table import PROMPT
from drot_utils.method.critic import score_contexts
from drot_utils.method.judges import load_panel
from drot_utils.method.nli import filter_groups
from drot_utils.study.paths import require
from drot_utils.study.record import Study

NAMES = {"critic": "the critic", "critic_independent": "the independent critic", "judges": "the panel of judges"}


@dataclass(frozen=True)
class Scorer:
    """Who says how probably a context is valid, what that one is called, and where its thresholds lie."""

    label: str
    score: Callable[[pd.DataFrame], np.ndarray]  # of rows with ``action moral_variance context``
    thresholds: dict[str, float]


def load_scorer(study: Study, name: str | None = None) -> Scorer:
    """Load a critic (``critic``, ``critic_independent``) or the panel (``judges``); by default, who filters."""
    name = name or study.params.judges.filter
    path = require(study.run.model(name) / "settings.json", "12_judges" if name == "judges" else "02_critic")
    score = load_panel(study).score if name == "judges" else partial(score_contexts, study, name)
    label = NAMES[name] + " that filtered" * (name == study.params.judges.filter)
    return Scorer(label, score, json.loads(path.read_text(encoding="utf-8"))["thresholds"])


def load_scorers(study: Study) -> dict[str, Scorer]:
    """Load those who score the students (section 4), by the prefix of their columns in table 2.

    ``auto_`` is whom `evaluation.critic` names. ``independent_`` is a second one, where there is one: the independent
    critic, or, where that one is the first or does not exist, who filtered.
    """
    params = study.params
    chosen = {"same": params.judges.filter, "independent": "critic_independent", "judges": "judges"}
    first = chosen[params.evaluation.critic]
    others = [name for name in ("critic_independent", params.judges.filter) if name != first]
    second = [name for name in others if (study.run.model(name) / "settings.json").exists()][:1]
    names = zip(("auto_", "independent_"), [first, *second], strict=False)
    return {prefix: load_scorer(study, name) for prefix, name in names}


Found = tuple[dict[str, pd.Series], dict[str, pd.Series]]
#: Takes the rows that passed the filters before, the study, and the score that a valid context reaches. Returns the
#: columns that it sets, and for each reason to drop a row, whether it holds.
Filter = Callable[[pd.DataFrame, Study, float], Found]


def find_unparsed(rows: pd.DataFrame, study: Study, threshold: float) -> Found:
    """Drop what has no context."""
    return {}, {"unparsed": rows["context"].isna()}


def find_repeats(rows: pd.DataFrame, study: Study, threshold: float) -> Found:
    """Set ``nli_kept``: does a context say something that no accepted earlier one of its group says? (MUTUALNLI)"""
    groups, contexts = rows.groupby(PROMPT, sort=False).indices.values(), rows["context"].to_numpy()
    filtered = filter_groups(study, [contexts[index].tolist() for index in groups])
    kept = pd.Series(False, index=rows.index, dtype="boolean")
    for index, flags in zip(groups, filtered.kept, strict=True):
        kept.iloc[index] = flags
    return {"nli_kept": kept}, {"nli": ~kept}


def find_invalid(rows: pd.DataFrame, study: Study, threshold: float) -> Found:
    """Drop what scores below the threshold (FILTER), and what has no score, as when a judge's answer cannot be read."""
    score = rows["critic_score"]
    return {}, {"unscored": score.isna(), "critic": score < threshold}


#: The filters in order, by the name under which they are left out. A row is counted under the first reason that holds.
FILTERS: dict[str, Filter] = {"unparsed": find_unparsed, "nli": find_repeats, "critic": find_invalid}


def apply_filters(
    study: Study, rows: pd.DataFrame, scorer: Scorer, threshold: str, leave_out: Collection[str] = ()
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """Score rows (columns of `table.CANDIDATES`), flag them by all filters, and say which are kept.

    Parameters
    ----------
    threshold : {"distill", "dataset"}
        Which of the scorer's thresholds a valid context reaches.
    leave_out : collection of str
        Filters of `FILTERS` that are not applied; scores are set all the same.

    Returns
    -------
    rows, kept : DataFrame
        All rows with their flags, ``kept``, and ``dropped``, the reason (null for kept rows); and those that pass.
    dropped : dict of int
        See `count_dropped`.
    """
    rows = rows.assign(critic_score=scorer.score(rows))
    first, order = pd.Series(None, index=rows.index, dtype=object), []
    for name, find in FILTERS.items():
        passed = rows[first.isna()]
        nothing = ({}, {name: pd.Series(False, index=passed.index)})
        columns, reasons = nothing if name in leave_out else find(passed, study, scorer.thresholds[threshold])
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
