"""The critic: does this context shift the action in the direction asked? (section 3.1, appendix D.1)"""

import json
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import precision_recall_curve
from transformers import AutoTokenizer

from drot_utils.engine import classifier, load
from drot_utils.engine.shards import Work, map_rows, source_hash
from drot_utils.method.prompts import ACTION_TOKEN, NEGATIVE_TOKEN, POSITIVE_TOKEN, critic_text
from drot_utils.study.errors import DataError, MissingInputError
from drot_utils.study.params import Critic as Settings
from drot_utils.study.params import Threshold
from drot_utils.study.paths import Run, replace_folder, require, sha256
from drot_utils.study.progress import Progress
from drot_utils.study.record import Study

CLASSES = {"binary": 2, "shift": 3}  # invalid, valid; or less, neutral, more acceptable


@dataclass
class Critic:
    """A trained critic. `score` gives the probability that a context is valid.

    The *binary* head is the paper's: it reads action, direction token and context, and says valid or not. The *shift*
    head reads action and context only and says less / neutral / more acceptable; a context is valid with the
    probability of the direction asked. So it cannot answer differently for a context that it has not understood.
    """

    model: classifier.PairClassifier
    tokenizer: object
    head: str
    max_length: int
    device: torch.device
    dtype: torch.dtype

    def score(self, rows: pd.DataFrame, what: str = "critic") -> np.ndarray:
        """Score rows with ``action``, ``moral_variance`` and ``context``.

        Returns
        -------
        ndarray of float64, shape (rows,)
            Probability of the direction asked; NaN (null) where there is no context.
        """
        scores = np.full(len(rows), np.nan)
        has = rows["context"].fillna("").str.strip().ne("").to_numpy()
        if has.any():
            asked = rows.loc[has]
            encoded = classifier.encode(self.tokenizer, texts(asked, self.head), self.max_length)
            with Progress(what, len(encoded), "contexts") as progress:
                logits = classifier.predict(self._fast, self.tokenizer, encoded, self.device, progress=progress)
            column = _class_of(asked["moral_variance"].to_numpy(), self.head)
            scores[has] = classifier.softmax(logits)[np.arange(len(asked)), column]
        return scores

    @cached_property
    def _fast(self) -> torch.nn.Module:
        return classifier.in_dtype(self.model, self.dtype)

    def save(self, folder: Path, record: dict) -> None:
        """Write weights, tokenizer and settings, with `record` (thresholds, curve, metrics) beside them."""

        def fill(place: Path) -> None:
            load.save_module(self.model, {"head": self.head, "max_length": self.max_length, **record}, place)
            self.tokenizer.save_pretrained(place)

        replace_folder(folder, fill)


def texts(rows: pd.DataFrame, head: str) -> classifier.Texts:
    """Write rows the way the head reads them."""
    if head == "shift":
        return rows["action"].tolist(), rows["context"].tolist()
    columns = zip(rows["action"], rows["moral_variance"], rows["context"], strict=True)
    return [critic_text(*row) for row in columns], None


def labels(rows: pd.DataFrame, head: str) -> np.ndarray:
    """Return class numbers: 0/1 invalid/valid for the binary head, 0/1/2 less/neutral/more for the shift head.

    Raises
    ------
    DataError
        When the shift head meets rows whose shift is unknown (the published gold has only valid or not).
    """
    if head == "binary":
        return rows["valid"].to_numpy().astype(np.int64)
    if rows["shift"].isna().any():
        raise DataError(
            f"{int(rows['shift'].isna().sum())} gold rows do not say which way they shift the action",
            todo="the published gold says valid or invalid only: set `critic.head: binary` for it",
        )
    return rows["shift"].to_numpy().astype(np.int64) + 1


def split_gold(gold: pd.DataFrame, settings: Settings, seed: int) -> pd.DataFrame:
    """Add a column ``part``: train, independent, dev, test, or unused.

    Actions, not rows, are split, so that no action is on two sides. Dev and test keep only rows on which at least
    three annotators agree in full (appendix B.1). A published split is kept as it is. Of the training actions,
    however they were chosen, `independent_share` is kept away from the filter's critic, to train a second one for the evaluation.
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
        part = part.mask(gold["shift"].isna() & gold["votes"].ge(3) & gold["split"].isna(), "unused")
    return gold.assign(part=part)


def teacher_as_gold(recorded: pd.DataFrame, parts: pd.DataFrame) -> pd.DataFrame:
    """Turn teacher rows, taken as valid, into training rows of the critic that owns their action.

    Rows of dev and test actions are left out; actions without gold go to the filter's critic.
    """
    owner = parts[parts["part"].isin(["train", "independent"])].groupby("action_id")["part"].first()
    held_out = set(parts["action_id"]) - set(owner.index)
    rows = recorded[~recorded["action_id"].isin(held_out)]
    return rows.assign(
        valid=True,
        shift=rows["moral_variance"].astype(float),
        votes=0,
        agreed=False,
        source="teacher-unjudged",
        part=rows["action_id"].map(owner).fillna("train"),
    )


def train_critic(
    train: pd.DataFrame,
    dev: pd.DataFrame,
    settings: Settings,
    run: Run,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
) -> tuple[Critic, classifier.Fit]:
    """Fine-tune a critic on gold rows and keep the checkpoint of the lowest dev loss."""
    base, tokenizer = load.load_model(settings.base, "encoder", run)
    if settings.head == "binary":
        tokenizer.add_special_tokens({"additional_special_tokens": [ACTION_TOKEN, POSITIVE_TOKEN, NEGATIVE_TOKEN]})
        load.fit_embeddings(base, tokenizer)
    torch.manual_seed(seed)  # the head's first weights
    model = classifier.PairClassifier(base, CLASSES[settings.head], settings.pooling, settings.hidden, settings.dropout)
    train_labels = labels(train, settings.head)
    weights = None
    if settings.head == "binary":
        # Appendix D.1: the rarer, low-quality class weighs as much more as it is rarer.
        weights = [float((train_labels == 1).sum() / max(1, (train_labels == 0).sum())), 1.0]
    result = classifier.fit(
        model, tokenizer, texts(train, settings.head), train_labels, texts(dev, settings.head), labels(dev, settings.head),
        settings, device=device, dtype=dtype, seed=seed, class_weights=weights, what="training the critic",
    )  # fmt: skip
    return Critic(model, tokenizer, settings.head, settings.max_length, device, dtype), result


def load_critic(folder: Path, settings: Settings, run: Run, device: torch.device, dtype: torch.dtype) -> Critic:
    """Load what `Critic.save` wrote."""
    if not (folder / "model.safetensors").exists():
        raise MissingInputError("no critic here", where=str(folder), todo="run notebooks/02_critic.ipynb first")
    base, _ = load.load_model(settings.base, "encoder", run)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    load.fit_embeddings(base, tokenizer)
    model = classifier.PairClassifier(base, CLASSES[settings.head], settings.pooling, settings.hidden, settings.dropout)
    load.load_module(model, folder)
    return Critic(model.to(device).eval(), tokenizer, settings.head, settings.max_length, device, dtype)


def read_record(folder: Path) -> dict:
    """Return the settings, thresholds and metrics kept beside a critic."""
    return json.loads((folder / "settings.json").read_text(encoding="utf-8"))


def choose_threshold(valid: np.ndarray, scores: np.ndarray, rule: Threshold) -> float:
    """Return the threshold that a rule reads off the dev precision-recall curve (figure 8).

    A context passes if its score is at or above the threshold, here as in the filter and the evaluation. So what the
    rule asks for holds on these rows.

    Parameters
    ----------
    valid : ndarray of bool, shape (rows,)
    scores : ndarray of float, shape (rows,)
    rule : Threshold
        A value (returned as it is), a precision (the lowest threshold that reaches it) or a recall (the highest
        threshold that still reaches it).

    Raises
    ------
    DataError
        When a rule finds no valid row, or no threshold reaches the precision with at least ten rows (all, if there are
        fewer) passing it; the best found is named.
    """
    if rule.value is not None:
        return rule.value
    if not valid.any():
        raise DataError(
            f"none of the {len(valid)} dev contexts is valid, so no threshold can be read off",
            where="critic threshold",
            todo="give the thresholds as values, or label more contexts (show more to a panel: `judges.sample`)",
        )
    precision, recall, thresholds = precision_recall_curve(valid, scores)
    precision, recall = precision[:-1], recall[:-1]
    if rule.recall is not None:
        return float(thresholds[recall >= rule.recall].max())
    enough = len(scores) - np.searchsorted(np.sort(scores), thresholds) >= min(10, len(scores))
    reached = enough & (precision >= rule.precision)
    if not reached.any():
        raise DataError(
            f"no threshold reaches a dev precision of {rule.precision}; the best is {precision[enough].max():.2f}",
            where="critic threshold",
            todo="ask for less precision in params, or train a better critic",
        )
    return float(thresholds[reached].min())


def _class_of(moral_variance: np.ndarray, head: str) -> np.ndarray:
    return np.ones(len(moral_variance), dtype=int) if head == "binary" else moral_variance.astype(int) + 1


@dataclass
class ShardedCritic:
    """One of the run's critics. Scores as `Critic.score` does.

    Parameters
    ----------
    study : Study
    name : str
        Its folder under ``models``: ``critic``, or ``critic_independent``.
    """

    study: Study
    name: str = "critic"

    def __post_init__(self) -> None:
        folder = require(self.study.run.model(self.name) / "settings.json", "02_critic").parent
        self.record, self._weights = read_record(folder), sha256(folder / "model.safetensors")

    def score(self, rows: pd.DataFrame, what: str = "critic") -> np.ndarray:
        """Score rows with ``action``, ``moral_variance`` and ``context`` (see `Critic.score`)."""
        asked = rows[["action", "moral_variance", "context"]]
        settings = self.study.params.critic
        key = (
            self._weights,
            settings.head,
            settings.pooling,
            settings.max_length,
            source_hash("method/critic", "engine/classifier"),
        )
        found = map_rows(self.study, asked, partial(_open_critic, self.study, self.name), what, "contexts", *key)
        return found["score"].to_numpy(dtype=float, na_value=np.nan)


def _open_critic(study: Study, name: str) -> Work:
    folder = study.run.model(name)
    return partial(_score, load_critic(folder, study.params.critic, study.run, study.device, study.dtype))


def _score(critic: Critic, part: pd.DataFrame, seed: int) -> pd.DataFrame:
    return pd.DataFrame({"score": critic.score(part)})
