"""The released data set: its files and its card."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from drot_utils.data.corpora import is_builtin
from drot_utils.study.params import Params
from drot_utils.study.paths import atomic, write_text

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


def export_drot(rows: pd.DataFrame, actions: pd.DataFrame, params: Params, threshold: float, folder: Path) -> Path:
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
        pq.ParquetWriter(binary, schema.remove_metadata(), compression="zstd", write_page_checksum=True) as writer,
        text.open("w", encoding="utf-8", newline="") as handle,
    ):
        for k, part in enumerate(parts):
            table = published_columns(part, actions)
            writer.write_table(pa.Table.from_pandas(table, schema, preserve_index=False).replace_schema_metadata(None))
            strings = table.select_dtypes("str").columns
            table[strings] = table[strings].apply(_on_one_line)
            table.to_csv(handle, sep="\t", index=False, header=k == 0, quoting=3, quotechar=None, escapechar=None)
    others = [name for name in schema.names if name not in OWN.values()]
    write_text(folder / "README.md", data_card(rows, others, params, threshold))
    return folder


def _on_one_line(column: pd.Series) -> pd.Series:
    return column.str.replace(r"\s+", " ", regex=True).str.strip()


DATA_CARD = """\
---
license: {license_id}
language: [en]
pretty_name: delta-Rules-of-Thumb ({profile} run)
size_categories: [{size}]
configs:
- config_name: d-rot
  data_files: d-rot.parquet
---
# delta-Rules-of-Thumb, made by a `{profile}` run

{rows} contexts with rationales for {actions} everyday actions, each meant to make its action more (`moral-variance` 1) or
less (-1) acceptable. Made by iterative self-distillation (Rao et al., 2023), with this repository's notebooks.

**Machine-written, descriptive, never advice.** No row is a judgment of what is right. Contexts were written by
{writers}; the critic that chose them ({critic}) is itself a model that errs, and a row's score is that model's opinion. Nobody has
read every row. {demo}Values differ between cultures and persons; the texts are English and Western-centric, and using them to
give moral advice to people, or to judge people, is against their purpose.

| column | meaning |
|---|---|
| `action` | the everyday action |
| `moral-variance` | 1: the context is meant to make the action more acceptable; -1: less |
| `context`, `rationale` | the text, and why it shifts the action |
| `critic-score` | the critic's probability that the context shifts the action as asked; cut elsewhere if you like |
| `source` | which student (or the teacher) wrote it |
{others}
Threshold of the critic: {threshold:.2f}. Seed: {seed}. Parameters, versions, hashes and row counts: `manifest.json` of the run.
"""
DEMO_NOTE = (
    "All of its inputs - actions, the teacher's responses, the critic's labels - were written by language models for this "
    "project, and many contexts are wrong or nonsense: this data set shows the method and has no other use. "
)
SIZES = ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def data_card(rows: pd.DataFrame, others: list[str], params: Params, threshold: float) -> str:
    """Return the card of an exported data set.

    Parameters
    ----------
    rows : DataFrame
        The kept rows, columns as in `schema.CANDIDATES`.
    others : list of str
        Columns that come from the actions' corpus.
    threshold : float
        Of the critic.
    """
    return DATA_CARD.format(
        profile=params.profile,
        license_id="cc-by-4.0" if is_builtin(params) else "cc-by-sa-4.0",
        size=next((name for limit, name in SIZES if len(rows) < limit), "n>1M"),
        rows=f"{len(rows):,}",
        actions=f"{rows['action'].nunique():,}",
        writers=", ".join(sorted(rows["source"].unique())) or "nobody",
        critic=_describe_filter(params),
        demo=DEMO_NOTE if is_builtin(params) else "",
        others="\n".join(f"| `{name}` | as in the actions' corpus |" for name in others),
        threshold=threshold,
        seed=params.seed,
    )


def _describe_filter(params: Params) -> str:
    if params.judges.filter == "critic":
        return f"{params.critic.base.name}, {params.critic.head} head"
    names = ", ".join(judge.name for judge in params.judges.panel)
    return f"a panel of LLM judges, merged by {params.judges.aggregate}: {names}"
