"""Reading the study's corpora: actions, the critic's gold, recorded responses, entailment groups, d-RoT.

The published, hyphenated column names live in this module only.
"""

import codecs
import csv
import json
import re
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as arrow_csv

from drot_utils.data.parsing import INVISIBLE, NOTHING
from drot_utils.data.table import check_columns, read_table, write_frame
from drot_utils.study.errors import DataError
from drot_utils.study.params import Corpus, Params
from drot_utils.study.paths import Run, require, resolve

#: What is the same to a reader of an action: the forms of quotation marks and of hyphens.
_ALIKE = INVISIBLE | str.maketrans("‘’‚‛ʼʹ′´`＇“”„‟″«»＂‐‑‒–—", "'" * 10 + '"' * 8 + "-" * 5)
_QUOTED = re.compile(rb'(?:(?<=[\t\r\n])|\A)"((?:[^"]++|"")*+)"(?=[\t\r\n]|\Z)')


def read_tsv(path: str | Path, required: list[str]) -> pd.DataFrame:
    """Read a tab-separated file with a header; every value stays text.

    It is UTF-8, with or without a byte order mark; relative paths are relative to the checkout. Quotation marks are
    characters like any other, as in the published files, unless the file as a whole was written with quoted fields, as
    pandas writes it (see `_has_quoted_fields`).

    Returns
    -------
    DataFrame
        Columns renamed to snake_case; an empty cell is an empty string, an empty row is left out. A row's index is the
        number of its line, less 2.

    Raises
    ------
    DataError
        A missing file, wrong encoding, a line with too few or too many fields (named by number), a missing column.
    """
    path = resolve(path)
    try:
        quoted = _has_quoted_fields(path)
        with path.open(encoding="utf-8-sig", newline="") as handle:
            rows = csv.reader(handle, delimiter="\t", quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)
            texts = dict.fromkeys(next(rows, []), pa.string())
        table = arrow_csv.read_csv(
            path,
            arrow_csv.ReadOptions(use_threads=False),  # so that errors name the row
            arrow_csv.ParseOptions(
                delimiter="\t", quote_char=quoted and '"', newlines_in_values=quoted, ignore_empty_lines=False
            ),
            arrow_csv.ConvertOptions(column_types=texts, strings_can_be_null=False),
        )
    except (OSError, pa.ArrowInvalid, UnicodeDecodeError, csv.Error) as error:
        todo = "check the path, that the file was saved as UTF-8, and that each row has as many fields as the header"
        raise DataError(f"cannot be read as UTF-8 tab-separated text: {error}", where=str(path), todo=todo) from error
    frame = table.to_pandas()
    check_columns(frame, required, str(path))
    if quoted:  # a field may have several lines
        more = sum(column.str.count("\n") for _, column in frame.items())
        frame.index += (more.cumsum() - more).to_numpy(dtype=int)
    empty = frame[frame.iloc[:, 0] == ""].eq("").all(axis=1)
    frame = frame.drop(index=empty.index[empty]) if empty.any() else frame
    return frame.rename(columns=lambda name: name.replace("-", "_"))


def action_key(action: str) -> str:
    """Return what identifies an action, however it is typed; "" for none, or a word that means none ("nan", "None").

    Case, white space, final stops, the forms of quotation marks and hyphens, and whether an accent is a character of
    its own make no difference.
    """
    if action.isascii():
        action = action.lower()
    else:
        folded = unicodedata.normalize("NFD", action).casefold().translate(_ALIKE)
        action = unicodedata.normalize("NFC", folded)
    key = " ".join(action.replace("`", "'").split()).rstrip(" .")
    return "" if key in NOTHING else key


def action_keys(actions: pd.Series) -> pd.Series:
    """Return the `action_key` of each action, under the index of `actions`."""
    return pd.Series(map(action_key, actions), index=actions.index, dtype="str")


def read_actions(path: str | Path) -> pd.DataFrame:
    """Read the actions of Social-Chem-101 (Forbes et al., 2020), or of the built-in data, each once.

    The published file holds an action in several rows. "Sampled without replacement" (section 3.1) is about actions, so
    rows whose action has the same `action_key` are one; the first row speaks for it. An action that also occurs in
    another split than ``train`` is not a training action.

    Returns
    -------
    DataFrame
        ``action_id``, ``action``, ``split`` and the other columns in snake_case, one row an action.
    """
    frame = read_tsv(path, ["action", "split", "rot", "rot-judgment"])
    frame["action"] = frame["action"].str.split().str.join(" ").str.removesuffix(".").str.strip()
    key = action_keys(frame["action"])
    frame, key = frame[key != ""], key[key != ""]
    in_train_only = frame["split"].eq("train").groupby(key).transform("all")
    repeated = key[in_train_only | frame["split"].ne("train")].duplicated()
    frame = frame.loc[repeated.index[~repeated]].reset_index(drop=True)
    if "action_id" not in frame:
        frame.insert(0, "action_id", [f"sc{i:06d}" for i in range(len(frame))])
    doubled = frame["action_id"].duplicated()
    if doubled.any():
        raise DataError(f"action-id {frame['action_id'][doubled].iloc[0]!r} occurs twice", where=str(path))
    return frame


def read_recorded(path: str | Path, actions: pd.DataFrame) -> pd.DataFrame:
    """Read recorded teacher responses, ``action-id moral-variance choice context rationale``, and join their actions.

    An unknown action, a moral variance other than 1 and -1, an empty context, a choice that is not a whole number, and
    a duplicate choice are each a `DataError`.
    """
    frame = read_tsv(path, ["action-id", "moral-variance", "choice", "context", "rationale"])
    frame = with_variance(frame, str(path))
    frame["choice"] = read_whole(frame, "choice", str(path))
    doubled = frame.duplicated(["action_id", "moral_variance", "choice"])
    refuse(frame, doubled, "repeat the choice of an earlier line", str(path))
    return join_action(frame, actions, str(path))


def read_groups(path: str | Path) -> pd.DataFrame:
    """Read entailment groups and write out their labelled pairs (see the data sheet).

    Returns
    -------
    DataFrame
        ``group split premise hypothesis label`` with label 0 contradiction, 1 neutral, 2 entailment.
    """
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            group = json.loads(line)
            name, split, base = group["group"], group["split"], group["base"]
            relations = [*((p, 2, 2) for p in group["paraphrases"]), (group["general"], 2, 1)]
            relations += [(group["different"], 1, 1), (group["contradiction"], 0, 0)]
            for other, forward, backward in relations:
                rows += [(name, split, base, other, forward), (name, split, other, base, backward)]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(f"not an entailment group: {error!r}", where=f"{path}, line {number}") from error
    return pd.DataFrame(rows, columns=["group", "split", "premise", "hypothesis", "label"])


def read_lines(path: str | Path) -> list[str]:
    """Return the lines of a UTF-8 text, with or without a byte order mark."""
    try:
        return resolve(path).read_text(encoding="utf-8-sig").split("\n")  # splitlines would cut at U+2028, too
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read as UTF-8 text: {error}", where=str(path)) from error


def with_variance(frame: pd.DataFrame, where: str) -> pd.DataFrame:
    """Check moral variances and contexts, and return the former as numbers."""
    variance = read_whole(frame, "moral_variance", where, (1, -1))
    empty = frame["context"].str.strip().str.casefold().isin(["", *NOTHING])
    refuse(frame, empty, "have an empty context", where, "context")
    return frame.assign(moral_variance=variance.astype("int8"))


def read_whole(frame: pd.DataFrame, column: str, where: str, allowed: tuple[int, int] | None = None) -> pd.Series:
    """Return a column's whole numbers (0 and above, or the `allowed` ones), also where they are written as ``0.0``."""
    numbers = pd.to_numeric(frame[column], errors="coerce").astype(float)
    good = numbers.isin(allowed) if allowed else numbers.ge(0) & numbers.mod(1).eq(0)
    expected = f"{allowed[0]} and {allowed[1]}" if allowed else "a whole number"
    refuse(frame, ~good, f"have a {column.replace('_', '-')} other than {expected}", where, column)
    return numbers.astype(int)


def join_action(frame: pd.DataFrame, actions: pd.DataFrame, where: str) -> pd.DataFrame:
    """Join the action by its id, refusing rows of an unknown one."""
    names = actions.set_index("action_id")["action"]
    unknown = ~frame["action_id"].isin(names.index)
    refuse(frame, unknown, "name an action-id that the actions file does not have", where, "action_id")
    return frame.assign(action=frame["action_id"].map(names))


def refuse(frame: pd.DataFrame, bad: pd.Series, what: str, where: str, column: str | None = None) -> None:
    """Raise a `DataError` that counts the bad rows and shows the first with its line, if there is any."""
    if bad.any():
        first = frame.index[bad][0]
        shown = [c for c in ("action_id", "moral_variance", "context", column) if c in frame]
        place = f"{where}, line {first + 2}" + (f", column {column.replace('_', '-')}" if column else "")
        row = frame.loc[first, list(dict.fromkeys(shown))].to_dict()
        raise DataError(f"{int(bad.sum())} rows {what}; the first is {row}", where=place)


def _has_quoted_fields(path: Path) -> bool:
    """Tell whether a file was written with quoted fields.

    In such a file every quotation mark belongs to a field that is quoted as a whole, those within it doubled; and
    either the header is quoted, or some field had to be, as it holds a quotation mark, a tab or a line end. With nothing
    but tabs and line ends to go by, two stray marks of an unquoted file look the same: there each line has as many tabs
    as the header all the same, and these are no quoted fields.
    """
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    needed, spans, end = data.startswith(b'"'), False, 0
    for mark in re.finditer(b'"', data):
        if mark.start() >= end:  # not within the field before
            field = _QUOTED.match(data, mark.start())
            if not field:
                return False
            needed, end = needed or b'"' in field[1], field.end()
            spans = needed or spans or bool(re.search(rb"[\t\r\n]", field[1]))
    if needed or not spans:
        return needed
    lines = data.splitlines()
    return any(line and line.count(b"\t") != lines[0].count(b"\t") for line in lines)


def sample_actions(actions: pd.DataFrame, plan: Corpus, seed: int) -> dict[str, pd.DataFrame]:
    """Sample A0, an A for each round, and the rest from the training split, without replacement, and the held-out test actions.

    Returns
    -------
    dict of DataFrame
        ``seed``, ``round_1``, ``round_2`` and so on, ``final`` and ``test``: no action is in two of them, and none is empty, as a
        split with fewer actions than asked for is a `DataError`.
    """
    rng = np.random.default_rng(seed)
    train, test = (actions[actions["split"] == split] for split in ("train", "test"))
    train, test = (part.iloc[rng.permutation(len(part))] for part in (train, test))
    sizes = {"seed": plan.seed_actions, **{f"round_{i}": n for i, n in enumerate(plan.round_actions, start=1)}}
    sizes["final"] = plan.final_actions or max(1, len(train) - sum(sizes.values()))
    tested = plan.test_actions or max(1, len(test))
    for split, wanted, found in (("train", sum(sizes.values()), len(train)), ("test", tested, len(test))):
        if wanted > found:
            todo = "ask for fewer under `corpus` in the parameters, or give a larger file"
            asked = f"asked for {wanted} actions of the {split} split, found {found}"
            raise DataError(asked, where=plan.actions, todo=todo)
    parts, start = {}, 0
    for name, size in sizes.items():
        parts[name], start = train.iloc[start : start + size].reset_index(drop=True), start + size
    return {**parts, "test": test.iloc[:tested].reset_index(drop=True)}


def write_split(parts: dict[str, pd.DataFrame], run: Run) -> None:
    """Keep the parts that `sample_actions` drew, once a run; all later notebooks read them (see `read_split`)."""
    write_frame(
        pd.concat([rows.assign(part=name) for name, rows in parts.items()], ignore_index=True), run.data("actions")
    )


def read_split(run: Run) -> dict[str, pd.DataFrame]:
    """Return the parts that notebook 1 drew, as `sample_actions` returned them."""
    rows = read_table(require(run.data("actions"), "01_seed_generation"))
    return {name: part.drop(columns="part").reset_index(drop=True) for name, part in rows.groupby("part", sort=False)}


def is_builtin(*paths: str | None) -> bool:
    """Return whether all these files are of the built-in, machine-written data; one that is null is not."""
    return all(path is not None and path.startswith("data/demo/") for path in paths)


def is_all_builtin(params: Params) -> bool:
    """Return whether the actions, the teacher's responses and the critic's labels of a run are."""
    return is_builtin(params.corpus.actions, params.teacher.recorded, *params.critic.gold)
