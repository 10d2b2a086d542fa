"""Tests of `distill`."""

import numpy as np
import pandas as pd
import pytest

from drot_utils.analysis import statistics
from drot_utils.data import corpora, table
from drot_utils.method import distill, student
from drot_utils.method.nli import filter_unique
from drot_utils.report import release
from drot_utils.study.errors import DataError


class FixedCritic:
    """Scores by the length of the context."""

    def score(self, rows: pd.DataFrame) -> np.ndarray:
        return rows["context"].str.len().to_numpy(dtype=float) / 20


class LettersNli:
    """Entails what has the same letters."""

    def __call__(self, premises, hypotheses):
        pairs = zip(premises, hypotheses, strict=True)
        return np.array([float(p.replace(" ", "") == h.replace(" ", "")) for p, h in pairs])

    def filter(self, groups, threshold):
        return filter_unique(groups, self, threshold)


def test_actions_are_sampled_without_replacement(actions, smoke):
    parts = corpora.sample_actions(actions, smoke.corpus, 1)
    ids = [set(part["action_id"]) for part in parts.values()]
    assert sum(map(len, ids)) == len(set().union(*ids)) and [len(p) for p in parts.values()] == [
        40,
        12,
        12,
        16,
        12,
    ]
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
    with pytest.raises(DataError, match=r"asked for \d+ actions of the (train|test) split, found|no action remains"):
        corpora.sample_actions(actions, smoke.corpus.model_copy(update=changes), 1)


def test_filters_flag_and_never_delete(candidates):
    rows, filtered = distill.flag_repeats(candidates, LettersNli(), 0.5)
    assert rows["nli_kept"].fillna(False).tolist() == [True, False, True, True, False, True] and pd.isna(
        rows["nli_kept"][4]
    )
    rows = distill.flag_valid(rows, FixedCritic(), 0.45)
    assert rows["kept"].tolist() == [True, False, True, True, False, False]
    assert distill.count_dropped(rows) == {"unparsed": 1, "nli": 1, "critic": 1} and len(rows) == len(candidates)
    assert filtered.pairs_possible == 3 * 2 + 2


def test_filters_can_be_left_out(candidates):
    rows = distill.flag_valid(candidates, FixedCritic(), 0.45, use_nli=False)
    assert rows["kept"].sum() == 4
    rows = distill.flag_valid(candidates.assign(nli_kept=True), FixedCritic(), 0.45, use_critic=False)
    assert rows["kept"].sum() == 5 and not rows["kept"][4]


def test_a_score_at_the_threshold_passes(candidates):
    exact = 13 / 20  # "at a campsite"
    assert distill.flag_valid(candidates.assign(nli_kept=True), FixedCritic(), exact)["kept"][0]


def test_fine_tune_keeps_a_record_and_is_not_done_twice(study, candidates, monkeypatch):
    rows = candidates[candidates["context"].notna()]
    record = student.fine_tune(study, rows, "distill_base", start=None, learning_rate=1e-3, epochs=2)
    assert record["rows"] == 5 and record == student.read_training(study, "distill_base")
    monkeypatch.setattr(distill.training, "train", lambda *a, **k: pytest.fail("trained again"))
    assert student.fine_tune(study, rows, "distill_base", start=None, learning_rate=1e-3, epochs=2) == record


def test_nothing_kept_is_an_error(study, candidates):
    with pytest.raises(DataError, match="lower the critic threshold"):
        student.fine_tune(study, candidates.iloc[:0], "distill_base", start=None, learning_rate=1e-3, epochs=1)


def test_a_round_in_which_nothing_is_kept_is_counted_and_can_be_kept(candidates, study):
    rows, _ = distill.flag_repeats(candidates, LettersNli(), 0.5)
    rows = distill.flag_valid(rows, FixedCritic(), 2.0)
    kept, dropped = rows[rows["kept"]], distill.count_dropped(rows)
    assert kept.empty and sum(dropped.values()) == len(rows)
    path = table.write_candidates(kept, study.run.data("d1"))
    union = pd.concat([table.read_table(path), rows], ignore_index=True)
    union = distill.flag_valid(distill.flag_repeats(union, LettersNli(), 0.5)[0], FixedCritic(), 2.0)
    assert union["kept"].sum() == 0 and len(union) == len(rows)
    assert statistics.table1(union[union["kept"]])["entries"].sum() == 0
    assert "written by\nnobody;" in release.data_card(kept, [], study.params, 0.5)
