"""Tests of `gold`."""

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


def test_votes_are_read_one_by_one():
    votes = read_votes("data/demo/critic_annotations.tsv")
    assert len(votes) == 1800 * 9 and set(votes["question"]) == {"q1", "q2", "q3"}
    assert set(votes.loc[votes["question"] == "q1", "answer"]) == {"Y", "N", "O"}
    assert read_votes("data/demo/critic_annotations_single.tsv").empty
