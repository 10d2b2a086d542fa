"""The human forms in Potato (`potato-annotation`), a server for annotation: a project, and what its annotators answered."""

import html
import json
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from drot_utils.people.forms import INTRODUCTION, SHOWN, Filled, Form, collect_votes, refusing, show_rows
from drot_utils.study.errors import DataError
from drot_utils.study.paths import write_text

#: In Potato's output, the file that holds an annotator's answers; there is one in each annotator's folder.
STATE = "user_state.json"
#: The file of that purpose (``.jsonl``, or all annotators' as ``.csv`` or ``.tsv``) of Potato 1, which cannot show this project.
OLD_STATE = "annotated_instances"


def export(form: Form, key: pd.DataFrame, folder: Path) -> None:
    """Write a project, to be started with ``potato start config.yaml`` in its folder.

    That is ``potato/<form>/``, with ``config.yaml`` and ``rows.jsonl``. Potato copies the rows' fields into the page as they
    are, so texts are escaped here and shown as HTML.
    """
    lines = [
        json.dumps({"id": row["row_id"], "number": f"{number} of {len(key)}", "card": _card(row)}, allow_nan=False)
        for number, row in enumerate(show_rows(key).to_dict("records"), start=1)
    ]
    place = folder / "potato" / form.name
    write_text(place / "rows.jsonl", "".join(f"{line}\n" for line in lines))
    config = yaml.safe_dump(_config(form), sort_keys=False, allow_unicode=True, width=110)
    write_text(place / "config.yaml", config)


def claims(form: Form, path: Path) -> bool:
    """Return whether Potato wrote a file, or reads it: its answers, and what else lies beside them or in its project."""
    places = (path.parent / name for name in (STATE, "config.yaml"))
    beside = "annotation_output" in path.parts or any(place.exists() for place in places)
    return path.name == STATE or path.stem == OLD_STATE or (beside and path.suffix.lower() in (".json", ".jsonl"))


def read(form: Form, path: Path) -> Filled | None:
    """Read one annotator's answers, ``annotation_output/<annotator>/user_state.json``; None for another file.

    Raises
    ------
    DataError
        A file that is not such a state, or Potato 1's.
    """
    if path.stem == OLD_STATE:
        todo = "ask again with the project in potato/, which needs Potato 2, or move the file elsewhere"
        raise DataError("comes from Potato 1, whose answers are not read", where=str(path), todo=todo)
    if path.name != STATE:
        return None
    with refusing(path, "does not hold an annotator's answers", "copy the whole annotation_output folder again"):
        state = json.loads(path.read_bytes())
        annotator = str(state["user_id"])
        votes = [
            {
                "row_id": row_id,
                "annotator": annotator,
                **{name: _chosen(labels, name) for name in form.questions},
                "where": f"{path}, {row_id}",
            }
            for row_id, labels in state["instance_id_to_label_to_value"].items()
        ]
    return collect_votes(form, votes)


def _chosen(labels: list[list[Any]], name: str) -> str:
    """Return the option of a question that is set; Potato keeps one entry an option."""
    return "+".join(
        label["name"] for label, value in labels if label["schema"] == name and value not in ("", "false", False, None)
    )  # fmt: skip


def _card(row: dict[str, str]) -> str:
    return "".join(f"<p><b>{name.capitalize()}:</b> {html.escape(row[name])}</p>" for name in SHOWN[1:])


def _config(form: Form) -> dict[str, Any]:
    questions = [
        {
            "annotation_type": "radio",
            "name": name,
            "description": question.text,
            "labels": [{"name": code, "displayed_label": text} for code, text in question.answers.items()],
        }
        for name, question in form.questions.items()
    ]
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
