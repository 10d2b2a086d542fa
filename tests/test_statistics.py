"""Tests of `statistics`."""

import re

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from drot_utils.analysis import statistics

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
    assert table.loc[("Context", "strengthening"), "entries"] + table.loc[("Context", "weakening"), "entries"] == 5
    assert table.loc[("Context", "weakening"), "trigrams"] == 1  # "to a judge"
    assert table.loc[("Context", "weakening"), "mean_words"] == 2.5


def test_a_column_in_pieces_counts_as_one(tmp_path):
    rows = pd.DataFrame({"action": ["a fire", "a lie", "a fire"], "moral_variance": [1, -1, 1]})
    rows = rows.assign(context=["at a camp", "in a court", "at a camp"], rationale="it is safe there")
    pq.write_table(pa.Table.from_pandas(rows), tmp_path / "rows.parquet", row_group_size=1)
    pd.testing.assert_frame_equal(
        statistics.table1(pd.read_parquet(tmp_path / "rows.parquet")), statistics.table1(rows)
    )


def test_no_rows_and_one_row_are_counted(candidates):
    none = statistics.table1(candidates.iloc[:0])
    assert len(none) == 7 and (none[["entries", "trigrams"]] == 0).all(axis=None) and none["mean_words"].isna().all()
    one = statistics.table1(candidates.iloc[:1]).set_index(["type", "polarity"])
    assert one.loc[("Action", "all")].tolist() == [1, 1, 3] and one.loc[("Context", "all")].tolist() == [1, 1, 3]
    assert one.loc[("Context", "weakening"), ["entries", "trigrams"]].tolist() == [0, 0]
    assert pd.isna(one.loc[("Context", "weakening"), "mean_words"])
