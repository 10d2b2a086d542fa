"""Tests of `toxicity`."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from drot_utils.analysis import toxicity
from drot_utils.study.errors import DataError, ModelError
from drot_utils.study.params import ModelRef


def open_scorer(study, **changes):
    """Open the scorer of a study with other settings."""
    settings = study.params.toxicity.model_copy(update=changes)
    return toxicity.open_scorer(replace(study, params=study.params.model_copy(update={"toxicity": settings})))


def test_no_scorer_no_number(study):
    assert np.isnan(open_scorer(study)(["a", "b"])).all()


def test_recorded_scores_are_joined_by_text_and_the_rest_is_null(study, tmp_path):
    (tmp_path / "s.tsv").write_text("text\ttoxicity\na\t0.25\nb\t\na\t0.9\n")
    settings = {"scorer": "recorded", "recorded": str(tmp_path / "s.tsv")}
    scores = open_scorer(study, **settings)(["b", "a", "c"])
    assert scores[1] == 0.25 and np.isnan(scores[[0, 2]]).all()
    (tmp_path / "s.tsv").write_text("text\ttoxicity\na\tvery\n")
    with pytest.raises(DataError, match=r"line 2, column toxicity: .*nor a score from 0 to 1.*'very'"):
        open_scorer(study, **settings)


def test_a_local_classifier_scores_by_its_toxic_label(study, tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    from drot_utils.engine.load import build_tiny

    _, tokenizer = build_tiny("tiny-bert")
    for labels, place in ((["insult", "toxic"], "good"), (["a", "b"], "bad")):
        config = BertConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            id2label=dict(enumerate(labels)), label2id={v: i for i, v in enumerate(labels)},
            problem_type="multi_label_classification",
        )  # fmt: skip
        BertForSequenceClassification(config).save_pretrained(tmp_path / place)
        tokenizer.save_pretrained(tmp_path / place)
    good, bad = (ModelRef(source="folder", name=str(tmp_path / place)) for place in ("good", "bad"))
    scores = open_scorer(study, scorer="model", model=good)(["a fire", "a lie"])
    assert scores.shape == (2,) and ((scores > 0) & (scores < 1)).all()
    with pytest.raises(ModelError, match="toxicity or toxic"):
        open_scorer(study, scorer="model", model=bad)


def test_profanity_is_whole_words_in_any_case():
    words = toxicity.read_words("data/profanity.txt")
    texts = pd.Series(
        ["What the FUCK", "fucking late", "a classic assessment in Scunthorpe", "She is gay", None, "Dickens"]
    )
    assert toxicity.has_profanity(texts, words).tolist() == [True, True, False, False, False, False]
    assert toxicity.mask_profanity("Telling someone to fuck off", words) == "Telling someone to f*** off"


def test_a_word_list_with_a_byte_order_mark(tmp_path):
    (tmp_path / "words.txt").write_text("# words\ndarn\n\n heck\n", encoding="utf-8-sig")
    assert toxicity.read_words(str(tmp_path / "words.txt")) == ["darn", "heck"]


def test_word_lists_must_exist_and_hold_something(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        toxicity.read_words(str(tmp_path / "none.txt"))
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(DataError, match="holds no word"):
        toxicity.read_words(str(tmp_path / "empty.txt"))


def test_no_texts_have_no_profanity():
    assert toxicity.has_profanity(pd.Series([], dtype="str"), ["damn"]).sum() == 0


def test_shares_have_wilson_intervals():
    found = pd.DataFrame({"action": [True, False], "context": [False, False]})
    shares = toxicity.share_profane(found, 2).set_index("text")
    assert shares["found"].tolist() == [1, 0] and shares["percent"].tolist() == [50, 0]
    assert (
        shares["percent_low"].tolist() == pytest.approx([9.45, 0], abs=0.01) and shares["percent_high"]["context"] > 60
    )
    alike = toxicity.share_profane(pd.concat([found] * 100), 2).set_index("text")
    assert alike["percent_high"].equals(shares["percent_high"])  # a hundred texts of two actions tell what two tell
