"""Tests of `nli`."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drot_utils.data import corpora
from drot_utils.method import nli
from drot_utils.study.errors import MissingInputError, ModelError
from drot_utils.study.params import ModelRef, load_params
from drot_utils.study.paths import Run
from drot_utils.study.record import Study

LETTERS = "abcdefgh"
GROUPS = st.lists(st.lists(st.sampled_from(LETTERS), max_size=7), max_size=5)
TABLES = st.lists(st.floats(0, 1), min_size=64, max_size=64)


def table_entails(table, asked=None):
    def entails(premises, hypotheses):
        if asked is not None:
            asked.extend(zip(premises, hypotheses, strict=True))
        return np.array(
            [table[LETTERS.index(p) * 8 + LETTERS.index(h)] for p, h in zip(premises, hypotheses, strict=True)]
        )

    return entails


def formula(group, table, threshold):
    """Section 3.2, word for word; a text entails itself."""
    p = lambda a, b: 1.0 if a == b else table[LETTERS.index(a) * 8 + LETTERS.index(b)]  # noqa: E731
    accepted, flags = [], []
    for c in group:
        flags.append(all(p(c, e) < threshold or p(e, c) < threshold for e in accepted))
        accepted += [c] if flags[-1] else []
    return flags


@given(GROUPS, TABLES, st.sampled_from([0.2, 0.5, 0.8]))
def test_decisions_are_the_papers_formula(groups, table, threshold):
    asked = []
    result = nli.filter_unique(groups, table_entails(table, asked), threshold)
    assert result.kept == [formula(g, table, threshold) for g in groups]
    assert result.pairs_asked == len(asked) <= result.pairs_possible
    for group, kept, by in zip(groups, result.kept, result.blocked_by, strict=True):
        assert [j is None for j in by] == kept
        assert all(kept[j] and j < i for i, j in enumerate(by) if j is not None), group


def test_only_accepted_candidates_block():
    # b says what a says, c says what b says but not what a says: b is out, so c stays.
    close = {("a", "b"), ("b", "a"), ("b", "c"), ("c", "b")}

    def entails(premises, hypotheses):
        return np.array([float(pair in close) for pair in zip(premises, hypotheses, strict=True)])

    assert nli.filter_unique([["a", "b", "c"]], entails, 0.5).kept == [[True, False, True]]


def test_one_direction_is_not_enough():
    assert nli.filter_unique([["a", "b"]], lambda p, h: np.array([1.0 if x == "a" else 0.0 for x in p]), 0.5).kept == [
        [True, True]
    ]


def test_repetitions_and_single_candidates_need_no_model():
    def never(premises, hypotheses):
        raise AssertionError("asked")

    assert nli.filter_unique([["a", "a", "a"], ["b"], []], never, 0.5).kept == [[True, False, False], [True], []]


def test_the_second_direction_is_asked_only_where_the_first_reaches_the_threshold():
    asked = []
    nli.filter_unique([["a", "b", "c"]], table_entails([0.0] * 64, asked), 0.5)
    assert asked == [("b", "a"), ("c", "a"), ("c", "b")]


def test_what_settles_most_is_asked_first():
    """A paraphrase costs two forwards, however many accepted contexts there are; a more specific one no second forward."""
    asked = []

    def entails(premises, hypotheses):
        asked.extend(zip(premises, hypotheses, strict=True))
        return np.array([float(set(h.split()) <= set(p.split())) for p, h in zip(premises, hypotheses, strict=True)])

    group = ["at a campsite", "in the rain", "with his dog", "for no money", "a campsite at"]
    assert nli.filter_unique([group], entails, 0.5).kept == [[True, True, True, True, False]]
    assert len(asked) == 3 * 4 / 2 + 2
    asked.clear()
    assert nli.filter_unique([["at a campsite", "at a safe campsite"]], entails, 0.5).kept == [[True, True]]
    assert asked == [("at a campsite", "at a safe campsite")]


@pytest.fixture(scope="module")
def trained(smoke):
    pairs = corpora.read_groups("data/demo/entailment_groups.jsonl")
    settings = smoke.nli.model_copy(update={"max_steps": 4, "evaluations": 2})
    study = Study(smoke.model_copy(update={"nli": settings}), Run("smoke"), "test")
    return study, *nli.train_nli(study, pairs)


def test_groups_not_pairs_are_split(trained):
    pairs = trained[3]
    assert pairs.groupby("group")["part"].nunique().max() == 1 and set(pairs["part"]) == {"train", "dev", "test"}


def test_save_and_load(trained):
    study, model, _, pairs = trained
    with pytest.raises(MissingInputError, match="03_nli_filter"):
        nli.load_nli(study)
    nli.save_nli(study, model, {"accuracy": 0.5})
    again = nli.load_nli(study)
    sample = pairs["premise"].tolist()[:5], pairs["hypothesis"].tolist()[:5]
    np.testing.assert_array_equal(again(*sample), model(*sample))


def test_a_ready_model_must_name_entailment(study, tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    from drot_utils.engine.load import build_tiny

    _, tokenizer = build_tiny("tiny-bert")
    size = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    for labels, place in ((["contradiction", "entailment", "neutral"], "good"), (["a", "b", "c"], "bad")):
        config = BertConfig(**size, id2label=dict(enumerate(labels)), label2id={v: i for i, v in enumerate(labels)})
        BertForSequenceClassification(config).save_pretrained(tmp_path / place)
        tokenizer.save_pretrained(tmp_path / place)

    def use(name):
        base = ModelRef(source="folder", name=str(tmp_path / name))
        study.params = study.params.model_copy(
            update={"nli": study.params.nli.model_copy(update={"groups": None, "base": base})}
        )

    use("good")
    model = nli.load_pretrained(study)
    assert model.entailment == 1 and model(["a fire"], ["a fire"]).shape == (1,)
    nli.save_nli(study, model, {})
    assert nli.load_nli(study)(["a"], ["a"]) == model(["a"], ["a"])
    use("bad")
    with pytest.raises(ModelError, match="label named entailment"):
        nli.load_pretrained(study)


def test_pairs_frame_is_a_frame(trained):
    assert isinstance(trained[3], pd.DataFrame)


def test_what_the_filter_acts_on_is_measured():
    texts = {"a": 0, "b": 1, "c": 2}
    table = np.array([[0.9, 0.8, 0.1], [0.7, 0.9, 0.6], [0.2, 0.9, 0.9]])  # P(row entails column)

    class Fixed:
        entailment = 2

        def probabilities(self, premises, hypotheses):
            yes = np.array([table[texts[p], texts[h]] for p, h in zip(premises, hypotheses, strict=True)])
            return np.stack([np.zeros(len(yes)), 1 - yes, yes], axis=1)

    pairs = pd.DataFrame({"premise": list("abacbc"), "hypothesis": list("bacacb"), "label": [2, 2, 1, 1, 2, 1]})
    settings = load_params("params/smoke.yaml").nli
    measures, confusion, mutual = nli.measure_nli(Fixed(), pairs, settings)
    assert measures == {"accuracy": pytest.approx(5 / 6), "mutual_precision": 0.5, "mutual_recall": 1.0}
    assert confusion.loc["neutral", "entailment"] == 1 and mutual.loc[True, True] == 1
    ready = nli.measure_nli(Fixed(), pairs, settings.model_copy(update={"groups": None}))
    assert ready[0]["accuracy"] is None and list(ready[1].columns) == ["other", "entailment"]
