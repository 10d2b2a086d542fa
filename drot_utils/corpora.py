"""Reading the study's corpora: actions, the critic's gold, recorded responses, entailment groups, d-RoT.

The published, hyphenated column names live in this module only.
"""

import json
import re
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv as arrow_csv

from drot_utils.errors import DataError
from drot_utils.paths import resolve
from drot_utils.schema import check_columns

#: What a vote on figure 6's first question means for the context; N and O both make it invalid (appendix B.1).
VOTES = {"Y": "as_asked", "N": "neutral", "O": "opposite"}


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
    frame = _typed(frame, str(path))
    frame["choice"] = frame["choice"].astype(int)
    doubled = frame.duplicated(["action_id", "moral_variance", "choice"])
    _refuse(frame, doubled, "repeat the choice of an earlier line", str(path))
    return _with_action(frame, actions, str(path))


def read_gold(paths: list[str], actions: pd.DataFrame) -> pd.DataFrame:
    """Read the critic's gold: annotation files with votes, or the published file with ``context-quality``.

    Labels are the majority of the votes, and "neutral" and "opposite" are both invalid (appendix B.1). Three different
    votes have no majority: such a row is invalid, its shift unknown.

    Parameters
    ----------
    paths : list of str
        TSVs with ``q1-a1 q1-a2 q1-a3``, with a single ``q1``, or with ``context-quality``.
    actions : DataFrame
        As `read_actions` returns it; joined where a file has ``action-id`` but no ``action``.

    Returns
    -------
    DataFrame
        ``action_id action moral_variance context rationale source``, ``valid`` (bool), ``shift`` (-1, 0, +1: what the
        context does to the action, whatever was asked; null when unknown), ``votes`` (how many), ``agreed`` (all of at
        least three votes the same), ``split`` (as published, else null).

    Raises
    ------
    DataError
        As `read_tsv`; also for a vote that is not Y, N or O.
    """
    return pd.concat([_read_gold_file(path, actions) for path in paths], ignore_index=True)


def read_votes(path: str) -> pd.DataFrame | None:
    """Read the single votes of an annotation file, for their agreement.

    Returns
    -------
    DataFrame or None
        ``file row source question annotator answer``, a row a vote; None when the file holds fewer than three votes a row.
    """
    frame = read_tsv(path, ["context"])
    columns = [name for name in frame if re.fullmatch(r"q\d_a\d", name)]
    if not columns:
        return None
    frame = frame.assign(file=path, row=range(len(frame)), source=frame.get("source", ""))
    votes = frame.melt(["file", "row", "source"], columns, "name", "answer")
    votes[["question", "annotator"]] = votes["name"].str.split("_", expand=True).to_numpy()
    return votes.drop(columns="name")


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


def _read_gold_file(path: str, actions: pd.DataFrame) -> pd.DataFrame:
    frame = read_tsv(path, ["moral-variance", "context", "rationale"])
    frame = _typed(frame, path)
    if "action" not in frame:
        frame = _with_action(frame, actions, path)
    elif "action_id" not in frame:
        frame["action_id"] = "g" + frame.groupby("action").ngroup().astype(str).str.zfill(6)
    if "context_quality" in frame:
        _refuse(
            frame,
            ~frame["context_quality"].isin(["0", "1"]),
            "have a context-quality other than 0 and 1",
            path,
        )
        frame = frame.assign(valid=frame["context_quality"] == "1", shift=float("nan"), votes=3)
        frame["agreed"] = (
            frame["split"] != "train"
        )  # the published dev and test splits hold full agreement only
        frame["source"] = frame.get("source", "gpt-3")
    else:
        frame = _vote(frame, path)
    columns = [
        "action_id",
        "action",
        "moral_variance",
        "context",
        "rationale",
        "source",
        "valid",
        "shift",
        "votes",
    ]
    return frame.reindex(columns=[*columns, "agreed", "split"])


def _vote(frame: pd.DataFrame, path: str) -> pd.DataFrame:
    columns = [c for c in ("q1", "q1_a1", "q1_a2", "q1_a3") if c in frame]
    if len(columns) not in (1, 3):
        raise DataError("expected the votes in q1, or in q1-a1 q1-a2 q1-a3, or context-quality", where=path)
    votes = frame[columns]
    _refuse(frame, ~votes.isin(list(VOTES)).all(axis=1), "have a vote other than Y, N and O", path)
    counts = pd.DataFrame({v: votes.eq(v).sum(axis=1) for v in VOTES})
    winner = counts.idxmax(axis=1).where(counts.max(axis=1) * 2 > len(columns))
    asked = frame["moral_variance"].astype(float)
    shift = asked.where(winner == "Y", -asked).where(winner != "N", 0.0).where(winner.notna())
    agreed = counts.max(axis=1).eq(len(columns)) & (len(columns) >= 3)
    return frame.assign(valid=winner.eq("Y"), shift=shift, votes=len(columns), agreed=agreed, split=None)


def _typed(frame: pd.DataFrame, where: str) -> pd.DataFrame:
    _refuse(
        frame, ~frame["moral_variance"].isin(["1", "-1"]), "have a moral variance other than 1 and -1", where
    )
    _refuse(frame, frame["context"].str.strip() == "", "have an empty context", where)
    return frame.assign(moral_variance=frame["moral_variance"].astype("int8"))


def _with_action(frame: pd.DataFrame, actions: pd.DataFrame, where: str) -> pd.DataFrame:
    names = actions.set_index("action_id")["action"]
    _refuse(
        frame,
        ~frame["action_id"].isin(names.index),
        "name an action-id that the actions file does not have",
        where,
    )
    return frame.assign(action=frame["action_id"].map(names))


def _refuse(frame: pd.DataFrame, bad: pd.Series, what: str, where: str) -> None:
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
