"""Tests of `statistics`."""

import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
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
@settings(max_examples=150)
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


def write_all(contexts, kept=True, scores=0.5):
    rows = pd.DataFrame(
        {"action_id": [f"a{i // 2}" for i in range(len(contexts))], "moral_variance": 1, "context": contexts}
    )
    return rows.assign(nli_kept=True, kept=kept, critic_score=scores).astype({"nli_kept": "boolean", "kept": "boolean"})


def test_collapse_is_counted_writer_by_writer(candidates):
    own = [f"context {i}" for i in range(20)]
    half = ["Alone", "alone"] * 5 + own[10:]
    third = write_all(
        [*half[:8], None, None, *own[10:]], kept=[True, *[False] * 19], scores=[0.9] * 8 + [np.nan] * 2 + [0.1] * 10
    )
    third.loc[third.index[:4], "nli_kept"] = False
    votes = pd.DataFrame(
        {"action_id": ["a0", "a0", "a5", "a99"], "moral_variance": 1, "context": ["Alone", "Alone", own[10], "x"]}
    )
    votes["valid"] = [True, False, False, True]
    table = statistics.measure_collapse(
        {"teacher": write_all(own), "distill_base": write_all(half), "self_distill_1": third}, votes
    ).set_index("writer")
    assert table["written"].tolist() == [20] * 3 and table["different_per_100"].tolist() == pytest.approx(
        [100, 55, 100 * 11 / 18]
    )
    assert table["top_ten_share"].tolist() == pytest.approx([0.5, 19 / 20, 17 / 18])
    assert table["prompts"].tolist() == [10] * 3 and table["prompts_covered"].tolist() == [10, 10, 1]
    assert table["nli_share"].tolist() == pytest.approx([0, 0, 4 / 18])
    last = table.loc["self_distill_1"]
    assert last["mean_score"] == pytest.approx((8 * 0.9 + 10 * 0.1) / 18)
    assert last[["voted", "voted_valid", "voted_score"]].tolist() == pytest.approx([2, 0.25, 0.5])
    assert table.loc["teacher", "voted"] == 1 and table.loc["teacher", "voted_valid"] == 0


def test_a_student_that_repeats_itself_twice_as_often_is_a_warning():
    def warnings(**different):
        return statistics.warn_collapse(pd.DataFrame(different.items(), columns=["writer", "different_per_100"]))

    assert warnings(teacher=100, distill_base=80, self_distill_1=61, self_distill_2=40) == []
    (one,) = warnings(teacher=100, distill_base=80, self_distill_1=60, self_distill_2=50)
    assert one.startswith(
        "Warning: SelfDistill_1 repeats itself: 40 of 100 contexts were written before, 20 by Distill_base"
    )
    # What collapses step by step doubles in none; notebook 7 holds each student against Distill_base.
    assert warnings(distill_base=80, self_distill_1=65, self_distill_2=55, distill_final=45) == []
    since = {"distill_base": 80, "self_distill_1": 65, "self_distill_2": 55, "distill_final": 45}
    table = pd.DataFrame(since.items(), columns=["writer", "different_per_100"])
    two, final = statistics.warn_collapse(table, "variety", since="distill_base")
    assert "SelfDistill_2 repeats" in two and "45 of 100" in two and "20 by Distill_base" in final
    assert final.endswith("See the table `variety`.")
    assert warnings(distill_base=99, self_distill_1=96) == [] and len(warnings(distill_base=99, self_distill_1=95)) == 1


def test_nothing_written_collapses_to_nothing(candidates):
    rows = candidates.iloc[:0]
    table = statistics.measure_collapse({"teacher": rows}, rows.assign(valid=True))
    assert table["written"].tolist() == [0] and table["voted"].tolist() == [0] and table["mean_score"].isna().all()
    assert table["nli_share"].dtype == table["mean_score"].dtype == "float64"  # what figures can draw
    none = statistics.measure_collapse(
        {"distill_base": write_all(["a", "b"]), "self_distill_1": rows}, rows.assign(valid=True)
    )
    assert none["different_per_100"].isna().tolist() == [False, True] and statistics.warn_collapse(none) == []
