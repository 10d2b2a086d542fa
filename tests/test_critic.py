"""Tests of `critic`."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from conftest import write_published_gold
from hypothesis import given
from hypothesis import strategies as st

from drot_utils.data import corpora
from drot_utils.data.gold import read_gold
from drot_utils.engine.load import build_tiny
from drot_utils.method import critic
from drot_utils.study.errors import DataError, MissingInputError
from drot_utils.study.params import ModelRef, Threshold


@pytest.fixture(scope="module")
def gold(actions, smoke):
    return critic.split_gold(read_gold(smoke.critic.gold, actions), smoke.critic, 1)


@pytest.fixture(scope="module")
def binary(smoke):
    return smoke.critic.model_copy(
        update={"head": "binary", "frozen_layers": 0, "teacher_rows": None, "max_steps": 6, "evaluations": 2}
    )


def test_no_action_is_on_two_sides(gold):
    used = gold[gold["part"] != "unused"]
    assert used.groupby("action_id")["part"].nunique().max() == 1
    assert {"train", "independent", "dev", "test"} <= set(used["part"])


def test_dev_and_test_are_fully_agreed_rows_of_three_votes(gold):
    held = gold[gold["part"].isin(["dev", "test"])]
    assert held["agreed"].all() and (held["votes"] == 3).all()


def test_teacher_rows_go_to_the_critic_that_owns_their_action(gold, actions):
    recorded = corpora.read_recorded("data/demo/teacher_plain.tsv", actions)
    rows = critic.teacher_as_gold(recorded, gold)
    owner = (
        gold[gold["part"].isin(["train", "independent"])].drop_duplicates("action_id").set_index("action_id")["part"]
    )
    known = rows[rows["action_id"].isin(owner.index)]
    assert (known["part"] == known["action_id"].map(owner)).all()
    held = set(gold.loc[gold["part"].isin(["dev", "test"]), "action_id"])
    assert not held & set(rows["action_id"])


def test_mismatched_rows_are_neutral_and_of_another_action_of_the_same_critic(study):
    gold = critic.read_parts(study)
    plain, mixed = (gold[gold["source"] == f"teacher-{kind}"] for kind in ("unjudged", "mismatched"))
    assert mixed["part"].value_counts().to_dict() == plain["part"].value_counts().to_dict()
    assert not mixed["valid"].any() and mixed["shift"].eq(0).all() and mixed["votes"].eq(0).all()
    assert sorted(mixed["context"]) == sorted(plain["context"])  # once around, each is drawn once
    own = set(zip(plain["action_id"], plain["moral_variance"], plain["context"], strict=True))
    assert (
        sum(row in own for row in zip(mixed["action_id"], mixed["moral_variance"], mixed["context"], strict=True)) < 9
    )
    owner = gold[gold["source"] != "teacher-mismatched"].groupby("action_id")["part"].agg(set)
    assert all(part in owner[action] for action, part in zip(mixed["action_id"], mixed["part"], strict=True))
    names = plain.set_index("action_id")["action"].to_dict()
    assert mixed["action"].eq(mixed["action_id"].map(names)).all()
    assert gold.equals(critic.read_parts(study))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.sampled_from([0.0, 0.5, 1.0, 2.5]), st.integers(0, 5))
def test_a_mismatched_row_never_has_its_own_action(owners, times, seed):
    rows = pd.DataFrame(
        {"action_id": [f"a{k}" for k in owners], "action": [f"action {k}" for k in owners], "part": "train"}
    )
    mixed = critic.mismatch(rows.assign(context=rows["action_id"], source="t", valid=True, shift=1.0), times, seed)
    assert len(mixed) == (round(times * len(owners)) if len(set(owners)) > 1 else 0)
    assert (mixed["context"] != mixed["action_id"]).all() and mixed["action"].str[-1].eq(
        mixed["action_id"].str[-1]
    ).all()


def test_no_gold_row_of_a_held_out_action_is_learnt_from(study, actions):
    gold = critic.read_parts(study)
    learnt = set(gold.loc[gold["part"].isin(["train", "independent"]), "action_id"])
    assert not learnt & set(actions.loc[actions["split"] != "train", "action_id"])
    voted = read_gold(study.params.critic.gold, actions)
    three = voted.index[voted["votes"].eq(3) & voted["split"].eq("train")][0]
    parts = critic.split_gold(voted.assign(shift=voted["shift"].mask(voted.index == three)), study.params.critic, 1)
    assert parts.index[parts["part"].eq("unused") & parts["split"].eq("train")].tolist() == [
        three
    ]  # three different votes


def test_labels_of_the_shift_head_turn_with_the_direction():
    rows = pd.DataFrame({"valid": [True, True, False], "shift": [1.0, -1.0, 0.0]})
    shift, binary = critic.HEADS["shift"], critic.HEADS["binary"]
    assert shift.labels(rows).tolist() == [2, 0, 1] and binary.labels(rows).tolist() == [1, 1, 0]
    variance = np.array([1, -1])
    assert shift.asked(variance).tolist() == [2, 0] and binary.asked(variance).tolist() == [1, 1]
    with pytest.raises(DataError, match=r"set `critic\.head: binary`"):
        shift.labels(rows.assign(shift=np.nan))


def test_critic_marks_action_and_direction():
    assert critic.critic_text("Lying", -1, "to a judge") == "[ACTION] Lying [NEG] to a judge"


@pytest.mark.parametrize("head", ["binary", "shift"])
def test_train_save_load_score(smoke, binary, gold, study, head):
    settings = binary if head == "binary" else smoke.critic.model_copy(update={"max_steps": 6, "evaluations": 2})
    rows = gold[gold["shift"].notna()]
    study.params = smoke.model_copy(update={"critic": settings})
    judge, fit = critic.train_critic(study, rows.head(120), rows.tail(60))
    assert [row["step"] for row in fit.curve] == [3, 6]
    asked = rows.head(10).assign(context=[None, " ", *rows["context"].head(8)])
    scores = judge.score(asked)
    assert np.isnan(scores[:2]).all() and ((scores[2:] > 0) & (scores[2:] < 1)).all()
    judge.save(study.run.model("critic"), {"thresholds": {"distill": 0.5}})
    np.testing.assert_array_equal(critic.load_critic(study).score(asked), scores)
    record = json.loads((study.run.model("critic") / "settings.json").read_text())
    assert record["thresholds"] == {"distill": 0.5}
    if head == "shift":
        both = pd.concat([asked.iloc[2:], asked.iloc[2:].assign(moral_variance=-asked["moral_variance"].iloc[2:])])
        total = judge.score(both).reshape(2, -1).sum(axis=0)
        assert (total < 1).all()  # what is left is the neutral class


def test_no_critic_yet(study):
    with pytest.raises(MissingInputError, match="02_critic"):
        critic.load_critic(study)


def test_threshold_rules():
    scores = np.linspace(0.01, 1, 100)
    valid = scores > 0.5
    assert critic.choose_threshold(valid, scores, Threshold(value=0.8)) == 0.8
    assert critic.choose_threshold(valid, scores, Threshold(precision=1.0)) == pytest.approx(0.51)
    assert critic.choose_threshold(valid, scores, Threshold(recall=0.5)) == pytest.approx(0.76)
    with pytest.raises(DataError, match="the best is"):
        critic.choose_threshold(np.arange(100) % 2 == 0, scores, Threshold(precision=0.99))
    assert critic.choose_threshold(valid, scores, Threshold(share=0.35)) == pytest.approx(0.66)
    with pytest.raises(DataError, match="expected judged rows, found none"):
        critic.choose_threshold(np.array([], dtype=bool), np.array([]), Threshold(share=0.5))
    with pytest.raises(DataError, match=r"the best is 0\.50"):  # fewer than ten rows
        critic.choose_threshold(np.array([True, False]), np.array([0.2, 0.4]), Threshold(precision=0.9))


@pytest.mark.parametrize("name", ["seed", "distill", "dataset"])
def test_a_value_that_no_row_reaches_is_refused_for_who_filters_only(smoke, name):
    rules = {f"threshold_{other}": Threshold(share=0.5) for other in ("seed", "distill", "dataset")}
    rules[f"threshold_{name}"] = rule = Threshold(value=0.99)
    valid, scores = np.array([True, False]), np.array([0.5, 0.25])
    with pytest.raises(DataError, match=r"none of the 2 judged rows reaches 0\.99; the highest score is 0\.500"):
        critic.choose_thresholds(smoke.critic.model_copy(update=rules), valid, scores)
    assert critic.choose_threshold(valid, scores, rule) == 0.99


@pytest.mark.parametrize("head", ["binary", "shift"])
@pytest.mark.parametrize("kind", ["padded", "short"])
def test_a_base_whose_rows_are_not_its_tokens_is_loaded_again(smoke, gold, study, tmp_path, head, kind):
    base, tokenizer = build_tiny("tiny-bert")
    if kind == "padded":  # as DeBERTa-v3, which has more rows than tokens
        base.resize_token_embeddings(len(tokenizer) + 40)
    else:  # tokens that were added to the tokenizer only
        tokenizer.add_tokens(["fire", "lie"])
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    settings = smoke.critic.model_copy(
        update={"base": ModelRef(source="folder", name=str(tmp_path / "base")), "head": head,
                "teacher_rows": None, "max_steps": 2, "evaluations": 1}
    )  # fmt: skip
    study.params = smoke.model_copy(update={"critic": settings})
    rows = gold[gold["shift"].notna()].head(40).assign(action="Setting a fire")
    judge, _ = critic.train_critic(study, rows, rows)
    judge.save(study.run.model("critic"), {})
    again = critic.load_critic(study)
    np.testing.assert_array_equal(again.score(rows), judge.score(rows))
    expected = len(tokenizer) + (40 if kind == "padded" else 3 * (head == "binary"))
    assert again.classifier.model.encoder.get_input_embeddings().num_embeddings == expected


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_the_independent_share_is_of_the_training_actions(actions, binary, tmp_path, published, share):
    paths = ["data/demo/critic_annotations.tsv"]
    if published:
        paths = [str(write_published_gold(tmp_path / "gold.tsv"))]
    settings = binary.model_copy(update={"independent_share": share})
    gold = read_gold(paths, actions)
    parts = critic.split_gold(gold, settings, 1)
    apart, kept = (set(parts.loc[parts["part"] == name, "action_id"]) for name in ("independent", "train"))
    assert len(apart) == round(share * (len(apart) + len(kept))) and not apart & kept
    assert parts.equals(critic.split_gold(gold, settings, 1))
    if published:
        assert parts["part"].replace("independent", "train").equals(gold["split"].rename("part"))


graded = st.one_of(st.sampled_from([0.0, 1.0]), st.sampled_from([0.1, 0.5, 0.5000001]), st.floats(0, 1))


@given(st.lists(st.tuples(st.booleans(), graded), min_size=1), st.sampled_from([0.0, 0.3, 0.7, 0.9, 1.0]))
def test_what_a_rule_promises_holds_on_the_rows_that_it_was_read_from(rows, wanted):
    valid, scores = np.array([v for v, _ in rows]), np.array([s for _, s in rows])
    if not valid.any():
        with pytest.raises(DataError, match=f"none of the {len(rows)} judged contexts is valid"):
            critic.choose_threshold(valid, scores, Threshold(recall=wanted))
        return
    passes = scores >= critic.choose_threshold(valid, scores, Threshold(recall=wanted))
    assert valid[passes].sum() / valid.sum() >= wanted
    higher = scores > scores[passes].min()  # the next threshold, if there is one
    assert valid[higher].sum() / valid.sum() < wanted or not higher.any()
    try:
        limit = critic.choose_threshold(valid, scores, Threshold(precision=wanted))
    except DataError as error:
        assert "the best is" in str(error)
        chosen = [scores >= s for s in scores if (scores >= s).sum() >= min(10, len(rows))]
        assert all(valid[passes].mean() < wanted for passes in chosen)
    else:
        passes = scores >= limit
        assert valid[passes].mean() >= wanted and passes.sum() >= min(10, len(rows))


def test_votes_of_0_and_1_pass_a_precision_rule():
    votes = np.array([0.0, 1.0] * 20)
    assert critic.choose_threshold(votes == 1, votes, Threshold(precision=0.9)) == 1.0


@given(st.lists(graded, min_size=1), st.floats(0.01, 1))
def test_a_share_rule_keeps_the_share_but_for_ties(scores, share):
    scores = np.array(scores)
    limit = critic.choose_threshold(np.zeros(len(scores), dtype=bool), scores, Threshold(share=share))
    wanted = max(1, math.ceil(share * len(scores) - 1e-9))
    assert (scores > limit).sum() < wanted <= (scores >= limit).sum()


def with_threshold_rows(study, path):
    section = study.params.critic.model_copy(update={"threshold_rows": path})
    study.params = study.params.model_copy(update={"critic": section})
    return study


def test_thresholds_are_read_off_votes_on_what_students_wrote(study):
    gold = critic.read_parts(study)
    rows = critic.read_threshold_rows(study, gold)
    assert len(rows) == 12186 and rows["split"].eq("dev").all() and rows["recipe"].nunique() == 8
    assert 0.46 < rows["valid"].mean() < 0.47
    dev = critic.read_threshold_rows(with_threshold_rows(study, None), gold)
    assert len(dev) and dev["part"].eq("dev").all() and dev["recipe"].eq("").all()
    scores = np.linspace(0, 1, 1000)
    found = critic.choose_thresholds(study.params.critic, scores > 0.5, scores)
    assert list(found) == ["seed", "distill", "dataset"] and found["distill"] == pytest.approx(0.4, abs=2e-3)


VOTES = "action-id\tmoral-variance\tcontext\trationale\tq1\n"


@pytest.mark.parametrize(
    ("head", "split", "message"),
    [
        (VOTES, None, "v.tsv: expected rows with votes, found none"),
        (VOTES.replace("\tq1", "\tvote"), "dev", "v.tsv: expected the votes in q1"),
        (VOTES.replace("moral-variance", "direction"), "dev", "v.tsv: missing column moral-variance"),
        (VOTES, "unknown", "v.tsv, line 2, column action-id: 1 rows name an action-id"),
        (VOTES, "test", "v.tsv: 1 rows are about actions that are kept for the test; the first is about"),
        (VOTES, "train", "v.tsv: 1 rows are about actions that a critic learns from; the first is about"),
    ],
)
def test_what_is_wrong_with_threshold_rows_is_named(study, actions, tmp_path, head, split, message):
    gold = critic.read_parts(study)
    ids = {"unknown": "a9999", "train": gold.loc[gold["part"] == "train", "action_id"].iloc[0]}
    ids |= {part: actions.loc[actions["split"] == part, "action_id"].iloc[0] for part in ("dev", "test")}
    (tmp_path / "v.tsv").write_text(head + (f"{ids[split]}\t1\tc\tr\tY\n" if split else ""))
    with pytest.raises(DataError, match=message):
        critic.read_threshold_rows(with_threshold_rows(study, str(tmp_path / "v.tsv")), gold)


def test_votes_may_lack_who_wrote_a_row(study, actions, tmp_path):
    dev = actions.loc[actions["split"] == "dev", "action_id"].iloc[0]
    (tmp_path / "v.tsv").write_text(VOTES + f"{dev}\t1\tc\tr\tY\n{dev}\t-1\tc\tr\tN\n")
    rows = critic.read_threshold_rows(with_threshold_rows(study, str(tmp_path / "v.tsv")), critic.read_parts(study))
    assert rows[["recipe", "source"]].eq("").all(axis=None) and rows["valid"].tolist() == [True, False]
