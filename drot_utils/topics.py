"""Topics of contexts and rationales: BERTopic on embeddings computed once (section 5.2, appendix E.1)."""

import numpy as np
import pandas as pd

from drot_utils.errors import DataError
from drot_utils.params import Topics as Settings

#: Columns of a topic table.
COLUMNS = ["topic", "count", "words", "example"]


def find_topics(
    texts: list[str], embeddings: np.ndarray, settings: Settings, seed: int
) -> tuple[pd.DataFrame, np.ndarray]:
    """Cluster texts into topics.

    UMAP is seeded, which makes it use one thread and give the same topics each time.

    Parameters
    ----------
    texts : list of str
    embeddings : ndarray of float32, shape (texts, width)
    settings : Topics
        Neighbours (UMAP) and smallest topic (HDBSCAN).

    Returns
    -------
    topics : DataFrame
        ``topic`` (its most typical word that no larger topic has), ``count``, ``words`` (five of them) and ``example``
        (the text nearest to the topic's centre); most frequent first. Texts that belong to no topic are not counted.
    member : ndarray of int, shape (texts,)
        Row of `topics` that a text belongs to; -1 for none.

    Raises
    ------
    DataError
        When there are too few texts to have neighbours.
    """
    if len(texts) < settings.neighbors + 2:
        raise DataError(
            f"{len(texts)} texts are too few for {settings.neighbors} neighbours",
            where="topics",
            todo="lower `topics.neighbors`, or make a larger data set",
        )
    from bertopic import BERTopic
    from hdbscan import HDBSCAN
    from sklearn.feature_extraction.text import CountVectorizer
    from umap import UMAP

    model = BERTopic(
        umap_model=UMAP(
            n_neighbors=settings.neighbors,
            n_components=5,
            min_dist=0.0,
            metric="cosine",
            random_state=seed,
            n_jobs=1,
        ),
        hdbscan_model=HDBSCAN(min_cluster_size=settings.min_topic_size, core_dist_n_jobs=1),
        vectorizer_model=CountVectorizer(stop_words="english"),
        calculate_probabilities=False,
    )
    found, _ = model.fit_transform(texts, embeddings)
    found = np.asarray(found)
    numbers, counts = np.unique(found[found >= 0], return_counts=True)
    rows, used, member = [], set(), np.full(len(texts), -1)
    for place, k in enumerate(np.argsort(-counts, kind="stable")):
        inside = np.flatnonzero(found == numbers[k])
        words = [word for word, _ in model.get_topic(int(numbers[k])) if word]
        name = next((word for word in words if word not in used), " ".join(words[:2]))
        used.add(name)
        centre = embeddings[inside].mean(axis=0)
        example = texts[inside[int(np.argmax(embeddings[inside] @ centre))]]
        rows.append((name, int(counts[k]), ", ".join(words[:5]), example))
        member[inside] = place
    return pd.DataFrame(rows, columns=COLUMNS), member
