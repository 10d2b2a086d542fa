import re

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from drot_utils import statistics

TEXTS = st.lists(st.one_of(st.none(), st.text(st.sampled_from("abA c,.'é-"), max_size=20)), max_size=12)


def plain(texts):
    grams = set()
    for text in texts:
        words = [w for w in re.split(r"[^\w'’]+|_", (text or "").lower()) if w]
        grams |= {tuple(words[i : i + 3]) for i in range(len(words) - 2)}
    return len(grams)


@given(TEXTS)
@settings(max_examples=150, deadline=None)
def test_trigrams_are_counted_as_one_would_by_hand(texts):
    assert statistics.count_trigrams(pd.Series(texts, dtype="str")) == plain(texts)


def test_table1_counts_by_direction(candidates):
    rows = candidates[candidates["context"].notna()]
    table = statistics.table1(rows).set_index(["type", "polarity"])
    assert table.loc[("Action", "all"), "entries"] == 2
    assert table.loc[("Context", "all"), "entries"] == 5
    assert (
        table.loc[("Context", "strengthening"), "entries"] + table.loc[("Context", "weakening"), "entries"]
        == 5
    )
    assert table.loc[("Context", "weakening"), "trigrams"] == 1  # "to a judge"
    assert table.loc[("Context", "weakening"), "mean_words"] == 2.5
