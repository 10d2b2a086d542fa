"""The filters of Algorithm 1, in order: what differs (NLI), what is valid (critic), and how many rows each dropped.

The names in capitals in the docstrings are those of appendix C.
"""

import numpy as np
import pandas as pd

from drot_utils.data.table import PROMPT
from drot_utils.method.critic import ShardedCritic
from drot_utils.method.judges import Panel, load_opinion
from drot_utils.method.nli import Filtered, ShardedNli
from drot_utils.study.record import Study


def flag_repeats(rows: pd.DataFrame, nli: ShardedNli, threshold: float) -> tuple[pd.DataFrame, Filtered]:
    """Set ``nli_kept``: does a context say something that no accepted earlier one of its group says? (MUTUALNLI)

    Rows without a context keep a null flag.
    """
    has = rows["context"].notna()
    groups = rows[has].groupby(PROMPT, sort=False).indices
    contexts = rows.loc[has, "context"].to_numpy()
    filtered = nli.filter([contexts[index].tolist() for index in groups.values()], threshold)
    flags = np.zeros(int(has.sum()), dtype=bool)
    for index, kept in zip(groups.values(), filtered.kept, strict=True):
        flags[index] = kept
    column = pd.Series(pd.NA, index=rows.index, dtype="boolean")
    column[has] = flags
    return rows.assign(nli_kept=column), filtered


def flag_valid(
    rows: pd.DataFrame,
    critic: ShardedCritic | Panel,
    threshold: float,
    *,
    use_nli: bool = True,
    use_critic: bool = True,
) -> pd.DataFrame:
    """Set ``critic_score`` and ``kept`` (FILTER): a row is kept if it parsed and passes the filters in use.

    The critic's filter keeps scores at or above the threshold. A score that is null, as when a judge's answer cannot be read, passes no threshold.
    """
    scored = rows.assign(critic_score=critic.score(rows))
    kept = scored["context"].notna()
    if use_nli:
        kept &= scored["nli_kept"].fillna(False).astype(bool)
    if use_critic:
        kept &= scored["critic_score"] >= threshold
    return scored.assign(kept=kept.astype("boolean"))


def count_dropped(rows: pd.DataFrame) -> dict[str, int]:
    """Count the rows that were not kept by the first reason that holds: unparsed, nli, unscored (if any), critic."""
    lost = rows[~rows["kept"].astype(bool)]
    unparsed = lost["context"].isna()
    repeated = ~unparsed & ~lost["nli_kept"].fillna(True).astype(bool)
    unscored = ~unparsed & ~repeated & lost["critic_score"].isna()
    return {
        "unparsed": int(unparsed.sum()),
        "nli": int(repeated.sum()),
        **({"unscored": int(unscored.sum())} if unscored.any() else {}),
        "critic": int((~unparsed & ~repeated & ~unscored).sum()),
    }


def load_filters(study: Study) -> tuple[ShardedCritic | Panel, ShardedNli, dict]:
    """Open who filters by the parameters (`judges.filter`), the entailment model, and the former's thresholds."""
    opinion = load_opinion(study)
    return opinion.critic, ShardedNli(study), {"thresholds": opinion.thresholds}
