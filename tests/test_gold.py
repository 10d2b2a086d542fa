"""Tests of `gold`."""

import pandas as pd
import pytest
from test_corpora import write

from drot_utils.data.gold import read_gold, read_votes
from drot_utils.study.errors import DataError


def test_votes_become_labels(tmp_path, actions):
    head = "action-id\tmoral-variance\tcontext\trationale\tsource\tq1-a1\tq1-a2\tq1-a3\n"
    first = actions["action_id"][0]
    votes = ["Y\tY\tN", "O\tO\tO", "Y\tN\tO", "N\tN\tY"]
    path = write(tmp_path / "g.tsv", head + "".join(f"{first}\t-1\tc{i}\tr\ts\t{v}\n" for i, v in enumerate(votes)))
    gold = read_gold([str(path)], actions)
    assert gold["valid"].tolist() == [True, False, False, False]
    assert gold["shift"].fillna(9).tolist() == [-1, 1, 9, 0]  # asked for less; opposite is more; a tie is unknown
    assert gold["agreed"].tolist() == [False, True, False, False]


def test_published_gold_and_bad_votes(tmp_path, actions):
    head = "action\tmoral-variance\tcontext\trationale\tcontext-quality\tsplit\n"
    path = write(tmp_path / "p.tsv", head + "Lying\t1\tc\tr\t1\ttrain\nLying\t-1\tc\tr\t0\ttest\n")
    gold = read_gold([str(path)], actions)
    assert gold["valid"].tolist() == [True, False] and gold["agreed"].tolist() == [False, True]
    assert gold["action_id"].nunique() == 1 and gold["split"].tolist() == ["train", "test"]
    bad = write(tmp_path / "b.tsv", head + "Lying\t1\tc\tr\t2\ttrain\n")
    with pytest.raises(DataError, match="context-quality other than 0 and 1"):
        read_gold([str(bad)], actions)
    head = "action-id\tmoral-variance\tcontext\trationale\tq1\n"
    bad = write(tmp_path / "v.tsv", head + f"{actions['action_id'][0]}\t1\tc\tr\tX\n")
    with pytest.raises(DataError, match="vote other than Y, N and O"):
        read_gold([str(bad)], actions)


PUBLISHED = "action\tmoral-variance\tcontext\trationale\tcontext-quality\tsplit\n"


def test_an_action_has_one_id_in_all_files_and_the_corpus(tmp_path, actions):
    known = actions["action"][5]
    texts = [
        "Don’t lie\t1\tc\tr\t1\ttrain\n",
        f"Zoning\t1\tc\tr\t1\tdev\ndon't  lie.\t1\tc\tr\t1\ttest\n{known}.\t1\tc\tr\t1\ttest\n",
    ]
    paths = [str(write(tmp_path / f"{k}.tsv", PUBLISHED + text)) for k, text in enumerate(texts)]
    ids = read_gold(paths, actions)["action_id"].tolist()
    assert ids[0] == ids[2] and len(set(ids)) == 3 and ids[3] == actions["action_id"][5]


def test_gold_that_pandas_wrote_with_a_mark_and_points(tmp_path, actions):
    line = '"Saying ""no"""\t-1.0\tc\tr\t0.0\ttest\n'
    gold = read_gold([str(write(tmp_path / "g.tsv", PUBLISHED + line, "utf-8-sig"))], actions)
    first = gold.iloc[0]
    assert first[["action", "moral_variance", "valid"]].tolist() == ['Saying "no"', -1, False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PUBLISHED.replace("\tsplit", "") + "Lying\t1\tc\tr\t1\n", "g.tsv: missing column split"),
        (PUBLISHED + "Lying\t1\tc\tr\t1\tvalidation\n", "g.tsv, line 2, column split: .*'validation'"),
        (PUBLISHED + "Lying\t1\tc\tr\t0.5\ttest\n", "g.tsv, line 2, column context-quality: .*'0.5'"),
        (PUBLISHED + "\nNone\t1\tc\tr\t1\ttest\n", "g.tsv, line 3, column action: 1 rows have no action"),
    ],
)
def test_bad_gold_is_named_with_its_place(tmp_path, actions, text, message):
    with pytest.raises(DataError, match=message):
        read_gold([str(write(tmp_path / "g.tsv", text))], actions)


VOTED = "action-id\tmoral-variance\tcontext\trationale\tq1\tsplit\n"


def test_a_split_is_one_of_actions_in_all_files(tmp_path, actions):
    one, two, free = actions.loc[actions["split"] == "train", "action_id"].head(3)
    held = actions.loc[actions["split"] == "dev", "action_id"].iloc[0]
    first = write(
        tmp_path / "a.tsv", VOTED + f"{one}\t1\tc\tr\tY\tdev\n{two}\t1\tc\tr\tY\ttrain\n{two}\t1\td\tr\tN\t\n"
    )
    texts = "".join(f"{name}\t1\te\tr\tY\n" for name in (one, two, free, held))
    second = write(tmp_path / "b.tsv", VOTED.replace("\tsplit", "") + texts)
    gold = read_gold([str(first), str(second)], actions)
    assert gold["split"].fillna("").tolist() == ["dev", "train", "train", "dev", "train", "", "dev"]
    bad = write(tmp_path / "c.tsv", VOTED + f"{one}\t1\tc\tr\tY\tvalidation\n")
    with pytest.raises(DataError, match=r"c.tsv, line 2, column split: .*'validation'"):
        read_gold([str(bad)], actions)


def test_an_action_on_two_sides_is_named_with_its_files_but_for_the_published_split(tmp_path, actions):
    name, action = actions.loc[5, ["action_id", "action"]]
    paths = [write(tmp_path / f"{side}.tsv", VOTED + f"{name}\t1\tc\tr\tY\t{side}\n") for side in ("train", "test")]
    with pytest.raises(DataError, match=rf"'{action}': train in .*train.tsv, test in .*test.tsv") as caught:
        read_gold([*map(str, paths)], actions)
    assert "1 actions are on two sides" in str(caught.value)
    published = write(tmp_path / "p.tsv", PUBLISHED + "".join(f"{action}\t1\tc\tr\t1\t{s}\n" for s in ("train", "dev")))
    assert read_gold([str(published)], actions)["split"].tolist() == ["train", "dev"]
    own = write(tmp_path / "o.tsv", VOTED.replace("\tsplit", "") + f"{name}\t1\tc\tr\tY\n")
    assert read_gold([str(published), str(own)], actions)["split"].tolist() == ["train", "dev", "dev"]
    with pytest.raises(DataError, match="two sides"):
        read_gold([str(published), str(paths[1])], actions)


def test_votes_are_read_one_by_one():
    votes = read_votes("data/demo/critic_annotations.tsv")
    asked = votes.groupby("question").size()
    assert asked["q1"] == 3619 * 3 and asked["q3"] == 1800 * 3 and 0 < asked["q2"] < asked["q1"] / 2
    assert set(votes.loc[votes["question"] == "q1", "answer"]) == {"Y", "N", "O"}
    assert read_votes("data/demo/critic_annotations_single.tsv").empty


def test_a_files_own_ids_do_not_hide_what_an_action_is(tmp_path):
    actions = pd.DataFrame({"action_id": ["a1", "a2"], "action": ["Lying", "Stealing"], "split": ["train", "test"]})
    head = VOTED.replace("action-id", "action-id\taction")
    hidden = write(tmp_path / "h.tsv", head + "x9\tStealing.\t1\tc\tr\tY\ttrain\n")
    with pytest.raises(DataError, match=r"held out in the corpus; the first is 'Stealing\.'"):
        read_gold([str(hidden)], actions)
    rows = [("x1", "lying"), ("", "Zoning"), (" ", "Begging"), ("x2", "Running"), ("", "running")]
    blank = write(tmp_path / "b.tsv", head + "".join(f"{name}\t{action}\t1\tc\tr\tY\tdev\n" for name, action in rows))
    ids = read_gold([str(blank)], actions)["action_id"].tolist()
    assert ids[0] == "a1" and ids[3] == ids[4] == "x2" and len(set(ids)) == 4 and ids[1][0] == ids[2][0] == "g"


def test_gold_may_not_learn_from_an_action_that_the_corpus_holds_out(tmp_path):
    (tmp_path / "gold.tsv").write_text(
        "action\tmoral-variance\tcontext\trationale\tq1-a1\tq1-a2\tq1-a3\tsplit\nLying\t1\tc\tr\tY\tY\tY\ttrain\n"
    )
    actions = pd.DataFrame({"action_id": ["a1"], "action": ["Lying"], "split": ["test"]})
    with pytest.raises(DataError, match="held out in the corpus; the first is 'Lying'"):
        read_gold([str(tmp_path / "gold.tsv")], actions)
