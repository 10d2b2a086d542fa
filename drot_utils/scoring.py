"""Critic scores, the NLI filter and embeddings over many rows: maps over shards, by the executor of the parameters.

Each is what the models of `critic`, `nli` and `encoder` do by themselves, with finished shards kept on disk; a worker loads
the model from the run directory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import pandas as pd

from drot_utils import encoder, models
from drot_utils.critic import Critic, load_critic, read_record
from drot_utils.executors import OpenWork, Work
from drot_utils.nli import Filtered, Nli, filter_unique, load_nli
from drot_utils.paths import require, resolve, sha256
from drot_utils.settings import ModelRef
from drot_utils.shards import fingerprint, map_shards, source_hash
from drot_utils.study import Study
from drot_utils.toxicity import Scorer, open_scorer


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
            source_hash("critic", "encoder"),
        )
        found = map_rows(
            self.study, asked, partial(_open_critic, self.study, self.name), what, "contexts", *key
        )
        return found["score"].to_numpy(dtype=float, na_value=np.nan)


@dataclass
class ShardedNli:
    """The run's entailment model. Filters groups of contexts as `filter_unique` does; call it to ask about pairs."""

    study: Study

    def __post_init__(self) -> None:
        folder = require(self.study.run.model("nli") / "settings.json", "03_nli_filter").parent
        self._weights = sha256(folder / "model.safetensors")

    def __call__(self, premises: list[str], hypotheses: list[str]) -> np.ndarray:
        """Return P(premise entails hypothesis), float64 of shape (pairs,), without shards."""
        return self._model(premises, hypotheses)

    def filter(self, groups: Sequence[Sequence[str]], threshold: float, what: str = "NLI filter") -> Filtered:
        """Keep of each group the contexts that say something new (see `filter_unique`)."""
        asked = pd.DataFrame({"contexts": [list(group) for group in groups]})
        settings = self.study.params.nli
        key = (
            threshold,
            self._weights,
            models.describe(settings.base),
            settings.max_length,
            source_hash("nli", "encoder"),
        )
        found = map_rows(
            self.study, asked, partial(_open_filter, self.study, threshold), what, "groups", *key
        )
        return Filtered(
            [[bool(flag) for flag in flags] for flags in found["kept"]],
            int(found["asked"].sum()),
            sum(len(group) * (len(group) - 1) for group in groups),
            [[None if j < 0 else int(j) for j in group] for group in found["blocked_by"]],
        )

    @cached_property
    def _model(self) -> Nli:
        return _open_nli(self.study)


def embed(study: Study, texts: list[str], ref: ModelRef, what: str = "embedding") -> np.ndarray:
    """Embed texts with a sentence encoder; what was embedded before in this run is read from its shards.

    Returns
    -------
    ndarray of float32, shape (texts, width)
        Rows of unit length.
    """
    if not texts:  # an empty shard does not know the width
        return embed(study, [""], ref, what)[:0]
    asked = pd.DataFrame({"text": texts})
    key = (models.describe(ref), source_hash("encoder"))
    found = map_rows(study, asked, partial(_open_embedder, study, ref), what, "texts", *key)
    return np.stack(found["vector"].to_list()).astype(np.float32)


def score_toxicity(study: Study, texts: list[str], what: str = "toxicity") -> np.ndarray:
    """Score texts with the scorer that the parameters name.

    Returns
    -------
    ndarray of float64, shape (texts,)
        0 to 1; NaN (null) where there is no score.
    """
    settings = study.params.toxicity
    recorded = sha256(resolve(settings.recorded)) if settings.scorer == "recorded" else None
    asked = pd.DataFrame({"text": texts})
    key = (settings.model_dump(), recorded, source_hash("toxicity", "encoder"))
    found = map_rows(study, asked, partial(_open_toxicity, study), what, "texts", *key)
    return found["score"].to_numpy(dtype=float, na_value=np.nan)


def map_rows(
    study: Study, asked: pd.DataFrame, open_work: OpenWork, what: str, unit: str, *key: object
) -> pd.DataFrame:
    """Apply work to rows in shards of ``compute.shard_rows``, by the executor of the parameters.

    Parameters
    ----------
    key : object
        All that the result hangs on beside the rows: weights, settings, code (see `shards.fingerprint`).
    """
    compute = study.params.compute
    name = fingerprint(asked, *key, compute.shard_rows, str(study.dtype), source_hash("scoring", "precision"))
    return map_shards(
        asked, compute.shard_rows, open_work, study.run.work("shards") / f"scoring-{name}",
        seed=study.params.seed, stage=what, unit=unit, executor=compute.executor,
    )  # fmt: skip


def _open_critic(study: Study, name: str) -> Work:
    folder = study.run.model(name)
    return partial(_score, load_critic(folder, study.params.critic, study.run, study.device, study.dtype))


def _score(critic: Critic, part: pd.DataFrame, seed: int) -> pd.DataFrame:
    return pd.DataFrame({"score": critic.score(part)})


def _open_filter(study: Study, threshold: float) -> Work:
    return partial(_filter, _open_nli(study), threshold)


def _open_nli(study: Study) -> Nli:
    return load_nli(study.run.model("nli"), study.params.nli, study.run, study.device, study.dtype)


def _filter(nli: Nli, threshold: float, part: pd.DataFrame, seed: int) -> pd.DataFrame:
    groups = [list(group) for group in part["contexts"]]
    filtered = filter_unique(groups, nli, threshold)
    blocked_by = [[-1 if j is None else j for j in group] for group in filtered.blocked_by]
    asked = np.zeros(len(groups), dtype=int)
    asked[:1] = filtered.pairs_asked  # of the whole shard
    return pd.DataFrame({"kept": filtered.kept, "blocked_by": blocked_by, "asked": asked})


def _open_embedder(study: Study, ref: ModelRef) -> Work:
    base, tokenizer = models.load(ref, "encoder", study.run)
    model = encoder.in_dtype(encoder.SentenceEncoder(base), study.dtype).to(study.device)
    return partial(_embed, model, tokenizer, study.device)


def _embed(
    model: encoder.SentenceEncoder, tokenizer: object, device: object, part: pd.DataFrame, seed: int
) -> pd.DataFrame:
    rows = encoder.encode(tokenizer, (part["text"].tolist(), None), min(256, tokenizer.model_max_length))
    return pd.DataFrame({"vector": list(encoder.predict(model, tokenizer, rows, device))})


def _open_toxicity(study: Study) -> Work:
    return partial(_judge, open_scorer(study.params.toxicity, study.run, study.device, study.dtype))


def _judge(scorer: Scorer, part: pd.DataFrame, seed: int) -> pd.DataFrame:
    return pd.DataFrame({"score": scorer(part["text"].tolist())})
