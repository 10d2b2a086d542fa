"""The NLI filter: which contexts say something new? (section 3.2)"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pandas as pd
import torch

from drot_utils.engine import load
from drot_utils.engine.classifier import Classifier, Fit, Texts, load_classifier, save_module, train_classifier
from drot_utils.engine.shards import Work, map_rows
from drot_utils.study.errors import ModelError
from drot_utils.study.params import Nli as Settings
from drot_utils.study.paths import replace_folder, require, sha256
from drot_utils.study.progress import Progress
from drot_utils.study.record import Study

LABELS = ["contradiction", "neutral", "entailment"]
ENTAILMENT = LABELS.index("entailment")
HEAD = {"classes": len(LABELS), "pooling": "mean", "hidden": 384, "dropout": 0.1}

#: Returns P(premise entails hypothesis) for pairs of texts, as an array of the same length.
Entails = Callable[[list[str], list[str]], np.ndarray]


@dataclass
class Filtered:
    """Decisions of the filter, and what they cost."""

    blocked_by: list[list[int | None]]  # for each candidate, the accepted one that says the same; None where it is kept
    pairs_asked: int = field(default=0, compare=False)  # where it is counted

    @property
    def kept(self) -> list[list[bool]]:
        """Whether each candidate is kept."""
        return [[by is None for by in group] for group in self.blocked_by]

    @property
    def pairs_possible(self) -> int:
        """How many ordered pairs of candidates there are."""
        return sum(len(group) * (len(group) - 1) for group in self.blocked_by)


#: The filter with its model: says of groups of contexts which ones say something new (`filter_groups` of a study).
FindUnique = Callable[[Sequence[Sequence[str]]], Filtered]


def filter_unique(
    groups: Sequence[Sequence[str]], entails: Entails, threshold: float, what: str = "NLI filter"
) -> Filtered:
    """Keep of each group the contexts that say something new (section 3.2's formula, exactly).

    Candidate i is accepted if, for every earlier *accepted* j, P(i entails j) or P(j entails i) is below `threshold`.
    Only pairs that can still change a decision are asked: first the accepted context with the most words in common with
    the candidate, which settles most repetitions, then the next one, the next two, four ... Of a pair, the direction
    that is less likely to hold is asked first (a shorter text seldom entails a longer one), the other only where it
    reaches the threshold. An exact repetition needs no model.

    Parameters
    ----------
    groups : sequence of sequences of str
        The contexts of one action and moral variance, in candidate order.
    entails : callable
        P(premise entails hypothesis) for lists of pairs; called with the pairs of many groups at once.
    threshold : float
        0.5 in the paper.
    """
    result = Filtered([[None] * len(group) for group in groups])
    blocked = result.blocked_by
    words = [[frozenset(text.lower().split()) for text in group] for group in groups]
    with Progress(what, sum(map(len, groups)), "contexts") as progress:
        for i in range(max(map(len, groups), default=0)):
            members = [k for k, group in enumerate(groups) if len(group) > i]
            for k in members:
                same = (j for j in range(i) if blocked[k][j] is None and groups[k][j] == groups[k][i])
                blocked[k][i] = next(same, None)
            ranked = {k: _rank(words[k], i, blocked[k]) for k in members if blocked[k][i] is None}
            start, stop = 0, 1
            while asked := [(k, j) for k in ranked if blocked[k][i] is None for j in ranked[k][start:stop]]:
                texts = {(k, j): sorted((groups[k][i], groups[k][j]), key=_count_words) for k, j in asked}
                for way in (1, -1):  # there, and back where that holds
                    pairs = [texts[pair][::way] for pair in asked]
                    result.pairs_asked += len(pairs)
                    found = entails([a for a, _ in pairs], [b for _, b in pairs]) if pairs else []
                    asked = [pair for pair, p in zip(asked, found, strict=True) if p >= threshold]
                for k, j in reversed(asked):  # so that the first one blocks
                    blocked[k][i] = j
                start, stop = stop, stop * 2
            progress.update(len(members))
    return result


def _rank(words: list[frozenset[str]], i: int, blocked: list[int | None]) -> list[int]:
    """Return the accepted candidates before i, those with the most words in common with it first."""
    shared = {j: len(words[i] & words[j]) / max(1, len(words[i] | words[j])) for j in range(i) if blocked[j] is None}
    return sorted(shared, key=shared.get, reverse=True)


def _count_words(text: str) -> int:
    return len(text.split())


@dataclass
class Nli:
    """An entailment model; call it with premises and hypotheses to get P(entails)."""

    classifier: Classifier
    entailment: int  # which class is "entailment"

    def __call__(self, premises: list[str], hypotheses: list[str]) -> np.ndarray:
        """Return P(premise entails hypothesis), float64 of shape (pairs,)."""
        return self.probabilities(premises, hypotheses)[:, self.entailment]

    def probabilities(self, premises: list[str], hypotheses: list[str]) -> np.ndarray:
        """Return the probabilities of all labels, float64 of shape (pairs, labels)."""
        return self.classifier.classify((premises, hypotheses))


def train_nli(study: Study, pairs: pd.DataFrame) -> tuple[Nli, Fit, pd.DataFrame]:
    """Fine-tune an entailment model on labelled pairs (`corpora.read_groups`); return it, its curve, and the pairs.

    A tenth of the training groups is set aside to choose the checkpoint; groups with split ``test`` are never seen. The
    column ``part`` of the pairs (train, dev, test) says so.
    """
    groups = np.array(sorted(pairs.loc[pairs["split"] == "train", "group"].unique()))
    dev_groups = np.random.default_rng(study.params.seed).permutation(groups)[: max(1, len(groups) // 10)]
    pairs = pairs.assign(part=pairs["split"].mask(pairs["group"].isin(dev_groups), "dev"))
    parts = (pairs[pairs["part"] == part] for part in ("train", "dev"))
    train, dev = ((_texts(rows), rows["label"].to_numpy()) for rows in parts)
    trained, result = train_classifier(study, study.params.nli, train, dev, what="training the NLI model", **HEAD)
    return Nli(trained, ENTAILMENT), result, pairs


def _texts(pairs: pd.DataFrame) -> Texts:
    return pairs["premise"].tolist(), pairs["hypothesis"].tolist()


def measure_nli(
    nli: Nli, pairs: pd.DataFrame, settings: Settings
) -> tuple[dict[str, float | None], pd.DataFrame, pd.DataFrame]:
    """Measure an entailment model on labelled pairs, which come in twos, there and back.

    Returns
    -------
    measures : dict
        ``accuracy`` over the three labels (None for a ready model, whose labels may be ordered differently), and
        ``mutual_precision`` and ``mutual_recall`` of what the filter acts on: entailment both ways, at the threshold.
    confusion : DataFrame
        Counts of labels against answers; of entailment or not for a ready model.
    mutual : DataFrame
        Counts of pairs that entail each other (rows) against those found to (columns).
    """
    probabilities = nli.probabilities(*_texts(pairs))
    entails, found = pairs["label"].eq(ENTAILMENT).to_numpy(), probabilities[:, nli.entailment] >= settings.threshold
    if settings.groups:
        names, label, answer = LABELS, pairs["label"], probabilities.argmax(1)
    else:
        names, label, answer = ["other", "entailment"], entails.astype(int), found.astype(int)
    truth, called = (pd.Categorical.from_codes(codes, names) for codes in (label, answer))
    mutual = pd.DataFrame({"label": entails[::2] & entails[1::2], "found": found[::2] & found[1::2]})
    measures = {
        "accuracy": float((answer == label).mean()) if settings.groups else None,
        "mutual_precision": float(mutual.loc[mutual["found"], "label"].mean()) if mutual["found"].any() else None,
        "mutual_recall": float(mutual.loc[mutual["label"], "found"].mean()),
    }
    return measures, pd.crosstab(truth, called, dropna=False), pd.crosstab(mutual["label"], mutual["found"])


def save_nli(study: Study, nli: Nli, record: dict) -> None:
    """Keep the run's entailment model: its weights when it was fine-tuned here, else only where it comes from."""
    folder, settings = study.run.model("nli"), study.params.nli
    if settings.groups:
        nli.classifier.save(folder, record)
    else:
        origin = {**record, **load.describe_model(settings.base)}
        replace_folder(folder, lambda place: save_module(torch.nn.Module(), origin, place))


def load_nli(study: Study) -> Nli:
    """Load the run's entailment model, as `save_nli` kept it."""
    folder, settings = study.run.model("nli"), study.params.nli
    if settings.groups:
        return Nli(load_classifier(study, folder, settings, "03_nli_filter", **HEAD), ENTAILMENT)
    require(folder / "model.safetensors", "03_nli_filter")
    return load_pretrained(study)


def load_pretrained(study: Study) -> Nli:
    """Load a ready entailment model, such as RoBERTa-large trained on WANLI; a `ModelError` if no label is entailment."""
    settings = study.params.nli
    model, tokenizer = load.load_model(settings.base, "classifier", study.run)
    names = {str(name).lower(): i for i, name in model.config.id2label.items()}
    if "entailment" not in names:
        raise ModelError(f"expected a label named entailment, found {sorted(names)}", where=settings.base.name)
    ready = Classifier(model.to(study.device), tokenizer, settings.max_length, study.device, study.scoring_dtype)
    return Nli(ready, names["entailment"])


def filter_groups(study: Study, groups: Sequence[Sequence[str]]) -> Filtered:
    """Keep of each group the contexts that say something new, by the run's model, in shards (see `filter_unique`)."""
    settings = study.params.nli
    folder = require(study.run.model("nli") / "model.safetensors", "03_nli_filter").parent
    weights = sha256(folder / "model.safetensors")
    asked = pd.DataFrame({"contexts": [list(group) for group in groups]})
    key = (settings.threshold, weights, load.describe_model(settings.base), settings.max_length)
    found = map_rows(study, asked, partial(_open_filter, study), "NLI filter", "groups", *key)
    blocked_by = [[None if j < 0 else int(j) for j in group] for group in found["blocked_by"]]
    return Filtered(blocked_by)


def _open_filter(study: Study) -> Work:
    nli = load_nli(study)

    def work(part: pd.DataFrame, seed: int) -> pd.DataFrame:
        filtered = filter_unique([list(group) for group in part["contexts"]], nli, study.params.nli.threshold)
        blocked_by = [[-1 if j is None else j for j in group] for group in filtered.blocked_by]
        return pd.DataFrame({"blocked_by": blocked_by})

    return work
