"""Reading the study's corpora: actions, the critic's gold, recorded responses, entailment groups, d-RoT.

The published, hyphenated column names live in this module only.
"""

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv as arrow_csv

from drot_utils.errors import DataError
from drot_utils.paths import resolve
from drot_utils.schema import check_columns

#: The columns of the published Social-Chem-101 (Forbes et al., 2020), of which `read_actions` needs four.
SOCIAL_CHEM = [
    "area", "m", "split", "rot-agree", "rot-categorization", "rot-moral-foundations", "rot-char-targeting",
    "rot-bad", "rot-judgment", "action", "action-agency", "action-moral-judgment", "action-agree",
    "action-legal", "action-pressure", "action-char-involved", "action-hypothetical", "situation",
    "situation-short-id", "rot", "rot-id", "rot-worker-id", "breakdown-worker-id", "n-characters",
    "characters",
]  # fmt: skip


def read_tsv(path: str | Path, required: list[str]) -> pd.DataFrame:
    """Read a tab-separated file with a header and no quoting; every value stays text.

    Parameters
    ----------
    path : str or Path
        UTF-8; relative paths are relative to the checkout.
    required : list of str
        Columns that must be there.

    Returns
    -------
    DataFrame
        Columns renamed to snake_case; an empty cell is an empty string.

    Raises
    ------
    DataError
        A missing file, wrong encoding, a line with too few or too many fields (named by number), a missing column.
    """
    path = resolve(path)
    bad_lines: list[str] = []

    def note(row: arrow_csv.InvalidRow) -> str:
        number = f"line {row.number}" if row.number is not None else "a line"
        bad_lines.append(
            f"{number} has {row.actual_columns} fields instead of {row.expected_columns}: {row.text[:60]!r}"
        )
        return "skip"

    try:
        table = arrow_csv.read_csv(
            path,
            read_options=arrow_csv.ReadOptions(use_threads=False),  # so that rows carry their numbers
            parse_options=arrow_csv.ParseOptions(
                delimiter="\t", quote_char=False, newlines_in_values=False, invalid_row_handler=note
            ),
            convert_options=arrow_csv.ConvertOptions(
                column_types={name: pa.string() for name in _header(path)},
                strings_can_be_null=False,
                check_utf8=True,
            ),
        )
    except FileNotFoundError as error:
        raise DataError("no such file", where=str(path), todo="check the path in the parameters") from error
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise DataError(
            f"is no UTF-8 tab-separated text: {error}", where=str(path), todo="save it as UTF-8"
        ) from error
    if bad_lines:
        raise DataError(
            f"{len(bad_lines)} malformed lines; {bad_lines[0]}",
            where=str(path),
            todo="mend or remove these lines",
        )
    frame = table.to_pandas()
    check_columns(frame, required, str(path))
    return frame.rename(columns=lambda name: name.replace("-", "_"))


def read_actions(path: str | Path) -> pd.DataFrame:
    """Read the actions of Social-Chem-101, or of the built-in data, each once.

    The published file holds an action in several rows. "Sampled without replacement" (section 3.1) is about actions, so
    rows whose action differs only in case, spaces or a final full stop are one; the first row speaks for it. An action
    that also occurs in another split than ``train`` is no training action.

    Parameters
    ----------
    path : str or Path
        A TSV with at least the columns ``action split rot rot-judgment``.

    Returns
    -------
    DataFrame
        ``action_id``, ``action``, ``split`` and the other columns in snake_case, one row an action.

    Raises
    ------
    DataError
        As `read_tsv`; also for a duplicate ``action-id``.
    """
    frame = read_tsv(path, ["action", "split", "rot", "rot-judgment"])
    frame["action"] = frame["action"].str.split().str.join(" ").str.removesuffix(".").str.strip()
    frame = frame[frame["action"] != ""]
    key = frame["action"].str.casefold()
    in_train_only = frame["split"].eq("train").groupby(key).transform("all")
    frame = frame.assign(_order=in_train_only | frame["split"].ne("train"))
    frame = frame.sort_values("_order", ascending=False, kind="stable")
    frame = (
        frame[~key.loc[frame.index].duplicated()].sort_index().drop(columns="_order").reset_index(drop=True)
    )
    if "action_id" not in frame:
        frame.insert(0, "action_id", [f"sc{i:06d}" for i in range(len(frame))])
    doubled = frame["action_id"].duplicated()
    if doubled.any():
        raise DataError(f"action-id {frame['action_id'][doubled].iloc[0]!r} occurs twice", where=str(path))
    return frame


def read_recorded(path: str | Path, actions: pd.DataFrame) -> pd.DataFrame:
    """Read recorded teacher responses (``action-id moral-variance choice context rationale``).

    Returns
    -------
    DataFrame
        One row a response, with ``action`` joined in.

    Raises
    ------
    DataError
        An unknown action, a moral variance other than 1 and -1, an empty context, a duplicate choice.
    """
    frame = read_tsv(path, ["action-id", "moral-variance", "choice", "context", "rationale"])
    frame = with_variance(frame, str(path))
    frame["choice"] = frame["choice"].astype(int)
    doubled = frame.duplicated(["action_id", "moral_variance", "choice"])
    refuse(frame, doubled, "repeat the choice of an earlier line", str(path))
    return join_action(frame, actions, str(path))


def read_groups(path: str | Path) -> pd.DataFrame:
    """Read entailment groups and write out their labelled pairs (see the data sheet).

    Returns
    -------
    DataFrame
        ``group split premise hypothesis label`` with label 0 contradiction, 1 neutral, 2 entailment.

    Raises
    ------
    DataError
        A line that is no JSON object with the promised keys.
    """
    rows = []
    for number, line in enumerate(resolve(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            group = json.loads(line)
            base, relations = group["base"], [(p, 2, 2) for p in group["paraphrases"]]
            relations += [
                (group["general"], 2, 1),
                (group["different"], 1, 1),
                (group["contradiction"], 0, 0),
            ]
            for other, forward, backward in relations:
                rows.append((group["group"], group["split"], base, other, forward))
                rows.append((group["group"], group["split"], other, base, backward))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(f"is no entailment group: {error!r}", where=f"{path}, line {number}") from error
    return pd.DataFrame(rows, columns=["group", "split", "premise", "hypothesis", "label"])


def with_variance(frame: pd.DataFrame, where: str) -> pd.DataFrame:
    """Check moral variances and contexts, and return the former as numbers."""
    refuse(
        frame, ~frame["moral_variance"].isin(["1", "-1"]), "have a moral variance other than 1 and -1", where
    )
    refuse(frame, frame["context"].str.strip() == "", "have an empty context", where)
    return frame.assign(moral_variance=frame["moral_variance"].astype("int8"))


def join_action(frame: pd.DataFrame, actions: pd.DataFrame, where: str) -> pd.DataFrame:
    """Join the action by its id, refusing rows of an unknown one."""
    names = actions.set_index("action_id")["action"]
    refuse(
        frame,
        ~frame["action_id"].isin(names.index),
        "name an action-id that the actions file does not have",
        where,
    )
    return frame.assign(action=frame["action_id"].map(names))


def refuse(frame: pd.DataFrame, bad: pd.Series, what: str, where: str) -> None:
    """Raise a `DataError` that counts the bad rows and shows the first, if there is any."""
    if bad.any():
        first = frame.index[bad][0]
        row = {
            key: value
            for key, value in frame.loc[first].items()
            if key in ("action_id", "moral_variance", "context")
        }
        raise DataError(
            f"{int(bad.sum())} rows {what}; the first is {row}", where=f"{where}, line {first + 2}"
        )


def _header(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as handle:
        return handle.readline().rstrip("\r\n").split("\t")
