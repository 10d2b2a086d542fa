"""The data set as others will use it: Parquet, the published TSV columns, and a card that says what it is (section 2)."""

from pathlib import Path

import pandas as pd
import pyarrow as pa

from drot_utils.cards import data_card
from drot_utils.params import Params
from drot_utils.paths import write_text
from drot_utils.schema import write_table

#: The published columns; those of Social-Chem-101 follow them.
PUBLISHED = {
    "action": "action",
    "moral_variance": "moral-variance",
    "context": "context",
    "rationale": "rationale",
}


def published_columns(rows: pd.DataFrame, actions: pd.DataFrame) -> pd.DataFrame:
    """Return rows under the published names, with the corpus's own columns joined in by action.

    Parameters
    ----------
    rows : DataFrame
        Kept rows, columns as in `schema.CANDIDATES`.
    actions : DataFrame
        As `corpora.read_actions` returns it.
    """
    own = {**PUBLISHED, "critic_score": "critic-score", "source": "source"}
    others = actions.drop(columns=[c for c in ("action", "source") if c in actions])
    joined = rows[["action_id", *own]].merge(others, on="action_id", how="left", validate="many_to_one")
    return joined.drop(columns="action_id").rename(columns=lambda name: own.get(name, name.replace("_", "-")))


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
    table = published_columns(rows, actions)
    write_table(
        pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(None),
        folder / "d-rot.parquet",
    )
    text = table.map(lambda value: " ".join(value.split()) if isinstance(value, str) else value)
    write_text(
        folder / "d-rot.tsv", text.to_csv(sep="\t", index=False, quoting=3, quotechar=None, escapechar=None)
    )
    others = [c for c in table.columns if c not in [*PUBLISHED.values(), "critic-score", "source"]]
    write_text(folder / "README.md", data_card(rows, others, params, threshold))
    return folder
