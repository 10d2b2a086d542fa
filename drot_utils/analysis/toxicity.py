"""Toxicity of the data set, by a scorer of choice, and profanity by word list, which is another thing (section 5.2)."""

import re
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
from scipy.special import softmax

from drot_utils.data.corpora import read_lines, read_tsv, refuse
from drot_utils.engine import classifier, load
from drot_utils.engine.shards import Work, map_rows
from drot_utils.study.errors import DataError, ModelError
from drot_utils.study.paths import resolve, sha256
from drot_utils.study.record import Study

#: Labels under which classifiers keep the score that is meant.
LABELS = ("toxicity", "toxic")

#: Gives each text a score from 0 to 1, or NaN.
Scorer = Callable[[list[str]], np.ndarray]


def score_toxicity(study: Study, texts: list[str]) -> np.ndarray:
    """Score texts from 0 to 1 with the scorer that the parameters name; NaN where there is no score."""
    settings = study.params.toxicity
    recorded = sha256(resolve(settings.recorded)) if settings.scorer == "recorded" else None
    model = load.describe_model(settings.model) if settings.scorer == "model" else None
    key, asked = (settings.model_dump(), recorded, model), pd.DataFrame({"text": texts})
    found = map_rows(study, asked, partial(_open_work, study), "toxicity", "texts", *key)
    return found["score"].to_numpy(dtype=float, na_value=np.nan)


def open_scorer(study: Study) -> Scorer:
    """Load the scorer that the parameters name.

    ``scorer: none`` scores nothing; ``recorded`` reads a TSV with ``text`` and ``toxicity`` (from 0 to 1, or empty);
    ``model`` runs a pinned local classifier, which must have one of `LABELS`.
    """
    settings = study.params.toxicity
    if settings.scorer == "none":
        return lambda texts: np.full(len(texts), np.nan)
    if settings.scorer == "recorded":
        known = _read_recorded(settings.recorded)
        return lambda texts: known.reindex(texts).to_numpy(dtype=float)
    return _open_classifier(study)


def read_words(path: str) -> list[str]:
    """Read a word list: one word a line, ``#`` for comments. None is a `DataError`."""
    words = [line.strip() for line in read_lines(path) if line.strip() and not line.startswith("#")]
    if not words:
        raise DataError("holds no word", where=path, todo="write one word a line, or set `toxicity.word_list`")
    return words


def has_profanity(texts: pd.Series, words: list[str]) -> pd.Series:
    """Return whether each text holds a word of the list (whole words and their inflections, any case)."""
    return texts.fillna("").str.contains(_pattern(words))


def share_profane(profane: pd.DataFrame, actions: int) -> pd.DataFrame:
    """Return how many texts of each kind (a column of `has_profanity`) are profane, with 95% Wilson intervals in per cent.

    Texts about one action are alike, so the intervals are as wide as if each of the `actions` had one: at most too wide.
    """
    from statsmodels.stats.proportion import proportion_confint

    shares = pd.DataFrame({"text": list(profane), "rows": len(profane), "found": profane.sum().to_numpy()})
    share = shares["found"] / shares["rows"]
    low, high = proportion_confint(share * actions, actions, method="wilson")
    return shares.assign(percent=100 * share, percent_low=100 * low, percent_high=100 * high)


def mask_profanity(text: str, words: list[str]) -> str:
    """Return `text` with all but the first letter of every listed word replaced by asterisks."""
    return _pattern(words).sub(lambda match: f"{match[0][0]}{'*' * (len(match[0]) - 1)}", text)


def _open_work(study: Study) -> Work:
    score = open_scorer(study)
    return lambda part, seed: pd.DataFrame({"score": score(part["text"].tolist())})


def _read_recorded(path: str) -> pd.Series:
    table = read_tsv(path, ["text", "toxicity"])
    values = pd.to_numeric(table["toxicity"].replace("", None), errors="coerce")
    bad = (table["toxicity"] != "") & ~values.between(0, 1)
    refuse(table, bad, "have a toxicity that is neither empty nor a score from 0 to 1", path, "toxicity")
    known = pd.Series(values.to_numpy(), index=table["text"])
    return known[~known.index.duplicated()]


def _open_classifier(study: Study) -> Scorer:
    ref = study.params.toxicity.model
    model, tokenizer = load.load_model(ref, "classifier", study.run)
    names = {str(name).lower(): i for i, name in model.config.id2label.items()}
    column = next((names[label] for label in LABELS if label in names), None)
    if column is None:
        raise ModelError(f"expected a label named {' or '.join(LABELS)}, found {sorted(names)}", where=ref.name)
    one_label = model.config.problem_type == "single_label_classification"
    model = classifier.in_dtype(model, study.scoring_dtype).to(study.device)

    def score(texts: list[str]) -> np.ndarray:
        rows = classifier.encode(tokenizer, (texts, None), 256)
        logits = classifier.predict(model, tokenizer, rows, study.device).astype(np.float64)
        if one_label:
            return softmax(logits, axis=-1)[:, column]
        return 1 / (1 + np.exp(-logits[:, column]))  # one yes or no a label

    return score


def _pattern(words: list[str]) -> re.Pattern[str]:
    joined = "|".join(sorted(map(re.escape, words), key=len, reverse=True))
    return re.compile(rf"\b(?:{joined})(?:s|es|ed|er|ers|ing|y)?\b", re.IGNORECASE)
