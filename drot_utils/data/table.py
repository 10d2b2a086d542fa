"""The one table of the study: its columns, its checks, how it is read and written, and how it is shown."""

import shutil
import unicodedata
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pandas.io.formats.style import Styler
from tabulate import tabulate

from drot_utils.study.errors import DataError
from drot_utils.study.paths import atomic

#: Rows are flagged, not deleted, until the final export. A missing score or flag is null, never 0 or false.
CANDIDATES = pa.schema(
    [
        pa.field("action_id", pa.string(), nullable=False),
        pa.field("action", pa.string(), nullable=False),
        pa.field("moral_variance", pa.int8(), nullable=False),  # +1 strengthens, -1 weakens
        pa.field("candidate", pa.int32(), nullable=False),  # order in which the writer gave it
        pa.field("source", pa.string(), nullable=False),  # who wrote it: teacher, distill_base ...
        pa.field("context", pa.string()),  # null when the raw text does not parse
        pa.field("rationale", pa.string()),
        pa.field("raw", pa.string(), nullable=False),  # the writer's own words
        pa.field("tokens", pa.int32()),  # generated tokens; null when unknown
        pa.field("nli_kept", pa.bool_()),
        pa.field("critic_score", pa.float64()),  # probability of the direction asked, 0 to 1
        pa.field("kept", pa.bool_()),
    ]
)
#: Of what is written for test actions: with the score of the second critic, where there is one (notebook 7).
SCORED = CANDIDATES.append(pa.field("independent_score", pa.float64())).append(pa.field("filter_score", pa.float64()))
KEY = ["action_id", "moral_variance", "candidate", "source"]
PROMPT = ["action_id", "moral_variance"]
#: What a moral variance is called where people read it.
DIRECTIONS = {1: "strengthening", -1: "weakening"}
#: How it is asked for: what a context is to make an action.
WAYS = {1: "more acceptable", -1: "less acceptable"}
JOINERS = "\u200c\u200d"  # they hold letters and emoji together


def check_columns(frame: pd.DataFrame, required: list[str], where: str) -> None:
    """Raise a `DataError` that lists the columns of `required` that `frame` lacks, and those it has."""
    missing = [name for name in required if name not in frame.columns]
    if missing:
        found = f"missing column{'s' * (len(missing) > 1)} {', '.join(missing)}; found {', '.join(map(str, frame))}"
        todo = "check that the file is the one its section of the parameters asks for"
        raise DataError(found, where=where, todo=todo)


def check_candidates(frame: pd.DataFrame, where: str) -> pd.DataFrame:
    """Check a candidate table and return it unchanged.

    Raises
    ------
    DataError
        A missing column, a moral variance other than +1 and -1, a duplicate key, an empty context where one was parsed,
        or a score outside [0, 1]; the first offending row is named.
    """
    check_columns(frame, CANDIDATES.names, where)
    problems = {
        "a moral variance other than 1 and -1": ~frame["moral_variance"].isin([1, -1]),
        f"a second row of the same {', '.join(KEY)}": frame.duplicated(KEY),
        "an empty context": frame["context"].notna() & (frame["context"].fillna("").str.strip() == ""),
        "a critic score outside 0 to 1": frame["critic_score"].notna() & ~frame["critic_score"].between(0, 1),
        "a kept row without a context": frame["kept"].eq(True).fillna(False) & frame["context"].isna(),
    }
    for what, rows in problems.items():
        if rows.any():
            first = frame.loc[rows].iloc[0]
            found = f"{int(rows.sum())} rows with {what}; the first is {dict(first[KEY])}"
            raise DataError(found, where=f"{where}, row {first.name}")
    return frame


def make_table(rows: list, columns: dict[str, str]) -> pd.DataFrame:
    """Return rows as a frame with these columns (name to dtype), which it has without any row, too."""
    return pd.DataFrame(rows, columns=list(columns)).astype(columns)


def empty_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """Return `frame` with the columns of `CANDIDATES` that it lacks added as nulls, in order.

    Texts are of pandas' kind for texts also where all are null, as of a student none of whose texts parses.
    """
    texts = [field.name for field in CANDIDATES if pa.types.is_string(field.type)]
    return frame.reindex(columns=CANDIDATES.names).astype(dict.fromkeys(texts, "str"))


def write_candidates(frame: pd.DataFrame, path: Path) -> Path:
    """Check `frame` and write its columns of `CANDIDATES` to `path`."""
    check_candidates(frame, str(path))
    return write_frame(frame[CANDIDATES.names], path, CANDIDATES)


def write_frame(frame: pd.DataFrame, path: Path, schema: pa.Schema | None = None) -> Path:
    """Write a frame without its index as parquet with page checksums, whole or not at all, and return the path."""
    table = pa.Table.from_pandas(frame, schema=schema, preserve_index=False).replace_schema_metadata(None)
    with atomic(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
    return path


def read_table(path: Path) -> pd.DataFrame:
    """Read a parquet file; one that is truncated, or whose bytes have changed, is a `DataError`."""
    try:
        return to_pandas(pq.read_table(path, page_checksum_verification=True))
    # A changed footer leads to more than Arrow's own errors.
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
        todo = "remove the file and run the notebook that makes it"
        raise DataError(f"cannot be read as parquet: {error}", where=str(path), todo=todo) from error


def to_pandas(table: pa.Table) -> pd.DataFrame:
    """Return an Arrow table as a frame whose flags may be null."""
    return table.to_pandas(types_mapper={pa.bool_(): pd.BooleanDtype()}.get)


def visible(text: str) -> str:
    """Return a text with what is no printable character (control codes, marks that turn the direction) written as an escape."""
    return "".join(c if c.isprintable() or c in JOINERS else c.encode("unicode_escape").decode() for c in text)


def for_reading(rows: pd.DataFrame, *columns: str, decimals: int = 2) -> Styler:
    """Return rows (all or some columns) as a notebook shows them: without index, directions in words, nothing for null."""
    shown = (rows[list(columns)] if columns else rows).reset_index(drop=True)
    if "moral_variance" in shown:
        directions = shown["moral_variance"].map(DIRECTIONS)
        shown = shown.assign(moral_variance=directions).rename(columns={"moral_variance": "direction"})
    # Names of columns in words; a model's name, such as Distill_base, stays.
    shown.columns = [name.replace("_", " ") if name.islower() else name for name in map(str, shown)]
    texts = [name for name in shown if not pd.api.types.is_numeric_dtype(shown[name])]
    left = [{"selector": "th.col_heading", "props": "text-align: left"}]
    style = shown.style.hide(axis="index").format(precision=decimals, na_rep="", escape="html")
    return style.set_properties(texts, **{"text-align": "left"}).set_table_styles(left)


def say_contexts(every: pd.DataFrame, best: pd.DataFrame | None, width: int | None = None) -> str:
    """Return what a student writes as tables that no text of it can break, one an action and direction.

    Parameters
    ----------
    every : DataFrame
        All candidates, as `distill.ask_student` returns them with `raw`.
    best : DataFrame or None
        Those to show (`distill.choose_best`); by default all, with what the NLI filter says of each.
    width : int, optional
        Columns of the terminal.
    """
    width, parts = width or shutil.get_terminal_size((100, 24)).columns, []
    for (action, way), written in every.groupby(["action", "moral_variance"], sort=False):
        same, odd = written["same_as"].notna().sum(), written["context"].isna().sum()
        counts = f"{len(written)} written, the NLI filter drops {same} as saying the same, {odd} do not parse"
        parts.append(f"{visible(action)}: {WAYS[way]} ({counts})")
        shown = written if best is None else best[best["action"].eq(action) & best["moral_variance"].eq(way)]
        table = {"score": [f"{score:.2f}" if pd.notna(score) else "" for score in shown["critic_score"]]}
        if best is None:
            said = zip(shown["context"].isna(), shown["same_as"].fillna(""), strict=True)
            table["NLI filter"] = ["" if odd else f"drops it: {same}" if same else "keeps it" for odd, same in said]
        table |= {"context": shown["context"].fillna(shown.get("raw", "")), "rationale": shown["rationale"].fillna("")}
        cells = {name: [visible(text) for text in texts] for name, texts in table.items()}
        room = max(12, (width - 8 - 3 * len(table)) // (len(table) - 1))
        parts += [
            tabulate(cells, "keys", "presto", maxcolwidths=[None, *[room] * (len(table) - 1)], disable_numparse=True),
            "",
        ]
    return "\n".join(_keep_order(line) for line in "\n".join(parts).splitlines())


def _keep_order(line: str) -> str:
    # Where letters run from right to left, invisible left-to-right marks hold the columns in their order.
    turns = any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in line)
    return "\u200e" + line.replace(" | ", " \u200e|\u200e ") if turns else line
