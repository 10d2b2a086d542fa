import numpy as np
import pytest
import torch
from conftest import CPU

from drot_utils import encoder
from drot_utils.errors import ModelError
from drot_utils.tiny import build_tiny


@pytest.fixture
def classifier():
    base, tokenizer = build_tiny("tiny-bert")
    torch.manual_seed(0)
    return encoder.PairClassifier(base, 2, "mean", 32, 0.1).eval(), tokenizer


def test_scores_come_in_order_and_do_not_hang_on_the_batch(classifier):
    model, tokenizer = classifier
    texts = [f"{'word ' * (1 + i % 7)}{i}" for i in range(30)]
    rows = encoder.encode(tokenizer, (texts, None), 64)
    many = encoder.predict(model, tokenizer, rows, CPU)
    one = np.concatenate([encoder.predict(model, tokenizer, [r], CPU) for r in rows])
    np.testing.assert_allclose(many, one, atol=1e-5)


def test_pairs_are_cut_at_the_longest_part(classifier):
    _, tokenizer = classifier
    (row,) = encoder.encode(tokenizer, (["short"], ["long " * 100]), 20)
    assert len(row["input_ids"]) == 20


def test_nothing_in_nothing_out(classifier):
    model, tokenizer = classifier
    assert encoder.predict(model, tokenizer, encoder.encode(tokenizer, ([], None), 8), CPU).shape[0] == 0


def test_a_broken_model_gives_no_score(classifier):
    model, tokenizer = classifier
    with torch.no_grad():
        model.head[1].weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="NaN"):
        encoder.predict(model, tokenizer, encoder.encode(tokenizer, (["a"], None), 8), CPU)


def test_softmax_sums_to_one_even_for_large_logits():
    p = encoder.softmax(np.array([[1000.0, 0.0], [0.0, 0.0]]))
    np.testing.assert_allclose(p, [[1, 0], [0.5, 0.5]])
