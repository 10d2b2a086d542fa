from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drot_utils import corpora
from drot_utils.errors import DataError

HEADER = "action\tsplit\trot\trot-judgment\n"
CELL = st.text(
    st.characters(blacklist_characters="\t\n\r\x00", blacklist_categories=["Cs", "Cc", "Zl", "Zp"]),
    max_size=12,
)


def write(path: Path, text: str, encoding="utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@given(st.lists(st.tuples(CELL.filter(bool), CELL, CELL), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_every_cell_comes_back_as_text(tmp_path_factory, rows):
    path = write(
        tmp_path_factory.mktemp("t") / "t.tsv", "a-b\tc\td\n" + "".join("\t".join(r) + "\n" for r in rows)
    )
    frame = corpora.read_tsv(path, ["a-b"])
    assert list(frame) == ["a_b", "c", "d"]
    assert [tuple(r) for r in frame.itertuples(index=False)] == rows


def test_quotes_are_plain_characters_and_na_is_a_word(tmp_path):
    path = write(tmp_path / "t.tsv", 'a\tb\n"open\tNA\n1\t\n')
    assert corpora.read_tsv(path, ["a"]).to_numpy().tolist() == [['"open', "NA"], ["1", ""]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tb\n1\t2\n1\t2\t3\n", r"line 3 has 3 fields instead of 2"),
        ("a\tb\n1\n", "line 2 has 1 fields"),
        ("a\tc\n1\t2\n", "missing column b; found a, c"),
    ],
)
def test_malformed_lines_and_columns_are_named(tmp_path, text, message):
    path = write(tmp_path / "t.tsv", text)
    with pytest.raises(DataError, match=message) as caught:
        corpora.read_tsv(path, ["a", "b"])
    assert str(path) in str(caught.value)


def test_missing_file_wrong_encoding_and_empty_file(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        corpora.read_tsv(tmp_path / "none.tsv", [])
    with pytest.raises(DataError, match="UTF-8"):
        corpora.read_tsv(write(tmp_path / "l.tsv", "a\tb\ncafé\t1\n", "latin-1"), ["a"])
    with pytest.raises(DataError):
        corpora.read_tsv(write(tmp_path / "e.tsv", ""), ["a"])


def test_an_action_counts_once_and_held_out_actions_never_train(tmp_path):
    path = write(
        tmp_path / "a.tsv",
        HEADER
        + "Lying.\ttrain\tr1\tbad\nlying\ttrain\tr2\tbad\nTo  run\ttrain\tr3\tok\nto run\ttest\tr4\tok\n\ttrain\tr\tx\n",
    )
    actions = corpora.read_actions(path)
    assert actions[["action", "split", "rot"]].to_numpy().tolist() == [
        ["Lying", "train", "r1"],
        ["to run", "test", "r4"],
    ]
    assert actions["action_id"].is_unique


def test_builtin_actions_are_as_the_datasheet_says(actions):
    assert len(actions) == 790 and (actions["split"] == "test").sum() == 120
    assert not actions["action"].str.casefold().duplicated().any()


def test_published_form_with_all_25_columns(tmp_path):
    assert len(corpora.SOCIAL_CHEM) == 25
    row = {
        "split": "train",
        "action": "Setting a fire",
        "rot": "It's dangerous",
        "rot-judgment": "it's dangerous",
    }
    lines = ["\t".join(corpora.SOCIAL_CHEM), "\t".join(row.get(n, "") for n in corpora.SOCIAL_CHEM)]
    actions = corpora.read_actions(write(tmp_path / "s.tsv", "\n".join(lines) + "\n"))
    assert actions["action"].tolist() == ["Setting a fire"] and actions["rot_moral_foundations"][0] == ""


RECORDED = "action-id\tmoral-variance\tchoice\tcontext\trationale\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{id}\t2\t1\tc\tr", "moral variance other than"),
        ("{id}\t1\t1\t \tr", "empty context"),
        ("nobody\t1\t1\tc\tr", "does not have"),
        ("{id}\t1\t1\tc\tr\n{id}\t1\t1\tc2\tr", "repeat the choice"),
    ],
)
def test_recorded_responses_are_checked(tmp_path, actions, line, message):
    path = write(tmp_path / "r.tsv", RECORDED + line.format(id=actions["action_id"][0]) + "\n")
    with pytest.raises(DataError, match=message):
        corpora.read_recorded(path, actions)


def test_entailment_groups(tmp_path):
    pairs = corpora.read_groups("data/demo/entailment_groups.jsonl")
    assert len(pairs) == 240 * 10 and pairs["label"].value_counts().to_dict() == {
        2: 240 * 5,
        1: 240 * 3,
        0: 240 * 2,
    }
    bad = write(tmp_path / "g.jsonl", '{"group": 1}\n')
    with pytest.raises(DataError, match="line 1"):
        corpora.read_groups(bad)


def test_every_corpus_of_the_demo_reads(actions):
    for style in ("plain", "rich"):
        recorded = corpora.read_recorded(f"data/demo/teacher_{style}.tsv", actions)
        assert len(recorded) == 3160 and isinstance(recorded, pd.DataFrame)
