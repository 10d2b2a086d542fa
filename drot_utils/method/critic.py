"""The critic: does this context shift the action in the direction asked? (section 3.1, appendix D.1)

`HEADS` says what a head reads and answers; another one is an entry there, and a name in `params.Critic`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from drot_utils.data.corpora import read_actions, read_recorded
from drot_utils.data.gold import ANNOTATORS, read_gold
from drot_utils.engine.classifier import Classifier, Fit, Texts, load_classifier, train_classifier
from drot_utils.engine.shards import Work, map_rows
from drot_utils.study.errors import DataError
from drot_utils.study.params import Critic as Settings
from drot_utils.study.params import Threshold
from drot_utils.study.paths import require, sha256
from drot_utils.study.record import Study

#: What the critic's thresholds are for: the teacher's contexts, those of the rounds, and the data set.
USES = ("seed", "distill", "dataset")
ACTION_TOKEN, POSITIVE_TOKEN, NEGATIVE_TOKEN = "[ACTION]", "[POS]", "[NEG]"


def critic_text(action: str, moral_variance: int, context: str) -> str:
    """Write the binary critic's input with its special tokens, appendix D.1."""
    return f"{ACTION_TOKEN} {action} {POSITIVE_TOKEN if moral_variance == 1 else NEGATIVE_TOKEN} {context}"


def _binary_texts(rows: pd.DataFrame) -> Texts:
    return [critic_text(*row) for row in rows[["action", "moral_variance", "context"]].itertuples(index=False)], None


def _shift_labels(rows: pd.DataFrame) -> np.ndarray:
    if rows["shift"].isna().any():
        raise DataError(
            f"{int(rows['shift'].isna().sum())} gold rows do not say which way they shift the action",
            todo="the published gold says valid or invalid only: set `critic.head: binary` for it",
        )
    return rows["shift"].to_numpy().astype(np.int64) + 1


@dataclass(frozen=True)
class Head:
    """What a head reads and answers."""

    classes: int
    texts: Callable[[pd.DataFrame], Texts]  # rows to what the encoder reads of them
    labels: Callable[[pd.DataFrame], np.ndarray]  # gold rows to class numbers; a DataError where they do not say enough
    asked: Callable[[np.ndarray], np.ndarray]  # moral variances to the class that means "shifted as asked"
    tokens: tuple[str, ...] = ()  # special tokens of its texts
    balanced: bool = False  # whether invalid rows weigh as much more as they are rarer (appendix D.1)


#: The *binary* head is the paper's: it reads action, direction token and context, and says invalid or valid. The *shift*
#: head reads action and context only and says less, neutral or more acceptable; so it cannot answer differently for a
#: context that it has not understood.
HEADS = {
    "binary": Head(
        classes=2,
        texts=_binary_texts,
        labels=lambda rows: rows["valid"].to_numpy().astype(np.int64),
        asked=np.ones_like,
        tokens=(ACTION_TOKEN, POSITIVE_TOKEN, NEGATIVE_TOKEN),
        balanced=True,
    ),
    "shift": Head(
        classes=3,
        texts=lambda rows: (rows["action"].tolist(), rows["context"].tolist()),
        labels=_shift_labels,
        asked=lambda variance: variance + 1,
    ),
}


@dataclass
class Critic:
    """A trained critic. `score` gives the probability that a context is valid."""

    classifier: Classifier
    head: str

    def score(self, rows: pd.DataFrame, what: str = "scoring contexts") -> np.ndarray:
        """Return the probability that each context shifts its action as asked, shape (rows,); NaN where there is none.

        `rows` have ``action``, ``moral_variance`` and ``context``. `what` is the title of its progress, shown
        if there is one.
        """
        head, scores = HEADS[self.head], np.full(len(rows), np.nan)
        has = rows["context"].fillna("").str.strip().ne("").to_numpy()
        if has.any():
            asked = rows.loc[has]
            column = head.asked(asked["moral_variance"].to_numpy(dtype=int))
            scores[has] = self.classifier.classify(head.texts(asked), what)[np.arange(len(asked)), column]
        return scores

    def save(self, folder: Path, record: dict) -> None:
        """Write weights, tokenizer and settings, with `record` (thresholds, curve, metrics) beside them."""
        self.classifier.save(folder, {"head": self.head, "max_length": self.classifier.max_length, **record})


def read_parts(study: Study) -> pd.DataFrame:
    """Return the gold (`gold.read_gold`) in parts (`split_gold`).

    With the teacher's rows, as they are (`teacher_as_gold`) and mismatched (`mismatch`), if the parameters name some.
    """
    settings, actions, seed = study.params.critic, read_actions(study.params.corpus.actions), study.params.seed
    gold = split_gold(read_gold(settings.gold, actions), settings, seed)
    if missing := [part for part in ("train", "dev", "test") if not gold["part"].eq(part).any()]:
        found = f"the gold has no row of {' and none of '.join(missing)}"
        todo = "label more actions; dev and test hold only rows on which three annotators agree"
        raise DataError(found, where=", ".join(settings.gold), todo=todo)
    if not settings.teacher_rows:
        return gold
    recorded = read_recorded(settings.teacher_rows, actions)
    recorded = recorded[recorded["action_id"].isin(actions.loc[actions["split"] == "train", "action_id"])]
    rows = teacher_as_gold(recorded, gold)
    return pd.concat([gold, rows, mismatch(rows, settings.mismatched, seed)], ignore_index=True)


def read_threshold_rows(study: Study, gold: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that thresholds are read off and critics compared on: `critic.threshold_rows`, or the dev gold.

    Parameters
    ----------
    gold : DataFrame
        What `read_parts` returned.

    Returns
    -------
    DataFrame
        Columns of `gold`; ``recipe`` and ``source`` are empty where the file does not say who wrote a row.

    Raises
    ------
    DataError
        A row whose action is unknown, was learnt from by a critic, or is a test action; no rows; or as `gold.read_gold`.
    """
    path = study.params.critic.threshold_rows
    if not path:
        return gold[gold["part"] == "dev"].fillna({"recipe": ""})
    actions = read_actions(study.params.corpus.actions)
    rows = read_gold([path], actions).fillna({"recipe": "", "source": ""})
    if rows.empty:
        raise DataError(
            "expected rows with votes, found none", where=path, todo="name another file, or null: the dev gold"
        )
    rows = rows[rows["context"].str.strip().ne("")]  # nothing was written: it has no score
    used = {
        "are not in the corpus": rows.loc[~rows["action_id"].isin(actions["action_id"]), "action_id"],
        "a critic learns from": gold.loc[gold["part"].isin(["train", "independent"]), "action_id"],
        "are kept for the test": actions.loc[actions["split"] == "test", "action_id"],
    }
    for what, ids in used.items():
        if (wrong := rows["action_id"].isin(ids)).any():
            first = rows.loc[wrong, "action"].iloc[0]
            raise DataError(
                f"{int(wrong.sum())} rows are about actions that {what}; the first is about {first!r}",
                where=path, todo="read thresholds off rows about other actions: `split` dev",
            )  # fmt: skip
    return rows


def split_gold(gold: pd.DataFrame, settings: Settings, seed: int) -> pd.DataFrame:
    """Add a column ``part``: train, independent, dev, test, or unused.

    Actions, not rows, are split, so that no action is on two sides. Dev and test keep only rows on which at least three
    annotators agree in full (appendix B.1). A split that the gold brings is kept as it is. Of the training actions, however they
    were chosen, `independent_share` is kept away from the filter's critic, to train a second one for the evaluation.
    """
    rng = np.random.default_rng(seed)
    actions = np.array(sorted(gold["action_id"].unique()))
    part_of = pd.Series(rng.permutation(len(actions)) / len(actions), index=actions)
    place = gold["action_id"].map(part_of)
    train, dev = settings.splits[0], settings.splits[0] + settings.splits[1]
    part = pd.Series(np.select([place < train, place < dev], ["train", "dev"], "test"), index=gold.index)
    part = gold["split"].where(gold["split"].isin(["train", "dev", "test"]), part)
    trained = part_of[part_of.index.isin(gold.loc[part.eq("train"), "action_id"])]
    apart = trained.nsmallest(round(settings.independent_share * len(trained))).index
    part = part.mask(part.eq("train") & gold["action_id"].isin(apart), "independent")
    part = part.mask(part.isin(["dev", "test"]) & ~gold["agreed"], "unused")
    if settings.head == "shift":
        undecided = gold["shift"].isna() & gold[ANNOTATORS[0]].notna()  # three different votes
        part = part.mask(undecided, "unused")
    return gold.assign(part=part)


def teacher_as_gold(recorded: pd.DataFrame, parts: pd.DataFrame) -> pd.DataFrame:
    """Turn teacher rows into valid training rows of the critic that owns their action, without gold the filter's.

    Rows of dev and test actions are left out.
    """
    owner = parts[parts["part"].isin(["train", "independent"])].groupby("action_id")["part"].first()
    held_out = set(parts["action_id"]) - set(owner.index)
    rows = recorded[~recorded["action_id"].isin(held_out)]
    return rows.assign(
        valid=True, shift=rows["moral_variance"].astype(float), votes=0, agreed=False, source="teacher-unjudged",
        part=rows["action_id"].map(owner).fillna("train"),
    )  # fmt: skip


def mismatch(rows: pd.DataFrame, times: float, seed: int) -> pd.DataFrame:
    """Show the teacher's contexts with other actions, to be learnt as neutral: a context must fit its action.

    Parameters
    ----------
    rows : DataFrame
        What `teacher_as_gold` returned.
    times : float
        How many mismatched rows to draw for each row, on average. Drawn without replacement until all have been.

    Returns
    -------
    DataFrame
        Columns of `rows`. Each row's action is another one of the same part, never its own. A part of one action has none.
    """
    rng, drawn = np.random.default_rng(seed), []
    for _, part in rows.groupby("part"):
        ids = part["action_id"].unique()
        if len(ids) > 1:
            chosen = part.iloc[np.resize(rng.permutation(len(part)), round(times * len(part)))]
            own = pd.Index(ids).get_indexer(chosen["action_id"])
            other = ids[(own + rng.integers(1, len(ids), len(chosen))) % len(ids)]
            drawn.append(
                chosen.assign(action_id=other, action=part.groupby("action_id")["action"].first()[other].to_numpy())
            )
    found = pd.concat([rows.head(0), *drawn])
    return found.assign(valid=False, shift=0.0, source="teacher-mismatched")


def train_critic(study: Study, train: pd.DataFrame, dev: pd.DataFrame) -> tuple[Critic, Fit]:
    """Fine-tune a critic on gold rows and keep the checkpoint of the lowest dev loss."""
    settings = study.params.critic
    head = HEADS[settings.head]
    learnt, held_out = ((head.texts(rows), head.labels(rows)) for rows in (train, dev))
    valid = learnt[1] == 1
    weights = [float(valid.sum() / max(1, (~valid).sum())), 1.0] if head.balanced else None
    trained, result = train_classifier(
        study, settings, learnt, held_out, tokens=head.tokens, class_weights=weights, what="training the critic",
        **_shape(settings),
    )  # fmt: skip
    return Critic(trained, settings.head), result


def load_critic(study: Study, name: str = "critic") -> Critic:
    """Load a critic of the run: ``critic``, or ``critic_independent``."""
    settings = study.params.critic
    loaded = load_classifier(study, study.run.model(name), settings, "02_critic", **_shape(settings))
    return Critic(loaded, settings.head)


def _shape(settings: Settings) -> dict[str, Any]:
    return {"classes": HEADS[settings.head].classes, **settings.model_dump(include={"pooling", "hidden", "dropout"})}


def choose_threshold(valid: np.ndarray, scores: np.ndarray, rule: Threshold) -> float:
    """Return the threshold that a rule reads off judged rows: their scores, or their precision-recall curve (figure 8).

    A context passes if its score is at or above the threshold, here as in the filter and the evaluation. So what the
    rule asks for holds on these rows: a precision is reached by the lowest such threshold, with at least ten rows (all,
    if there are fewer) passing it; a recall and a share of the rows by the highest. A value is returned as it is.

    Parameters
    ----------
    valid : ndarray of bool, shape (rows,)
    scores : ndarray of float, shape (rows,)

    Raises
    ------
    DataError
        No rows, none that is valid (precision and recall), or a precision that no threshold reaches.
    """
    if not len(scores):
        raise DataError(
            "expected judged rows, found none", where="critic threshold", todo="name some: `critic.threshold_rows`"
        )
    if rule.value is not None:
        return rule.value
    if rule.share is not None:
        return float(np.sort(scores)[-max(1, math.ceil(rule.share * len(scores) - 1e-9))])
    if not valid.any():
        raise DataError(
            f"none of the {len(valid)} judged contexts is valid, so no threshold can be read off",
            where="critic threshold",
            todo="give the thresholds as values, or label more contexts (show more to a panel: `judges.sample`)",
        )
    from sklearn.metrics import precision_recall_curve  # takes a second to import, and who only scores needs none

    precision, recall, thresholds = precision_recall_curve(valid, scores)
    precision, recall = precision[:-1], recall[:-1]
    if rule.recall is not None:
        return float(thresholds[recall >= rule.recall].max())
    enough = len(scores) - np.searchsorted(np.sort(scores), thresholds) >= min(10, len(scores))
    reached = enough & (precision >= rule.precision)
    if not reached.any():
        raise DataError(
            f"no threshold reaches a precision of {rule.precision} on the judged rows; the best is {precision[enough].max():.2f}",
            where="critic threshold",
            todo="ask for less precision in params, or train a better critic",
        )
    return float(thresholds[reached].min())


def list_rules(settings: Settings) -> dict[str, Any]:
    """Return what thresholds are read off by and from, as it is kept beside them."""
    return settings.model_dump(mode="json", include={"threshold_rows", *(f"threshold_{name}" for name in USES)})


def choose_thresholds(settings: Settings, valid: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Apply the rules of the parameters: ``seed`` for the teacher's contexts, ``distill`` for the students', ``dataset``.

    For who filters: where no row reaches one of them, nothing would be kept, and that is a `DataError`.
    """
    rules = {name: getattr(settings, f"threshold_{name}") for name in USES}
    thresholds = {name: choose_threshold(valid, scores, rule) for name, rule in rules.items()}
    if (highest := max(thresholds.values())) > scores.max():
        raise DataError(
            f"none of the {len(scores)} judged rows reaches {highest:g}; the highest score is {scores.max():.3f}",
            where="critic threshold",
            todo="ask for less in params, or train a better critic: nothing would be kept",
        )
    return thresholds


def score_contexts(study: Study, name: str, rows: pd.DataFrame) -> np.ndarray:
    """Score rows by the run's ``critic`` or ``critic_independent`` in shards (see `Critic.score`)."""
    weights = sha256(require(study.run.model(name) / "model.safetensors", "02_critic"))
    settings = study.params.critic
    asked = rows[["action", "moral_variance", "context"]]
    key = (weights, settings.head, settings.pooling, settings.max_length)
    found = map_rows(study, asked, partial(_open_critic, study, name), "critic", "contexts", *key)
    return found["score"].to_numpy(dtype=float, na_value=np.nan)


def _open_critic(study: Study, name: str) -> Work:
    critic = load_critic(study, name)
    return lambda part, seed: pd.DataFrame({"score": critic.score(part, what="")})
