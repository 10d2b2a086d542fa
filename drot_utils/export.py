"""The data set as others will use it: Parquet, the published TSV columns, and a card that says what it is (section 2)."""

from pathlib import Path

import pandas as pd
import pyarrow as pa

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

CARD = """\
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
    builtin = params.corpus.actions.startswith("data/demo/")
    others = [c for c in table.columns if c not in [*PUBLISHED.values(), "critic-score", "source"]]
    card = CARD.format(
        profile=params.profile,
        license_id="cc-by-4.0" if builtin else "cc-by-sa-4.0",
        size="n<1K"
        if len(table) < 1000
        else "1K<n<10K"
        if len(table) < 10_000
        else "10K<n<100K"
        if len(table) < 100_000
        else "100K<n<1M",
        rows=f"{len(table):,}",
        actions=f"{table['action'].nunique():,}",
        writers=", ".join(sorted(rows["source"].unique())),
        critic=f"{params.critic.base.name}, {params.critic.head} head",
        demo=DEMO_NOTE if builtin else "",
        others="\n".join(f"| `{name}` | as in the actions' corpus |" for name in others),
        threshold=threshold,
        seed=params.seed,
    )
    write_text(folder / "README.md", card)
    return folder
