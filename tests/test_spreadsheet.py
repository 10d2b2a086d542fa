"""Tests of `spreadsheet`."""

import pandas as pd
import pytest
from conftest import FORM, NASTY

from drot_utils.people import exchange, forms, spreadsheet
from drot_utils.study.errors import DataError


def test_the_form_is_blind_and_empty(key, tmp_path):
    form = pd.read_csv(tmp_path / "forms" / f"{FORM.name}.csv", keep_default_na=False)
    assert list(form) == [*forms.SHOWN, *FORM.questions] and (form[list(FORM.questions)] == "").all().all()
    text = (tmp_path / "forms" / f"{FORM.name}.md").read_text()
    assert "S` yes, slightly" in text and "some are unpleasant" in text and "teacher" not in text


def test_a_filled_copy_comes_back_with_its_gaps(nasty, tmp_path):
    key = exchange.export_form(FORM, nasty, tmp_path, 1)
    form = spreadsheet.read_csv(tmp_path / f"{FORM.name}.csv")
    assert sorted(form["context"]) == [f"{NASTY}{i}".replace("\t", " ") for i in range(len(key))]
    path = tmp_path / f"{FORM.name}-ann.csv"
    form.assign(q1="Y", q2=["", *"YSNY"]).to_csv(path, index=False, encoding="utf-8-sig")
    votes = pd.DataFrame(spreadsheet.read(FORM, path))
    assert votes["row_id"].tolist() == key["row_id"].tolist() and set(votes["annotator"]) == {"ann"}
    assert votes["q2"].tolist() == ["", *"YSNY"] and (votes["q3"] == "").all()
    assert votes["where"][0] == f"{path}, line 2"


SPELLINGS = [
    *(lambda t, d=d: t.replace(",", d).encode() for d in ",;\t"),
    *(lambda t, e=e: t.encode(e) for e in ("utf-8-sig", "utf-16", "cp1252", "mac-roman")),
    lambda t: t.replace(",", "\t").encode("utf-16"),  # Excel's "Unicode text"
    lambda t: f"sep=;\n{t}".replace(",", ";").encode(),
    lambda t: t.replace("\n", "\r\n").encode(),
    lambda t: f"{t},,,\n\n,,,\n ,,\n".encode(),
    lambda t: t.replace("\n", ",,\n").encode(),
    lambda t: t.replace(",\n", "\n").encode(),  # cells at the end left out
    lambda t: f"\n{t}".encode(),
]


@pytest.mark.parametrize("spell", SPELLINGS)
def test_a_form_as_programs_and_countries_write_it(tmp_path, spell):
    path = tmp_path / f"{FORM.name}-ann.csv"
    path.write_bytes(spell('row_id,action,q1,q2,q3,q4\nx,café – é,Y,S,N,\ny,"“”",Y,,N,S\n'))
    votes = pd.DataFrame(spreadsheet.read(FORM, path))
    assert votes["row_id"].tolist() == ["x", "y"]
    assert votes[list(FORM.questions)].to_numpy().tolist() == [["Y", "S", "N", ""], ["Y", "", "N", "S"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"row_id,q1,q2,q4\nx,Y,Y,Y\n", "missing column q3"),
        (b"", "is not CSV text"),
        (b"\xff\xfe\x00", "is not CSV text"),
        (b"PK\x03\x04\x00\x00", "is not CSV text: it holds zero bytes"),
        (b",,\n\n", "is not CSV text: it is empty"),
        (b"row_id,q1,q2,q3,q4\n\nx,Y,Y,Y,Y,Y\n", "line 3: 6 cells, but the header has 5"),
        (b"row_id,q1,q2,q3,q4,q1\n", "there are two columns q1"),
        (b'row_id,q1\n"x,Y\n1,2,3,4\n', "is not CSV text"),
    ],
)
def test_what_is_no_filled_form(tmp_path, content, message):
    path = tmp_path / f"{FORM.name}-ann.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"ann.csv(: |, ){message}"):
        spreadsheet.read(FORM, path)
