"""Counts over the data set: table 1, and how often a context or its words come back (section 2)."""

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

BLANK = r"[^\p{L}\p{N}'’]+"


def count_trigrams(texts: pd.Series) -> int:
    """Return the number of different word 3-grams in `texts` (lower case, punctuation aside).

    Parameters
    ----------
    texts : Series of str, shape (rows,)
    """
    column = pa.array(texts.dropna().astype(str), pa.large_string())
    clean = pc.utf8_trim(pc.replace_substring_regex(pc.utf8_lower(column), BLANK, " "), " ")
    words = pc.split_pattern(clean, " ")
    flat, row = words.flatten(), pc.list_parent_indices(words)
    if len(flat) < 3:
        return 0
    whole = pc.equal(row[:-2], row[2:])  # a 3-gram does not run over into the next text
    grams = pc.binary_join_element_wise(
        *(flat[i : len(flat) - 2 + i].filter(whole) for i in range(3)), pa.scalar(" ", pa.large_string())
    )
    return pc.count_distinct(grams).as_py()


def mean_words(texts: pd.Series) -> float:
    """Return the mean number of blank-separated words a text (the paper: 11.7 a context)."""
    return float(texts.dropna().str.split().str.len().mean())


def table1(rows: pd.DataFrame) -> pd.DataFrame:
    """Count the data set as table 1 does.

    Parameters
    ----------
    rows : DataFrame
        ``action moral_variance context rationale`` of the kept rows.

    Returns
    -------
    DataFrame
        ``type polarity entries trigrams mean_words``: actions, then contexts and rationales (all, strengthening,
        weakening). Validity and language (% Vld., % Lan.) are human judgments: see `11_human_evaluation`.
    """
    actions = rows["action"].drop_duplicates()
    out = [("Action", "all", len(actions), count_trigrams(actions), mean_words(actions))]
    for kind in ("context", "rationale"):
        for name, part in (("all", rows), ("strengthening", rows[rows["moral_variance"] == 1]), ("weakening", rows[rows["moral_variance"] == -1])):  # fmt: skip
            texts = part[kind]
            out.append((kind.capitalize(), name, len(texts), count_trigrams(texts), mean_words(texts)))
    return pd.DataFrame(out, columns=["type", "polarity", "entries", "trigrams", "mean_words"])
