"""Who agrees with whom: judges far from a consensus, and scores of the same contexts compared pair by pair."""

import numpy as np
import pandas as pd
from scipy.special import rel_entr

from drot_utils.consensus import SHARED, Reliability, check_scores

FAR_RATIO, FAR_DIVERGENCE = 4.0, 0.1  # times less reliable than the median; bits


def describe_judges(scores: pd.DataFrame, consensus: np.ndarray, reliability: Reliability) -> pd.DataFrame:
    """Say how each judge stands to a consensus, and name those that are far from it.

    Far is a judge whose scores are all the same, whose reliability 1 / sigma^2 is below a quarter of the median judge's, or
    whose mean Jensen-Shannon divergence to the consensus is above 0.1 bits (as between .3 and .7).

    Parameters
    ----------
    scores : DataFrame of float, shape (items, judges)
    consensus : ndarray of float, shape (items,)
        A continuous one: votes of 0 and 1 are far from any judge with doubts.

    Returns
    -------
    DataFrame
        ``judge scored sigma weight leaning divergence far why``: items scored, sigma, share of the reliability of all
        (null where not known), mean score above the consensus, bits, and the rule that names it far.
    """
    values = check_scores(scores)
    precision = reliability.sigma.reindex(scores.columns) ** -2.0
    if not reliability.usable:
        precision[:] = np.nan
    rows = []
    for j, judge in enumerate(scores.columns):
        both = ~np.isnan(values[:, j]) & ~np.isnan(consensus)
        own, other = values[both, j], consensus[both]
        divergence = divergence_bits(own, other).mean() if both.any() else np.nan
        reasons = {
            "all scores the same": len(own) >= SHARED and np.ptp(own) == 0,
            f"reliability below 1/{FAR_RATIO:g} of the median": precision[judge] * FAR_RATIO
            < precision.median(),
            f"divergence above {FAR_DIVERGENCE} bits": divergence > FAR_DIVERGENCE,
        }
        why = "; ".join(name for name, holds in reasons.items() if holds)
        rows.append({
            "judge": judge,
            "scored": int((~np.isnan(values[:, j])).sum()),
            "sigma": precision[judge] ** -0.5,
            "weight": precision[judge] / precision.sum(),
            "leaning": (own - other).mean() if both.any() else np.nan,
            "divergence": divergence,
            "far": bool(why),
            "why": why,
        })  # fmt: skip
    return pd.DataFrame(rows)


def divergence_bits(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the Jensen-Shannon divergence, in bits, between yes with probability `one` and with `other`, item by item."""
    first, second = np.stack([one, 1 - one]), np.stack([other, 1 - other])
    middle = (first + second) / 2
    nats = (rel_entr(first, middle) + rel_entr(second, middle)).sum(axis=0) / 2
    return np.maximum(nats, 0) / np.log(2)  # not below 0 by rounding


def compare_pairs(scores: pd.DataFrame, threshold: float = 0.5) -> pd.DataFrame:
    """Compare several scores of the same contexts, pair by pair, over the contexts that both scored.

    Returns
    -------
    DataFrame
        ``one other both same_decision difference correlation``: contexts, share on the same side of the threshold, mean
        absolute difference, and Pearson's r (null where one does not vary).
    """
    rows = []
    names = list(scores.columns)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            a, b = scores[[one, other]].dropna().to_numpy(dtype=float).T
            varies = len(a) > 1 and np.ptp(a) > 0 and np.ptp(b) > 0
            rows.append({
                "one": one,
                "other": other,
                "both": len(a),
                "same_decision": ((a >= threshold) == (b >= threshold)).mean() if len(a) else np.nan,
                "difference": np.abs(a - b).mean() if len(a) else np.nan,
                "correlation": np.corrcoef(a, b)[0, 1] if varies else np.nan,
            })  # fmt: skip
    return pd.DataFrame(rows, columns=["one", "other", "both", "same_decision", "difference", "correlation"])
