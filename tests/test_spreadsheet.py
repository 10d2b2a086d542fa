import pandas as pd
import pytest
from conftest import FORM, NASTY

from drot_utils import exchange, forms, spreadsheet
from drot_utils.errors import DataError


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
    votes = spreadsheet.read(FORM, path).votes
    assert votes["row_id"].tolist() == key["row_id"].tolist() and set(votes["annotator"]) == {"ann"}
    assert votes["q2"].tolist() == ["", *"YSNY"] and (votes["q3"] == "").all()
    assert votes["where"][0] == f"{path}, line 2"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"row_id,q1,q2,q4\nx,Y,Y,Y\n", "missing column q3"),
        (b"", "is no CSV text"),
        (b"\xff\xfe\x00", "is no CSV text"),
        (b'row_id,q1\n"x,Y\n1,2,3,4\n', "is no CSV text"),
    ],
)
def test_what_is_no_filled_form(tmp_path, content, message):
    path = tmp_path / f"{FORM.name}-ann.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"ann.csv: {message}"):
        spreadsheet.read(FORM, path)
