import numpy as np
import pytest

from drot_utils import topics
from drot_utils.errors import DataError

SUBJECTS = {
    "dog": "the dog barks at the cat",
    "exam": "an exam at the school",
    "rain": "heavy rain and a storm",
}


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
        assert row["example"] in texts
    again, same = topics.find_topics(texts, vectors, smoke.topics, 0)
    assert found.equals(again) and (member == same).all()


def test_too_few_texts(smoke):
    with pytest.raises(DataError, match=r"too few for 5 neighbours\n.*topics\.neighbors"):
        topics.find_topics(["a"] * 4, np.zeros((4, 3)), smoke.topics, 0)
