"""The human forms on Amazon Mechanical Turk: a project's layout with its input file, and the results of a batch."""

import html
import json
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from drot_utils.data.table import check_columns
from drot_utils.people.forms import INTRODUCTION, SHOWN, Form, refusing, show_rows
from drot_utils.people.spreadsheet import is_table, read_csv
from drot_utils.study.errors import DataError
from drot_utils.study.paths import write_text

AGAIN = "download the batch's results again"

_LAYOUT = """\
<script src="https://assets.crowd.amazonaws.com/crowd-html-elements.js"></script>
<style>
  .drot { font: 16px/1.5 sans-serif; max-width: 46em; margin: 1em auto; padding: 0 1em; color: #222; }
  .drot details { background: #f5f5f5; border-radius: 6px; padding: .6em 1em; }
  .drot dl { border-left: 4px solid #4a6fa5; padding-left: 1em; }
  .drot dt { font-size: .85em; color: #666; }
  .drot dd { margin: 0 0 .6em 0; }
  .drot fieldset { border: 1px solid #ddd; border-radius: 6px; margin: .8em 0; padding: .4em 1em .7em; }
  .drot legend { font-weight: bold; padding: 0 .3em; }
  .drot label { display: inline-block; margin-right: 1.5em; }
</style>
<crowd-form answer-format="flatten-objects">
  <div class="drot">
    <details open><summary><b>What to do</b></summary>
    {% for text in introduction %}
    <p>{{ text }}</p>
    {% endfor %}
    </details>
    <dl>
    {% for name in shown %}
      <dt>{{ name.capitalize() }}</dt><dd>{{ "${" ~ name ~ "}" }}</dd>
    {% endfor %}
    </dl>
    {% for name, question in questions.items() %}
    <fieldset><legend>{{ question.text }}</legend>
      {% for code, text in question.answers.items() %}
      {% if question.several %}
      <label><input type="checkbox" name="{{ name }}" value="{{ code }}"> {{ text }}</label>
      {% else %}
      <label><input type="radio" name="{{ name }}" value="{{ code }}" required> {{ text }}</label>
      {% endif %}
      {% endfor %}
    </fieldset>
    {% endfor %}
  </div>
</crowd-form>
"""


def export(form: Form, key: pd.DataFrame, folder: Path) -> None:
    """Write a HIT's layout, with ``${...}`` where a row's texts go, and the batch's input.

    They are ``mturk/<form>.html`` (for the editor of a project's layout) and ``mturk/<form>.csv`` (to publish a batch with).
    Mechanical Turk puts the values in as they are, so they are escaped here, as HTML and to ASCII.
    """
    html_ = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    page = html_.from_string(_LAYOUT).render(introduction=INTRODUCTION, shown=SHOWN[1:], questions=form.questions)
    write_text(folder / "mturk" / f"{form.name}.html", page)
    write_text(folder / "mturk" / f"{form.name}.csv", show_rows(key).map(_escape).to_csv(index=False))


def read(form: Form, path: Path) -> list[dict[str, str]] | None:
    """Read the results of a batch (the CSV file that "Download CSV" gives): a table with workers.

    Rejected assignments are left out: those of that status, and those marked in the column ``Reject``.
    """
    if not is_table(form, path) or "WorkerId" not in (table := read_csv(path)):
        return None
    check_columns(table, ["AssignmentStatus", "Input.row_id"], str(path))
    votes = []
    for number, row in zip(table.index, table.to_dict("records"), strict=True):
        where, status = f"{path}, line {number}", row["AssignmentStatus"]
        if status not in ("Submitted", "Approved", "Rejected"):
            found = f"expected the AssignmentStatus Submitted, Approved or Rejected, found {status!r}"
            raise DataError(found, where=where, todo=AGAIN)
        if status == "Rejected" or row.get("Reject"):
            votes.append({"left_out": "rejected"})
            continue
        given = _answers(row, where)
        answers = {name: _chosen(given, name, where) for name in form.questions}
        row_id = html.unescape(row["Input.row_id"])
        votes.append({"row_id": row_id, "annotator": row["WorkerId"], **answers, "where": where})
    return votes


def _answers(row: dict[str, str], where: str) -> dict[str, Any]:
    """Return what was answered, by field: a code, or a flag under ``<question>.<code>``."""
    given: dict[str, Any] = _below("Answer.", row)
    text = given.pop("taskAnswers", "") or "[]"
    with refusing(f"{where}, Answer.taskAnswers", "is not a list of answers in JSON", AGAIN):
        for answers in json.loads(text):
            for name, value in answers.items():
                flags = value if isinstance(value, dict) else {}
                given |= {f"{name}.{code}": flag for code, flag in flags.items()} or {name: value}
    return given


def _chosen(given: dict[str, Any], name: str, where: str) -> str:
    flags = {code: str(value).strip().lower() for code, value in _below(f"{name}.", given).items()}
    for code, flag in flags.items():
        if flag not in ("true", "false", ""):
            place, found = f"{where}, Answer.{name}.{code}", f"expected true, false or nothing, found {flag!r}"
            todo = "use the file as downloaded; a spreadsheet program writes flags in the user's language"
            raise DataError(found, where=place, todo=todo)
    return "+".join(code for code, flag in flags.items() if flag == "true") or str(given.get(name) or "")


def _below(prefix: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in fields.items() if name.startswith(prefix)}


def _escape(text: str) -> str:
    return html.escape(text).replace("$", "&#36;").encode("ascii", "xmlcharrefreplace").decode()
