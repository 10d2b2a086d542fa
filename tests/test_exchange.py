"""Tests of `exchange`."""

import html
import json
import re
import tempfile
from pathlib import Path

import pandas as pd
import pytest
from conftest import ALL_YES, FORM, fill
from hypothesis import given, settings
from hypothesis import strategies as st
from test_labelstudio import exported
from test_mturk import batch, flat
from test_potato import state

from drot_utils.people import exchange, forms
from drot_utils.people.forms import CRITIC_FORM
from drot_utils.people.spreadsheet import read_csv
from drot_utils.people.votes import spread_votes
from drot_utils.study.errors import DataError, ParamsError
from drot_utils.study.paths import ROOT


def read(tmp_path, key, form=FORM):
    return exchange.read_filled(form, tmp_path / "filled", key)


def write_state(folder, content):
    place = folder / "annotation_output" / content["user_id"]
    place.mkdir(parents=True)
    (place / "user_state.json").write_text(json.dumps(content))


def test_formats_that_are_not_asked_for_are_not_written(asked, tmp_path):
    exchange.export_form(FORM, asked, tmp_path, 1, ["mturk"])
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{FORM.name}_key.csv", "mturk"]


def test_a_format_that_nobody_writes_is_refused_before_anything_is_written(asked, tmp_path):
    with pytest.raises(ParamsError, match=r"annotation.exchange: expected some of csv, .*, found 'excel'"):
        exchange.export_form(FORM, asked, tmp_path, 1, ["csv", "excel"])
    assert not list(tmp_path.iterdir())


def test_no_export_says_who_wrote_what(key, asked, tmp_path):
    files = [p for p in (tmp_path / "forms").rglob("*") if p.is_file() and "_key" not in p.name]
    assert len(files) >= 8
    texts = [path.read_text() for path in files]
    assert not any(word in text for text in texts for word in ("student", "greedy", "Figure"))
    assert sum("some are unpleasant" in text for text in texts) == len(exchange.TOOLS)


@given(st.text(st.characters(exclude_categories=["Cs", "Cn"]), min_size=1))
@settings(max_examples=50)
def test_any_text_is_shown_as_it_is(text):
    row = {"action_id": "a", "moral_variance": 1, "candidate": 0, "source": "s", "set": "x"}
    rows = pd.DataFrame([{**row, "action": "A", "context": text, "rationale": text}])
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        key = exchange.export_form(FORM, rows, folder, 1, list(exchange.TOOLS))
        shown = forms.show_rows(key)["context"][0]
        assert len(shown) == len(text)
        assert read_csv(folder / f"{FORM.name}.csv")["context"].iloc[0] == shown
        hit = read_csv(folder / "mturk" / f"{FORM.name}.csv")["context"].iloc[0]
        assert html.unescape(hit) == shown and not {"<", ">", '"', "$"} & set(hit)
        tasks = json.loads((folder / "labelstudio" / f"{FORM.name}.json").read_text(encoding="utf-8"))
        assert tasks[0]["data"]["context"] == shown
        line = (folder / "potato" / FORM.name / "rows.jsonl").read_text(encoding="utf-8")
        assert f"<p><b>Context:</b> {html.escape(shown)}</p>" in json.loads(line)["card"]


def test_four_tools_in_one_folder_make_one_table(key, tmp_path):
    folder = tmp_path / "filled"
    fill(tmp_path, "ann", {**ALL_YES, "q2": {r: "" if r == key["row_id"][0] else "N" for r in key["row_id"]}})
    batch(key, [flat(ALL_YES)] * 5).to_csv(folder / "Batch_7_batch_results.csv", index=False)
    (folder / "project-1-at-2023.json").write_text(json.dumps(exported(key, [ALL_YES] * 5, annotator=1)))
    write_state(folder, state(key, [ALL_YES] * 5, user="dee"))
    votes, counts = read(tmp_path, key)
    assert list(votes) == ["row_id", "annotator", *FORM.questions] and len(votes) == 4 * len(key)
    assert set(votes["annotator"]) == {"ann", "W1", "1", "dee"}
    assert counts == {"files": 4, "votes": 20, "annotators": 4, "unanswered": 1, "blank": 0, "other_form": 0, "repeated": 0, "copies": [], "not_read": [], "rejected": 0, "skipped": 0}  # fmt: skip
    told = (ROOT / "docs/annotation.md").read_text(encoding="utf-8")
    assert all(f"\n- `{name}`: " in told for name in [*counts][3:])
    spread = spread_votes(votes, "q2")
    assert spread["ann"].isna().sum() == 1 and spread["dee"].eq("Y").all()


def test_both_forms_in_one_folder(key, asked, tmp_path):
    other = exchange.export_form(forms.CRITIC_FORM, asked, tmp_path / "forms", 1)
    (tmp_path / "filled").mkdir()
    both = pd.concat([state_of(key, {"q1": "Y", "q2": "S"}), state_of(other, {"q1": "O", "q2": "-"})])
    write_state(tmp_path / "filled", {"user_id": "ann", "instance_id_to_label_to_value": both.to_dict()})
    (tmp_path / "filled" / "critic_form-bob.csv").write_text("row_id,q1,q2\n")
    for form, own, first in ((FORM, key, "Y"), (forms.CRITIC_FORM, other, "O")):
        votes, counts = read(tmp_path, own, form)
        assert counts["votes"] == counts["other_form"] == len(asked) and set(votes["q1"]) == {first}


def state_of(key, answers):
    """What a Potato state holds of some rows."""
    labels = [[{"schema": q, "name": c}, c] for q, c in answers.items()]
    return pd.Series([labels] * len(key), index=key["row_id"])


def test_the_form_of_another_run(key, asked, tmp_path):
    other = forms.make_key(FORM, asked, seed=2)
    (tmp_path / "filled").mkdir()
    (tmp_path / "filled" / "x.json").write_text(json.dumps(exported(other, [ALL_YES] * 5)))
    with pytest.raises(DataError, match=r"x.json, task 0, annotation 10: .* is of the form of another run"):
        read(tmp_path, key)


def test_an_annotator_in_two_files(key, tmp_path):
    fill(tmp_path, "ann", ALL_YES)
    write_state(tmp_path / "filled", state(key, [ALL_YES]))
    assert read(tmp_path, key)[1]["repeated"] == 1  # the same answers
    fill(tmp_path, "ann", {**ALL_YES, "q2": "N"})
    with pytest.raises(DataError, match=r"user_state.json, .*: a second answer to the same row_id by ann"):
        read(tmp_path, key)


def test_a_copy_that_nobody_filled_has_no_votes(key, tmp_path):
    fill(tmp_path, "ann", dict.fromkeys(ALL_YES, ""))
    votes, counts = read(tmp_path, key)
    assert votes.empty and counts["blank"] == len(key) and counts["annotators"] == 0
    fill(tmp_path, "machine-1", ALL_YES)
    assert set(read(tmp_path, key)[0]["annotator"]) == {"machine-1"}


def test_a_folder_may_hold_another_form_only(key, tmp_path):
    fill(tmp_path, "ann", ALL_YES)
    filled = tmp_path / "filled"
    (filled / f"{FORM.name}-ann.csv").replace(filled / f"{CRITIC_FORM.name}-ann.csv")
    assert read(tmp_path, key)[0].empty


def test_nothing_is_overlooked(key, tmp_path):
    folder = tmp_path / "filled"
    folder.mkdir()
    with pytest.raises(DataError, match=r"no filled form, such as evaluation_form-<annotator>.csv"):
        read(tmp_path, key)
    fill(tmp_path, "ann", ALL_YES)
    for name in (f"{FORM.name}.csv", f"{FORM.name}_key.csv"):  # copied with the rest
        (folder / name).write_text((tmp_path / "forms" / name).read_text())
    assert read(tmp_path, key)[1]["votes"] == len(key)
    filled = (folder / f"{FORM.name}-ann.csv").read_text()
    for name in ("ann.csv", f"{FORM.name}.csv"):
        (folder / name).write_text(filled)
        with pytest.raises(DataError, match=rf"{name}: is not named as a filled form"):
            read(tmp_path, key)
        (folder / name).unlink()


def varied(key):
    return {**ALL_YES, "q2": dict(zip(key["row_id"], "YSNYS", strict=True))}


def test_a_copy_is_no_second_annotator(key, tmp_path):
    folder = tmp_path / "filled"
    fill(tmp_path, "ann", ALL_YES)
    fill(tmp_path, "bob", varied(key))
    (folder / "old").mkdir()
    for name, copy in (("ann", "ann (1)"), ("ann", "ann - Copy (2)"), ("bob", "bob_backup"), ("bob", "old/bob")):
        path = folder / f"{FORM.name}-{copy}.csv" if "/" not in copy else folder / f"old/{FORM.name}-bob.csv"
        path.write_bytes((folder / f"{FORM.name}-{name}.csv").read_bytes())
    batch(key, [flat(ALL_YES)] * 5).to_csv(folder / "b1.csv", index=False)
    batch(key.iloc[:2], [flat(ALL_YES)] * 2).to_csv(folder / "b2.csv", index=False)  # downloaded half-way
    votes, counts = read(tmp_path, key)
    assert set(votes["annotator"]) == {"ann", "bob", "W1"} and counts["votes"] == 15
    copies = [f"{FORM.name}-{n}.csv" for n in ("ann (1)", "ann - Copy (2)", "bob_backup")]
    assert counts["copies"] == sorted(["b2.csv", f"old/{FORM.name}-bob.csv", *copies])
    assert counts["files"] == 8 and counts["repeated"] == 22
    fill(tmp_path, "cyd", ALL_YES)  # as ann did, byte for byte: two people may
    assert read(tmp_path, key)[1]["annotators"] == 4
    fill(tmp_path, "ann (1)", {**ALL_YES, "q2": "N"})
    with pytest.raises(DataError, match=r"ann \(1\).csv, line 2: a second answer to the same row_id by ann"):
        read(tmp_path, key)


def test_every_file_of_a_person_is_read(key, tmp_path):
    fill(tmp_path, "ann", varied(key))
    folder = tmp_path / "filled"
    text = (folder / f"{FORM.name}-ann.csv").read_text()
    (folder / "b" / "c").mkdir(parents=True)
    for i, place in enumerate(
        ("Evaluation_Form-bob.CSV", f"b/{FORM.name}-cyd.Csv", f"b/c/{FORM.name}-dee.tsv", f"{FORM.name}-eve.txt")
    ):
        (folder / place).write_text(text.replace("campsite", f"campsite {i}"))
    (folder / "b" / "project.JSON").write_text(json.dumps(exported(key, [ALL_YES] * 5)))
    votes, counts = read(tmp_path, key)
    assert set(votes["annotator"]) == {"ann", "bob", "cyd", "dee", "eve", "1"}
    assert counts["votes"] == 30 and counts["not_read"] == counts["copies"] == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{FORM.name}-bob.xlsx", "is of a kind that is not read.*\n.*as CSV"),
        ("Batch_1.XLS", "is of a kind that is not read.*\n.*as CSV"),
        ("a/forms.zip", "is of a kind that is not read.*\n.*unpack it"),
        (f"{FORM.name}-bob", "is of a kind that is not read.*\n.*save it as"),
        ("ann.jsonl", "is of a kind that is not read"),
        ("a/annotated_instances.jsonl", "is of a kind that is not read.*\n.*Potato 1"),
        ("annotation_output/ann/annotated_instances.jsonl", "is of a kind that is not read.*\n.*Potato 1"),
        ("annotated_instances.csv", "is not named as a filled form"),
        ("a/x.json", "is not an export of a Label Studio project"),
        (f"{FORM.name} (1).csv", "is not named as a filled form"),
        (f"{FORM.name}_bob.csv", "is not named as a filled form"),
        ("a/other.tsv", "is not named as a filled form"),
    ],
)  # fmt: skip
def test_what_may_hold_answers_and_is_not_read_is_an_error(key, tmp_path, name, message):
    fill(tmp_path, "ann", ALL_YES)
    path = tmp_path / "filled" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text((tmp_path / "filled" / f"{FORM.name}-ann.csv").read_text())
    with pytest.raises(DataError, match=f"(?s){re.escape(path.name)}: .*{message}"):
        read(tmp_path, key)


def test_what_systems_leave_there_is_passed_over(key, tmp_path):
    fill(tmp_path, "ann", ALL_YES)
    folder = tmp_path / "filled"
    text = (folder / f"{FORM.name}-ann.csv").read_text()
    for name in (
        f"._{FORM.name}-ann.csv", ".DS_Store", "Thumbs.db", "desktop.ini", f"~${FORM.name}-ann.xlsx",
        f".~lock.{FORM.name}-ann.csv#", f"__MACOSX/._{FORM.name}-ann.csv", f".ipynb_checkpoints/{FORM.name}-ann-checkpoint.csv",
    ):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    assert read(tmp_path, key)[1] == {**read(tmp_path, key)[1], "files": 1, "annotators": 1, "not_read": []}


def test_the_exported_folder_itself_may_be_filled(key, tmp_path):
    fill(tmp_path, "ann", ALL_YES)
    forms_ = tmp_path / "forms"
    (tmp_path / "filled" / f"{FORM.name}-ann.csv").rename(forms_ / f"{FORM.name}-ann.csv")
    (forms_ / "notes.docx").write_bytes(b"PK")
    write_state(forms_ / "potato" / FORM.name, state(key, [ALL_YES] * 5, user="dee"))
    (forms_ / "potato" / FORM.name / "annotation_output" / "dee" / "annotation_history.jsonl").write_text("{}\n")
    votes, counts = exchange.read_filled(FORM, forms_, key)
    assert set(votes["annotator"]) == {"ann", "dee"} and counts["votes"] == 10
    seen = [p for p in forms_.rglob("*") if p.is_file()]
    assert counts["files"] == 2 and counts["files"] + len(counts["not_read"]) == len(seen)
    assert {"notes.docx", f"labelstudio/{FORM.name}.json", f"mturk/{FORM.name}.csv"} <= set(counts["not_read"])


def test_all_rejected_is_no_filled_form(key, tmp_path):
    (tmp_path / "filled").mkdir()
    batch(key, [flat(ALL_YES)] * 5, status="Rejected").to_csv(tmp_path / "filled" / "b.csv", index=False)
    with pytest.raises(DataError, match="no results of a tool"):
        read(tmp_path, key)


SEVERAL = ["own+time", "-", "others+relation", "object", "own+else"]


def test_several_answers_survive_every_tool(asked, tmp_path):
    form, folder = forms.CONTENT_FORM, tmp_path / "filled"
    key = exchange.export_form(form, asked, tmp_path / "forms", 1, list(exchange.TOOLS))
    given = [{"q1": q1, "q2": "opposite" if q1 == "-" else "-"} for q1 in SEVERAL]
    folder.mkdir()
    blank = read_csv(tmp_path / "forms" / f"{form.name}.csv")
    blank.assign(**pd.DataFrame(given, index=blank.index)).replace({"+": ", "}, regex=False).to_csv(
        folder / f"{form.name}-ann.csv", index=False
    )
    codes = [(q, c) for q, question in form.questions.items() for c in question.answers]
    for worker, results in {
        "flat": [{f"Answer.{q}.{c}": str(c in row[q].split("+")).lower() for q, c in codes} for row in given],
        "plain": [{f"Answer.{q}": row[q].replace("+", "|") for q in row} for row in given],
    }.items():
        batch(key, results).assign(WorkerId=worker).to_csv(folder / f"{worker}.csv", index=False)
    result = [
        [{"type": "choices", "from_name": q, "value": {"choices": row[q].split("+")[::-1]}} for q in row]
        for row in given
    ]
    tasks = exported(key, given, annotator="label")
    for task, answers in zip(tasks, result, strict=True):
        task["annotations"][0]["result"] = answers
    (folder / "x.json").write_text(json.dumps(tasks))
    held = {
        row_id: [[{"schema": q, "name": c}, "true"] for q in row for c in row[q].split("+")]
        for row_id, row in zip(key["row_id"], given, strict=True)
    }
    write_state(folder, {"user_id": "potato", "instance_id_to_label_to_value": held})
    votes, counts = read(tmp_path, key, form)
    assert counts["annotators"] == 5 and counts["unanswered"] == 0
    for question in form.questions:
        spread = spread_votes(votes, question).loc[key["row_id"]]
        assert all(spread[who].tolist() == [row[question] for row in given] for who in spread)
    assert 'type="checkbox" name="q1"' in (tmp_path / "forms" / "mturk" / f"{form.name}.html").read_text()
    assert 'choice="multiple"' in (tmp_path / "forms" / "labelstudio" / f"{form.name}.xml").read_text()
    assert "multiselect" in (tmp_path / "forms" / "potato" / form.name / "config.yaml").read_text()
    assert "Join several codes with a plus" in (tmp_path / "forms" / f"{form.name}.md").read_text()


def test_answers_stay_known_when_a_row_is_no_longer_shown(asked, tmp_path):
    rows = asked.assign(set=["dataset", "invalid", "greedy", "greedy", "invalid"])
    key = exchange.export_form(forms.CONTENT_FORM, rows, tmp_path, 1, sets=("dataset", "invalid"))
    shown = read_csv(tmp_path / "content_form.csv")
    assert len(key) == 5 and len(shown) == 3
    other = exchange.export_form(
        forms.CONTENT_FORM, rows.assign(set="greedy"), tmp_path, 1, sets=("dataset", "invalid")
    )
    assert set(shown["row_id"]) <= set(other["row_id"]) and read_csv(tmp_path / "content_form.csv").empty
