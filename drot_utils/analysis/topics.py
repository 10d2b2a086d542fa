"""Topics of contexts and rationales: BERTopic on embeddings computed once (section 5.2, appendix E.1)."""

import re
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.neighbors import KNeighborsRegressor

from drot_utils.data.table import DIRECTIONS, make_table
from drot_utils.engine import classifier, load
from drot_utils.engine.shards import Work, map_rows
from drot_utils.study.params import ModelRef
from drot_utils.study.params import Topics as Settings
from drot_utils.study.record import Study

COLUMNS = {"topic": "str", "count": "int64", "words": "str", "example": "str"}
#: Dimensions that UMAP leaves, and what BERTopic takes out of English texts before it looks for words.
DIMENSIONS, NO_WORD = 5, re.compile(r"[^A-Za-z0-9 ]+")


def find_topics(
    texts: list[str], embeddings: np.ndarray, settings: Settings, seed: int
) -> tuple[pd.DataFrame, np.ndarray]:
    """Cluster texts by their embeddings (see `embed`) into topics.

    UMAP is seeded, which makes it use one thread and give the same topics each time. Words are English ones: a cluster of
    texts in another script, or of stop words only, is no topic. Where there is none, a sentence is printed that says why.

    Returns
    -------
    topics : DataFrame
        ``topic`` (its most typical word that no larger topic has), ``count``, ``words`` (five of them) and ``example``
        (of the texts that have the topic's word, the one nearest to the centre); most frequent first.
    member : ndarray of int, shape (texts,)
        Row of `topics` that a text belongs to; -1 for none.
    """
    words = CountVectorizer(stop_words="english")
    rows: list[tuple] = []
    member = np.full(len(texts), -1)
    reason = _find_obstacle(texts, settings, words)
    if not reason:
        find = words.build_analyzer()
        model, found = _cluster(texts, embeddings, settings, seed, words)
        numbers, counts = np.unique(found[found >= 0], return_counts=True)
        for k in np.argsort(-counts, kind="stable"):
            typical = [word for word, _ in model.get_topic(int(numbers[k])) if word]
            if not typical:
                continue
            inside = np.flatnonzero(found == numbers[k])
            names = [*typical, " ".join(typical[:2]), f"{typical[0]} ({len(rows) + 1})"]
            name = next(name for name in names if name not in {row[0] for row in rows})
            near = inside[np.argsort(-(embeddings[inside] @ embeddings[inside].mean(axis=0)), kind="stable")]
            has_word = (row for row in near if name.split()[0] in find(NO_WORD.sub("", texts[row])))
            example = texts[next(has_word, near[0])]
            member[inside] = len(rows)
            rows.append((name, int(counts[k]), ", ".join(typical[:5]), example))
        alike = f"no {settings.min_topic_size} of them with words are alike; lower `topics.min_topic_size`"
        reason = f"{alike}, or make a larger data set"
    if not rows:
        print(f"No topic in {len(texts)} texts: {reason}.")
    return make_table(rows, COLUMNS), member


def count_directions(variance: pd.Series, topics: pd.DataFrame, member: np.ndarray) -> pd.DataFrame:
    """Return how many strengthening and weakening contexts are in each topic (see `find_topics`), a row a topic."""
    inside = member >= 0
    named = pd.DataFrame({"topic": topics["topic"].to_numpy()[member[inside]], "variance": variance[inside]})
    counts = named.groupby(["topic", "variance"]).size().unstack(fill_value=0)
    return counts.reindex(index=topics["topic"], columns=[*DIRECTIONS], fill_value=0).rename(columns=DIRECTIONS)


def embed(study: Study, texts: list[str], ref: ModelRef, what: str = "embedding") -> np.ndarray:
    """Embed texts with a sentence encoder, in float32 and rows of unit length; what this run has embedded before is read."""
    if not texts:  # an empty shard does not know the width
        return embed(study, [""], ref, what)[:0]
    asked = pd.DataFrame({"text": texts})
    found = map_rows(study, asked, partial(_open_embedder, study, ref), what, "texts", load.describe_model(ref))
    return np.stack(found["vector"].to_list()).astype(np.float32)


def draw_map(study: Study, every: list[str], sample: list[str], names: list[str]) -> pd.DataFrame:
    """Return a map of texts in two dimensions: ``text``, ``x``, ``y`` and ``topic``, one row a text.

    UMAP is fitted on the sample, whose embeddings are read where `embed` made them before. Any other text lies between the
    sample's three nearest, and is of the topic of the nearest one.

    Parameters
    ----------
    every : list of str
        All texts to place.
    sample, names : list of str
        Some of them, and the topic of each ("" for none).
    """
    settings, few = study.params.topics, max(study.params.topics.neighbors, DIMENSIONS) + 2
    placed = pd.DataFrame({"text": sample, "topic": names}).drop_duplicates("text")
    vectors = embed(study, sample, settings.embedder, "embedding contexts")[placed.index]
    placed = placed.reset_index(drop=True)
    placed[["x", "y"]] = vectors[:, :2] if len(vectors) < few else _lay_out(vectors, settings, study.params.seed)
    others = pd.Series(every, dtype="str").drop_duplicates().loc[lambda texts: ~texts.isin(sample)].tolist()
    if not others:
        return placed
    asked = embed(study, others, settings.embedder, "embedding contexts for the map")
    between = KNeighborsRegressor(min(3, len(placed)), weights="distance").fit(vectors, placed[["x", "y"]])
    rest = pd.DataFrame(between.predict(asked), columns=["x", "y"]).assign(text=others)
    rest["topic"] = placed["topic"].to_numpy()[between.kneighbors(asked, 1, return_distance=False)[:, 0]]
    return pd.concat([placed, rest], ignore_index=True)


def _find_obstacle(texts: list[str], settings: Settings, words: CountVectorizer) -> str:
    """Return why there can be no topic, "" where there may be some."""
    # UMAP's first layout needs more texts than one more than the dimensions that it leaves.
    if len(texts) < max(settings.neighbors, DIMENSIONS) + 2:
        few = f"they are too few for {settings.neighbors} neighbours"
        return f"{few}; lower `topics.neighbors`, or make a larger data set"
    find = words.build_analyzer()
    found = {word for text in texts for word in find(NO_WORD.sub("", text))}
    if sum(not word.isdigit() for word in found) < 2:
        return "stop words aside, they hold fewer than two English words, by which topics are named"
    return ""


def _lay_out(vectors: np.ndarray, settings: Settings, seed: int) -> np.ndarray:
    # Few epochs: to look at, not to cluster.
    return _make_umap(settings, seed, n_components=2, n_epochs=200).fit_transform(vectors)


def _make_umap(settings: Settings, seed: int, **options: Any) -> Any:
    from umap import UMAP, umap_, utils

    # UMAP compiles these anew in each process, which takes 15 seconds: compiled once on a machine, they are kept.
    for function in (utils.fast_knn_indices, umap_.smooth_knn_dist, umap_.compute_membership_strengths):
        function.enable_caching()
    return UMAP(n_neighbors=settings.neighbors, metric="cosine", random_state=seed, n_jobs=1, **options)


def _cluster(
    texts: list[str], embeddings: np.ndarray, settings: Settings, seed: int, words: CountVectorizer
) -> tuple[Any, np.ndarray]:
    """Return a fitted BERTopic and each text's cluster, -1 for none."""
    from bertopic import BERTopic
    from hdbscan import HDBSCAN

    model = BERTopic(
        umap_model=_make_umap(settings, seed, n_components=DIMENSIONS, min_dist=0.0),
        hdbscan_model=HDBSCAN(min_cluster_size=settings.min_topic_size, core_dist_n_jobs=1),
        vectorizer_model=words,
    )
    return model, np.asarray(model.fit_transform(texts, embeddings)[0])


def _open_embedder(study: Study, ref: ModelRef) -> Work:
    base, tokenizer = load.load_model(ref, "encoder", study.run)
    model = classifier.in_dtype(classifier.SentenceEncoder(base), study.scoring_dtype).to(study.device)

    def embed_part(part: pd.DataFrame, seed: int) -> pd.DataFrame:
        rows = classifier.encode(tokenizer, (part["text"].tolist(), None), min(256, tokenizer.model_max_length))
        return pd.DataFrame({"vector": list(classifier.predict(model, tokenizer, rows, study.device))})

    return embed_part
