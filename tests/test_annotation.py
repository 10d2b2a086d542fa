import numpy as np
import pandas as pd
import pytest

from drot_utils import annotation
from drot_utils.errors import DataError

FORM = annotation.EVALUATION_FORM


@pytest.fixture
def asked(candidates):
    return candidates[candidates["context"].notna()].assign(set="greedy").reset_index(drop=True)


@pytest.fixture
def key(asked, tmp_path):
    return annotation.export_form(FORM, asked, tmp_path / "forms", 1)


def fill(tmp_path, name, answers):
    """Fill a copy of the exported form; answers by row_id, or the same for all rows."""
    form = pd.read_csv(tmp_path / "forms" / f"{FORM.name}.csv", dtype=str, keep_default_na=False)
    for question, value in answers.items():
        form[question] = [value[r] if isinstance(value, dict) else value for r in form["row_id"]]
    (tmp_path / "filled").mkdir(exist_ok=True)
    form.to_csv(tmp_path / "filled" / f"{FORM.name}-{name}.csv", index=False)


ALL_YES = {"q1": "Y", "q2": "Y", "q3": "Y", "q4": "Y"}


def test_the_form_is_blind_and_shuffled(key, asked, tmp_path):
    form = pd.read_csv(tmp_path / "forms" / f"{FORM.name}.csv", keep_default_na=False)
    assert (
        list(form) == [*annotation.SHOWN, *FORM.questions] and (form[list(FORM.questions)] == "").all().all()
    )
    assert (
        sorted(form["context"]) == sorted(asked["context"])
        and form["context"].tolist() != asked["context"].tolist()
    )
    assert set(form["direction"]) == {"more acceptable", "less acceptable"}
    assert "S` yes, slightly" in (tmp_path / "forms" / f"{FORM.name}.md").read_text()


def test_what_is_filled_comes_back_and_gaps_are_null(key, tmp_path):
    fill(tmp_path, "ann", ALL_YES)
    fill(tmp_path, "bob", {**ALL_YES, "q2": {r: "" if r == "r00001" else "N" for r in key["row_id"]}})
    filled = annotation.read_filled(FORM, tmp_path / "filled", key)
    assert set(filled["annotator"]) == {"ann", "bob"} and len(filled) == 2 * len(key)
    votes = annotation.spread_votes(filled, "q2")
    assert votes["ann"].eq("Y").all() and votes["bob"].isna().sum() == 1


@pytest.mark.parametrize(
    ("question", "value", "message"),
    [("q2", "maybe", r"line 2, q2.*expected one of Y, S, N or nothing, found 'maybe'"), ("row_id", "r99999", "not in the key"),
     ("row_id", "r00001", "second answer to the same row_id")],
)  # fmt: skip
def test_foreign_values_and_unknown_rows(key, tmp_path, question, value, message):
    fill(tmp_path, "ann", {**ALL_YES, question: value})
    with pytest.raises(DataError, match=message):
        annotation.read_filled(FORM, tmp_path / "filled", key)


def test_no_filled_form_and_a_missing_column(key, tmp_path):
    with pytest.raises(DataError, match="no filled form named"):
        annotation.read_filled(FORM, tmp_path, key)
    fill(tmp_path, "ann", ALL_YES)
    path = tmp_path / "filled" / f"{FORM.name}-ann.csv"
    pd.read_csv(path).drop(columns="q3").to_csv(path, index=False)
    with pytest.raises(DataError, match="missing column q3"):
        annotation.read_filled(FORM, tmp_path / "filled", key)


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


def test_table4_and_table2_from_filled_forms(key, tmp_path):
    weak = key.loc[key["moral_variance"] == -1, "row_id"].tolist()
    q2 = {r: ("N" if r == weak[0] else "S" if r in weak else "Y") for r in key["row_id"]}
    for name in ("ann", "bob", "cyd"):
        fill(tmp_path, name, {**ALL_YES, "q2": q2})
    judged = annotation.judge_rows(annotation.read_filled(FORM, tmp_path / "filled", key), key)
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


def test_same_prompts_for_every_model(candidates):
    both = pd.concat([candidates, candidates.assign(source="other")], ignore_index=True)
    picked = annotation.pick_prompts(both, 1, 0)
    assert picked.groupby("source").size().tolist() == [3, 3] and picked["action_id"].nunique() == 1
