"""One score out of many: majority, mean, or a consensus weighted by reliability; and who is far from it.

The model behind the last one is derived in docs/consensus.md.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_ndtr, logsumexp, rel_entr

from drot_utils.study.errors import DataError

METHODS = ("majority", "mean", "reliability")
#: Between which sigma is looked for: nearer than its prior lets two judges come who always agree; as good as uniform.
FLOOR, CEILING = 0.02, 2.0
#: What is known of a judge beforehand weighs as much as so many scores, and as such a share of its own, so far from the
#: consensus (measured in docs/consensus.md).
DOUBT, DOUBT_SHARE, STRAY = 100.0, 0.2, 0.25
#: Judges that reliabilities need (the disagreement of two says not which of them errs), and items shared with others.
PLACED, SHARED = 3, 10
#: Of log sigma, and steps of EM.
TOLERANCE, ITERATIONS = 1e-3, 500
#: Far is a judge that is so many times less reliable than the median, or so many bits from the consensus.
FAR_RATIO, FAR_DIVERGENCE = 4.0, 0.1

# The posterior of one judge at FLOOR still spans several levels. The prior is uniform: the trapezoid rule.
_LEVELS = np.linspace(0, 1, 129)
_PRIOR = np.log(np.r_[0.5, np.ones(127), 0.5] / 128)


@dataclass(frozen=True)
class Reliability:
    """What `fit_reliability` found: each judge's sigma, how the fit went, and why there is none if there is none."""

    sigma: pd.Series  # by judge; null where a judge could not be placed
    iterations: int
    converged: bool
    objective: list[float]  # log of likelihood times prior at the beginning of each step; it never falls
    note: str = ""

    @property
    def usable(self) -> bool:
        """Whether scores can be weighted with it; if not, `merge` takes the mean."""
        return not self.note


def merge(scores: pd.DataFrame, method: str, reliability: Reliability | None = None) -> np.ndarray:
    """Merge the scores of several judges item by item.

    Parameters
    ----------
    scores : DataFrame of float, shape (items, judges)
        From 0 to 1; null where a judge gave none.
    method : {"majority", "mean", "reliability"}
        *majority*: the side of .5 on which more judges are, .5 for a tie. *reliability*: the posterior mean of the latent
        consensus, to which a judge without a sigma adds nothing; where no sigmas can be had, the mean.
    reliability : Reliability, optional
        Found on other items, so that an item's consensus does not depend on its company; by default on `scores`.

    Returns
    -------
    ndarray of float64, shape (items,)
        NaN (null) where no judge (with a weight) scored the item.
    """
    values = _to_array(scores)
    if method == "reliability":
        found = reliability or fit_reliability(scores)
        if found.usable:
            sigma = found.sigma[scores.columns].to_numpy()
            placed = ~np.isnan(sigma)
            level = _posterior(values[:, placed], sigma[placed])[0] @ _LEVELS
            return np.where(np.isnan(values[:, placed]).all(axis=1), np.nan, level)
    votes = np.where(np.isnan(values), np.nan, values >= 0.5) if method == "majority" else values
    share = pd.DataFrame(votes).mean(axis=1).to_numpy()
    return (np.sign(share - 0.5) + 1) / 2 if method == "majority" else share


def merge_all(scores: pd.DataFrame, reliability: Reliability) -> pd.DataFrame:
    """Merge scores in all three ways (`merge`), a column each."""
    return pd.DataFrame({method: merge(scores, method, reliability) for method in METHODS})


def fit_reliability(scores: pd.DataFrame) -> Reliability:
    """Find how far each judge strays from the latent consensus, from the scores alone (derived in docs/consensus.md).

    With fewer than three judges that can be placed, or without convergence, the result is not `usable` and its ``note``
    says why. For `scores` see `merge`.
    """
    values = _to_array(scores)
    placed = _placed(values)
    sigma = pd.Series(np.nan, index=scores.columns, name="sigma")
    if placed.sum() < PLACED:
        note = f"{int(placed.sum())} of {len(placed)} judges can be placed, {PLACED} are needed"
        return Reliability(sigma, 0, False, [], note)
    values, current, history, converged = values[:, placed], np.full(placed.sum(), 0.3), [], False
    scored = (~np.isnan(values)).sum(axis=0)
    while not converged and len(history) < ITERATIONS:
        posterior, likelihood = _posterior(values, current)
        history.append(float(likelihood - _doubt(current, scored).sum()))
        before, current = current, _sigmas(values, posterior)
        converged = bool(np.abs(np.log(current / before)).max() <= TOLERANCE)
    sigma[placed] = current
    note = "" if converged else f"not converged after {ITERATIONS} steps"
    return Reliability(sigma, len(history), converged, history, note)


def describe_judges(scores: pd.DataFrame, consensus: np.ndarray, reliability: Reliability) -> pd.DataFrame:
    """Say how each judge stands to a consensus, and name those that are far from it (rules in docs/consensus.md).

    Parameters
    ----------
    consensus : ndarray of float, shape (items,)
        A continuous one: votes of 0 and 1 are far from any judge with doubts.

    Returns
    -------
    DataFrame
        ``judge scored sigma weight leaning divergence far why``: items scored, sigma, share of the reliability of all
        (null where not known), mean score above the consensus, bits, and the rule that names it far.
    """
    precision = (reliability.sigma if reliability.usable else reliability.sigma * np.nan) ** -2.0
    rows = []
    for judge, values in zip(scores, _to_array(scores).T, strict=True):
        both = ~np.isnan(values) & ~np.isnan(consensus)
        own, other = values[both], consensus[both]
        divergence = divergence_bits(own, other).mean() if both.any() else np.nan
        reasons = {
            "all scores the same": len(own) >= SHARED and np.ptp(own) == 0,
            f"reliability below 1/{FAR_RATIO:g} of the median": precision[judge] * FAR_RATIO < precision.median(),
            f"divergence above {FAR_DIVERGENCE} bits": divergence > FAR_DIVERGENCE,
        }
        why = "; ".join(name for name, holds in reasons.items() if holds)
        rows.append({
            "judge": judge,
            "scored": int((~np.isnan(values)).sum()),
            "sigma": precision[judge] ** -0.5,
            "weight": precision[judge] / precision.sum(),
            "leaning": (own - other).mean() if both.any() else np.nan,
            "divergence": divergence,
            "far": bool(why),
            "why": why,
        })  # fmt: skip
    return pd.DataFrame(rows)


def divergence_bits(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the Jensen-Shannon divergence, in bits, of yes with probability `one` and with `other`, item by item."""
    first, second = np.stack([one, 1 - one]), np.stack([other, 1 - other])
    middle = (first + second) / 2
    nats = (rel_entr(first, middle) + rel_entr(second, middle)).sum(axis=0) / 2
    return np.maximum(nats, 0) / np.log(2)  # not below 0 by rounding


def compare_pairs(scores: pd.DataFrame) -> pd.DataFrame:
    """Compare several scores of the same contexts, pair by pair, over the contexts that both scored.

    Returns
    -------
    DataFrame
        ``one other both same_decision difference correlation``: contexts, share on the same side of .5, mean absolute
        difference, and Pearson's r (null where one does not vary).
    """
    rows = []
    for one, other in itertools.combinations(scores, 2):
        both = scores[[one, other]].dropna().astype(float)
        a, b = both[one], both[other]
        r = np.corrcoef(a, b)[0, 1] if (both.nunique() > 1).all() else np.nan
        rows.append((one, other, len(both), ((a >= 0.5) == (b >= 0.5)).mean(), (a - b).abs().mean(), r))
    return pd.DataFrame(rows, columns=["one", "other", "both", "same_decision", "difference", "correlation"])


def _to_array(scores: pd.DataFrame) -> np.ndarray:
    values = scores.apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    bad = scores.notna().to_numpy() & ~((values >= 0) & (values <= 1))
    if bad.any():
        row, judge = np.argwhere(bad)[0]
        where = f"judge {scores.columns[judge]!r}, row {scores.index[row]}"
        raise DataError(f"{bad.sum()} scores are not from 0 to 1; the first is {scores.iat[row, judge]!r}", where=where)
    return values


def _placed(values: np.ndarray) -> np.ndarray:
    # A judge that is not placed places nobody, so this is repeated until no more fall out.
    placed = np.ones(values.shape[1], dtype=bool)
    while True:
        shared = np.where((~np.isnan(values[:, placed])).sum(axis=1, keepdims=True) > 1, values, np.nan)
        enough, varies = (~np.isnan(shared)).sum(axis=0) >= SHARED, pd.DataFrame(shared).nunique() > 1
        still = placed & enough & varies.to_numpy()
        if (still == placed).all():
            return placed
        placed = still


def _posterior(values: np.ndarray, sigma: np.ndarray) -> tuple[np.ndarray, float]:
    """Return p(level | scores), shape (items, levels), and the log-likelihood of all scores."""
    seen = ~np.isnan(values)
    filled = np.where(seen, values, 0.0)
    precision = sigma**-2.0
    # The exponent -(s - m)^2 / 2 sigma^2, multiplied out, is two matrix products and a part that does not depend on m.
    level = 0.5 * precision[:, None] * _LEVELS**2 + _log_mass(sigma)
    joint = (filled @ precision)[:, None] * _LEVELS - seen.astype(float) @ level + _PRIOR
    evidence = logsumexp(joint, axis=1, keepdims=True)
    rest = seen @ (np.log(sigma) + 0.5 * np.log(2 * np.pi)) + 0.5 * filled**2 @ precision
    return np.exp(joint - evidence), float(evidence.sum() - rest.sum())


def _sigmas(values: np.ndarray, posterior: np.ndarray) -> np.ndarray:
    seen = ~np.isnan(values)
    filled = np.where(seen, values, 0.0)
    mean, square = posterior @ _LEVELS, posterior @ _LEVELS**2
    distance = (seen * (filled**2 - 2 * filled * mean[:, None] + square[:, None])).sum(axis=0)
    weights = seen.T.astype(float) @ posterior
    bounds = (np.log(FLOOR), np.log(CEILING))
    found = [
        minimize_scalar(_loss, bounds=bounds, args=judge, method="bounded", options={"xatol": 1e-7}).x
        for judge in zip(distance, weights, strict=True)
    ]
    return np.exp(found)


def _loss(log_sigma: float, distance: float, weights: np.ndarray) -> float:
    sigma = np.exp([log_sigma])
    spread, scored = 0.5 * distance / sigma[0] ** 2, weights.sum()
    return spread + scored * log_sigma + weights @ _log_mass(sigma)[0] + _doubt(sigma, scored)[0]


def _doubt(sigma: np.ndarray, scored: np.ndarray) -> np.ndarray:
    """Return minus the log prior of each sigma, up to a constant; `scored` is how many items its judge scored."""
    return np.maximum(DOUBT, DOUBT_SHARE * scored) * (np.log(sigma) + 0.5 * (STRAY / sigma) ** 2)


def _log_mass(sigma: np.ndarray) -> np.ndarray:
    """Return the log of a normal's mass inside [0, 1], shape (judges, levels)."""
    above = log_ndtr((1 - _LEVELS) / sigma[:, None])
    below = log_ndtr(-_LEVELS / sigma[:, None])
    return above + np.log1p(-np.exp(below - above))
