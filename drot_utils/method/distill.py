"""Which contexts are kept: the filters of Algorithm 1, in order, and whose scores they go by.

To add a filter, write its function and enter it into `FILTERS`: the counts, the flow figure and the notebooks follow. The
names in capitals in the docstrings are those of appendix C.
"""

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd

from drot_utils.data.table import PROMPT
from drot_utils.method.critic import ShardedCritic
from drot_utils.method.judges import Panel, load_panel
from drot_utils.method.nli import ShardedNli
from drot_utils.study.params import Params
from drot_utils.study.paths import require
from drot_utils.study.record import Study

NAMES = {
    "critic": "the critic",
    "critic_independent": "the independent critic",
    "judges": "the panel of judges",
}


@dataclass(frozen=True)
class Scorer:
    """Who says how probably a context is valid, what that one is called, and where its thresholds lie."""

    label: str
    critic: ShardedCritic | Panel
    thresholds: dict[str, float]


def load_scorer(study: Study, name: str | None = None) -> Scorer:
    """Load one scorer, as notebook 2 (a critic) or 12 (the judges) left it.

    Parameters
    ----------
    name : {"critic", "critic_independent", "judges"}, optional
        By default who filters by the parameters (`judges.filter`).

    Raises
    ------
    MissingInputError
        When its notebook has not run.
    DataError
        See `judges.load_panel`.
    """
    name = name or study.params.judges.filter
    path = require(study.run.model(name) / "settings.json", "12_judges" if name == "judges" else "02_critic")
    critic = load_panel(study) if name == "judges" else ShardedCritic(study, name)
    label = NAMES[name] + " that filtered" * (name == study.params.judges.filter)
    return Scorer(label, critic, json.loads(path.read_text(encoding="utf-8"))["thresholds"])


def load_scorers(study: Study) -> dict[str, Scorer]:
    """Load those who score the students (section 4), by the prefix of their columns in table 2.

    Returns
    -------
    dict of Scorer
        ``auto_``: whom `evaluation.critic` names. ``independent_``: a second one, where there is one: the independent
        critic, or, where that one is the first or does not exist, who filtered.
    """
    params = study.params
    chosen = {"same": params.judges.filter, "independent": "critic_independent", "judges": "judges"}
    first = chosen[params.evaluation.critic]
    others = [name for name in ("critic_independent", params.judges.filter) if name != first]
    second = [name for name in others if (study.run.model(name) / "settings.json").exists()][:1]
    names = zip(("auto_", "independent_"), [first, *second], strict=False)
    return {prefix: load_scorer(study, name) for prefix, name in names}


@dataclass(frozen=True)
class Given:
    """What the filters go by: the parameters, the models, and the score that a valid context reaches."""

    params: Params
    nli: ShardedNli
    critic: ShardedCritic | Panel
    threshold: float


#: Takes rows; returns them with the flags it sets, and for each reason to drop a row, whether it holds.
Filter = Callable[[pd.DataFrame, Given], tuple[pd.DataFrame, dict[str, pd.Series]]]


def find_unparsed(rows: pd.DataFrame, given: Given) -> tuple[pd.DataFrame, dict[str, pd.Series]]:
    """Drop what has no context."""
    return rows, {"unparsed": rows["context"].isna()}


def find_repeats(rows: pd.DataFrame, given: Given) -> tuple[pd.DataFrame, dict[str, pd.Series]]:
    """Set ``nli_kept``: does a context say something that no accepted earlier one of its group says? (MUTUALNLI)

    Rows without a context keep a null flag.
    """
    has = rows["context"].notna()
    groups = rows[has].groupby(PROMPT, sort=False).indices
    contexts = rows.loc[has, "context"].to_numpy()
    asked = [contexts[index].tolist() for index in groups.values()]
    filtered = given.nli.filter(asked, given.params.nli.threshold)
    flags = np.zeros(int(has.sum()), dtype=bool)
    for index, kept in zip(groups.values(), filtered.kept, strict=True):
        flags[index] = kept
    column = pd.Series(pd.NA, index=rows.index, dtype="boolean")
    column[has] = flags
    return rows.assign(nli_kept=column), {"nli": ~column.fillna(True).astype(bool)}


def find_invalid(rows: pd.DataFrame, given: Given) -> tuple[pd.DataFrame, dict[str, pd.Series]]:
    """Drop what scores below the threshold (FILTER), and what has no score, as when a judge's answer cannot be read."""
    score = rows["critic_score"]
    return rows, {"unscored": score.isna(), "critic": score < given.threshold}


#: The filters in order, by the name under which they are left out. A row is counted under the first reason that holds.
FILTERS: dict[str, Filter] = {"unparsed": find_unparsed, "nli": find_repeats, "critic": find_invalid}


def apply_filters(
    study: Study, rows: pd.DataFrame, scorer: Scorer, threshold: str, leave_out: Collection[str] = ()
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """Score rows, flag them by all filters, and say which are kept.

    Parameters
    ----------
    rows : DataFrame
        Columns of `table.CANDIDATES`.
    scorer : Scorer
        Who filters (`load_scorer`); its scores are set also where its filter is left out.
    threshold : {"distill", "dataset"}
        Which of its thresholds a valid context reaches.
    leave_out : collection of str
        Filters of `FILTERS` that are not applied.

    Returns
    -------
    rows : DataFrame
        All rows with their flags; ``kept``, and ``dropped``, the reason (null for kept rows).
    kept : DataFrame
        Those that pass.
    dropped : dict of int
        See `count_dropped`.
    """
    given = Given(study.params, ShardedNli(study), scorer.critic, scorer.thresholds[threshold])
    rows = rows.assign(critic_score=scorer.critic.score(rows))
    first, order = pd.Series(None, index=rows.index, dtype=object), []
    for name, find in FILTERS.items():
        rows, reasons = find(rows, given) if name not in leave_out else (rows, {name: False})
        for reason, holds in reasons.items():
            first = first.mask(first.isna() & holds, reason)
            order.append(reason)
    rows = rows.assign(kept=first.isna().astype("boolean"), dropped=pd.Categorical(first, order))
    return rows, rows[rows["kept"]], count_dropped(rows)


def count_dropped(rows: pd.DataFrame) -> dict[str, int]:
    """Count the rows that were dropped by the first reason that holds: each filter's, and others where there are any."""
    counts = rows["dropped"].value_counts(sort=False)
    return {reason: int(count) for reason, count in counts.items() if count or reason in FILTERS}
