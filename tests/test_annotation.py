import numpy as np
import pandas as pd
import pytest
from conftest import ALL_YES, FORM, fill

from drot_utils import annotation, exchange


def test_majority_and_ties():
    votes = pd.DataFrame(
        [["Y", "Y", "N"], ["Y", "S", "N"], ["N", None, "N"], [None, None, None]], columns=list("abc")
    )
    assert annotation.majority(votes, ["Y", "S", "N"]).fillna("null").tolist() == ["Y", "S", "N", "null"]


def test_agreement_is_fleiss_kappa():
    # Fleiss (1971) for three raters, by hand: P = (1 + 1/3 + 1) / 3, P_e = (5/9)^2 + (4/9)^2.
    votes = pd.DataFrame([["Y", "Y", "Y"], ["Y", "Y", "N"], ["N", "N", "N"]])
    found = annotation.agreement(votes)
    expected = (7 / 9 - 41 / 81) / (1 - 41 / 81)
    assert (
        found["kappa"] == pytest.approx(expected)
        and found["full"] == pytest.approx(2 / 3)
        and found["majority"] == 1
    )
    assert annotation.agreement(votes.replace({"N": None}))["rows"] == 1
    assert np.isnan(annotation.agreement(pd.DataFrame([["Y", "Y"]]))["kappa"])
    assert np.isnan(annotation.agreement(pd.DataFrame([[None, "Y"]]))["full"])


def test_agreement_of_a_crowd_asks_not_whose_votes_they_are():
    by_three = pd.DataFrame([["Y", "Y", "Y"], ["Y", "Y", "N"], ["N", "N", "N"]])
    crowd = pd.DataFrame(np.full((5, 9), None, dtype=object))
    for i, row in enumerate(by_three.to_numpy()):
        crowd.iloc[i, [i, i + 2, i + 5]] = row
    crowd.iloc[3, 0] = crowd.iloc[4, 1] = "Y"  # one vote only
    assert annotation.agreement(crowd) == annotation.agreement(by_three)
    assert annotation.agreement(crowd)["annotators"] == 3 and annotation.agreement(crowd)["rows"] == 3


def test_table4_and_table2_from_filled_forms(key, tmp_path):
    weak = key.loc[key["moral_variance"] == -1, "row_id"].tolist()
    q2 = {r: ("N" if r == weak[0] else "S" if r in weak else "Y") for r in key["row_id"]}
    for name in ("ann", "bob", "cyd"):
        fill(tmp_path, name, {**ALL_YES, "q2": q2})
    judged = annotation.judge_rows(exchange.read_filled(FORM, tmp_path / "filled", key)[0], key)
    table = annotation.table4(judged).set_index(["type", "polarity"])
    assert table.loc[("Context", "strengthening"), ["valid_pct", "significant_pct"]].tolist() == [100, 100]
    assert table.loc[("Context", "weakening"), ["valid_pct", "significant_pct", "slight_pct"]].tolist() == [
        50,
        0,
        100,
    ]
    assert (
        table.loc[("Context", "all"), "rows"] == 5 and table.loc[("Rationale", "all"), "language_pct"] == 100
    )
    both = pd.concat([judged, judged.assign(set="sampled")])
    row = annotation.human_table2(both, lambda p, h: np.zeros(len(p)), 0.5).iloc[0]
    assert row["human_vld"] == pytest.approx(4 / 5) and row["human_defease"] == pytest.approx((3 + 0.5) / 5)
    assert row["human_n_vld"] == 2 and list(row.index) == ["model", *annotation.HUMAN_COLUMNS]


def test_unparsed_rows_count_as_not_valid(candidates):
    rows = annotation.as_invalid(candidates[candidates["context"].isna()].assign(set="greedy"))
    row = annotation.human_table2(rows, lambda p, h: np.zeros(len(p)), 0.5).iloc[0]
    assert row["human_vld"] == 0 and row["human_defease"] == 0 and np.isnan(row["human_lan"])
