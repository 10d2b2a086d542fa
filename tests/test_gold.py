import pytest
from test_corpora import write

from drot_utils.errors import DataError
from drot_utils.gold import read_gold, read_votes


def test_votes_become_labels(tmp_path, actions):
    head = "action-id\tmoral-variance\tcontext\trationale\tsource\tq1-a1\tq1-a2\tq1-a3\n"
    first = actions["action_id"][0]
    votes = ["Y\tY\tN", "O\tO\tO", "Y\tN\tO", "N\tN\tY"]
    path = write(
        tmp_path / "g.tsv", head + "".join(f"{first}\t-1\tc{i}\tr\ts\t{v}\n" for i, v in enumerate(votes))
    )
    gold = read_gold([str(path)], actions)
    assert gold["valid"].tolist() == [True, False, False, False]
    assert gold["shift"].fillna(9).tolist() == [
        -1,
        1,
        9,
        0,
    ]  # asked for less; opposite is more; a tie is unknown
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


def test_votes_are_read_one_by_one():
    votes = read_votes("data/demo/critic_annotations.tsv")
    assert len(votes) == 1800 * 9 and set(votes["question"]) == {"q1", "q2", "q3"}
    assert set(votes.loc[votes["question"] == "q1", "answer"]) == {"Y", "N", "O"}
    assert read_votes("data/demo/critic_annotations_single.tsv").empty
