"""Tests of `distill`."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from drot_utils.analysis import statistics
from drot_utils.data import corpora, table
from drot_utils.method import distill, student
from drot_utils.method.nli import filter_unique
from drot_utils.report import release
from drot_utils.study.errors import DataError, MissingInputError


class FixedCritic:
    """Scores by the length of the context."""

    def score(self, rows: pd.DataFrame) -> np.ndarray:
        return rows["context"].str.len().to_numpy(dtype=float) / 20


def letters_filter(study, groups):
    """Drop what has the same letters."""

    def entails(premises, hypotheses):
        pairs = zip(premises, hypotheses, strict=True)
        return np.array([float(p.replace(" ", "") == h.replace(" ", "")) for p, h in pairs])

    filtered = filter_unique(groups, entails, 0.5)
    POSSIBLE.append(filtered.pairs_possible)
    return filtered


POSSIBLE = []


@pytest.fixture
def apply(study, monkeypatch):
    """Apply the filters to rows, with these two as judges."""
    monkeypatch.setattr(distill, "filter_groups", letters_filter)

    def apply(rows, threshold, leave_out=()):
        scorer = distill.Scorer("x", FixedCritic().score, {"distill": threshold})
        return distill.apply_filters(study, rows, scorer, "distill", leave_out)

    return apply


def test_actions_are_sampled_without_replacement(actions, smoke):
    parts = corpora.sample_actions(actions, smoke.corpus, 1)
    ids = [set(part["action_id"]) for part in parts.values()]
    assert sum(map(len, ids)) == len(set().union(*ids)) and [len(p) for p in parts.values()] == [40, 12, 12, 16, 12]
    assert set(parts["test"]["split"]) == {"test"}
    again = corpora.sample_actions(actions, smoke.corpus, 1)
    assert all(parts[k].equals(again[k]) for k in parts) and not parts["seed"].equals(
        corpora.sample_actions(actions, smoke.corpus, 2)["seed"]
    )


def test_all_that_remain(actions, smoke):
    plan = smoke.corpus.model_copy(update={"final_actions": None, "test_actions": None})
    parts = corpora.sample_actions(actions, plan, 1)
    assert len(parts["final"]) == 670 - 40 - 24 and len(parts["test"]) == 120


@pytest.mark.parametrize(
    "changes", [{"seed_actions": 700}, {"test_actions": 121}, {"seed_actions": 646, "final_actions": None}]
)
def test_fewer_actions_than_asked_for(actions, smoke, changes):
    with pytest.raises(DataError, match=r"asked for \d+ actions of the (train|test) split, found"):
        corpora.sample_actions(actions, smoke.corpus.model_copy(update=changes), 1)


def test_filters_flag_and_never_delete(candidates, apply):
    rows, kept, dropped = apply(candidates, 0.45)
    assert rows["nli_kept"].fillna(False).tolist() == [True, False, True, True, False, True] and pd.isna(
        rows["nli_kept"][4]
    )
    assert rows["kept"].tolist() == [True, False, True, True, False, False] and kept.index.tolist() == [0, 2, 3]
    assert rows["dropped"].astype(object).where(~rows["kept"], "").tolist() == ["", "nli", "", "", "unparsed", "critic"]
    assert dropped == {"unparsed": 1, "nli": 1, "critic": 1} and len(rows) == len(candidates)
    assert POSSIBLE[-1] == 3 * 2 + 2


def test_filters_can_be_left_out(candidates, apply):
    rows, _, dropped = apply(candidates, 0.45, ("nli",))
    assert rows["kept"].sum() == 4 and rows["nli_kept"].isna().all() and dropped["nli"] == 0
    rows, _, dropped = apply(candidates, 0.45, ("critic",))
    assert rows["kept"].sum() == 4 and not rows["kept"][4] and dropped == {"unparsed": 1, "nli": 1, "critic": 0}
    assert rows["critic_score"].notna().sum() == 5  # scores are kept where they do not filter
    assert apply(candidates, 0.45, ("nli", "critic"))[0]["kept"].sum() == 5


def test_a_filter_of_ones_own_is_counted_in_its_place(candidates, apply, monkeypatch):
    short = lambda rows, study, threshold: ({}, {"short": rows["context"].str.split().str.len() < 3})  # noqa: E731
    unparsed, nli, critic = distill.FILTERS.items()
    monkeypatch.setattr(distill, "FILTERS", dict([unparsed, ("short", short), nli, critic]))
    rows, _, dropped = apply(candidates, 0.45)
    assert list(dropped) == ["unparsed", "short", "nli", "critic"] and dropped["short"] == 1
    assert rows["kept"].sum() + sum(dropped.values()) == len(rows)
    assert pd.isna(rows["nli_kept"][5])  # who is dropped before blocks nobody


def test_a_score_at_the_threshold_passes(candidates, apply):
    exact = 13 / 20  # "at a campsite"
    assert apply(candidates, exact)[0]["kept"][0]


def test_rows_that_are_counted_by_part_add_up(candidates, apply):
    rows, _, dropped = apply(candidates, 0.45)
    parts = [distill.count_dropped(part) for _, part in rows.groupby("action_id")]
    assert {name: sum(part[name] for part in parts) for name in dropped} == dropped


def test_fine_tune_keeps_a_record_and_is_not_done_twice(study, candidates, monkeypatch):
    rows = candidates[candidates["context"].notna()]
    record = student.fine_tune(study, rows, "distill_base", start=None, learning_rate=1e-3, epochs=2)
    assert record["rows"] == 5 and record == student.read_training(study, "distill_base")
    monkeypatch.setattr(student.trainer, "train", lambda *a, **k: pytest.fail("trained again"))
    assert student.fine_tune(study, rows, "distill_base", start=None, learning_rate=1e-3, epochs=2) == record


def test_nothing_kept_is_an_error(study, candidates):
    with pytest.raises(DataError, match="lower the critic threshold"):
        student.fine_tune(study, candidates.iloc[:0], "distill_base", start=None, learning_rate=1e-3, epochs=1)


def test_a_round_in_which_nothing_is_kept_is_counted_and_can_be_kept(candidates, study, apply):
    rows, kept, dropped = apply(candidates, 2.0)
    assert kept.empty and sum(dropped.values()) == len(rows)
    path = table.write_candidates(kept, study.run.data("d1"))
    union = pd.concat([table.read_table(path), rows], ignore_index=True)
    union, kept, _ = apply(union, 2.0)
    assert union["kept"].sum() == 0 and len(union) == len(rows)
    assert statistics.table1(kept)["entries"].sum() == 0
    assert "written by\nnobody;" in release.data_card(kept, [], study.params, 0.5)


def test_scorers_are_whom_the_parameters_name(study, monkeypatch):
    monkeypatch.setattr(distill, "score_contexts", lambda study, name, rows: name)
    monkeypatch.setattr(distill, "load_panel", lambda study: SimpleNamespace(score=lambda rows: "the judges"))
    for name in ("critic", "critic_independent", "judges"):
        study.run.model(name).mkdir(parents=True, exist_ok=True)
        (study.run.model(name) / "settings.json").write_text(json.dumps({"thresholds": {"distill": 0.5}}))
    expected = {
        ("critic", "same"): ["critic", "critic_independent"],
        ("critic", "independent"): ["critic_independent", "critic"],
        ("critic", "judges"): ["the judges", "critic_independent"],
        ("judges", "same"): ["the judges", "critic_independent"],
        ("judges", "independent"): ["critic_independent", "the judges"],
    }
    for (filters, evaluates), critics in expected.items():
        section = study.params.judges.model_copy(update={"filter": filters})
        evaluation = study.params.evaluation.model_copy(update={"critic": evaluates})
        study.params = study.params.model_copy(update={"judges": section, "evaluation": evaluation})
        found = distill.load_scorers(study)
        assert [o.score(None) for o in found.values()] == critics and list(found) == ["auto_", "independent_"]
        assert [o.label.endswith("that filtered") for o in found.values()].count(True) == (evaluates != "judges")
    (study.run.model("critic_independent") / "settings.json").unlink()
    with pytest.raises(MissingInputError, match="02_critic"):
        distill.load_scorers(study)  # names it first
    evaluation = study.params.evaluation.model_copy(update={"critic": "same"})
    study.params = study.params.model_copy(update={"evaluation": evaluation})
    assert list(distill.load_scorers(study)) == ["auto_"]
