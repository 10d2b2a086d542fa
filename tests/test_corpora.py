"""Tests of `corpora`."""

import csv
import json
import time
import unicodedata
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from benchmarks.corpus import SOCIAL_CHEM
from drot_utils.data import corpora
from drot_utils.study.errors import DataError

HEADER = "action\tsplit\trot\trot-judgment\n"
CELL = st.text(
    st.characters(blacklist_characters="\t\n\r\x00", blacklist_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=12
)


def write(path: Path, text: str, encoding="utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


ROWS = st.lists(st.tuples(CELL.filter(bool), CELL, CELL), min_size=1, max_size=8)
STRAY = ('say "no"', '"a" b', '"')  # of quotation marks, as the published files have them


@given(ROWS)
@settings(max_examples=60)
def test_every_cell_comes_back_as_text(tmp_path_factory, rows):
    text = "a-b\tc\td\n" + "".join("\t".join(r) + "\n" for r in [*rows, STRAY])
    frame = corpora.read_tsv(write(tmp_path_factory.mktemp("t") / "t.tsv", text), ["a-b"])
    assert list(frame) == ["a_b", "c", "d"]
    assert [tuple(r) for r in frame.itertuples(index=False)] == [*rows, STRAY]


TEXT = st.text(st.sampled_from("\"'\t\n,;a é\u2028\x85") | st.characters(categories=["L", "P", "Zs"]), max_size=8)


@given(
    st.lists(st.tuples(TEXT.filter(bool), TEXT), min_size=1, max_size=6),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    st.sampled_from(["utf-8", "utf-8-sig"]),
    st.sampled_from([False, True]),
)
@settings(max_examples=100)
def test_what_pandas_writes_is_read(tmp_path_factory, rows, quoting, encoding, index):
    # A cell with tabs and line ends may leave each line with as many tabs as the header: it looks like two stray marks.
    assume(quoting != csv.QUOTE_MINIMAL or not any({"\t", "\n"} <= set(cell) for row in rows for cell in row))
    path, frame = tmp_path_factory.mktemp("t") / "t.tsv", pd.DataFrame(rows, columns=["a-b", "c"])
    frame.to_csv(path, sep="\t", index=index, quoting=quoting, encoding=encoding)
    read = corpora.read_tsv(path, ["a-b", "c"])
    assert [tuple(r) for r in read[["a_b", "c"]].itertuples(index=False)] == rows


@pytest.mark.parametrize(
    ("cells", "first"),
    [
        ('"agreeing"\tb', '"agreeing"'),  # no need to quote it: a published title
        ('"""No"" again"\tb', '"No" again'),
        ('"""No"" again"\t5 "', '"""No"" again"'),  # a mark outside of quoted fields
        ('"No" again\tb', '"No" again'),
        ('"open\tb', '"open'),
        ('"a ""b"\t¿"c"', '"a ""b"'),
        ('"a\tb"\tc', "a\tb"),
        ('""\tb', '""'),
    ],
)
def test_a_file_has_quoted_fields_only_if_all_marks_say_so(tmp_path, cells, first):
    assert corpora.read_tsv(write(tmp_path / "t.tsv", f"a\tb\n{cells}\n"), ["a"])["a"].tolist() == [first]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_two_stray_marks_merge_no_rows(tmp_path, end):
    rows = [("x", '"so they said', "1"), ("", "y", "2"), ("z", "and went home", '3"'), ("w", "v", "4")]
    text = end.join(map("\t".join, [("a", "b", "c"), *rows])) + end
    frame = corpora.read_tsv(write(tmp_path / "t.tsv", text + end), ["a"])
    assert [tuple(r) for r in frame.itertuples(index=False)] == rows


def test_finding_out_about_quotes_takes_linear_time(tmp_path):
    for text in ('"' * 2_000_001, '"a""b"\t"c"\n' * 200_000, '"open\n' * 200_000, '"a\t\n\tb"\n' * 200_000):
        path = write(tmp_path / "t.tsv", f"a\tb\n{text}\n")
        began = time.process_time()
        corpora._has_quoted_fields(path)
        assert time.process_time() - began < 3  # generous for a busy machine; measured below 0.4


def test_a_mark_before_the_first_column_and_other_line_ends_are_no_data(tmp_path):
    text = "a\tb\r\n007\tx\u2028y\x85z\r\n\r\n\t\r\n8\t\r\n\r\n"
    frame = corpora.read_tsv(write(tmp_path / "t.tsv", text, "utf-8-sig"), ["a", "b"])
    assert frame.to_numpy().tolist() == [["007", "x\u2028y\x85z"], ["8", ""]]
    assert frame.index.tolist() == [0, 3]  # the line's number, less 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tb\n1\t2\n1\t2\t3\n", "Row #3: Expected 2 columns, got 3: 1\t2\t3"),
        ("a\tb\n1\n", "Row #2: Expected 2 columns, got 1: 1"),
        ("a\tc\n1\t2\n", "missing column b; found a, c"),
    ],
)
def test_malformed_lines_and_columns_are_named(tmp_path, text, message):
    path = write(tmp_path / "t.tsv", text)
    with pytest.raises(DataError, match=message) as caught:
        corpora.read_tsv(path, ["a", "b"])
    assert str(path) in str(caught.value)


def test_missing_file_wrong_encoding_and_empty_file(tmp_path):
    with pytest.raises(DataError, match="No such file"):
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


ALIKE = [
    ("Don't lie", "Don’t lie."),
    ("Don't lie", "don`t  LIE .."),
    ('Saying "no"', "saying “no”"),
    ("Going to a café", "going to a cafe\u0301"),
    ("Straße", "STRASSE"),
    ("Re-gifting", "re\u2010gifting\u200b"),
]


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_an_action_typed_otherwise_is_the_same(tmp_path, one, other):
    for first, second in ((one, other), (other, one)):
        text = f"{HEADER}{first}\ttrain\tr\tj\n{second}\ttest\tr\tj\n"
        actions = corpora.read_actions(write(tmp_path / "a.tsv", text))
        assert actions["split"].tolist() == ["test"]


@given(st.text(max_size=20))
def test_the_key_of_an_action_depends_on_its_words_only(action):
    key = corpora.action_key(action)
    assert corpora.action_key(key) == key
    for form in ("NFC", "NFD"):
        assert corpora.action_key(f" {unicodedata.normalize(form, action)} . ") == key


def test_words_for_nothing_are_no_actions(tmp_path):
    words = ["nan", "NaN", "None", "null", "N/A", "<NA>", ".", "Banning"]
    text = HEADER + "".join(f"{word}\ttrain\tr\tj\n" for word in words)
    assert corpora.read_actions(write(tmp_path / "a.tsv", text))["action"].tolist() == ["Banning"]


def test_builtin_actions_are_as_the_datasheet_says(actions):
    assert actions["split"].value_counts().to_dict() == {"train": 670, "dev": 120, "test": 120}
    assert not actions["action"].str.casefold().duplicated().any()


def test_published_form_with_all_25_columns(tmp_path):
    assert len(SOCIAL_CHEM) == 25
    row = {"split": "train", "action": "Setting a fire", "rot": "It's dangerous", "rot-judgment": "it's dangerous"}
    lines = ["\t".join(SOCIAL_CHEM), "\t".join(row.get(n, "") for n in SOCIAL_CHEM)]
    actions = corpora.read_actions(write(tmp_path / "s.tsv", "\n".join(lines) + "\n"))
    assert actions["action"].tolist() == ["Setting a fire"] and actions["rot_moral_foundations"][0] == ""


RECORDED = "action-id\tmoral-variance\tchoice\tcontext\trationale\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{id}\t2\t1\tc\tr", "moral-variance other than"),
        ("{id}\t1\t1\t \tr", "empty context"),
        ("{id}\t1\t1\tnan\tr", "line 2, column context: 1 rows have an empty context"),
        ("{id}\t1\t1\tc\tr\n\n{id}\t1\tx\tc\tr", "line 4, column choice: .*other than a whole number.*'x'"),
        ("{id}\t1\t0.5\tc\tr", "column choice"),
        ("{id}\t\t1\tc\tr", "line 2, column moral-variance"),
        ("nobody\t1\t1\tc\tr", "does not have"),
        ("{id}\t1\t1\tc\tr\n{id}\t1\t1\tc2\tr", "repeat the choice"),
    ],
)
def test_recorded_responses_are_checked(tmp_path, actions, line, message):
    path = write(tmp_path / "r.tsv", RECORDED + line.format(id=actions["action_id"][0]) + "\n")
    with pytest.raises(DataError, match=message):
        corpora.read_recorded(path, actions)


def test_whole_numbers_may_be_written_with_a_point(tmp_path, actions):
    path = write(tmp_path / "r.tsv", RECORDED + f"{actions['action_id'][0]}\t-1.0\t0.0\tc\tr\n")
    recorded = corpora.read_recorded(path, actions)
    assert recorded[["moral_variance", "choice"]].to_numpy().tolist() == [[-1, 0]]


def test_lines_are_counted_where_fields_have_several(tmp_path, actions):
    path = tmp_path / "r.tsv"
    rows = [(actions["action_id"][0], 1, choice, f"a\n{choice}", "r") for choice in (0, 1, -1)]
    pd.DataFrame(rows, columns=RECORDED.split()).to_csv(path, sep="\t", index=False)
    with pytest.raises(DataError, match="line 6, column choice"):
        corpora.read_recorded(path, actions)


def test_line_ends_within_groups_a_mark_before_them_and_an_empty_line(tmp_path):
    texts = {name: f"{name}\u2028b\x85c" for name in ("base", "general", "different", "contradiction")}
    line = json.dumps({"group": 1, "split": "train", "paraphrases": ["p"], **texts}, ensure_ascii=False)
    pairs = corpora.read_groups(write(tmp_path / "g.jsonl", f"{line}\n{line}\n\n", "utf-8-sig"))
    assert len(pairs) == 16 and pairs["premise"][0] == texts["base"]


def test_entailment_groups(tmp_path):
    pairs = corpora.read_groups("data/demo/entailment_groups.jsonl")
    assert len(pairs) == 240 * 10 and pairs["label"].value_counts().to_dict() == {2: 240 * 5, 1: 240 * 3, 0: 240 * 2}
    bad = write(tmp_path / "g.jsonl", '{"group": 1}\n')
    with pytest.raises(DataError, match="line 1"):
        corpora.read_groups(bad)
    for path in (tmp_path / "none.jsonl", write(tmp_path / "l.jsonl", '"é"', "latin-1")):
        with pytest.raises(DataError, match=f"{path.name}: cannot be read as UTF-8 text"):
            corpora.read_groups(path)


def test_every_corpus_of_the_demo_reads(actions):
    for style in ("plain", "rich"):
        recorded = corpora.read_recorded(f"data/demo/teacher_{style}.tsv", actions)
        assert len(recorded) == 3640 and isinstance(recorded, pd.DataFrame)
