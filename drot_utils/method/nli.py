"""The NLI filter: which contexts say something new? (section 3.2)"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import AutoTokenizer

from drot_utils.engine import classifier, load
from drot_utils.engine.shards import Work, map_rows, source_hash
from drot_utils.study.errors import MissingInputError, ModelError
from drot_utils.study.params import Nli as Settings
from drot_utils.study.paths import Run, replace_folder, require, sha256
from drot_utils.study.progress import Progress
from drot_utils.study.record import Study

LABELS = ["contradiction", "neutral", "entailment"]
HEAD = {"pooling": "mean", "hidden": 384, "dropout": 0.1}

#: Returns P(premise entails hypothesis) for pairs of texts, as an array of the same length.
Entails = Callable[[list[str], list[str]], np.ndarray]


@dataclass
class Nli:
    """An entailment model; call it with premises and hypotheses to get P(entails)."""

    model: torch.nn.Module
    tokenizer: object
    entailment: int  # which logit is "entailment"
    max_length: int
    device: torch.device
    dtype: torch.dtype

    def __call__(self, premises: list[str], hypotheses: list[str]) -> np.ndarray:
        """Return P(premise entails hypothesis), float64 of shape (pairs,)."""
        return self.probabilities(premises, hypotheses)[:, self.entailment]

    def probabilities(self, premises: list[str], hypotheses: list[str]) -> np.ndarray:
        """Return the probabilities of all labels, float64 of shape (pairs, labels)."""
        rows = classifier.encode(self.tokenizer, (premises, hypotheses), self.max_length)
        return classifier.softmax(classifier.predict(self._fast, self.tokenizer, rows, self.device))

    @cached_property
    def _fast(self) -> torch.nn.Module:
        return classifier.in_dtype(self.model, self.dtype)


@dataclass
class Filtered:
    """Decisions of the filter, and what they cost."""

    kept: list[list[bool]]
    pairs_asked: int = 0
    pairs_possible: int = 0
    blocked_by: list[list[int | None]] = field(default_factory=list)


def filter_unique(
    groups: Sequence[Sequence[str]], entails: Entails, threshold: float, what: str = "NLI filter"
) -> Filtered:
    """Keep of each group the contexts that say something new (section 3.2's formula, exactly).

    Candidate i is accepted if, for every earlier *accepted* j, P(i entails j) or P(j entails i) is below `threshold`.
    Only pairs that can still change a decision are asked: first the accepted context with the most words in common with
    the candidate, which settles most repetitions, then the next one, the next two, four ... Of a pair, the direction that
    is less likely to hold is asked first (a shorter text seldom entails a longer one), the other only where it reaches the
    threshold. An exact repetition needs no model.

    Parameters
    ----------
    groups : sequence of sequences of str
        The contexts of one action and moral variance, in candidate order.
    entails : callable
        P(premise entails hypothesis) for lists of pairs; called with the pairs of many groups at once.
    threshold : float
        0.5 in the paper.

    Returns
    -------
    Filtered
        Flags in the shape of `groups`; for every blocked candidate, which one blocked it; pairs asked and possible.
    """
    result = Filtered([[True] * len(g) for g in groups], blocked_by=[[None] * len(g) for g in groups])
    result.pairs_possible = sum(len(g) * (len(g) - 1) for g in groups)
    words = [[frozenset(text.lower().split()) for text in group] for group in groups]
    with Progress(what, sum(map(len, groups)), "contexts") as progress:
        for i in range(max(map(len, groups), default=0)):
            members = [k for k, group in enumerate(groups) if len(group) > i]
            for k in members:
                _block_repetition(result, groups[k], k, i)
            ranked = {k: _rank(result.kept[k], words[k], i) for k in members if result.kept[k][i]}
            start, stop = 0, 1
            while asked := [(k, j) for k in ranked if result.kept[k][i] for j in ranked[k][start:stop]]:
                _settle(result, groups, i, asked, entails, threshold)
                start, stop = stop, stop * 2
            progress.update(len(members))
    return result


def train_nli(
    pairs: pd.DataFrame, settings: Settings, run: Run, device: torch.device, dtype: torch.dtype, seed: int
) -> tuple[Nli, classifier.Fit, pd.DataFrame]:
    """Fine-tune an entailment model on labelled pairs (`corpora.read_groups`).

    A tenth of the training groups is set aside to choose the checkpoint; groups with split ``test`` are never seen.

    Returns
    -------
    Nli, Fit, DataFrame
        The model, its curve, and the pairs with the column ``part`` (train, dev, test).
    """
    groups = np.array(sorted(pairs.loc[pairs["split"] == "train", "group"].unique()))
    dev_groups = np.random.default_rng(seed).permutation(groups)[: max(1, len(groups) // 10)]
    part = pairs["split"].mask(pairs["group"].isin(dev_groups), "dev")
    pairs = pairs.assign(part=part)
    base, tokenizer = load.load_model(settings.base, "encoder", run)
    torch.manual_seed(seed)  # the head's first weights
    model = classifier.PairClassifier(base, len(LABELS), **HEAD)
    train, dev = pairs[part == "train"], pairs[part == "dev"]
    result = classifier.fit(
        model, tokenizer,
        (train["premise"].tolist(), train["hypothesis"].tolist()), train["label"].to_numpy(),
        (dev["premise"].tolist(), dev["hypothesis"].tolist()), dev["label"].to_numpy(),
        settings, device=device, dtype=dtype, seed=seed, what="training the NLI model",
    )  # fmt: skip
    return (
        Nli(model, tokenizer, LABELS.index("entailment"), settings.max_length, device, dtype),
        result,
        pairs,
    )


def save_nli(nli: Nli, settings: Settings, folder: Path, record: dict) -> None:
    """Keep an entailment model: its weights when it was fine-tuned here, else only where it comes from."""

    def fill(place: Path) -> None:
        if settings.groups:
            load.save_module(nli.model, record, place)
            nli.tokenizer.save_pretrained(place)
        else:
            load.save_module(torch.nn.Module(), {**record, **load.describe_model(settings.base)}, place)

    replace_folder(folder, fill)


def load_pretrained(settings: Settings, run: Run, device: torch.device, dtype: torch.dtype) -> Nli:
    """Load a ready entailment model, such as RoBERTa-large trained on WANLI.

    Raises
    ------
    ModelError
        When its labels do not name an entailment class.
    """
    model, tokenizer = load.load_model(settings.base, "classifier", run)
    names = {str(name).lower(): i for i, name in model.config.id2label.items()}
    if "entailment" not in names:
        raise ModelError(f"expected a label named entailment, found {sorted(names)}", where=settings.base.name)
    return Nli(model.to(device), tokenizer, names["entailment"], settings.max_length, device, dtype)


def load_nli(folder: Path, settings: Settings, run: Run, device: torch.device, dtype: torch.dtype) -> Nli:
    """Load the run's entailment model, as `save_nli` kept it."""
    if not (folder / "model.safetensors").exists():
        raise MissingInputError("no NLI model here", where=str(folder), todo="run notebooks/03_nli_filter.ipynb first")
    if not settings.groups:
        return load_pretrained(settings, run, device, dtype)
    base, _ = load.load_model(settings.base, "encoder", run)
    model = classifier.PairClassifier(base, len(LABELS), **HEAD)
    load.load_module(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Nli(model.to(device).eval(), tokenizer, LABELS.index("entailment"), settings.max_length, device, dtype)


def _block_repetition(result: Filtered, group: Sequence[str], number: int, i: int) -> None:
    same = next((j for j in range(i) if result.kept[number][j] and group[j] == group[i]), None)
    if same is not None:
        _block(result, number, i, same)


def _rank(kept: list[bool], words: list[frozenset[str]], i: int) -> list[int]:
    """Return the accepted candidates before `i`, those with the most words in common first."""
    accepted = [j for j in range(i) if kept[j]]
    return sorted(accepted, key=lambda j: -len(words[i] & words[j]) / max(1, len(words[i] | words[j])))


def _settle(
    result: Filtered,
    groups: Sequence[Sequence[str]],
    i: int,
    pairs: list[tuple[int, int]],
    entails: Entails,
    threshold: float,
) -> None:
    texts = [sorted((groups[k][i], groups[k][j]), key=lambda text: len(text.split())) for k, j in pairs]
    first = _ask(entails, texts)
    close = [index for index, p in enumerate(first) if p >= threshold]
    second = _ask(entails, [texts[index][::-1] for index in close])
    result.pairs_asked += len(texts) + len(close)
    for index, p in zip(close, second, strict=True):
        k, j = pairs[index]
        if p >= threshold and result.kept[k][i]:
            _block(result, k, i, j)


def _ask(entails: Entails, pairs: Sequence[Sequence[str]]) -> np.ndarray:
    return entails([a for a, _ in pairs], [b for _, b in pairs]) if pairs else np.zeros(0)


def _block(result: Filtered, group: int, candidate: int, by: int) -> None:
    result.kept[group][candidate] = False
    result.blocked_by[group][candidate] = by


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
            load.describe_model(settings.base),
            settings.max_length,
            source_hash("method/nli", "engine/classifier"),
        )
        found = map_rows(self.study, asked, partial(_open_filter, self.study, threshold), what, "groups", *key)
        return Filtered(
            [[bool(flag) for flag in flags] for flags in found["kept"]],
            int(found["asked"].sum()),
            sum(len(group) * (len(group) - 1) for group in groups),
            [[None if j < 0 else int(j) for j in group] for group in found["blocked_by"]],
        )

    @cached_property
    def _model(self) -> Nli:
        return _open_nli(self.study)


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
