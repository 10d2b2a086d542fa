"""Algorithm 1 of the paper: write, keep what differs (NLI), keep what is valid (critic), learn from it, again.

The names in capitals in the docstrings are those of appendix C.
"""

import json

import numpy as np
import pandas as pd
from accelerate import Accelerator

from drot_utils import models, training
from drot_utils.cards import model_card
from drot_utils.errors import DataError
from drot_utils.memory import release_memory
from drot_utils.nli import Filtered
from drot_utils.opinions import load_opinion
from drot_utils.panel import Panel
from drot_utils.parallel import launch
from drot_utils.params import Corpus
from drot_utils.paths import sha256, to_json
from drot_utils.schema import PROMPT
from drot_utils.scoring import ShardedCritic, ShardedNli
from drot_utils.shards import fingerprint, source_hash
from drot_utils.study import Study


def sample_actions(actions: pd.DataFrame, plan: Corpus, seed: int) -> dict[str, pd.DataFrame]:
    """Sample A0, A1, A2 and the rest from the training split, without replacement, and the held-out test actions.

    Returns
    -------
    dict of DataFrame
        ``seed``, ``round_1``, ``round_2``, ``final`` and ``test``: no action is in two of them.

    Raises
    ------
    DataError
        When a split holds fewer actions than asked for.
    """
    rng = np.random.default_rng(seed)
    train, test = actions[actions["split"] == "train"], actions[actions["split"] == "test"]
    train, test = (part.iloc[rng.permutation(len(part))].reset_index(drop=True) for part in (train, test))
    sizes = {"seed": plan.seed_actions, "round_1": plan.round_actions[0], "round_2": plan.round_actions[1]}
    sizes["final"] = (
        plan.final_actions if plan.final_actions is not None else max(0, len(train) - sum(sizes.values()))
    )
    wanted_test = plan.test_actions if plan.test_actions is not None else len(test)
    for split, wanted, found in (
        ("train", sum(sizes.values()), len(train)),
        ("test", wanted_test, len(test)),
    ):
        if wanted > found or wanted == 0:
            raise DataError(
                f"asked for {wanted} actions of the {split} split, found {found}",
                where=plan.actions,
                todo="ask for fewer under `corpus` in the parameters, or give a larger file",
            )
    if sizes["final"] == 0:
        raise DataError(
            f"no action remains for the final data set: {len(train)} of the train split are all used by A0, A1 and A2",
            where=plan.actions,
            todo="ask for fewer under `corpus` in the parameters",
        )
    ends = np.cumsum(list(sizes.values()))
    parts = {
        name: train.iloc[end - size : end].reset_index(drop=True)
        for (name, size), end in zip(sizes.items(), ends, strict=True)
    }
    return {**parts, "test": test.iloc[:wanted_test].reset_index(drop=True)}


def flag_repeats(rows: pd.DataFrame, nli: ShardedNli, threshold: float) -> tuple[pd.DataFrame, Filtered]:
    """Set ``nli_kept``: does a context say something that no accepted earlier one of its group says? (MUTUALNLI)

    Rows without a context keep a null flag.
    """
    has = rows["context"].notna()
    groups = rows[has].groupby(PROMPT, sort=False).indices
    contexts = rows.loc[has, "context"].to_numpy()
    filtered = nli.filter([contexts[index].tolist() for index in groups.values()], threshold)
    flags = np.zeros(int(has.sum()), dtype=bool)
    for index, kept in zip(groups.values(), filtered.kept, strict=True):
        flags[index] = kept
    column = pd.Series(pd.NA, index=rows.index, dtype="boolean")
    column[has] = flags
    return rows.assign(nli_kept=column), filtered


def flag_valid(
    rows: pd.DataFrame,
    critic: ShardedCritic | Panel,
    threshold: float,
    *,
    use_nli: bool = True,
    use_critic: bool = True,
) -> pd.DataFrame:
    """Set ``critic_score`` and ``kept`` (FILTER): a row is kept if it parsed and passes the filters in use.

    The critic's filter keeps scores at or above the threshold. A score that is null, as when a judge's answer cannot be read, passes no threshold.
    """
    scored = rows.assign(critic_score=critic.score(rows))
    kept = scored["context"].notna()
    if use_nli:
        kept &= scored["nli_kept"].fillna(False).astype(bool)
    if use_critic:
        kept &= scored["critic_score"] >= threshold
    return scored.assign(kept=kept.astype("boolean"))


def count_dropped(rows: pd.DataFrame) -> dict[str, int]:
    """Count the rows that were not kept by the first reason that holds: unparsed, nli, unscored (if any), critic."""
    lost = rows[~rows["kept"].astype(bool)]
    unparsed = lost["context"].isna()
    repeated = ~unparsed & ~lost["nli_kept"].fillna(True).astype(bool)
    unscored = ~unparsed & ~repeated & lost["critic_score"].isna()
    return {
        "unparsed": int(unparsed.sum()),
        "nli": int(repeated.sum()),
        **({"unscored": int(unscored.sum())} if unscored.any() else {}),
        "critic": int((~unparsed & ~repeated & ~unscored).sum()),
    }


def load_filters(study: Study) -> tuple[ShardedCritic | Panel, ShardedNli, dict]:
    """Open who filters by the parameters (`judges.filter`), the entailment model, and the former's thresholds."""
    opinion = load_opinion(study)
    return opinion.critic, ShardedNli(study), {"thresholds": opinion.thresholds}


def fine_tune(
    study: Study,
    rows: pd.DataFrame,
    name: str,
    *,
    start: str | None,
    learning_rate: float,
    epochs: int,
    steps: int | None = None,
) -> dict:
    """Fine-tune a student on kept rows and keep it as ``models/<name>``.

    Parameters
    ----------
    rows : DataFrame
        The training data; every row has a context and a rationale.
    start : str or None
        The student to start from; None for the base model of the parameters.
    steps : int, optional
        Optimizer steps instead of epochs.

    Returns
    -------
    dict
        ``rows steps target_tokens losses seconds fingerprint``, also kept as ``training.json`` beside the weights. A
        student that was already trained on the same rows, from the same weights, with the same settings is not
        trained again.

    Raises
    ------
    DataError
        When the filters kept nothing.
    """
    if rows.empty:
        raise DataError(
            "no row to learn from: the filters kept none",
            where=name,
            todo="look in the notebook how many rows each filter dropped: lower the critic threshold in params, or, where hardly "
            "anything parses, train the student that wrote them for longer",
        )
    params = study.params
    origin = (
        sha256(study.run.model(start) / "model.safetensors")
        if start
        else models.describe(params.student.base)
    )
    key = fingerprint(
        rows[[*PROMPT, "context", "rationale"]], origin, params.student.model_dump(), learning_rate, epochs, steps,
        params.seed, str(study.dtype), params.compute.compile, source_hash("student", "training", "precision", "compiling", "prompts"),
    )  # fmt: skip
    record = read_training(study, name)
    if record and record["fingerprint"] == key:
        return record
    job = {
        "name": name,
        "key": key,
        "start": start,
        "learning_rate": learning_rate,
        "epochs": epochs,
        "steps": steps,
    }
    release_memory()
    if params.compute.parallel.processes > 1:
        launch(study, rows, job, study.run.work("parallel") / key)
    else:
        learn(study, rows, **job)
    return read_training(study, name)


def learn(
    study: Study,
    rows: pd.DataFrame,
    *,
    name: str,
    key: str,
    start: str | None,
    learning_rate: float,
    epochs: int,
    steps: int | None,
    accelerator: Accelerator | None = None,
) -> None:
    """Train a student and keep it with its record; in several processes, the first of them keeps it (see `fine_tune`)."""
    params = study.params
    model, tokenizer = (
        models.load_folder(study.run.model(start), "student")
        if start
        else models.load(params.student.base, "student", study.run)
    )
    done = training.train(
        model, tokenizer, rows, params.student, learning_rate=learning_rate, epochs=epochs, steps=steps,
        work=study.run.work("checkpoints") / key, seed=params.seed, device=study.device, dtype=study.dtype,
        compiled=params.compute.compile, what=f"training {name}", accelerator=accelerator,
    )  # fmt: skip
    record = {**vars(done), "start": start, "fingerprint": key}
    card = model_card(name, start, len(rows), done.steps, model.config.is_encoder_decoder, params)
    notes = {"training.json": to_json(record), "README.md": card}
    first = accelerator is None or accelerator.is_main_process
    models.save(model, tokenizer, study.run.model(name), study.dtype, notes, write=first)


def read_training(study: Study, name: str) -> dict | None:
    """Return what `fine_tune` recorded of a student, or None when it does not exist."""
    path = study.run.model(name) / "training.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
