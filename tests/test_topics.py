"""Tests of `topics`."""

import re

import numpy as np
import pandas as pd
import pytest
from conftest import run_cells, write_params

from drot_utils.analysis import topics
from drot_utils.data.table import write_candidates
from drot_utils.study.paths import Run

SUBJECTS = {"dog": "the dog barks at the cat", "exam": "an exam at the school", "rain": "heavy rain and a storm"}


@pytest.fixture(scope="module")
def texts():
    return [f"{text} {word} number {i}" for i in range(20) for word, text in SUBJECTS.items()]


@pytest.fixture(scope="module")
def vectors(texts):
    rng = np.random.default_rng(0)
    centres = np.eye(3, 24) * 5
    return np.stack([centres[i % 3] + rng.normal(0, 0.3, 24) for i in range(len(texts))]).astype(np.float32)


def test_topics_are_found_named_counted_and_the_same_again(texts, vectors, smoke):
    found, member = topics.find_topics(texts, vectors, smoke.topics, 0)
    assert len(found) == 3 and found["count"].sum() == (member >= 0).sum() and found["topic"].is_unique
    for place, row in found.iterrows():
        inside = {k % 3 for k in np.flatnonzero(member == place)}
        assert len(inside) == 1 and list(SUBJECTS)[inside.pop()] in row["words"]
        assert row["example"] in texts and row["topic"].split()[0] in row["example"].lower()
    again, same = topics.find_topics(texts, vectors, smoke.topics, 0)
    assert found.equals(again) and (member == same).all()


NOTHING = {
    "too few": (["a dog barks"] * 4, r"4 texts: they are too few for 5 neighbours; lower `topics\.neighbors`"),
    "none": ([], "0 texts: they are too few"),
    "none large": ([f"a dog barks at {i} cats" for i in range(24)], "no 20 of them with words are alike"),
    "stop words": (["the and of it is to be"] * 24, "fewer than two English words"),
    "one word": (["the dog", "and of", "it is"] * 8, "fewer than two English words"),
    "Chinese": (["在篝火旁边生火", "考试作弊 2", "下雨 10"] * 8, "fewer than two English words"),
    "Arabic": (["إشعال النار في المخيم", "الغش في الامتحان"] * 12, "fewer than two English words"),
    "emoji": (["🔥🔥", "😀 😀", ""] * 8, "fewer than two English words"),
}


def is_empty_topic_table(table):
    kinds = {name: "int64" if name == "count" else "str" for name in ("topic", "count", "words", "example")}
    return table.empty and table.dtypes.astype(str).to_dict() == kinds


@pytest.mark.parametrize("what", NOTHING)
def test_no_topic_is_an_empty_table_and_a_sentence(smoke, capsys, what):
    texts, sentence = NOTHING[what]
    settings = smoke.topics.model_copy(update={"min_topic_size": 20})
    vectors = np.random.default_rng(0).normal(size=(len(texts), 24)).astype(np.float32)
    found, member = topics.find_topics(texts, vectors, settings, 0)
    assert is_empty_topic_table(found) and member.tolist() == [-1] * len(texts)
    assert re.search(f"No topic in {sentence}|No topic in 24 texts: .*{sentence}", capsys.readouterr().out)


def test_a_cluster_without_a_word_is_no_topic_and_names_differ(vectors, smoke):
    texts = [("the dog", "在篝火旁边生火", "a dog and a cat")[i % 3] for i in range(len(vectors))]
    found, member = topics.find_topics(texts, vectors, smoke.topics, 0)
    assert len(found) == 2 and found["topic"].is_unique and (found["topic"] != "").all()
    assert found["count"].tolist() == [(member == 0).sum(), (member == 1).sum()] == [20, 20]
    assert (member[1::3] == -1).all()
    texts = [("the dog", "dog dog", "a dog and a cat")[i % 3] for i in range(len(vectors))]
    found, _ = topics.find_topics(texts, vectors, smoke.topics, 0)
    assert len(found) == 3 and found["topic"].is_unique


def test_every_text_has_its_place_on_the_map(study, texts, vectors, monkeypatch):
    known = dict(zip(texts, vectors, strict=True))
    monkeypatch.setattr(topics, "embed", lambda study, texts, *rest: np.stack([known[text] for text in texts]))
    sample = texts[:45]
    names = [["dog", "exam", "rain"][i % 3] for i in range(45)]
    found = topics.draw_map(study, [*texts, *texts], [*sample, sample[0]], [*names, names[0]]).set_index("text")
    assert sorted(found.index) == sorted(texts) and found[["x", "y"]].notna().all(axis=None)
    assert found["topic"].tolist() == [["dog", "exam", "rain"][texts.index(text) % 3] for text in found.index]
    again = topics.draw_map(study, texts, sample, names).set_index("text")
    assert np.allclose(again[["x", "y"]], found.loc[again.index, ["x", "y"]])
    spread = found.groupby("topic")[["x", "y"]].std().max(axis=None)
    assert spread < found.groupby("topic")[["x", "y"]].mean().std().max()


def test_few_texts_have_places_too(study, texts, vectors, monkeypatch):
    monkeypatch.setattr(topics, "embed", lambda study, texts, *rest: vectors[: len(texts)])
    assert topics.draw_map(study, texts[:2], texts[:1], [""])[["x", "y"]].shape == (2, 2)


def test_directions_are_counted_topic_by_topic():
    found = pd.DataFrame({"topic": ["pet", "exam"]})
    counts = topics.count_directions(pd.Series([1, -1, 1, 1]), found, np.array([1, 0, 1, -1]))
    assert counts.to_dict("list") == {"strengthening": [0, 2], "weakening": [1, 0]} and list(counts.index) == [
        "pet",
        "exam",
    ]


@pytest.mark.parametrize("what", ["too few", "none large", "Chinese"])
def test_notebook_8_without_a_topic(output, tmp_path, what, candidates):
    texts = NOTHING[what][0]
    rows = pd.concat([candidates.iloc[:1]] * len(texts), ignore_index=True)
    rows = rows.assign(candidate=range(len(rows)), context=texts, rationale=texts)
    run = Run("smoke")
    write_candidates(rows, run.data("drot"))
    names = run_cells("08_topics", write_params(tmp_path / "p.yaml", "smoke", topics__min_topic_size=20))
    assert all(is_empty_topic_table(table) for table in names["found"].values()) and names["lean"].empty
    for name in ("table7", "table8"):
        assert pd.read_csv(run.figures / f"{name}.csv").columns.tolist() == list(topics.COLUMNS)
    assert all((run.figures / f"{name}.png").exists() for name in ("figure3", "topics_by_variance"))
    placed = pd.read_parquet(run.data("map"))
    assert sorted(placed["text"]) == sorted(set(texts)) and set(placed["topic"]) == {""}
