"""Tests of `table`."""

import pandas as pd
import pytest

from drot_utils.data import table
from drot_utils.study.errors import DataError


def test_round_trip_keeps_nulls(candidates, tmp_path):
    path = table.write_candidates(candidates, tmp_path / "c.parquet")
    back = table.read_table(path)
    assert back["critic_score"].isna().all() and back["kept"].isna().all()
    assert pd.isna(back["context"][4]) and back["context"][0] == "at a campsite"


def test_same_rows_same_bytes(candidates, tmp_path):
    first = table.write_candidates(candidates, tmp_path / "a.parquet").read_bytes()
    assert first == table.write_candidates(candidates.copy(), tmp_path / "b.parquet").read_bytes()


@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        ("moral_variance", 1, 0, "moral variance other than"),
        ("candidate", 1, 0, "second row of the same"),
        ("context", 0, "  ", "empty context"),
        ("critic_score", 0, 1.5, "outside 0 to 1"),
        ("kept", 4, True, "kept row without a context"),
    ],
)
def test_bad_rows_are_named(candidates, column, row, value, message):
    candidates.loc[row, column] = value
    with pytest.raises(DataError, match=message) as caught:
        table.check_candidates(candidates, "here")
    assert f"row {row}" in str(caught.value)


def test_missing_column_is_named(candidates):
    with pytest.raises(DataError, match="missing column raw; found action_id"):
        table.check_candidates(candidates.drop(columns="raw"), "here")


@pytest.mark.parametrize("harm", ["truncate", "flip", "empty"])
def test_a_broken_file_is_never_read_as_whole(tmp_path, harm):
    path = table.write_frame(pd.DataFrame({"x": range(2000), "y": "some text"}), tmp_path / "t.parquet")
    data = bytearray(path.read_bytes())
    if harm == "truncate":
        data = data[: len(data) // 2]
    elif harm == "empty":
        data = bytearray()
    else:
        data[200] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match="remove the file"):
        table.read_table(path)


def test_rows_are_shown_in_words(candidates):
    html = table.for_reading(
        candidates.assign(context="<b>at</b> a camp")[["moral_variance", "context", "critic_score"]]
    ).to_html()
    assert "strengthening" in html and "weakening" in html and ">-1<" not in html and "nan" not in html.lower()
    assert "&lt;b&gt;at" in html and ">moral" not in html and "text-align: left" in html


def test_columns_and_decimals_are_chosen(candidates):
    rows = candidates.assign(critic_score=0.1234, Distill_base="x")
    html = table.for_reading(rows, "context", "critic_score", "Distill_base", decimals=3).to_html()
    assert (
        "0.123<" in html
        and "critic score" in html
        and "Distill_base" in html
        and "rationale" not in html
        and "direction" not in html
    )
