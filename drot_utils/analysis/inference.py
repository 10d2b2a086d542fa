"""Intervals that hold, from votes on some contexts and a critic's scores of all (section 4.2; the page ppi in docs/)."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from drot_utils.analysis.evaluation import ENDS
from drot_utils.study.graph import in_order

#: Whose errors `estimate_valid` tells.
BIASED = {"bias": "critic_score", "independent_bias": "independent_score", "filter_bias": "filter_score"}


def estimate_mean(
    values: np.ndarray,
    actions: np.ndarray,
    scores: np.ndarray | None = None,
    ends: tuple[float, float] = (0.0, 1.0),
    written: np.ndarray | None = None,
    signs: np.ndarray | None = None,
) -> tuple[float, float, float, float]:
    """Return the mean of values of which votes tell some, from these and from scores of all rows, with its 95% interval.

    Prediction-powered inference with tuned power (Angelopoulos et al., 2023): the votes' mean, less what the scores say of how
    the voted rows differ from all. However wrong the scores are, the mean has no bias where the voted rows are a random
    part. Rows of one action may be alike: they count as one in the variance. The page ppi in docs/ derives it.

    Parameters
    ----------
    values : ndarray of float, shape (rows,)
        NaN where nobody voted.
    actions : ndarray, shape (rows,)
        The action of each row.
    scores : ndarray of float, shape (rows,), optional
        On any scale, none missing. Without them, the mean of the votes.
    ends : tuple of float
        The least and the greatest possible value. A made-up vote for each joins the interval, so that ten equal votes do not
        give one of no width.
    written : ndarray of bool, shape (rows,), optional
        False where the value is known to be 0 without a vote, as of a text that did not parse. The mean is that of the other
        rows times their share, so that what was not voted on counts as what was.
    signs : ndarray of int, shape (rows,), optional
        1 and -1: wanted is the mean of the former less that of the latter. What an action does to both drops out.

    Returns
    -------
    tuple of float
        Mean, low, high, and how many votes on random ones of these rows would halve the interval; NaN where votes on all would
        not. All are NaN without votes.
    """
    from scipy.stats import t

    group, rows = pd.factorize(actions)[0], len(values)
    scores = np.zeros(rows) if scores is None else scores
    written = np.ones(rows, dtype=bool) if written is None else written
    signs = np.ones(rows, dtype=int) if signs is None else signs
    sides = [
        _weigh(sign, values[of], scores[of], written[of], group[of], group.max() + 1, ends)
        for sign in (1, -1)
        if (of := signs == sign).any()
    ]
    if not sides or not all(side["votes"] for side in sides):
        return (np.nan,) * 4
    total = {name: sum(side[name] for side in sides) for name in sides[0] if name != "made_up"}
    own, wide = total["own"] + total["share"], total["wide"] + total["share"]
    by_scores, made_up = total["seen"] - total["all"], np.concatenate([side["made_up"] for side in sides])
    power = own @ by_scores / (by_scores @ by_scores) if by_scores @ by_scores > 1e-20 else 0.0
    parts = np.append(wide - power * by_scores, made_up)
    freedom = max((clusters := np.count_nonzero(total["voted"])) - 1 - (power != 0), 1)
    width = t.ppf(0.975, freedom) * np.sqrt(parts @ parts * clusters / freedom)
    least, most = ends if len(sides) == 1 else (ends[0] - ends[1], ends[1] - ends[0])
    mean, middle = np.array([total["mean"], total["middle"]]) - power * total["gap"]
    # The variance of one vote, alone and given the score; with n of them it is given * (1 / n - 1 / contexts) + whole.
    more, contexts = total["votes"] + len(made_up), total["contexts"]
    alone, given = (
        more * (part @ part + made_up @ made_up) for part in (total["wide"], total["wide"] - power * total["seen"])
    )
    whole = alone / contexts + total["share"] @ total["share"]
    wanted = (given * (1 / more - 1 / contexts) + whole) / 4
    needed = np.ceil(given / (wanted - whole + given / contexts)) if wanted > whole else np.nan
    numbers = *np.clip([mean, middle - width, middle + width], least, most), needed
    return tuple(float(number) for number in numbers)


def _weigh(
    sign: int,
    values: np.ndarray,
    scores: np.ndarray,
    written: np.ndarray,
    group: np.ndarray,
    groups: int,
    ends: tuple[float, float],
) -> dict[str, np.ndarray | float]:
    """Return what votes, scores and texts that did not parse say of the mean of one side's rows, in all and by action."""
    if not written.any():  # then it is known of all
        written, values = ~written, np.zeros(len(values))
    known = written & ~np.isnan(values)
    value, score, n, share = values[known], scores[known], int(known.sum()), written.mean()
    if not n:
        return {"votes": 0}
    mean, more, weight = value.mean(), n + len(ends), sign * share
    middle, seen, of_all = (value.sum() + sum(ends)) / more, score.mean(), scores[written].mean()

    def add(numbers: np.ndarray, where: np.ndarray = known) -> np.ndarray:
        return np.bincount(group[where], numbers, groups)

    return {
        "votes": n, "contexts": int(written.sum()), "voted": add(np.ones(n)),
        "mean": weight * mean, "middle": weight * middle, "gap": weight * (seen - of_all),
        "own": weight * add(value - mean) / n, "wide": weight * add(value - middle) / more,
        "seen": weight * add(score - seen) / n, "all": weight * add(scores[written] - of_all, written) / written.sum(),
        "share": sign * mean * np.bincount(group, written - share, groups) / len(values),
        "made_up": weight * (np.array(ends) - middle) / more,
    }  # fmt: skip


def estimate_valid(rows: pd.DataFrame) -> pd.DataFrame:
    """Return each model's share of valid contexts by votes alone and by votes and scores, and how far the critic is off.

    Parameters
    ----------
    rows : DataFrame
        ``set``, `table.KEY`, ``context`` (null where nothing was parsed, which is not valid), ``critic_score`` (null there, or
        in all rows) and ``valid``: 1, 0, or null where nobody voted. ``independent_score`` and ``filter_score``, where there are some, are as ``critic_score``.

    Returns
    -------
    DataFrame
        ``set model rows parsed voted`` (contexts that parsed; and were voted on); ``different_valid``, how many different ones
        (case-folded) were judged valid; ``votes_vld``, ``ppi_vld`` and ``bias`` with the ends of their intervals
        (`estimate_mean`); ``critic_avg``, the mean score of the voted contexts; ``votes_to_halve``. The bias is score minus vote, over the
        voted contexts; ``independent_bias`` and ``filter_bias`` are those of the second critic.
    """
    out = []
    for (part, model), group in rows.groupby(["set", "source"], sort=False):
        written = group["context"].notna().to_numpy()
        valid, score, actions = (group[c].to_numpy() for c in ("valid", "critic_score", "action_id"))
        found = {"set": part, "model": model, "rows": len(group), "parsed": int(written.sum())}
        found["voted"] = int(np.isfinite(valid[written]).sum())
        found["different_valid"] = group.loc[group["valid"].eq(1), "context"].str.casefold().nunique()
        powered = estimate_mean(valid, actions, np.nan_to_num(score), written=written)
        found |= _name("votes_vld", estimate_mean(valid, actions, written=written)) | _name("ppi_vld", powered)
        for name, column in BIASED.items():
            if name == "bias" or (column in rows and rows[column].notna().any()):
                found |= _name(name, estimate_mean(group[column].to_numpy() - valid, actions, ends=(-1.0, 1.0)))
        judged = group.loc[group["valid"].notna(), "critic_score"]
        out.append({**found, "critic_avg": judged.mean(), "votes_to_halve": powered[3]})
    sets, models = (list(dict.fromkeys(row[name] for row in out)) for name in ("set", "model"))
    models = [*in_order({*models} - {"drot"}), "drot"]
    return pd.DataFrame(sorted(out, key=lambda row: (sets.index(row["set"]), models.index(row["model"]))))


def estimate_changes(rows: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Return later minus earlier share of valid contexts by votes alone and by votes and scores; what actions do to both drops out.

    Returns
    -------
    DataFrame
        ``set earlier later voted`` (contexts of the two that were voted on), ``votes`` and ``ppi`` with the ends of their
        intervals.
    """
    out = []
    for part, group in rows.groupby("set", sort=False):
        for earlier, later in (pair for pair in pairs if {*pair} <= set(group["source"])):
            both = group[group["source"].isin([earlier, later])]
            written = both["context"].notna().to_numpy()
            valid, score, actions = (both[c].to_numpy() for c in ("valid", "critic_score", "action_id"))
            sides = {"written": written, "signs": np.where(both["source"] == later, 1, -1)}
            found = {"set": part, "earlier": earlier, "later": later, "voted": int(np.isfinite(valid[written]).sum())}
            found |= _name("votes", estimate_mean(valid, actions, **sides))
            out.append(found | _name("ppi", estimate_mean(valid, actions, np.nan_to_num(score), **sides)))
    numbers = [f"{name}{end}" for name in ("votes", "ppi") for end in ENDS]
    return pd.DataFrame(out, columns=["set", "earlier", "later", "voted", *numbers])


def _name(name: str, numbers: Sequence[float]) -> dict[str, float]:
    return {f"{name}{end}": number for end, number in zip(ENDS, numbers, strict=False)}
