import numpy as np
import pandas as pd
import pytest

from drot_utils import distill, models
from drot_utils.errors import DataError, MissingInputError
from drot_utils.generation import Written
from drot_utils.prompts import parse_student


class FixedCritic:
    """Scores by the length of the context."""

    def score(self, rows: pd.DataFrame) -> np.ndarray:
        return rows["context"].str.len().to_numpy(dtype=float) / 20


def entails_by_letters(premises, hypotheses):
    return np.array(
        [float(p.replace(" ", "") == h.replace(" ", "")) for p, h in zip(premises, hypotheses, strict=True)]
    )


def test_actions_are_sampled_without_replacement(actions, smoke):
    parts = distill.sample_actions(actions, smoke.corpus, 1)
    ids = [set(part["action_id"]) for part in parts.values()]
    assert sum(map(len, ids)) == len(set().union(*ids)) and [len(p) for p in parts.values()] == [
        40,
        12,
        12,
        16,
        12,
    ]
    assert set(parts["test"]["split"]) == {"test"}
    again = distill.sample_actions(actions, smoke.corpus, 1)
    assert all(parts[k].equals(again[k]) for k in parts) and not parts["seed"].equals(
        distill.sample_actions(actions, smoke.corpus, 2)["seed"]
    )


def test_all_that_remain(actions, smoke):
    plan = smoke.corpus.model_copy(update={"final_actions": None, "test_actions": None})
    parts = distill.sample_actions(actions, plan, 1)
    assert len(parts["final"]) == 670 - 40 - 24 and len(parts["test"]) == 120


@pytest.mark.parametrize(
    "changes", [{"seed_actions": 700}, {"test_actions": 121}, {"seed_actions": 646, "final_actions": None}]
)
def test_fewer_actions_than_asked_for(actions, smoke, changes):
    with pytest.raises(
        DataError, match=r"asked for \d+ actions of the (train|test) split, found|no action remains"
    ):
        distill.sample_actions(actions, smoke.corpus.model_copy(update=changes), 1)


def test_filters_flag_and_never_delete(candidates):
    rows, filtered = distill.flag_repeats(candidates, entails_by_letters, 0.5)
    assert rows["nli_kept"].fillna(False).tolist() == [True, False, True, True, False, True] and pd.isna(
        rows["nli_kept"][4]
    )
    rows = distill.flag_valid(rows, FixedCritic(), 0.45)
    assert rows["kept"].tolist() == [True, False, True, True, False, False]
    assert distill.count_dropped(rows) == {"unparsed": 1, "nli": 1, "critic": 1} and len(rows) == len(
        candidates
    )
    assert filtered.pairs_possible == 3 * 2 + 2


def test_filters_can_be_left_out(candidates):
    rows = distill.flag_valid(candidates, FixedCritic(), 0.45, use_nli=False)
    assert rows["kept"].sum() == 4
    rows = distill.flag_valid(candidates.assign(nli_kept=True), FixedCritic(), 0.45, use_critic=False)
    assert rows["kept"].sum() == 5 and not rows["kept"][4]


def test_a_score_at_the_threshold_does_not_pass(candidates):
    exact = 13 / 20  # "at a campsite"
    assert not distill.flag_valid(candidates.assign(nli_kept=True), FixedCritic(), exact)["kept"][0]


def test_raw_text_is_kept_when_it_does_not_parse():
    prompts = pd.DataFrame({"action_id": ["a"], "action": ["Lying"], "moral_variance": [1]})
    rows = distill.to_rows(
        prompts, [[Written("nonsense", 2), Written("Update: x. Explanation: y.", 7)]], "s", parse_student
    )
    assert rows["context"].fillna("null").tolist() == ["null", "x"] and rows["raw"].tolist() == [
        "nonsense",
        "Update: x. Explanation: y.",
    ]


@pytest.fixture
def student_on_disk(study):
    model, tokenizer = models.build_tiny("tiny-llama")
    models.save(model, tokenizer, study.run.model("distill_base"), study.dtype)
    return study


def test_writing_is_resumable_and_counted(student_on_disk, actions):
    study, some = student_on_disk, actions.head(7)
    rows = distill.write_contexts(study, "distill_base", some, "round_1", 3, "nucleus")
    assert len(rows) == 7 * 2 * 3 and rows["kept"].isna().all() and set(rows["source"]) == {"distill_base"}
    shards = sorted(study.run.work("shards").rglob("*.parquet"))
    assert len(shards) == 2  # 14 prompts, ten a shard
    shards[1].unlink()
    pd.testing.assert_frame_equal(
        distill.write_contexts(study, "distill_base", some, "round_1", 3, "nucleus"), rows
    )
    other = distill.write_contexts(study, "distill_base", some, "round_2", 3, "nucleus")
    assert not other["raw"].equals(rows["raw"])


def test_base_model_is_asked_the_teachers_prompt(study):
    author = distill.open_author(study, "base")
    assert author.ask("Lying", -1).startswith("Given an action")


def test_a_student_that_does_not_exist_names_its_notebook(study, actions):
    with pytest.raises(MissingInputError, match="05_self_distill"):
        distill.write_contexts(study, "self_distill_1", actions.head(1), "x", 1, "greedy")


def test_fine_tune_keeps_a_record_and_is_not_done_twice(study, candidates, monkeypatch):
    rows = candidates[candidates["context"].notna()]
    record = distill.fine_tune(study, rows, "distill_base", start=None, learning_rate=1e-3, epochs=2)
    assert record["rows"] == 5 and record == distill.read_training(study, "distill_base")
    monkeypatch.setattr(distill.student, "train", lambda *a, **k: pytest.fail("trained again"))
    assert distill.fine_tune(study, rows, "distill_base", start=None, learning_rate=1e-3, epochs=2) == record


def test_nothing_kept_is_an_error(study, candidates):
    with pytest.raises(DataError, match="lower the critic threshold"):
        distill.fine_tune(
            study, candidates.iloc[:0], "distill_base", start=None, learning_rate=1e-3, epochs=1
        )
