"""Topics of contexts: ours (embeddings computed once and kept) against stock BERTopic's defaults with the same embedder."""

import shutil
import time

import numpy as np

from benchmarks.harness import read_options, report
from drot_utils.analysis import topics
from drot_utils.data import corpora
from drot_utils.engine.load import package_file
from drot_utils.study.params import load_params
from drot_utils.study.paths import Run
from drot_utils.study.record import Study


def main() -> None:
    """Run the benchmark."""
    options = read_options(__doc__)
    params = load_params("params/demo.yaml")
    study = Study(params, Run("benchmark"), "topics")
    embedder = params.topics.embedder
    texts = _texts(1_500 if options.quick else 10_000)
    rates = {"ours": [], "BERTopic defaults": []}
    again = []
    for _ in range(3):
        shutil.rmtree(study.run.work("shards"), ignore_errors=True)
        began = time.perf_counter()
        vectors = topics.embed(study, texts, embedder)
        found, member = topics.find_topics(texts, vectors, params.topics, 0)
        rates["ours"].append(len(texts) / (time.perf_counter() - began))
        began = time.perf_counter()
        kept = topics.embed(study, texts, embedder)
        topics.find_topics(texts, kept, params.topics, 0)
        again.append(time.perf_counter() - began)
        assert np.array_equal(vectors, kept) and len(member) == len(texts) and len(found) > 1
        rates["BERTopic defaults"].append(len(texts) / _stock(texts))
    shutil.rmtree(study.run.root, ignore_errors=True)
    notes = {"texts": len(texts), "topics": len(found), "second_run_s": round(float(np.median(again)), 3)}
    report("topics", rates, "texts/s", quick=options.quick, notes=notes)


def _texts(count: int) -> list[str]:
    actions = corpora.read_actions("data/demo/actions.tsv")
    rows = [corpora.read_recorded(f"data/demo/teacher_{style}.tsv", actions) for style in ("plain", "rich")]
    texts = [f"{row.context}. {row.action}" for part in rows for row in part.itertuples()]
    texts += [f"{row.rationale}. {row.context}" for part in rows for row in part.itertuples()]
    return texts[:count]


def _stock(texts: list[str]) -> float:
    from bertopic import BERTopic
    from sentence_transformers import SentenceTransformer

    began = time.perf_counter()
    embedder = SentenceTransformer(str(package_file("all-minilm-l6-v2").parent), device="cpu")
    BERTopic(embedding_model=embedder).fit_transform(texts)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
