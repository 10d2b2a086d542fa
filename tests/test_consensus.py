"""Tests of `consensus`."""

import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.stats import spearmanr, truncnorm

from drot_utils.method import consensus
from drot_utils.study.errors import DataError

SIGMAS = [0.08, 0.15, 0.3, 0.6]


def draw_scores(items, sigmas, seed, missing=0.0):
    """Return latent levels, and scores of judges drawn from the model of `fit_reliability`."""
    rng = np.random.default_rng(seed)
    truth = rng.random(items)
    columns = [truncnorm.rvs(-truth / s, (1 - truth) / s, loc=truth, scale=s, random_state=rng) for s in sigmas]
    scores = np.stack(columns, axis=1)
    scores[rng.random(scores.shape) < missing] = np.nan
    return truth, pd.DataFrame(scores, columns=[f"judge{k}" for k in range(len(sigmas))])


def distance(values, truth):
    both = ~np.isnan(values)
    return float(np.sqrt(np.mean((values[both] - truth[both]) ** 2)))


def weaken(patch):
    """Leave little of the prior of sigma."""
    patch.setattr(consensus, "DOUBT", 2.0)
    patch.setattr(consensus, "DOUBT_SHARE", 0.0)


@pytest.mark.parametrize("missing", [0.0, 0.35])
def test_known_reliabilities_are_recovered_but_for_the_prior(missing, monkeypatch):
    truth, scores = draw_scores(1500, SIGMAS, 1, missing)
    found = consensus.fit_reliability(scores)
    assert found.usable and found.note == ""
    assert spearmanr(found.sigma, SIGMAS).statistic == 1 and (found.sigma > 0.1).all()
    with monkeypatch.context() as patch:
        weaken(patch)
        assert np.allclose(consensus.fit_reliability(scores).sigma, SIGMAS, rtol=0.15, atol=0.02)
    off = {method: distance(consensus.merge(scores, method), truth) for method in consensus.METHODS}
    assert off["reliability"] < 0.8 * off["mean"] < off["mean"] < off["majority"]


def test_alike_judges_get_the_mean():
    truth, scores = draw_scores(800, [0.2] * 4, 2)
    reliable = consensus.merge(scores, "reliability")
    assert distance(reliable, truth) <= distance(consensus.merge(scores, "mean"), truth) * 1.02
    assert np.corrcoef(reliable, scores.mean(axis=1))[0, 1] > 0.98


def test_no_step_lowers_what_is_maximised():
    found = consensus.fit_reliability(draw_scores(300, SIGMAS, 3, 0.2)[1])
    assert len(found.objective) == found.iterations > 5
    assert np.diff(found.objective).min() > -1e-6


def test_the_likelihood_is_that_of_the_model():
    _, scores = draw_scores(4, SIGMAS[:3], 4, 0.2)
    sigma = np.array(SIGMAS[:3])
    levels = np.linspace(0, 1, 20_001)
    expected = 0.0
    for row in scores.to_numpy():
        density = np.ones_like(levels)
        for score, s in zip(row, sigma, strict=True):
            if not np.isnan(score):
                density *= truncnorm.pdf(score, -levels / s, (1 - levels) / s, loc=levels, scale=s)
        expected += np.log(np.trapezoid(density, levels))
    posterior, likelihood = consensus._posterior(scores.to_numpy(), sigma)
    assert likelihood == pytest.approx(expected, abs=5e-3)  # the trapezoid rule at the edges
    assert np.allclose(posterior.sum(axis=1), 1)


@settings(max_examples=15)
@given(st.permutations(range(4)), st.integers(0, 5))
def test_the_order_of_items_and_judges_does_not_matter(order, seed):
    _, scores = draw_scores(120, SIGMAS, seed, 0.1)
    items = np.random.default_rng(seed).permutation(len(scores))
    turned = scores.iloc[items, list(order)]
    for method in consensus.METHODS:
        one, other = consensus.merge(scores, method), consensus.merge(turned, method)
        assert np.allclose(one[items], other, atol=1e-3, equal_nan=True)


@settings(max_examples=60)
@given(
    arrays.arrays(
        float,
        st.tuples(st.integers(0, 25), st.integers(1, 4)),
        elements=st.one_of(st.just(np.nan), st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0])),
    ),
    st.sampled_from(consensus.METHODS),
)
def test_any_scores_give_null_or_a_score(values, method):
    scores = pd.DataFrame(values, columns=[f"j{k}" for k in range(values.shape[1])])
    merged = consensus.merge(scores, method)
    assert merged.shape == (len(values),)
    given_any = ~np.isnan(values).all(axis=1)
    if method != "reliability":
        assert (np.isnan(merged) == ~given_any).all()
    assert np.isnan(merged[~given_any]).all()
    seen = merged[~np.isnan(merged)]
    assert ((seen >= 0) & (seen <= 1)).all()
    assert np.array_equal(merged, consensus.merge(scores, method), equal_nan=True)


def test_majority_and_mean():
    scores = pd.DataFrame({"a": [0.9, 0.2, None, 0.6], "b": [0.6, 0.5, None, 0.1], "c": [0.1, 0.9, None, None]})
    assert consensus.merge(scores, "majority")[[0, 1, 3]].tolist() == [1, 1, 0.5]  # .5 is a yes; a tie is .5
    assert consensus.merge(scores, "mean")[[0, 3]] == pytest.approx([1.6 / 3, 0.35])
    assert np.isnan(consensus.merge(scores, "majority")[2]) and np.isnan(consensus.merge(scores, "mean")[2])


def test_one_judge_and_two_cannot_be_weighed():
    _, scores = draw_scores(60, SIGMAS, 5)
    for count, placed in ((1, 0), (2, 2)):
        some = scores.iloc[:, :count]
        found = consensus.fit_reliability(some)
        assert not found.usable and found.note == f"{placed} of {count} judges can be placed, 3 are needed"
        assert np.array_equal(consensus.merge(some, "reliability"), some.mean(axis=1))
    assert np.array_equal(consensus.merge(scores[["judge0"]], "mean"), scores["judge0"])


def test_a_constant_judge_has_no_weight():
    _, scores = draw_scores(200, SIGMAS[:3], 6)
    found = consensus.fit_reliability(scores.assign(stubborn=0.9))
    assert np.isnan(found.sigma["stubborn"]) and found.usable
    merged = consensus.merge(scores.assign(stubborn=0.9), "reliability")
    assert np.allclose(merged, consensus.merge(scores, "reliability"), atol=1e-6)
    only = scores.assign(stubborn=0.9)
    only.loc[0, ["judge0", "judge1", "judge2"]] = np.nan
    assert np.isnan(consensus.merge(only, "reliability")[0])  # only the judge without a weight scored it


def test_identical_judges_come_as_near_as_the_prior_lets_them(monkeypatch):
    _, scores = draw_scores(150, [0.1, 0.3], 7)
    scores["copy"] = scores["judge0"]
    many = pd.concat([scores] * 20, ignore_index=True)
    sigma = consensus.fit_reliability(many).sigma
    assert sigma["copy"] == pytest.approx(sigma["judge0"]) and 0.1 < sigma["copy"] < 0.15 and sigma["judge1"] > 0.25
    with monkeypatch.context() as patch:
        weaken(patch)
        sigma = consensus.fit_reliability(many).sigma
        assert sigma[["judge0", "copy"]].to_numpy() == pytest.approx([consensus.FLOOR] * 2, rel=1e-3)
        assert np.abs(consensus.merge(scores, "reliability") - scores["judge0"]).max() < 0.03
    everyone = pd.DataFrame(dict.fromkeys("abc", scores["judge0"]))
    assert np.isfinite(consensus.merge(everyone, "reliability")).all()


def test_nobody_is_infallible_after_a_few_votes():
    rng = np.random.default_rng(1)
    truth = rng.random(100) < 0.4
    votes = {f"a{k}": np.where(np.isin(np.arange(100), 3 * np.arange(3) + k), ~truth, truth) for k in range(3)}
    sigma = consensus.fit_reliability(pd.DataFrame(votes).astype(float)).sigma
    assert sigma.max() / sigma.min() < 1.1  # three errors each


def draw_votes(items, right, seed):
    """Return what is so of items, and judges who say .9 or .1, each right so often."""
    rng = np.random.default_rng(seed)
    truth = rng.random(items) < 0.5
    votes = [np.where(rng.random(items) < share, truth, ~truth) for share in right]
    return truth, pd.DataFrame(dict(enumerate(votes))) * 0.8 + 0.1


def accuracy(scores, method, truth):
    return ((consensus.merge(scores, method) >= 0.5) == truth).mean()


@pytest.mark.parametrize("items", [60, 200, 300, 1000])
@pytest.mark.parametrize("right", [[0.8] * 5, [0.94] * 3])
def test_no_one_of_several_equals_takes_over(items, right):
    lost = []
    for seed in range(4):
        truth, scores = draw_votes(items, right, seed)
        weight = consensus.fit_reliability(scores).sigma ** -2.0
        assert (weight / weight.sum()).max() < 1.6 / len(right)
        lost.append(accuracy(scores, "majority", truth) - accuracy(scores, "reliability", truth))
    assert np.mean(lost) < 0.015


@pytest.mark.parametrize("items", [200, 300, 1000])
def test_one_who_knows_more_is_heard(items):
    truth, scores = draw_votes(items, [0.95] + [0.65] * 4, 1)
    assert consensus.fit_reliability(scores).sigma.idxmin() == 0
    assert accuracy(scores, "reliability", truth) > accuracy(scores, "majority", truth) + 0.04


def test_judges_who_share_nothing_are_not_placed():
    _, scores = draw_scores(100, SIGMAS, 8)
    scores.iloc[:50, 3] = np.nan
    scores.iloc[50:, :3] = np.nan
    found = consensus.fit_reliability(scores)
    assert found.usable and np.isnan(found.sigma["judge3"]) and found.sigma.notna().sum() == 3


def test_reliabilities_found_elsewhere_make_scores_independent_of_company():
    _, scores = draw_scores(300, SIGMAS, 10)
    found = consensus.fit_reliability(scores)
    together = consensus.merge(scores, "reliability", found)
    alone = np.concatenate([consensus.merge(scores.iloc[[i]], "reliability", found) for i in range(5)])
    assert np.allclose(together[:5], alone, atol=1e-12)
    with pytest.raises(KeyError, match="other"):
        consensus.merge(scores.rename(columns={"judge0": "other"}), "reliability", found)


@pytest.mark.parametrize("bad", [1.2, -0.1, np.inf, "high"])
def test_a_foreign_score_names_its_judge_and_row(bad):
    scores = pd.DataFrame({"a": [0.1, 0.2], "b": [0.5, 0.5]}, index=["r1", "r2"], dtype=object)
    scores.loc["r2", "b"] = bad
    with pytest.raises(DataError, match=r"judge 'b'") as caught:
        consensus.merge(scores, "mean")
    assert "row r2" in str(caught.value)


def test_ten_thousand_items_take_seconds():
    _, scores = draw_scores(10_000, [*SIGMAS, 1.0], 11)
    began = time.perf_counter()
    assert consensus.fit_reliability(scores).usable
    assert time.perf_counter() - began < 60  # 4 seconds on two slow cores; generous, as tests share a machine


def describe(scores):
    found = consensus.fit_reliability(scores)
    merged = consensus.merge(scores, "reliability", found)
    return consensus.describe_judges(scores, merged, found).set_index("judge")


def test_who_answers_at_random_or_the_wrong_way_is_named():
    truth, scores = draw_scores(400, [0.1, 0.12, 0.15], 9)
    scores["random"] = np.random.default_rng(1).random(400)
    scores["contrary"] = 1 - truth
    table = describe(scores)
    assert table.index[table["far"]].tolist() == ["random", "contrary"]
    assert table["weight"].sum() == pytest.approx(1) and table.loc["random", "weight"] < 0.05
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
    assert consensus.divergence_bits(np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.5, 1.0])).tolist() == [1, 0, 0]
    assert consensus.divergence_bits(np.array([0.3]), np.array([0.7]))[0] == pytest.approx(0.1187, abs=1e-4)


def test_pairs():
    scores = pd.DataFrame({"a": [0.9, 0.1, np.nan], "b": [0.7, 0.6, 0.2], "c": [0.5, 0.5, np.nan], "d": [np.nan] * 3})
    table = consensus.compare_pairs(scores).set_index(["one", "other"])
    assert len(table) == 6 and table.loc[("a", "b"), "both"] == 2
    assert table.loc[("a", "b"), "same_decision"] == 0.5
    assert table.loc[("b", "c"), "same_decision"] == 1  # .5 reaches .5
    assert table.loc[("a", "b"), "difference"] == pytest.approx(0.35)
    assert table.loc[("a", "b"), "correlation"] == pytest.approx(1) and np.isnan(table.loc[("a", "c"), "correlation"])
    assert table.loc[("a", "d"), "both"] == 0 and np.isnan(table.loc[("a", "d"), "same_decision"])
    assert consensus.compare_pairs(scores[["a"]]).empty
