"""The released data set: its files and its card."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCardData

from drot_utils.data.corpora import is_builtin
from drot_utils.study.params import Params
from drot_utils.study.paths import atomic, write_text

#: Our columns, published with hyphens; those of the actions' corpus follow them.
COLUMNS = ["action", "moral_variance", "context", "rationale", "critic_score", "source"]
CHUNK = 100_000  # rows converted at once: the memory an export takes beside its rows
#: What the hub calls a number of rows below a limit.
SIZES = {1000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}

CARD = """\
---
{header}
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
Threshold of the critic: {threshold:.2f}{stays}. Seed: {seed}. Parameters, versions, hashes and row counts: `manifest.json` of the run.
"""
DEMO_NOTE = (
    "All of its inputs - actions, the teacher's responses, the critic's labels - were written by language models for this "
    "project, and many contexts are wrong or nonsense: this data set shows the method and has no other use. "
)


def export_drot(rows: pd.DataFrame, actions: pd.DataFrame, params: Params, threshold: float, folder: Path) -> Path:
    """Write ``d-rot.parquet``, ``d-rot.tsv`` and the card ``README.md`` into a folder, which is returned.

    One table, one configuration: the published repository holds two tables of different columns under one, which is why
    ``load_dataset`` fails on it.

    Parameters
    ----------
    rows : DataFrame
        The kept rows, columns as in `table.CANDIDATES`.
    actions : DataFrame
        As `corpora.read_actions` returns it; the corpus's own columns are joined in by action.
    threshold : float
        Of the critic.
    """
    schema = pa.Schema.from_pandas(_publish(rows.head(0), actions), preserve_index=False)
    with (
        atomic(folder / "d-rot.parquet") as binary,
        atomic(folder / "d-rot.tsv") as text,
        pq.ParquetWriter(binary, schema.remove_metadata(), compression="zstd", write_page_checksum=True) as writer,
        text.open("w", encoding="utf-8", newline="") as handle,
    ):
        for start in range(0, len(rows) or 1, CHUNK):
            table = _publish(rows.iloc[start : start + CHUNK], actions)
            writer.write_table(pa.Table.from_pandas(table, schema, preserve_index=False).replace_schema_metadata(None))
            strings = table.select_dtypes("str").columns
            table[strings] = table[strings].apply(lambda texts: texts.str.replace(r"\s+", " ", regex=True).str.strip())
            table.to_csv(handle, sep="\t", index=False, header=start == 0, quoting=3, quotechar=None, escapechar=None)
    write_text(folder / "README.md", data_card(rows, schema.names[len(COLUMNS) :], params, threshold))
    return folder


def data_card(rows: pd.DataFrame, others: list[str], params: Params, threshold: float) -> str:
    """Return the card of a data set as `export_drot` writes it; `others` are the columns of the actions' corpus."""
    size = next((name for limit, name in SIZES.items() if len(rows) < limit), "n>1M")
    header = DatasetCardData(
        license="cc-by-4.0" if is_builtin(params) else "cc-by-sa-4.0",
        language=["en"],
        pretty_name=f"delta-Rules-of-Thumb ({params.profile} run)",
        size_categories=[size],
        configs=[{"config_name": "d-rot", "data_files": "d-rot.parquet"}],
    )
    return CARD.format(
        header=header.to_yaml(),
        profile=params.profile,
        rows=f"{len(rows):,}",
        actions=f"{rows['action'].nunique():,}",
        writers=", ".join(sorted(rows["source"].unique())) or "nobody",
        critic=_describe_filter(params),
        demo=DEMO_NOTE if is_builtin(params) else "",
        others="\n".join(f"| `{name}` | as in the actions' corpus |" for name in others),
        threshold=threshold,
        stays=" (the teacher's rows have one of their own)" if params.distill.teacher_stays else "",
        seed=params.seed,
    )


def _publish(rows: pd.DataFrame, actions: pd.DataFrame) -> pd.DataFrame:
    others = actions.drop(columns=[c for c in ("action", "source") if c in actions])
    joined = rows[["action_id", *COLUMNS]].merge(others, on="action_id", how="left", validate="many_to_one")
    return joined.drop(columns="action_id").rename(columns=lambda name: name.replace("_", "-"))


def _describe_filter(params: Params) -> str:
    if params.judges.filter == "critic":
        return f"{params.critic.base.name}, {params.critic.head} head"
    names = ", ".join(judge.name for judge in params.judges.panel)
    return f"a panel of LLM judges, merged by {params.judges.aggregate}: {names}"
