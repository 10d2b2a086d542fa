"""Tests of `inference`."""

import numpy as np
import pandas as pd
import pytest

from drot_utils.analysis import inference


def simulate(rng, n, bias, rows=10_000):
    """Two contexts of each action, alike; a critic that sees something and is off by `bias`; votes on `n`. Their mean is .5."""
    actions = np.arange(rows) // 2
    valid = (rng.random(rows // 2).repeat(2) > rng.random(rows)).astype(float)
    scores = np.clip(0.4 * valid + bias + 0.3 * rng.standard_normal(rows), 0, 1)
    voted = np.isin(actions, rng.choice(rows // 2, n // 2, replace=False))
    return np.where(voted, valid, np.nan), actions, scores


@pytest.mark.parametrize("bias", [0.35, 0.05])
def test_intervals_by_votes_and_scores_cover_and_the_critics_alone_do_not(bias):
    rng, times = np.random.default_rng(0), 600
    covers, narrower, naive = [], [], []
    for _ in range(times):
        votes, actions, scores = simulate(rng, 300, bias)
        _, low, high, _ = inference.estimate_mean(votes, actions, scores)
        covers.append(low <= 0.5 <= high)
        alone = inference.estimate_mean(votes, actions)
        narrower.append(high - low < alone[2] - alone[1])
        naive.append(abs(scores.mean() - 0.5) <= 1.96 * scores.std() / np.sqrt(len(scores)))
    assert 0.93 <= np.mean(covers) <= 0.97 and np.mean(narrower) > 0.99 and np.mean(naive) < 0.05


def test_so_many_votes_halve_the_interval():
    rng = np.random.default_rng(1)
    widths = {}
    for n in (100, 100, 100):
        votes, actions, scores = simulate(rng, n, 0.2, rows=20_000)
        _, low, high, needed = inference.estimate_mean(votes, actions, scores)
        votes, actions, scores = simulate(rng, int(needed), 0.2, rows=20_000)
        _, less, more, _ = inference.estimate_mean(votes, actions, scores)
        widths[needed] = (more - less) / (high - low)
    assert np.mean([*widths.values()]) == pytest.approx(0.5, abs=0.1)
    votes, actions, scores = simulate(rng, 9_000, 0.2)
    assert np.isnan(inference.estimate_mean(votes, actions, scores)[3])  # more actions are wanted


def test_few_votes_give_a_wide_interval_and_none_give_none():
    actions, scores = np.arange(40) // 2, np.linspace(0, 1, 40)
    ten = np.where(np.arange(40) % 4 == 0, 1.0, np.nan)
    mean, low, high, _ = inference.estimate_mean(ten, actions, scores)
    assert mean == 1 and high == 1 and 0.5 < low < 0.8
    assert np.isnan(inference.estimate_mean(np.full(40, np.nan), actions, scores)).all()
    one = np.where(np.arange(40) == 0, 1.0, np.nan)
    assert inference.estimate_mean(one, actions, scores)[1:3] == (0, 1)
    mean, low, high, _ = inference.estimate_mean(ten * 0, actions, scores, (-1.0, 1.0))  # ten differences of nothing
    assert mean == 0 and low == -high and 0.15 < high < 0.5


def test_how_many_votes_halve_the_interval_of_equal_votes():
    votes = np.where(np.arange(2000) < 50, 1.0, np.nan)
    _, low, high, needed = inference.estimate_mean(votes, np.arange(2000))
    _, less, more, _ = inference.estimate_mean(np.where(np.arange(2000) < needed, 1.0, np.nan), np.arange(2000))
    assert 100 < needed < 300 and more - less < (high - low) / 2
    assert np.isnan(inference.estimate_mean(votes[:50], np.arange(50))[3])  # all are voted on


def test_where_all_are_voted_on_scores_change_nothing():
    votes, actions, scores = simulate(np.random.default_rng(2), 200, 0.2, rows=200)
    found = inference.estimate_mean(votes, actions, scores)
    assert found[:3] == pytest.approx(inference.estimate_mean(votes, actions)[:3]) and found[0] == votes.mean()


@pytest.fixture
def voted():
    """Greedy contexts of three writers for 100 actions; the critic is right about the first, and ever kinder to the others."""
    rng, parts = np.random.default_rng(3), []
    for model, share, kind in (("teacher", 0.6, 0.0), ("distill_base", 0.4, 0.1), ("distill_final", 0.4, 0.4)):
        actions = np.arange(200) // 2
        truth = (rng.random(200) < share).astype(float)
        part = pd.DataFrame({"action_id": actions, "moral_variance": [1, -1] * 100, "candidate": 0, "source": model})
        part["context"] = "in need"
        score = np.clip(0.2 + 0.4 * truth + kind, 0, 1)
        parts.append(part.assign(set="greedy", critic_score=score, valid=np.where(actions < 40, truth, np.nan)))
    return pd.concat(parts, ignore_index=True)


def test_a_critics_error_is_shown_by_model(voted):
    table = inference.estimate_valid(voted).set_index("model")
    assert list(table.index) == ["teacher", "distill_base", "distill_final"] and table["voted"].tolist() == [80] * 3
    assert (
        table.loc["distill_final", "bias"] > 0.25
        and table.loc["distill_final", "bias_low"] > table.loc["teacher", "bias_high"]
    )
    known = voted[voted["action_id"] < 40]
    assert table["votes_vld"].tolist() == known.groupby("source", sort=False)["valid"].mean().tolist()
    assert (table["ppi_vld_high"] - table["ppi_vld_low"] < table["votes_vld_high"] - table["votes_vld_low"]).all()
    assert table["critic_avg"].tolist() == pytest.approx(
        known.groupby("source")["critic_score"].mean()[table.index].tolist()
    )
    assert (table["critic_avg"] - table["bias"]).tolist() == pytest.approx(table["votes_vld"].tolist())
    assert table["different_valid"].eq(1).all()
    named = voted.assign(context=["In need", "in need", "at home", "at work"] * 150)
    several = named[named["valid"].eq(1) & named["source"].eq("teacher")]["context"].str.casefold().nunique()
    assert inference.estimate_valid(named)["different_valid"].iloc[0] == several == 3
    blind = inference.estimate_valid(voted.assign(critic_score=np.nan))
    assert blind["ppi_vld"].tolist() == blind["votes_vld"].tolist() and blind[["bias", "critic_avg"]].isna().all(
        axis=None
    )
    silent = inference.estimate_valid(voted.assign(valid=np.nan))
    assert silent["voted"].eq(0).all() and silent[["ppi_vld", "bias", "votes_to_halve"]].isna().all(axis=None)


def test_a_rise_by_a_kinder_critic_is_none_by_votes(voted):
    row = inference.estimate_changes(voted, [("distill_base", "distill_final"), ("base", "distill_final")]).iloc[0]
    assert row["voted"] == 160 and row["ppi_low"] < 0 < row["ppi_high"] and row["ppi_high"] - row["ppi_low"] < 0.35
    assert inference.estimate_changes(voted, []).empty


def test_each_critics_error_is_told(voted):
    told = inference.estimate_valid(voted.assign(independent_score=voted["critic_score"] - 0.2))
    assert (told["independent_bias"] + 0.2).tolist() == pytest.approx(told["bias"].tolist())
    assert "independent_bias" not in inference.estimate_valid(voted)


def test_text_that_was_not_parsed_is_not_valid_and_not_an_error_of_the_critic(voted):
    voted.loc[:19, ["context", "critic_score", "valid"]] = [None, np.nan, 0.0]
    row = inference.estimate_valid(voted).iloc[0]
    part = voted[(voted["source"] == "teacher") & (voted["action_id"] < 40)]
    known = part[part["context"].notna()]
    assert row[["rows", "parsed", "voted"]].tolist() == [200, 180, 60]
    assert row["votes_vld"] == pytest.approx(known["valid"].mean() * 180 / 200)
    assert row["bias"] == pytest.approx((known["critic_score"] - known["valid"]).mean())
    change = inference.estimate_changes(voted, [("teacher", "distill_base")]).iloc[0]
    other = inference.estimate_valid(voted).iloc[1]
    assert change["votes"] == pytest.approx(other["votes_vld"] - row["votes_vld"]) and change["voted"] == 140
    voted.loc[:199, ["context", "critic_score", "valid"]] = [None, np.nan, np.nan]
    row = inference.estimate_valid(voted).iloc[0]
    assert row["votes_vld"] == 0 < row["votes_vld_high"] < 0.05 and row["voted"] == 0


@pytest.mark.parametrize("answered", [1.0, 0.5, 0.2])
def test_a_form_answered_in_part_biases_nothing(answered):
    """A fifth does not parse, whose zeros are known also where the contexts beside them are not answered; 60 of 240 are drawn."""
    rng, levels, changes = np.random.default_rng(4), [], []
    actions, sides = np.arange(240) // 2, np.repeat([-1, 1], 240)
    for _ in range(150):
        easy = rng.beta(2, 2, 120)[actions]
        valid = (rng.random(480) < np.concatenate([easy, easy])).astype(float)
        written, drawn = rng.random(480) < 0.8, np.tile(rng.permutation(240) < 60, 2)
        votes = np.where(drawn & (rng.random(480) < answered), valid, np.nan)
        votes = np.where(drawn & ~written, 0.0, votes)
        scores = 0.3 + 0.4 * valid + 0.2 * rng.standard_normal(480)
        levels.append(inference.estimate_mean(votes[:240], actions, scores[:240], written=written[:240])[:3])
        changes.append(inference.estimate_mean(votes, np.tile(actions, 2), scores, written=written, signs=sides)[:3])
    for found, truth in ((np.array(levels), 0.4), (np.array(changes), 0.0)):
        assert found[:, 0].mean() == pytest.approx(truth, abs=0.03)
        assert np.mean((found[:, 1] <= truth) & (truth <= found[:, 2])) > 0.91
