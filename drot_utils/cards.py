"""The cards that go with what is made: a data set and a student must say what they are, and what they are not for."""

import pandas as pd

from drot_utils.params import Params

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
MODEL_CARD = """\
---
license: {license_id}
language: [en]
pipeline_tag: {pipeline}
---
# {name} ({profile} run)

A student of iterative self-distillation (Rao et al., 2023): given an everyday action and a direction, it writes a context that is
meant to make the action more or less acceptable, and a rationale. Fine-tuned from {start} on {rows:,} machine-written contexts
in {steps:,} steps.

**Descriptive research, never advice.** It says what some contexts do to some actions in the language it has seen; it does not know
what is right, is often wrong, and reflects English, Western-centric texts. Do not use it to advise or to judge people. {demo}

Prompt (appendix D.2), and the form of the answer:

    Action: Setting a fire.
    Modifier: more ethical.

    Update: (context). Explanation: (rationale).

Settings, hashes and seeds: `training.json` beside this file and the run's `manifest.json`.
"""
MODEL_DEMO_NOTE = (
    "All it has learnt from was written and labelled by language models for this project, and the model is small: much of what "
    "it writes is nonsense. It shows the method and has no other use."
)
SIZES = ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def is_builtin(params: Params) -> bool:
    """Return whether a run is made of the built-in, machine-written data."""
    return params.corpus.actions.startswith("data/demo/")


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


def model_card(name: str, start: str | None, rows: int, steps: int, seq2seq: bool, params: Params) -> str:
    """Return the card of a student: its name, what it was fine-tuned from, and on how much."""
    return MODEL_CARD.format(
        name=name,
        profile=params.profile,
        license_id="apache-2.0" if is_builtin(params) else "other",
        pipeline="text2text-generation" if seq2seq else "text-generation",
        start=start or params.student.base.name,
        rows=rows,
        steps=steps,
        demo=MODEL_DEMO_NOTE if is_builtin(params) else "",
    )


def _describe_filter(params: Params) -> str:
    if params.judges.filter == "critic":
        return f"{params.critic.base.name}, {params.critic.head} head"
    names = ", ".join(judge.name for judge in params.judges.panel)
    return f"a panel of LLM judges, merged by {params.judges.aggregate}: {names}"
