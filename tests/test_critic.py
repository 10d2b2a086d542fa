import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CPU

from drot_utils import corpora, critic
from drot_utils.errors import DataError, MissingInputError
from drot_utils.gold import read_gold
from drot_utils.paths import Run
from drot_utils.settings import Threshold


@pytest.fixture(scope="module")
def gold(actions, smoke):
    return critic.split_gold(read_gold(smoke.critic.gold, actions), smoke.critic, 1)


@pytest.fixture(scope="module")
def binary(smoke):
    return smoke.critic.model_copy(
        update={"head": "binary", "teacher_rows": None, "max_steps": 6, "evaluations": 2}
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
        gold[gold["part"].isin(["train", "independent"])]
        .drop_duplicates("action_id")
        .set_index("action_id")["part"]
    )
    known = rows[rows["action_id"].isin(owner.index)]
    assert (known["part"] == known["action_id"].map(owner)).all()
    held = set(gold.loc[gold["part"].isin(["dev", "test"]), "action_id"])
    assert not held & set(rows["action_id"])


def test_labels_of_the_shift_head_turn_with_the_direction():
    rows = pd.DataFrame({"valid": [True, True, False], "shift": [1.0, -1.0, 0.0]})
    assert critic.labels(rows, "shift").tolist() == [2, 0, 1] and critic.labels(rows, "binary").tolist() == [
        1,
        1,
        0,
    ]
    with pytest.raises(DataError, match=r"set `critic\.head: binary`"):
        critic.labels(rows.assign(shift=np.nan), "shift")


@pytest.mark.parametrize("head", ["binary", "shift"])
def test_train_save_load_score(smoke, binary, gold, tmp_path, head):
    settings = (
        binary if head == "binary" else smoke.critic.model_copy(update={"max_steps": 6, "evaluations": 2})
    )
    rows = gold[gold["shift"].notna()]
    place = (Run("smoke"), CPU, torch.float32)
    judge, fit = critic.train_critic(rows.head(120), rows.tail(60), settings, *place, seed=0)
    assert [row["step"] for row in fit.curve] == [3, 6]
    asked = rows.head(10).assign(context=[None, " ", *rows["context"].head(8)])
    scores = judge.score(asked)
    assert np.isnan(scores[:2]).all() and ((scores[2:] > 0) & (scores[2:] < 1)).all()
    judge.save(tmp_path / "c", {"thresholds": {"distill": 0.5}})
    again = critic.load_critic(tmp_path / "c", settings, *place)
    np.testing.assert_array_equal(again.score(asked), scores)
    assert critic.read_record(tmp_path / "c")["thresholds"] == {"distill": 0.5}
    if head == "shift":
        both = pd.concat(
            [asked.iloc[2:], asked.iloc[2:].assign(moral_variance=-asked["moral_variance"].iloc[2:])]
        )
        total = judge.score(both).reshape(2, -1).sum(axis=0)
        assert (total < 1).all()  # what is left is the neutral class


def test_no_critic_yet(smoke, tmp_path):
    with pytest.raises(MissingInputError, match="02_critic"):
        critic.load_critic(tmp_path, smoke.critic, Run("smoke"), CPU, torch.float32)


def test_threshold_rules():
    scores = np.linspace(0.01, 1, 100)
    valid = scores > 0.5
    assert critic.choose_threshold(valid, scores, Threshold(value=0.8)) == 0.8
    assert critic.choose_threshold(valid, scores, Threshold(precision=1.0)) == pytest.approx(0.51)
    assert critic.choose_threshold(valid, scores, Threshold(recall=0.5)) == pytest.approx(0.76)
    with pytest.raises(DataError, match="the best is"):
        critic.choose_threshold(np.arange(100) % 2 == 0, scores, Threshold(precision=0.99))
