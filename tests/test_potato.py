"""Tests of `potato`."""

import html
import json
import re

import pandas as pd
import pytest
import servers
import yaml
from conftest import FORM, NASTY

from drot_utils.people import exchange, forms, potato
from drot_utils.study.errors import DataError


def state(key, answers, user="ann"):
    """An annotator's state as Potato writes it: an entry an option, its value its name or "true"."""
    held = {
        row_id: [[{"schema": q, "name": c}, "true" if q == "q1" else c] for q, c in given.items()]
        for row_id, given in zip(key["row_id"], answers, strict=False)
    }
    return {"user_id": user, "instance_id_ordering": [], "instance_id_to_label_to_value": held}


def read(tmp_path, content):
    path = tmp_path / "annotation_output" / "ann" / "user_state.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return pd.DataFrame(potato.read(FORM, path))


def test_the_project_shows_the_texts_as_they_are_and_nothing_else(nasty, tmp_path):
    key = exchange.export_form(FORM, nasty, tmp_path, 1, ["potato"])
    place = tmp_path / "potato" / FORM.name
    config = yaml.safe_load((place / "config.yaml").read_text())
    assert "some are unpleasant" in config["annotation_instructions"] and config["host"] == "127.0.0.1"
    found = {q["name"]: {c["name"]: c["displayed_label"] for c in q["labels"]} for q in config["annotation_schemes"]}
    assert found == {name: question.answers for name, question in FORM.questions.items()}
    text = (place / config["data_files"][0]).read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["id"] for row in rows] == key["row_id"].tolist() and set(rows[0]) == {"id", "number", "card"}
    assert "</script" not in text and "<b>bold" not in text
    shown = [html.unescape(part) for part in re.findall(r":</b> (.*?)</p>", rows[0]["card"])]
    assert shown == forms.show_rows(key).iloc[0].tolist()[1:] and NASTY.replace("\t", " ") in shown[3]


def test_answers_come_back(key, tmp_path):
    choices = [{"q1": "Y", "q2": c, "q3": "N", "q4": "Y"} for c in ("Y", "S", "N", "Y", "S")]
    votes = read(tmp_path, state(key, choices))
    assert votes["row_id"].tolist() == key["row_id"].tolist() and set(votes["annotator"]) == {"ann"}
    assert votes[list(FORM.questions)].to_dict("records") == choices


def test_gaps_and_double_answers(key, tmp_path):
    content = state(key, [{"q1": "Y"}])
    labels = content["instance_id_to_label_to_value"][key["row_id"][0]]
    labels += [[{"schema": "q2", "name": "Y"}, "false"], [{"schema": "q3", "name": "Y"}, "Y"], [{"schema": "q3", "name": "N"}, "N"]]  # fmt: skip
    row = read(tmp_path, content).iloc[0]
    assert row[["q1", "q2", "q3", "q4"]].tolist() == ["Y", "", "Y+N", ""]


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"user_id": "ann"}', '{"user_id": "ann", "instance_id_to_label_to_value": {"x": [["y"]]}}',
     '{"user_id": "ann", "instance_id_to_label_to_value": []}', "[" * 10_000],
)  # fmt: skip
def test_what_is_no_state(tmp_path, content):
    with pytest.raises(DataError, match=r"user_state.json: does not hold an annotator's answers"):
        read(tmp_path, content)


def test_an_annotator_who_has_not_begun(tmp_path):
    assert read(tmp_path, {"user_id": "ann", "instance_id_to_label_to_value": {}}).empty


@pytest.mark.slow
def test_a_real_server_is_filled_and_read_back(nasty, tmp_path):
    """Two annotators, one with gaps, through the requests that its page makes."""
    command = servers.find_tool("potato")
    key = exchange.export_form(FORM, nasty, tmp_path, 1, ["potato"])
    place, port = tmp_path / "potato" / FORM.name, servers.free_port()
    given = {
        "ann": [{"q1": "Y", "q2": c, "q3": "N", "q4": "S"} for c in ("Y", "S", "N", "Y", "S")],
        "bob smith": [{"q1": "N"}, {"q2": "S", "q3": "Y"}],
    }
    start = [command, "start", "config.yaml", "-p", str(port), "--host", "127.0.0.1"]
    for user, answers in given.items():
        with servers.serving(start, port, place) as client:
            page = client.post("/auth", data={"action": "login", "email": user, "pass": ""}).text
            assert "some are unpleasant" in page and "&lt;/script&gt;" in page
            assert "<b>bold" not in page and "<script>alert" not in page and "</script><script>alert" not in page
            for row_id, choices in zip(key["row_id"], answers, strict=False):
                votes = {f"{q}:{c}": c for q, c in choices.items()}
                told = {"instance_id": row_id, "annotations": votes, "span_annotations": []}
                assert client.post("/updateinstance", json=told).json()["status"] == "success"
    votes, counts = exchange.read_filled(FORM, place, key)
    for user, answers in given.items():
        mine = votes[votes["annotator"] == user].set_index("row_id")[list(FORM.questions)]
        expected = pd.DataFrame(answers, index=key["row_id"][: len(answers)], columns=list(FORM.questions))
        pd.testing.assert_frame_equal(mine.fillna(""), expected.fillna(""), check_dtype=False)
    assert counts["files"] == 2 and counts["votes"] == 7 and counts["unanswered"] == 5
