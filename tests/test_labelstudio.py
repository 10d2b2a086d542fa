"""Tests of `labelstudio`."""

import json
from xml.etree import ElementTree as ET

import pandas as pd
import pytest
import servers
from conftest import FORM, NASTY

from drot_utils.people import exchange, forms, labelstudio
from drot_utils.study.errors import DataError


def result(question, *choices):
    """A choice as an annotation holds it."""
    return {"type": "choices", "from_name": question, "to_name": "context", "value": {"choices": list(choices)}}


def exported(key, answers, annotator=1, **fields):
    """A project's export as JSON: each task with one annotation."""
    rows = forms.show_rows(key).to_dict("records")
    return [
        {
            "id": i,
            "data": row,
            "annotations": [
                {"id": 10 + i, "completed_by": annotator, "was_cancelled": False, "result": [result(q, c) for q, c in given.items()], **fields}
            ],
        }
        for i, (row, given) in enumerate(zip(rows, answers, strict=True))
    ]  # fmt: skip


def read(tmp_path, content):
    path = tmp_path / "export.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return pd.DataFrame(labelstudio.read(FORM, path))


CHOICES = [{"q1": "Y", "q2": c, "q3": "N", "q4": "Y"} for c in ("Y", "S", "N", "Y", "S")]


def test_the_project_shows_the_texts_and_nothing_else(nasty, tmp_path):
    key = exchange.export_form(FORM, nasty, tmp_path, 1, ["labelstudio"])
    tasks = json.loads((tmp_path / "labelstudio" / f"{FORM.name}.json").read_text())
    assert [list(task["data"]) for task in tasks] == [forms.SHOWN] * len(key)
    assert tasks[0]["data"]["rationale"] == f"=1+1;{NASTY}".replace("\t", " ")
    view = ET.parse(tmp_path / "labelstudio" / f"{FORM.name}.xml").getroot()
    assert [t.get("value") for t in view.iter("Text")] == [f"${name}" for name in forms.SHOWN[1:]]
    found = {c.get("name"): {x.get("alias"): x.get("value") for x in c} for c in view.iter("Choices")}
    assert found == {name: question.answers for name, question in FORM.questions.items()}
    assert any("some are unpleasant" in h.get("value") for h in view.iter("Header"))


@pytest.mark.parametrize("as_text", [False, True])
def test_an_export_comes_back(key, tmp_path, as_text):
    given = [{q: FORM.questions[q].answers[c] if as_text else c for q, c in choice.items()} for choice in CHOICES]
    votes = read(tmp_path, exported(key, given))
    assert votes["row_id"].tolist() == key["row_id"].tolist() and "left_out" not in votes
    assert votes[list(FORM.questions)].to_dict("records") == CHOICES
    assert votes["where"][2].endswith("task 2, annotation 12") and set(votes["annotator"]) == {"1"}


def test_an_export_of_the_small_kind_comes_back(key, tmp_path):
    rows = forms.show_rows(key).to_dict("records")
    small = [
        {**row, **choice, "id": i, "annotator": 3, "annotation_id": i, "lead_time": 1.5}
        for i, (row, choice) in enumerate(zip(rows, CHOICES, strict=True))
    ]
    del small[0]["q3"]
    small[1]["q4"] = {"choices": ["Y", "N"]}
    nobody = {**rows[0], "id": 9, "annotator": None, "annotation_id": None}
    votes = read(tmp_path, [*small, nobody])
    assert len(votes) == len(key)
    assert votes["q2"].tolist() == [c["q2"] for c in CHOICES] and set(votes["annotator"]) == {"3"}
    assert votes["q3"][0] == "" and votes["q4"][1] == "Y+N"


def test_skipped_tasks_are_counted_and_unanswered_ones_hold_nothing(key, tmp_path):
    tasks = exported(key, CHOICES, annotator={"id": 4, "email": "ann@example.org"})
    tasks[0]["annotations"][0]["was_cancelled"] = True
    tasks[1]["annotations"] = []
    tasks[2]["annotations"][0]["result"] = []
    votes = read(tmp_path, tasks)
    assert votes["left_out"].tolist()[:1] == ["skipped"] and votes["left_out"].count() == 1 and len(votes) == 4
    assert votes.loc[1, list(FORM.questions)].tolist() == [""] * 4
    assert set(votes["annotator"][1:]) == {"ann@example.org"}


@pytest.mark.parametrize(
    "content",
    ["", "[{", "{}", '{"a": 1}', "[1]", "[[]]", '"x"', '[{"id": 1}]', '[{"id": 1, "data": {}, "annotations": [{}]}]', "[" * 10_000],
)  # fmt: skip
def test_what_is_no_export(tmp_path, content):
    with pytest.raises(DataError, match=r"export.json: is not an export of a Label Studio project"):
        read(tmp_path, content)


TOKEN = "0123456789abcdef0123456789abcdef01234567"  # of an account that lives as long as the test


@pytest.mark.slow
def test_a_real_server_is_filled_and_read_back(nasty, tmp_path):
    command, port = servers.find_tool("label-studio"), servers.free_port()
    key = exchange.export_form(FORM, nasty, tmp_path, 1, ["labelstudio"])
    start = [
        command, "start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(port), "--data-dir", str(tmp_path / "data"),
        "--username", "ann@example.org", "--password", "throwaway-1234", "--user-token", TOKEN, "--enable-legacy-api-token",
    ]  # fmt: skip
    quiet = {"LATEST_VERSION_CHECK": "false", "COLLECT_ANALYTICS": "false", "SENTRY_DSN": ""}
    with servers.serving(start, port, tmp_path, LABEL_STUDIO_BASE_DATA_DIR=str(tmp_path / "data"), **quiet) as client:
        client.headers["Authorization"] = f"Token {TOKEN}"
        interface = (tmp_path / "labelstudio" / f"{FORM.name}.xml").read_text()
        made = client.post("/api/projects", json={"title": "form", "label_config": interface})
        assert made.status_code == 201, made.text
        project = f"/api/projects/{made.json()['id']}"
        tasks = json.loads((tmp_path / "labelstudio" / f"{FORM.name}.json").read_text())
        assert client.post(f"{project}/import", json=tasks).json()["task_count"] == len(key)
        numbers = [t["id"] for t in client.get("/api/tasks", params={"project": made.json()["id"]}).json()["tasks"]]
        for number, choice in zip(numbers[:4], CHOICES, strict=False):
            results = [result(q, c) for q, c in choice.items()]
            assert client.post(f"/api/tasks/{number}/annotations/", json={"result": results}).status_code == 201
        skip = {"result": [], "was_cancelled": True}
        assert client.post(f"/api/tasks/{numbers[4]}/annotations/", json=skip).status_code == 201
        for kind in ("JSON", "JSON_MIN"):
            export = client.get(f"{project}/export", params={"exportType": kind, "download_all_tasks": "true"})
            (tmp_path / kind).mkdir()
            (tmp_path / kind / "export.json").write_bytes(export.content)
    for kind, skipped in (("JSON", 1), ("JSON_MIN", 0)):  # the small kind does not tell of skipped tasks
        votes, counts = exchange.read_filled(FORM, tmp_path / kind, key)
        assert votes["row_id"].tolist() == key["row_id"].tolist()[:4] and counts["skipped"] == skipped
        assert votes[list(FORM.questions)].to_dict("records") == CHOICES[:4]
