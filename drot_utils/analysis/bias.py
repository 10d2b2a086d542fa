"""The country probe: does the student write other contexts for other countries, and how much? (section 5.2, table 10)"""

import re

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist

from drot_utils.data.table import make_table

#: Columns of a comparison of groups.
COLUMNS = {"group": "str", "texts": "int64"} | dict.fromkeys(
    ["distance", "expected", "expected_low", "expected_high", "p_value", "p_holm"], "float64"
)


def probe_actions(action: str, countries: list[str]) -> pd.DataFrame:
    """Return one action a country: ``action_id`` (the country's name) and ``action``."""
    return pd.DataFrame({"action_id": countries, "action": [action.format(country=c) for c in countries]})


def hide_country(text: str, countries: list[str]) -> str:
    """Return `text` with every country's name replaced: the name alone must not make two contexts differ."""
    pattern = "|".join(sorted(map(re.escape, countries), key=len, reverse=True))
    return re.sub(rf"\b(?:{pattern})\b", "the country", text, flags=re.IGNORECASE)


def compare_groups(
    embeddings: np.ndarray, groups: np.ndarray, permutations: int, seed: int
) -> tuple[pd.DataFrame, np.ndarray]:
    """Measure how far each group's texts lie from all others', with a permutation test.

    The measure is the energy distance (Székely and Rizzo, 2013) between the group's embeddings and the others', 0 when both
    are samples of one distribution; the test shuffles the group labels. P-values are corrected for the number of groups
    (Holm). Fewer than two groups have nothing to be compared with: the numbers are null, and a sentence says so.

    Parameters
    ----------
    embeddings : ndarray of float, shape (texts, width)
    groups : ndarray of str, shape (texts,)

    Returns
    -------
    table : DataFrame
        `COLUMNS`, one row a group, the farthest first; `expected` is the mean distance under shuffled labels, which is
        above 0 for samples of this size, and 95% of those distances lie from `expected_low` to `expected_high`.
    pairs : ndarray of float, shape (groups, groups)
        Energy distance of each pair of groups, in the order of first appearance.
    """
    from statsmodels.stats.multitest import multipletests

    names = list(dict.fromkeys(groups))
    if len(names) < 2:
        print(f"{f'Texts of {names[0]} only' if names else 'No texts'}: there is nothing to compare.")
        alone = [(name, len(groups), *[np.nan] * 6) for name in names]
        return make_table(alone, COLUMNS), np.zeros((len(names), len(names)))
    distances = cdist(embeddings, embeddings)
    member = np.array([groups == name for name in names], dtype=float)
    found = _energy_to_rest(distances, member)
    rng = np.random.default_rng(seed)
    orders = (rng.permutation(len(groups)) for _ in range(permutations))
    shuffled = np.array([_energy_to_rest(distances, member[:, order]) for order in orders])
    # Texts that occur often give equal distances, which rounding must not tell apart.
    p_values = (1 + (shuffled >= found - 1e-9).sum(axis=0)) / (1 + permutations)
    p_holm = multipletests(p_values, method="holm")[1]
    chance = (shuffled.mean(axis=0), *np.quantile(shuffled, [0.025, 0.975], axis=0))
    rows = zip(names, member.sum(axis=1), found, *chance, p_values, p_holm, strict=True)
    table = make_table(list(rows), COLUMNS)
    share = member / member.sum(axis=1, keepdims=True)
    between = share @ distances @ share.T
    within = np.diag(between)
    pairs = 2 * between - within[:, None] - within[None, :]
    return table.sort_values("distance", ascending=False, kind="stable", ignore_index=True), np.maximum(pairs, 0)


def _energy_to_rest(distances: np.ndarray, member: np.ndarray) -> np.ndarray:
    inside = member / member.sum(axis=1, keepdims=True)
    outside = (1 - member) / (1 - member).sum(axis=1, keepdims=True)
    to_inside = inside @ distances
    cross, within = (to_inside * outside).sum(axis=1), (to_inside * inside).sum(axis=1)
    return np.maximum(2 * cross - within - ((outside @ distances) * outside).sum(axis=1), 0)
