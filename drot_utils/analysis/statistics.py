"""Counts over what was written: collapse, and table 1 (section 2), in Arrow's columns, as a million rows are too many for Python strings."""

import itertools

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from drot_utils.data.table import PROMPT
from drot_utils.study.graph import label

BLANK = r"[^\p{L}\p{N}'’]+"
WIDEST = 1 << 21  # so many different words that three numbers below it still fit into 63 bits


def table1(rows: pd.DataFrame) -> pd.DataFrame:
    """Count the kept rows as table 1 does: ``type polarity entries trigrams mean_words``.

    Validity and language (% Vld., % Lan.) are human judgments: see `11_human_evaluation`.
    """
    actions = rows["action"].drop_duplicates()
    out = [("Action", "all", len(actions), count_trigrams(actions), mean_words(actions))]
    for kind in ("context", "rationale"):
        trigrams, row = _trigrams(rows[kind])
        variance = rows["moral_variance"].to_numpy()
        stronger, weaker = (_distinct(trigrams[variance[row] == sign]) for sign in (1, -1))
        found = {"all": _distinct(np.concatenate([stronger, weaker])), "strengthening": stronger, "weakening": weaker}
        for name, signs in (("all", (1, -1)), ("strengthening", (1,)), ("weakening", (-1,))):
            texts = rows.loc[np.isin(variance, signs), kind]
            out.append((kind.capitalize(), name, len(texts), len(found[name]), mean_words(texts)))
    return pd.DataFrame(out, columns=["type", "polarity", "entries", "trigrams", "mean_words"])


def count_trigrams(texts: pd.Series) -> int:
    """Return the number of different word 3-grams in `texts` (lower case, punctuation aside)."""
    return len(_distinct(_trigrams(texts)[0]))


def mean_words(texts: pd.Series) -> float:
    """Return the mean number of blank-separated words a text (the paper: 11.7 a context)."""
    column = _column(texts.dropna())
    mean = pc.mean(pc.list_value_length(pc.utf8_split_whitespace(pc.utf8_trim_whitespace(column)))).as_py()
    return float("nan") if mean is None else mean


def _trigrams(texts: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return a number for each 3-gram of each text, the same for the same three words, and the text's row."""
    lower = pc.utf8_lower(_column(texts.fillna("")))
    words = pc.split_pattern(pc.utf8_trim(pc.replace_substring_regex(lower, BLANK, " "), " "), " ")
    row = pc.list_parent_indices(words).to_numpy().astype(np.int32)
    coded = words.flatten().dictionary_encode()
    del lower, words  # some hundred megabytes a million rows
    number, size = coded.indices.to_numpy(), len(coded.dictionary)
    pair = number[:-2].astype(np.int64)
    pair *= size
    pair += number[1:-1]
    if size >= WIDEST:
        pair = np.unique(pair, return_inverse=True)[1]
    pair *= size
    pair += number[2:]
    whole = row[:-2] == row[2:]  # a 3-gram does not run over into the next text
    return pair[whole], row[:-2][whole]


def _column(texts: pd.Series) -> pa.LargeStringArray:
    column = pa.array(texts.astype("str"), pa.large_string())
    # What comes from a file of several row groups comes in pieces.
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _distinct(numbers: np.ndarray) -> np.ndarray:
    # Sorting 64-bit numbers is several times as fast as hashing them, in NumPy and in Arrow.
    ordered = np.sort(numbers)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]]


#: Of 100 contexts, so many repeated ones worry nobody, and twice as many as the writer before has are a warning.
FEW, TOO_MANY = 5, 2


def measure_collapse(written: dict[str, pd.DataFrame], voted: pd.DataFrame) -> pd.DataFrame:
    """Return, for each writer in turn, how far it repeats itself and how widely its kept contexts spread.

    Parameters
    ----------
    written : dict of DataFrame
        All candidates of each writer as `distill.apply_filters` flags them, in the order of the rounds.
    voted : DataFrame
        ``action_id moral_variance context valid``: what annotators said of contexts; those of these writers count.

    Returns
    -------
    DataFrame
        ``writer written``; ``nli_share`` dropped by the NLI filter, of those that parse; ``different_per_100`` contexts, whatever
        the case; ``top_ten_share``, that of the ten commonest; ``prompts``, ``prompts_covered`` by what is kept; ``mean_score``;
        ``voted``, how many have votes, and of these ``voted_valid``, the share that is valid, and ``voted_score``, the mean score.
    """
    item, records = ["action_id", "moral_variance", "context"], []
    votes = voted.groupby(item)["valid"].mean()
    for writer, rows in written.items():
        parsed = rows[rows["context"].notna()]
        counts = parsed["context"].str.casefold().value_counts()
        valid = votes.reindex(pd.MultiIndex.from_frame(parsed[item])).to_numpy(dtype=float)
        seen, total = ~np.isnan(valid), len(parsed) or np.nan
        records.append({
            "writer": writer, "written": len(rows), "nli_share": 1 - parsed["nli_kept"].astype("float64").mean(),
            "different_per_100": 100 * len(counts) / total, "top_ten_share": counts.head(10).sum() / total,
            "prompts": rows.groupby(PROMPT).ngroups, "prompts_covered": rows[rows["kept"]].groupby(PROMPT).ngroups,
            "mean_score": parsed["critic_score"].mean(), "voted": int(seen.sum()),
            "voted_valid": valid[seen].mean() if seen.any() else np.nan, "voted_score": parsed["critic_score"][seen].mean(),
        })  # fmt: skip
    return pd.DataFrame(records)


def warn_collapse(collapse: pd.DataFrame, table: str = "collapse", since: str | None = None) -> list[str]:
    """Return a warning for each student that repeats itself twice as often as the one before, or as the writer `since`.

    Parameters
    ----------
    collapse : DataFrame
        ``writer different_per_100``, as from `measure_collapse`.
    table : str
        Where a reader finds these numbers.
    """
    repeated = dict(zip(collapse["writer"], 100 - collapse["different_per_100"], strict=True))
    pairs = [(since, writer) for writer in repeated] if since else itertools.pairwise(repeated)
    return [
        f"Warning: {label(after)} repeats itself: {repeated[after]:.0f} of 100 contexts were written before, "
        f"{repeated[before]:.0f} by {label(before)}. See the table `{table}`."
        for before, after in pairs
        if repeated[after] >= max(FEW, TOO_MANY * repeated[before]) and before != "teacher"
    ]
