"""Tests of `classifier`."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CPU

from drot_utils.engine import classifier as machine
from drot_utils.engine.classifier import PairClassifier, encode, predict
from drot_utils.engine.load import build_tiny
from drot_utils.study import outputs
from drot_utils.study.errors import ModelError
from drot_utils.study.paths import Run


@pytest.fixture
def classifier():
    base, tokenizer = build_tiny("tiny-bert")
    torch.manual_seed(0)
    return PairClassifier(base, 2, "mean", 32, 0.1).eval(), tokenizer


def test_scores_come_in_order_and_do_not_depend_on_the_batch(classifier):
    model, tokenizer = classifier
    texts = [f"{'word ' * (1 + i % 7)}{i}" for i in range(30)]
    rows = encode(tokenizer, (texts, None), 64)
    many = predict(model, tokenizer, rows, CPU)
    one = np.concatenate([predict(model, tokenizer, [r], CPU) for r in rows])
    np.testing.assert_allclose(many, one, atol=1e-5)


def test_pairs_are_cut_at_the_longest_part(classifier):
    _, tokenizer = classifier
    (row,) = encode(tokenizer, (["short"], ["long " * 100]), 20)
    assert len(row["input_ids"]) == 20


def test_nothing_in_nothing_out(classifier):
    model, tokenizer = classifier
    assert predict(model, tokenizer, encode(tokenizer, ([], None), 8), CPU).shape[0] == 0


def test_a_broken_model_gives_no_score(classifier):
    model, tokenizer = classifier
    with torch.no_grad():
        model.head[1].weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="NaN"):
        predict(model, tokenizer, encode(tokenizer, (["a"], None), 8), CPU)


def test_it_learns_and_keeps_the_best_step(study):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 160)
    texts = [("fine good kind" if y else "cruel bad wrong") + f" {i % 5}" for i, y in enumerate(labels)]
    settings = study.params.nli.model_copy(
        update={"max_steps": 40, "evaluations": 4, "patience": 9, "learning_rate": 0.01}
    )
    train, dev = ((texts[:120], None), labels[:120]), ((texts[120:], None), labels[120:])
    head = {"classes": 2, "pooling": "mean", "hidden": 32, "dropout": 0.1}
    trained, fit = machine.train_classifier(study, settings, train, dev, **head)
    losses = [row["dev_loss"] for row in fit.curve]
    assert min(losses) < 0.2 and fit.best_step == fit.curve[int(np.argmin(losses))]["step"]
    scores = trained.classify(dev[0])
    assert (scores.argmax(1) == dev[1]).mean() > 0.9
    np.testing.assert_allclose(scores.sum(1), 1)


def test_the_same_training_is_not_done_twice_here_nor_in_another_run(study, monkeypatch):
    labels = np.arange(24) % 2
    texts = [("fine" if y else "cruel") + f" {i}" for i, y in enumerate(labels)]
    data, head = ((texts, None), labels), {"classes": 2, "pooling": "mean", "hidden": 8, "dropout": 0.1}
    settings = study.params.nli.model_copy(update={"max_steps": 4, "evaluations": 2})
    trained, fit = machine.train_classifier(study, settings, data, data, **head)
    outputs.finish(study.run, "03_nli_filter", "a1", {"files": {}})
    original, steps = machine._endless_batches, []
    monkeypatch.setattr(machine, "_endless_batches", lambda *arguments: steps.append(1) or original(*arguments))
    other = replace(study, run=Run("other"))
    for again in (study, other):
        same, its_fit = machine.train_classifier(again, settings, data, data, **head)
        assert its_fit == fit and not steps
        np.testing.assert_array_equal(same.classify(data[0]), trained.classify(data[0]))
    changed = settings.model_copy(update={"threshold": 0.9})  # says nothing about the training
    machine.train_classifier(study, changed, data, data, **head)
    assert not steps
    machine.train_classifier(study, settings.model_copy(update={"learning_rate": 0.02}), data, data, **head)
    assert len(steps) == 1
    machine.train_classifier(study, settings, ((texts[1:], None), labels[1:]), data, **head)
    assert len(steps) == 2
