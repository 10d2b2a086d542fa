"""Tests of `mturk`."""

import html
import json
from html.parser import HTMLParser

import pandas as pd
import pytest
from conftest import ALL_YES, FORM, NASTY

from drot_utils.people import exchange, mturk
from drot_utils.people.spreadsheet import read_csv
from drot_utils.study.errors import DataError


class Page(HTMLParser):
    """The text and the choices of a HIT as a worker sees it."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.choices = [], []
        self.feed(text)

    def handle_data(self, data):
        self.texts.append(data)

    def handle_starttag(self, tag, attrs):
        if tag == "input":
            self.choices.append((dict(attrs)["name"], dict(attrs)["value"]))


def batch(key, answers, status="Approved", **columns):
    """A batch's results, as Mechanical Turk writes them: one row an assignment."""
    rows = key[["row_id"]].rename(columns={"row_id": "Input.row_id"})
    rows = rows.assign(HITId="H", AssignmentId="A", WorkerId="W1", AssignmentStatus=status, **columns)
    return rows.join(pd.DataFrame(answers, index=rows.index)).assign(Approve="", Reject="")


def flat(choice):
    """The columns of a crowd-form with flattened answers."""
    return {f"Answer.{q}.{c}": str(c == choice[q]).lower() for q in choice for c in FORM.questions[q].answers}


def nested(choice):
    """The one column of a crowd-form without."""
    value = {q: {c: c == choice[q] for c in FORM.questions[q].answers} for q in choice}
    return {"Answer.taskAnswers": json.dumps([value])}


def plain(choice):
    """The columns of a layout without crowd-form."""
    return {f"Answer.{q}": value for q, value in choice.items()}


def read(tmp_path, frame):
    frame.to_csv(tmp_path / "Batch_1_batch_results.csv", index=False)
    return pd.DataFrame(mturk.read(FORM, tmp_path / "Batch_1_batch_results.csv"))


def test_a_hit_shows_the_texts_as_they_are_and_nothing_else(nasty, tmp_path):
    key = exchange.export_form(FORM, nasty, tmp_path, 1, ["mturk"])
    layout = (tmp_path / "mturk" / f"{FORM.name}.html").read_text()
    rows = read_csv(tmp_path / "mturk" / f"{FORM.name}.csv")
    assert rows.to_csv().isascii() and "source" not in rows and len(rows) == len(key)
    hit = layout
    for name, value in rows.iloc[0].items():
        hit = hit.replace(f"${{{name}}}", value)  # Mechanical Turk replaces text by text
    page = Page(hit)
    assert key["context"][0].replace("\t", " ") in page.texts and f"=1+1;{NASTY}".replace("\t", " ") in page.texts
    assert "${" not in hit and "alert(1)" in "".join(page.texts) and hit.count("<script") == 1
    assert page.choices == [(q, code) for q, question in FORM.questions.items() for code in question.answers]
    assert any("some are unpleasant" in text for text in page.texts)
    assert not {"teacher", "student", "greedy"} & set(html.unescape(hit).split())


@pytest.mark.parametrize("spell", [flat, nested, plain])
def test_results_come_back_in_every_spelling(key, tmp_path, spell):
    choices = [{"q1": "Y", "q2": c, "q3": "N", "q4": "Y"} for c in ("Y", "S", "N", "Y", "S")]
    votes = read(tmp_path, batch(key, [spell(c) for c in choices]))
    assert votes["row_id"].tolist() == key["row_id"].tolist()
    assert votes[list(FORM.questions)].to_dict("records") == choices
    assert set(votes["annotator"]) == {"W1"} and "left_out" not in votes


def test_rejected_assignments_are_left_out_and_counted(key, tmp_path):
    frame = batch(key, [flat(dict.fromkeys(FORM.questions, "Y"))] * 5)
    frame["AssignmentStatus"] = ["Submitted", "Rejected", "Approved", "Submitted", "Submitted"]
    frame.loc[4, "Reject"] = "too fast"
    votes = read(tmp_path, frame)
    assert votes["left_out"].fillna("").tolist() == ["", "rejected", "", "", "rejected"]
    assert votes["row_id"].dropna().tolist() == key["row_id"].iloc[[0, 2, 3]].tolist()


def test_missing_and_double_answers(key, tmp_path):
    answers = [flat({"q1": "Y", "q2": "Y", "q3": "Y"})] * 5
    votes = read(tmp_path, batch(key, answers).assign(**{"Answer.q1.N": "true", "Answer.q2.Y": "false"}))
    assert votes.loc[0, ["q1", "q2", "q3", "q4"]].tolist() == ["Y+N", "", "Y", ""]


@pytest.mark.parametrize("spell", [flat, nested])
def test_a_flag_in_another_language_is_not_taken_for_no_answer(key, tmp_path, spell):
    frame = batch(key, [spell(ALL_YES)] * 5)
    read(tmp_path, frame.replace({"true": "TRUE", "false": "FALSE"}))
    spelled = '"WAHR"' if spell is nested else "WAHR"
    other = frame.map(lambda value: value.replace("true", spelled) if isinstance(value, str) else value)
    with pytest.raises(DataError, match=r"line 2, Answer.q1.Y: expected true, false or nothing, found 'wahr'"):
        read(tmp_path, other)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"AssignmentStatus": "Paid"}, "line 2: expected the AssignmentStatus .* found 'Paid'"),
        ({"Answer.taskAnswers": "[{"}, "line 2, Answer.taskAnswers: is not a list of answers in JSON"),
        ({"Answer.taskAnswers": "[1]"}, "is not a list of answers in JSON"),
        ({"Answer.taskAnswers": "7"}, "is not a list of answers in JSON"),
    ],
)
def test_results_that_cannot_be_read(key, tmp_path, columns, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, batch(key, [{}] * 5).assign(**columns))


def test_a_batch_of_another_project(key, tmp_path):
    with pytest.raises(DataError, match=r"missing column Input.row_id; found"):
        read(tmp_path, batch(key, [{}] * 5).drop(columns="Input.row_id"))
