import pandas as pd
import pytest
from conftest import ALL_YES, FORM, fill

from drot_utils import annotation, forms
from drot_utils.errors import DataError


def test_the_form_is_blind_and_shuffled(key, asked, tmp_path):
    form = pd.read_csv(tmp_path / "forms" / f"{FORM.name}.csv", keep_default_na=False)
    assert list(form) == [*forms.SHOWN, *FORM.questions] and (form[list(FORM.questions)] == "").all().all()
    assert (
        sorted(form["context"]) == sorted(asked["context"])
        and form["context"].tolist() != asked["context"].tolist()
    )
    assert set(form["direction"]) == {"more acceptable", "less acceptable"}
    assert "S` yes, slightly" in (tmp_path / "forms" / f"{FORM.name}.md").read_text()


def test_what_is_filled_comes_back_and_gaps_are_null(key, tmp_path):
    fill(tmp_path, "ann", ALL_YES)
    fill(tmp_path, "bob", {**ALL_YES, "q2": {r: "" if r == "r00001" else "N" for r in key["row_id"]}})
    filled = forms.read_filled(FORM, tmp_path / "filled", key)
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
        forms.read_filled(FORM, tmp_path / "filled", key)


def test_no_filled_form_and_a_missing_column(key, tmp_path):
    with pytest.raises(DataError, match="no filled form named"):
        forms.read_filled(FORM, tmp_path, key)
    fill(tmp_path, "ann", ALL_YES)
    path = tmp_path / "filled" / f"{FORM.name}-ann.csv"
    pd.read_csv(path).drop(columns="q3").to_csv(path, index=False)
    with pytest.raises(DataError, match="missing column q3"):
        forms.read_filled(FORM, tmp_path / "filled", key)


def test_same_prompts_for_every_model(candidates):
    both = pd.concat([candidates, candidates.assign(source="other")], ignore_index=True)
    picked = forms.pick_prompts(both, 1, 0)
    assert picked.groupby("source").size().tolist() == [3, 3] and picked["action_id"].nunique() == 1
