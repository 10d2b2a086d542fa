"""Topics of contexts and rationales: BERTopic on embeddings computed once (section 5.2, appendix E.1)."""

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from drot_utils import encoder, models
from drot_utils.errors import DataError
from drot_utils.params import Topics as Settings
from drot_utils.paths import Run, atomic
from drot_utils.progress import Progress
from drot_utils.settings import ModelRef
from drot_utils.shards import fingerprint, source_hash

#: Columns of a topic table.
COLUMNS = ["topic", "count", "words", "example"]


class _MeanPooled(torch.nn.Module):
    """A sentence encoder: the mean over tokens, of unit length."""

    def __init__(self, base: torch.nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, **batch: torch.Tensor) -> torch.Tensor:
        """Return vectors of shape (rows, width), float32."""
        states = self.base(**batch).last_hidden_state.float()
        mask = batch["attention_mask"].unsqueeze(-1)
        return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


def embed(
    texts: list[str],
    ref: ModelRef,
    run: Run,
    device: torch.device,
    dtype: torch.dtype,
    what: str = "embedding",
) -> np.ndarray:
    """Embed texts, or read the embeddings of the same texts by the same model from the run directory.

    Parameters
    ----------
    texts : list of str
    ref : ModelRef
        The sentence encoder.

    Returns
    -------
    ndarray of float32, shape (texts, width)
        Rows of unit length.
    """
    key = fingerprint(texts, models.describe(ref), str(dtype), source_hash("topics", "encoder"))
    path = run.work("embeddings") / f"{key}.safetensors"
    try:
        return load_file(path)["embeddings"]
    except (OSError, SafetensorError):
        pass  # none yet, or not whole
    base, tokenizer = models.load(ref, "encoder", run)
    rows = encoder.encode(tokenizer, (texts, None), min(256, tokenizer.model_max_length))
    with Progress(what, len(rows), "texts") as progress:
        vectors = encoder.predict(
            _MeanPooled(base).to(device), tokenizer, rows, device=device, dtype=dtype, progress=progress
        )
    with atomic(path) as temporary:
        save_file({"embeddings": vectors}, temporary)
    return vectors


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
