"""The data set as others will use it: Parquet, the published TSV columns, and a card that says what it is (section 2)."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from drot_utils.cards import data_card
from drot_utils.params import Params
from drot_utils.paths import atomic, write_text

#: The published columns; those of Social-Chem-101 follow them.
PUBLISHED = {
    "action": "action",
    "moral_variance": "moral-variance",
    "context": "context",
    "rationale": "rationale",
}
OWN = {**PUBLISHED, "critic_score": "critic-score", "source": "source"}
CHUNK = 100_000  # rows converted at once: the memory an export takes beside its rows


def published_columns(rows: pd.DataFrame, actions: pd.DataFrame) -> pd.DataFrame:
    """Return rows under the published names, with the corpus's own columns joined in by action.

    Parameters
    ----------
    rows : DataFrame
        Kept rows, columns as in `schema.CANDIDATES`.
    actions : DataFrame
        As `corpora.read_actions` returns it.
    """
    others = actions.drop(columns=[c for c in ("action", "source") if c in actions])
    joined = rows[["action_id", *OWN]].merge(others, on="action_id", how="left", validate="many_to_one")
    return joined.drop(columns="action_id").rename(columns=lambda name: OWN.get(name, name.replace("_", "-")))


def export_drot(
    rows: pd.DataFrame, actions: pd.DataFrame, params: Params, threshold: float, folder: Path
) -> Path:
    """Write ``d-rot.parquet``, ``d-rot.tsv`` and the card ``README.md``.

    One table, one configuration: the published repository holds two tables of different columns under one, which is why
    ``load_dataset`` fails on it.

    Returns
    -------
    Path
        `folder`.
    """
    parts = [rows.iloc[start : start + CHUNK] for start in range(0, len(rows) or 1, CHUNK)]
    schema = pa.Schema.from_pandas(published_columns(rows.head(0), actions), preserve_index=False)
    with (
        atomic(folder / "d-rot.parquet") as binary,
        atomic(folder / "d-rot.tsv") as text,
        pq.ParquetWriter(
            binary, schema.remove_metadata(), compression="zstd", write_page_checksum=True
        ) as writer,
        text.open("w", encoding="utf-8", newline="") as handle,
    ):
        for k, part in enumerate(parts):
            table = published_columns(part, actions)
            writer.write_table(
                pa.Table.from_pandas(table, schema, preserve_index=False).replace_schema_metadata(None)
            )
            strings = table.select_dtypes("str").columns
            table[strings] = table[strings].apply(_on_one_line)
            table.to_csv(
                handle, sep="\t", index=False, header=k == 0, quoting=3, quotechar=None, escapechar=None
            )
    others = [name for name in schema.names if name not in OWN.values()]
    write_text(folder / "README.md", data_card(rows, others, params, threshold))
    return folder


def _on_one_line(column: pd.Series) -> pd.Series:
    return column.str.replace(r"\s+", " ", regex=True).str.strip()
