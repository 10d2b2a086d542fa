"""Tests of `evaluation`."""

import numpy as np
import pandas as pd
import pytest
from conftest import all_new
from sklearn.metrics import roc_auc_score

from drot_utils.analysis import evaluation


@pytest.fixture
def rows():
    return pd.DataFrame(
        {"action_id": ["a", "a", "b", "b"], "moral_variance": [1, -1, 1, -1], "context": ["x", "y", None, "z"]}
    )


def test_unparsed_is_not_valid_and_has_no_score(rows):
    table = evaluation.score_greedy(rows, np.array([0.9, 0.5, np.nan, 0.7]), 0.6)
    assert table["vld"].tolist() == [0.5, 0.5] and table["avg"].tolist() == pytest.approx([0.7, 0.7])


def test_unique_valid_ones_are_counted_a_prompt(rows):
    ten = pd.DataFrame({
        "action_id": ["a"] * 4, "moral_variance": [1, 1, 1, -1], "candidate": [0, 1, 2, 0], "context": ["x", "x", "w", "y"],
    })  # fmt: skip
    table = evaluation.score_sampled(ten, np.array([0.9, 0.9, 0.9, 0.1]), 0.6, all_new)
    assert table.loc["a"].tolist() == [1.5, 1.0]  # 3 and 0 valid, 2 and 0 of them different


def test_a_context_that_no_judge_scored_is_not_invalid(rows):
    none = evaluation.score_greedy(rows, np.array([0.9, np.nan, np.nan, 0.7]), 0.6)
    assert none["vld"].tolist() == [1.0, 0.5]  # b's first did not parse
    ten = pd.DataFrame(
        {"action_id": "a", "moral_variance": 1, "candidate": range(10), "context": [*"abcdefgh", None, None]}
    )
    for known, n_vld in ((8, 8), (4, 8), (3, np.nan)):
        scores = np.array([0.9] * known + [np.nan] * (10 - known))
        found = evaluation.score_sampled(ten, scores, 0.6, all_new).loc["a"]
        assert found.tolist() == pytest.approx([n_vld, 8 if known == 8 else np.nan], nan_ok=True)


def test_bootstrap_interval_covers_the_mean_and_narrows():
    rng = np.random.default_rng(0)
    few, many = rng.normal(3, 1, 20), rng.normal(3, 1, 2000)
    for values in (few, many):
        mean, low, high = evaluation.bootstrap_mean(values, 1000, 0)
        assert low < mean < high and mean == pytest.approx(values.mean())
    assert high - low < 0.12
    assert evaluation.bootstrap_mean(many, 1000, 0) == evaluation.bootstrap_mean(many, 1000, 0)
    assert np.isnan(evaluation.bootstrap_mean(np.array([np.nan]), 10, 0)).all()


def test_bootstrap_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for k in range(200):
        _, low, high = evaluation.bootstrap_mean(rng.normal(0, 1, 60), 300, k)
        hits += low <= 0 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_summary_leaves_what_a_model_lacks_null():
    index = pd.Index(["a", "b"], name="action_id")
    tables = {"teacher": pd.DataFrame({"vld": [1.0, 0.0], "avg": [0.9, 0.2]}, index=index)}
    row = evaluation.summarize(tables, 50, 0).iloc[0]
    assert row["auto_vld"] == 0.5 and np.isnan(row["auto_n_vld"]) and row["auto_vld_low"] <= 0.5 <= row["auto_vld_high"]


def test_paired_differences_pair_by_action():
    one = pd.DataFrame({"vld": [0.1, 0.9]}, index=["a", "b"])
    two = pd.DataFrame({"vld": [1.0, 0.2]}, index=["b", "a"])  # another order
    row = evaluation.paired_differences({"x": one, "y": two}, [("x", "y")], 200, 0).iloc[0]
    assert (
        row["difference"] == pytest.approx(0.1)
        and row["low"] == pytest.approx(0.1)
        and row["high"] == pytest.approx(0.1)
    )


def test_critic_metrics_and_one_class_only():
    valid, scores = np.array([True, True, False, False] * 20), np.array([0.9, 0.8, 0.3, 0.1] * 20)
    metrics = evaluation.bootstrap_metrics(valid, scores, 0.5, 100, 0)
    assert all(metrics[k] == 1 for k in evaluation.MEASURES)
    one = evaluation.bootstrap_metrics(valid[:1], scores[:1], 0.5, 100, 0)
    assert np.isnan(one["roc_auc"]) and one["accuracy"] == 1


def test_judges_against_the_gold():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(1)
    valid = rng.random(200) < 0.4
    scores = pd.DataFrame({"good": np.clip(valid * 0.5 + rng.normal(0.25, 0.2, 200).round(1), 0, 1)})
    scores = scores.assign(flat=0.7, some=scores["good"].where(np.arange(200) < 50), none=np.nan)
    table = evaluation.compare_with_gold(scores, valid, 200, 3).set_index("judge")
    assert table.loc["good", "roc_auc"] == pytest.approx(roc_auc_score(valid, scores["good"]))
    assert table.loc["good", "roc_auc_low"] < table.loc["good", "roc_auc"] < table.loc["good", "roc_auc_high"]
    assert table.loc["flat", "roc_auc"] == 0.5 and table.loc["flat", "accuracy"] == pytest.approx(valid.mean())
    assert table.loc["some", ["scored", "unscored"]].tolist() == [50, 150]
    assert np.isnan(table.loc["none", "accuracy"]) and table.loc["none", "scored"] == 0
    assert np.isnan(evaluation.compare_with_gold(scores[["good"]], valid | True, 20, 3)["roc_auc_low"][0])


def test_a_score_at_the_threshold_is_valid(rows):
    table = evaluation.score_greedy(rows, np.array([0.6, 0.5, np.nan, 0.6]), 0.6)
    assert table["vld"].tolist() == [0.5, 0.5]
    ten = rows.assign(context=["x", "y", "z", "w"])
    found = evaluation.score_sampled(ten, np.array([1.0, 0, 0, 0]), 1.0, all_new)
    assert found["n_vld"].tolist() == [0.5, 0.0]
    assert evaluation.bootstrap_metrics(np.array([True]), np.array([1.0]), 1.0, 5, 0)["accuracy"] == 1


@pytest.mark.parametrize("rows", [3, 40])
def test_metrics_of_many_resamples_are_sklearns(rows):
    from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

    rng = np.random.default_rng(rows)
    valid, scores = rng.random(rows) < 0.4, rng.random(rows).round(1)
    counts = evaluation._draw(rng, 60, rows)
    assert (counts.sum(axis=1) == rows).all()
    found = evaluation._measure(valid, scores, 0.5, counts)
    for k, row in enumerate(counts):
        v, s = np.repeat(valid, row), np.repeat(scores, row)
        assert found["accuracy"][k] == pytest.approx((v == (s >= 0.5)).mean())
        f1 = f1_score(v, s >= 0.5) if v.any() else np.nan
        assert found["f1"][k] == pytest.approx(f1, nan_ok=True)
        if 0 < v.sum() < rows:
            assert found["pr_auc"][k] == pytest.approx(average_precision_score(v, s))
            assert found["roc_auc"][k] == pytest.approx(roc_auc_score(v, s))
        else:
            assert np.isnan(found["pr_auc"][k]) and np.isnan(found["roc_auc"][k])


def test_as_many_resamples_are_drawn_as_asked(monkeypatch):
    drawn, draw = [], evaluation._draw
    monkeypatch.setattr(evaluation, "_draw", lambda rng, n, rows: drawn.append(n) or draw(rng, n, rows))
    valid, scores = np.arange(900) % 3 == 0, np.arange(900) / 900
    evaluation.bootstrap_metrics(valid, scores, 0.5, 2000, 0)
    assert sum(drawn) == 2000 and max(drawn) * 900 <= 1_000_000


def test_a_model_without_a_context_is_not_valid_and_has_no_average(candidates):
    rows = candidates.assign(context=pd.Series([None] * 6, dtype="str"))
    scores = np.full(6, np.nan)
    table = evaluation.score_greedy(rows, scores, 0.5)
    table = table.join(evaluation.score_sampled(rows, scores, 0.5, all_new))
    assert (table[["vld", "n_vld", "n_unq_vld"]] == 0).all(axis=None) and table["avg"].isna().all()
    summary = evaluation.summarize({"base": table}, 20, 0).iloc[0]
    assert summary["auto_vld"] == 0 and pd.isna(summary["auto_avg"]) and pd.isna(summary["auto_avg_low"])
    differences = evaluation.paired_differences({"a": table, "b": table}, [("a", "b")], 20, 0)
    assert differences.set_index("metric")["difference"].isna().to_dict()["avg"]
    none = evaluation.paired_differences({}, [], 20, 0)
    assert none.empty and none.dtypes.equals(differences.dtypes)


def test_a_critic_is_measured_over_all_rows_and_by_source():
    rows = pd.DataFrame({"source": ["a", "a", "b"], "valid": [True, False, False], "score": [0.9, 0.2, 0.6]})
    table = evaluation.measure_critic({"dev": rows, "test": rows[:2]}, 0.5, 10, 0)
    assert table["part"].tolist() == ["dev"] * 3 + ["test"] * 2 and table["source"].tolist() == [
        "all",
        "a",
        "invalid only",
        "all",
        "a",
    ]
    first = table.iloc[0]
    assert first["rows"] == 3 and first["accuracy"] == pytest.approx(2 / 3) == first["majority_accuracy"]
    assert table.loc[1, "accuracy"] == 1 and np.isnan(table.loc[2, "pr_auc"])


def test_table2_has_the_papers_order_and_its_numbers(rows):
    greedy = dict.fromkeys(("distill_final", "teacher", "base"), rows)
    samples = {"base": rows.assign(candidate=0)}
    found = evaluation.score_models(
        lambda part: np.where(part["context"].isna(), np.nan, 0.9), 0.5, greedy, samples, all_new
    )
    assert found["base"].columns.tolist() == evaluation.METRICS and found["teacher"]["vld"].tolist() == [1, 0.5]
    train_rows = {"distill_final": 7, "teacher": None, "base": None}
    table = evaluation.make_table2({"auto_": found, "independent_": found}, train_rows, 20, 0).set_index("model")
    assert (
        table.index.tolist() == ["teacher", "base", "distill_final"] and table.loc["distill_final", "train_rows"] == 7
    )
    assert table["independent_vld"].tolist() == table["auto_vld"].tolist() == [0.75] * 3
    assert (
        table["auto_n_vld"].notna().tolist() == [False, True, False] and table.loc["teacher", "paper_auto_vld"] == 0.53
    )
    assert not [column for column in table if "human" in column]


def test_ranking_is_measured_within_students_and_prompts():
    rng = np.random.default_rng(3)
    rows = pd.DataFrame({
        "recipe": rng.choice(["one", "two"], 400), "source": rng.choice(["student-base", "student-round-1"], 400),
        "action_id": rng.choice([*"abcdefgh"], 400), "moral_variance": rng.choice([1, -1], 400),
        "valid": rng.random(400) < 0.4,
    }, index=range(50, 450))  # fmt: skip
    rows.loc[rows["action_id"] == "a", "valid"] = True  # two prompts without an AUC
    score = (rng.random(400) + rows["valid"] * 0.3).round(1).to_numpy()
    table = evaluation.measure_ranking(rows, {"critic": score, "blind": np.zeros(400)})
    assert table["by"].tolist() == ["all", "student-base", "student-round-1", *rows["recipe"].unique()] * 2
    every = table.iloc[0]
    scored = rows.assign(score=score)

    def plain(keys):
        groups = [g for _, g in scored.groupby(keys) if g["valid"].nunique() == 2]
        return np.mean([roc_auc_score(g["valid"], g["score"]) for g in groups])

    assert every["auc_student"] == pytest.approx(plain(["recipe", "source"])) and every["students"] == 4
    assert every["auc_prompt"] == pytest.approx(plain(["action_id", "moral_variance"])) and every["prompts"] == 14
    best = scored.sort_values("score", ascending=False, kind="stable")["valid"]
    assert every[["top_tenth", "top_fifth"]].tolist() == pytest.approx([best[:40].mean(), best[:80].mean()])
    assert table["rows"].tolist()[0] == table["rows"][1:3].sum() == table["rows"][3:5].sum() == 400
    blind = table[table["critic"] == "blind"]
    assert blind["auc_student"].eq(0.5).all() and blind["auc_prompt"].eq(0.5).all()


def test_ranking_of_rows_of_one_kind_is_unknown():
    rows = pd.DataFrame({"recipe": "", "source": "", "action_id": "a", "moral_variance": 1, "valid": [True] * 3})
    found = evaluation.measure_ranking(rows, {"critic": np.array([0.1, 0.2, 0.3])})
    assert found["by"].tolist() == ["all", ""] and found["students"].eq(0).all()
    assert found["auc_student"].isna().all() and found["top_tenth"].eq(1).all()
