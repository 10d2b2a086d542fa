"""The human forms in Label Studio: a project's labeling interface and tasks, and what it exports (JSON and JSON-MIN)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pandas as pd

from drot_utils.people.forms import INTRODUCTION, SHOWN, Form, Question, refusing, show_rows
from drot_utils.study.paths import write_text

_STYLE = (
    ".drot-text {margin: .2em 0; padding: .1em .8em; border-left: 4px solid #4a6fa5}"
    " .drot-question {margin-top: 1em; padding: .2em .8em; border: 1px solid #ddd; border-radius: 6px}"
)


def export(form: Form, key: pd.DataFrame, folder: Path) -> None:
    """Write a project's labeling interface and its tasks.

    They are ``labelstudio/<form>.xml`` (Settings, Labeling Interface, Code) and ``labelstudio/<form>.json`` (Import). Texts go
    in as they are: Label Studio's ``Text`` shows them as text.
    """
    interface, place = _interface(form), folder / "labelstudio"
    ET.indent(interface)
    write_text(place / f"{form.name}.xml", ET.tostring(interface, encoding="unicode") + "\n")
    tasks = [{"data": row} for row in show_rows(key).to_dict("records")]
    write_text(place / f"{form.name}.json", json.dumps(tasks, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read(form: Form, path: Path) -> list[dict[str, str]] | None:
    """Read an export of a project, JSON or JSON-MIN: any JSON that no other tool wrote; skipped tasks are left out."""
    if path.suffix.lower() != ".json":
        return None
    votes = []
    with refusing(path, "is not an export of a Label Studio project", "export the project as JSON or JSON-MIN"):
        tasks = json.loads(path.read_bytes())
        if not isinstance(tasks, list):
            raise TypeError(f"expected a list of tasks, found {type(tasks).__name__}")
        for row_id, who, given, where in (annotation for task in tasks for annotation in _annotations(task)):
            if given is None:
                votes.append({"left_out": "skipped"})
                continue
            annotator = str(who.get("email") or who["id"]) if isinstance(who, dict) else str(who)
            answers = {name: _code(question, given.get(name, [])) for name, question in form.questions.items()}
            votes.append({"row_id": row_id, "annotator": annotator, **answers, "where": f"{path}, {where}"})
    return votes


def _annotations(task: dict[str, Any]) -> Iterator[tuple[str, Any, dict[str, Any] | None, str]]:
    """Yield each annotation's row, annotator, choices by question (None: the task was skipped), and place."""
    if set(task) == {"data"}:  # a task to be imported
        return
    if "data" in task:
        for annotation in task["annotations"]:
            given = {r["from_name"]: r["value"] for r in annotation["result"] if r["type"] == "choices"}
            given = None if annotation.get("was_cancelled") else given
            where = f"task {task['id']}, annotation {annotation['id']}"
            yield task["data"]["row_id"], annotation["completed_by"], given, where
    elif task["annotation_id"] is not None:  # JSON-MIN: one record an annotation, or a task that nobody answered
        yield task["row_id"], task["annotator"], task, f"task {task['id']}, annotation {task['annotation_id']}"


def _code(question: Question, value: object) -> str:
    """Return the code of what was chosen, by its alias or by its text."""
    chosen = value.get("choices", []) if isinstance(value, dict) else value
    codes = {text: code for code, text in question.answers.items()}
    return "+".join(codes.get(c, c) for c in map(str, chosen if isinstance(chosen, list) else [chosen]))


def _interface(form: Form) -> ET.Element:
    view = ET.Element("View")
    ET.SubElement(view, "Style").text = _STYLE
    panel = ET.SubElement(ET.SubElement(view, "Collapse", bordered="true", open="true"), "Panel", value="What to do")
    for text in INTRODUCTION:
        ET.SubElement(panel, "Header", value=text, style="font-size: 14px; font-weight: normal; margin: .4em 0")
    for name in SHOWN[1:]:
        box = ET.SubElement(view, "View", className="drot-text")
        ET.SubElement(box, "Header", value=name.capitalize(), size="6")
        ET.SubElement(box, "Text", name=name, value=f"${name}", selectionEnabled="false")
    for name, question in form.questions.items():
        box = ET.SubElement(view, "View", className="drot-question")
        ET.SubElement(box, "Header", value=question.text, size="5")
        kind = "multiple" if question.several else "single-radio"
        choices = ET.SubElement(box, "Choices", name=name, toName="context", choice=kind, showInline="true")
        for code, text in question.answers.items():
            ET.SubElement(choices, "Choice", value=text, alias=code)
    return view
