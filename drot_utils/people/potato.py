"""The human forms in Potato (`potato-annotation`), a server for annotation: a project, and what its annotators answered."""

import html
import json
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from drot_utils.people.forms import INTRODUCTION, SHOWN, Form, refusing, show_rows
from drot_utils.study.paths import write_text

#: In Potato's output, the file that holds an annotator's answers; there is one in each annotator's folder.
STATE = "user_state.json"
OLD_STATE = "annotated_instances"  # Potato 1's, which cannot show this project


def export(form: Form, key: pd.DataFrame, folder: Path) -> None:
    """Write a project, to be started with ``potato start config.yaml`` in its folder.

    That is ``potato/<form>/``, with ``config.yaml`` and ``rows.jsonl``. Potato copies the rows' fields into the page as they
    are, so texts are escaped here and shown as HTML.
    """
    place, lines = folder / "potato" / form.name, ""
    for number, row in enumerate(show_rows(key).to_dict("records"), start=1):
        card = "".join(f"<p><b>{name.capitalize()}:</b> {html.escape(row[name])}</p>" for name in SHOWN[1:])
        lines += json.dumps({"id": row["row_id"], "number": f"{number} of {len(key)}", "card": card}) + "\n"
    write_text(place / "rows.jsonl", lines)
    config = yaml.safe_dump(_config(form), sort_keys=False, allow_unicode=True, width=110)
    write_text(place / "config.yaml", config)


def read(form: Form, path: Path) -> list[dict[str, str]] | None:
    """Read one annotator's answers, ``annotation_output/<annotator>/user_state.json``.

    What else Potato leaves there or reads, beside its answers or in its project, holds none.
    """
    if path.name != STATE:
        beside = any((path.parent / name).exists() for name in (STATE, "config.yaml"))
        own = path.suffix.lower() in (".json", ".jsonl") and path.stem != OLD_STATE
        return [] if own and (beside or "annotation_output" in path.parts) else None
    with refusing(path, "does not hold an annotator's answers", "copy the whole annotation_output folder again"):
        state = json.loads(path.read_bytes())
        annotator, votes = str(state["user_id"]), []
        for row_id, labels in state["instance_id_to_label_to_value"].items():
            answers = {name: _chosen(labels, name) for name in form.questions}
            votes.append({"row_id": row_id, "annotator": annotator, **answers, "where": f"{path}, {row_id}"})
    return votes


def _chosen(labels: list[list[Any]], name: str) -> str:
    """Return the options of a question that are set; Potato keeps one entry an option."""
    own = [(label["name"], value) for label, value in labels if label["schema"] == name]
    return "+".join(code for code, value in own if value not in ("", "false", False, None))


def _config(form: Form) -> dict[str, Any]:
    questions = []
    for name, question in form.questions.items():
        labels = [{"name": code, "displayed_label": text} for code, text in question.answers.items()]
        kind = "multiselect" if question.several else "radio"
        questions.append({"annotation_type": kind, "name": name, "description": question.text, "labels": labels})
    return {
        "annotation_task_name": form.title,
        "task_dir": ".",
        "data_files": ["rows.jsonl"],
        "item_properties": {"id_key": "id", "text_key": "number"},
        "output_annotation_dir": "annotation_output",
        "host": "127.0.0.1",
        "assignment_strategy": "fixed_order",
        "require_password": False,
        "user_config": {"allow_all_users": True, "users": []},
        "interaction_tracking": {"enabled": False},
        "annotation_instructions": "\n\n".join(INTRODUCTION),
        "instance_display": {"fields": [{"key": "card", "type": "html"}]},
        "annotation_schemes": questions,
    }
