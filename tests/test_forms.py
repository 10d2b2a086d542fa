"""Tests of `forms`."""

import pandas as pd
import pytest
from conftest import FORM

from drot_utils.people import forms
from drot_utils.study.errors import DataError


def votes_on(key, **answers):
    """Votes of one annotator on all rows, Y where nothing else is said."""
    return key[["row_id"]].assign(annotator="ann", where="here", **{**dict.fromkeys(FORM.questions, "Y"), **answers})


def test_the_key_is_shuffled_and_numbered(asked):
    key = forms.make_key(FORM, asked, 1)
    assert sorted(key["context"]) == sorted(asked["context"])
    assert key["context"].tolist() != asked["context"].tolist()
    assert key["row_id"].str.fullmatch(r"evaluation_form-[0-9a-f]{6}-\d{5}").all() and key["row_id"].is_unique
    assert {forms.form_of(r) for r in key["row_id"]} == {"evaluation_form"} and forms.form_of("r1") is None
    pd.testing.assert_frame_equal(key, forms.make_key(FORM, asked, 1))


def test_a_row_id_says_which_run_and_form_it_is_of(asked):
    key = forms.make_key(FORM, asked, 1)
    others = (
        forms.make_key(FORM, asked, 2),
        forms.make_key(FORM, asked.assign(context="x"), 1),
        forms.make_key(forms.CRITIC_FORM, asked, 1),
    )
    for other in others:
        assert not set(key["row_id"]) & set(other["row_id"])


def test_what_is_shown_is_blind_and_one_line(asked):
    key = forms.make_key(FORM, asked.assign(context="a\x00b\nc\x85d"), 1)
    shown = forms.show_rows(key)
    assert list(shown) == forms.SHOWN and set(shown["context"]) == {"a b c d"}
    assert set(shown["direction"]) == {"more acceptable", "less acceptable"}


def test_same_prompts_for_every_model(candidates):
    both = pd.concat([candidates, candidates.assign(source="other")], ignore_index=True)
    picked = forms.pick_prompts(both, 1, 0)
    assert picked.groupby("source").size().tolist() == [3, 3] and picked["action_id"].nunique() == 1


def test_good_votes_pass(key):
    forms.check_votes(votes_on(key), FORM, key)
    forms.check_votes(votes_on(key, q3="").head(2), FORM, key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q2": "maybe"}, r"here, q2: expected one of Y, S, N or nothing, found 'maybe'[\s\S]*use the codes"),
        ({"q4": "Y+N"}, r"here, q4: expected one of .* found 'Y\+N'"),
        ({"row_id": "r1"}, r"here: the row_id 'r1' is not in the key"),
        ({"row_id": "evaluation_form-000000-00001"}, r"is of the form of another run"),
    ],
)
def test_foreign_values_and_unknown_rows(key, change, message):
    with pytest.raises(DataError, match=message):
        forms.check_votes(votes_on(key, **change).head(1), FORM, key)


def test_a_second_answer(key):
    twice = pd.concat([votes_on(key), votes_on(key).tail(1)])
    with pytest.raises(DataError, match=r"here: a second answer to the same row_id by ann"):
        forms.check_votes(twice, FORM, key)
    forms.check_votes(pd.concat([votes_on(key), votes_on(key).assign(annotator="bob")]), FORM, key)


def test_several_codes_however_they_are_joined():
    question = forms.CONTENT_FORM.questions["q1"]
    for given in ("time+own", "own, time", "time|own|time", " own time "):
        assert question.normalize(given) == "own+time"
    assert (
        question.normalize("who+own") == "own+who" and question.normalize("") == "" and question.normalize("-") == "-"
    )
    assert FORM.questions["q2"].normalize("Y+N") == "Y+N"  # one answer is wanted


@pytest.mark.parametrize("given", ["own+who", "-+own", "Y"])
def test_several_codes_are_checked_one_by_one(asked, given):
    key = forms.make_key(forms.CONTENT_FORM, asked, 1)
    votes = key[["row_id"]].assign(annotator="ann", where="here", q1="own+time", q2="-")
    forms.check_votes(votes, forms.CONTENT_FORM, key)
    with pytest.raises(DataError, match=r"here, q1: expected some \(joined by \+\) of own, .* found"):
        forms.check_votes(votes.assign(q1=given), forms.CONTENT_FORM, key)


def test_candidates_for_the_next_critic(candidates):
    rows = pd.concat([candidates.assign(action_id=f"a{n}") for n in range(20)], ignore_index=True)
    rows["critic_score"] = rows.index / len(rows)
    rows.loc[rows.index % 6 == 0, "context"] = [f"context {n}" for n in range(20)]
    picked = forms.pick_candidates(rows, uncertain=4, repeated=3, random=5, seed=1)
    assert picked["set"].value_counts().to_dict() == {"random": 5, "uncertain": 4, "repeated": 3}
    common = picked.loc[picked["set"] == "repeated", "context"]
    assert common.is_unique and not common.str.startswith("context ").any()
    assert (picked.loc[picked["set"] == "uncertain", "critic_score"] - 0.5).abs().max() < 0.05
    assert not picked.duplicated(["action_id", "moral_variance", "context"]).any()
    assert len(forms.pick_candidates(candidates, 9, 9, 9, 0)) == 5  # all there are, but what did not parse
