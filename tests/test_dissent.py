import numpy as np
import pandas as pd
import pytest
from test_consensus import SIGMAS, draw_scores

from drot_utils import consensus, dissent


def describe(scores):
    found = consensus.fit_reliability(scores)
    merged = consensus.merge(scores, "reliability", found)
    return dissent.describe_judges(scores, merged, found).set_index("judge")


def test_who_answers_at_random_or_the_wrong_way_is_named():
    truth, scores = draw_scores(400, [0.1, 0.12, 0.15], 9)
    scores["random"] = np.random.default_rng(1).random(400)
    scores["contrary"] = 1 - truth
    table = describe(scores)
    assert table.index[table["far"]].tolist() == ["random", "contrary"]
    assert table["weight"].sum() == pytest.approx(1) and table.loc["random", "weight"] < 0.02
    assert "of the median" in table.loc["random", "why"] and "bits" in table.loc["contrary", "why"]


def test_equals_are_not_named():
    _, scores = draw_scores(200, [0.1, 0.12, 0.15], 3)
    table = describe(scores)
    assert not table["far"].any() and (table["why"] == "").all()
    assert table["leaning"].abs().max() < 0.05 and (table["scored"] == 200).all()


def test_a_constant_judge_is_named_and_has_no_weight():
    table = describe(draw_scores(200, SIGMAS[:3], 6)[1].assign(stubborn=0.9))
    assert table.loc["stubborn", "far"] and "all scores the same" in table.loc["stubborn", "why"]
    assert np.isnan(table.loc["stubborn", "weight"]) and table["weight"].sum() == pytest.approx(1)


def test_without_reliabilities_the_divergence_still_names():
    scores = pd.DataFrame({"a": [0.9, 0.1] * 10, "b": [0.1, 0.9] * 10, "c": [np.nan] * 20})
    table = describe(scores)
    assert table["weight"].isna().all() and table["sigma"].isna().all()
    assert table["far"].tolist() == [True, True, False] and np.isnan(table.loc["c", "divergence"])


def test_divergence():
    assert dissent.divergence_bits(np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.5, 1.0])).tolist() == [
        1,
        0,
        0,
    ]
    assert dissent.divergence_bits(np.array([0.3]), np.array([0.7]))[0] == pytest.approx(0.1187, abs=1e-4)


def test_pairs():
    scores = pd.DataFrame(
        {"a": [0.9, 0.1, np.nan], "b": [0.7, 0.6, 0.2], "c": [0.5, 0.5, np.nan], "d": [np.nan] * 3}
    )
    table = dissent.compare_pairs(scores).set_index(["one", "other"])
    assert len(table) == 6 and table.loc[("a", "b"), "both"] == 2
    assert table.loc[("a", "b"), "same_decision"] == 0.5
    assert table.loc[("b", "c"), "same_decision"] == 1  # .5 reaches .5
    assert table.loc[("a", "b"), "difference"] == pytest.approx(0.35)
    assert table.loc[("a", "b"), "correlation"] == pytest.approx(1) and np.isnan(
        table.loc[("a", "c"), "correlation"]
    )
    assert table.loc[("a", "d"), "both"] == 0 and np.isnan(table.loc[("a", "d"), "same_decision"])
    assert dissent.compare_pairs(scores[["a"]]).empty
