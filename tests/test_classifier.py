"""Tests of `classifier`."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CPU
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel

from drot_utils.engine import classifier as machine
from drot_utils.engine.classifier import Halves, PairClassifier, encode, predict
from drot_utils.engine.load import build_tiny
from drot_utils.study import outputs, progress
from drot_utils.study.errors import ModelError
from drot_utils.study.params import ModelRef
from drot_utils.study.paths import Run


@pytest.fixture
def classifier():
    base, tokenizer = build_tiny("tiny-bert")
    torch.manual_seed(0)
    return PairClassifier(base, 2, "mean", 32, 0.1).eval(), tokenizer


def test_a_module_and_its_settings_are_saved(tmp_path):
    layer = torch.nn.Linear(3, 2)
    machine.save_module(layer, {"head": "shift"}, tmp_path)
    assert json.loads((tmp_path / "settings.json").read_text())["head"] == "shift"
    saved = load_file(tmp_path / "model.safetensors")
    assert set(saved) == {"weight", "bias"} and torch.equal(layer.weight, saved["weight"])


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


def test_scoring_with_a_title_shows_its_progress(classifier, tmp_path, monkeypatch):
    status = tmp_path / "status.json"
    monkeypatch.setenv(progress.STATUS, str(status))
    model, tokenizer = classifier
    rows = encode(tokenizer, (["a", "b", "c"], None), 8)
    predict(model, tokenizer, rows, CPU)
    assert not status.exists()
    predict(model, tokenizer, rows, CPU, "scoring")
    shown = json.loads(status.read_text())
    assert (shown["what"], shown["n"], shown["total"]) == ("scoring", 3, 3)


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


HEAD = {"classes": 2, "pooling": "mean", "hidden": 8, "dropout": 0.0}


@pytest.fixture
def still(tmp_path):
    """tiny-bert without dropout, from a folder."""
    base, tokenizer = build_tiny("tiny-bert")
    base.config.hidden_dropout_prob = base.config.attention_probs_dropout_prob = 0.0
    base.save_pretrained(tmp_path / "still")
    tokenizer.save_pretrained(tmp_path / "still")
    return ModelRef(source="folder", name=str(tmp_path / "still"))


@pytest.mark.parametrize("frozen", [1, 2])
def test_frozen_layers_stay_and_the_rest_learns_as_if_they_ran_at_every_step(study, still, monkeypatch, frozen):
    labels = np.arange(60) % 2
    texts = [("fine good" if y else "cruel") + " word" * (i % 5) for i, y in enumerate(labels)]
    train, dev = ((texts[:40], None), labels[:40]), ((texts[40:], None), labels[40:])
    update = {"base": still, "frozen_layers": frozen, "max_steps": 8, "evaluations": 4, "learning_rate": 0.01}
    settings = study.params.nli.model_copy(update=update)
    ran = []
    monkeypatch.setattr(Halves, "_run", lambda *a, real=Halves._run: ran.append(len(a[2])) or real(*a))
    once, fit = machine.train_classifier(study, settings, train, dev, **HEAD)
    assert ran[3:] == [40, 20]  # after the check
    base, _ = build_tiny("tiny-bert")
    learnt = {name for name, p in base.named_parameters() if not torch.equal(p, once.model.encoder.get_parameter(name))}
    assert all(name.startswith("encoder.layer.1.") for name in learnt) and bool(learnt) == (frozen == 1)
    assert list(once.model.encoder.state_dict()) == list(base.state_dict())

    class Anew(Halves):  # the whole encoder runs at every step
        def compute_states(self, rows, dtype):
            self.join()
            return rows

    monkeypatch.setattr(machine, "Halves", Anew)
    monkeypatch.setattr(machine, "borrow_whole", lambda run, name: run.work(f"anew/{name}"))
    anew, its_fit = machine.train_classifier(study, settings, train, dev, **HEAD)
    assert len(fit.curve) == len(its_fit.curve) == 4
    for row, its in zip(fit.curve, its_fit.curve, strict=True):
        assert row == pytest.approx(its, abs=1e-4)
    np.testing.assert_allclose(once.classify(dev[0]), anew.classify(dev[0]), atol=1e-4)


def test_what_has_frozen_layers_is_kept_apart_and_loaded_as_any_other(study, monkeypatch):
    labels = np.arange(24) % 2
    data = ([f"{'fine' if y else 'cruel'} {i}" for i, y in enumerate(labels)], None), labels
    settings = study.params.nli.model_copy(update={"max_steps": 2, "evaluations": 1, "frozen_layers": 1})
    trained, fit = machine.train_classifier(study, settings, data, data, **HEAD)
    (folder,) = study.run.work("trained").iterdir()
    assert set(load_file(folder / "model.safetensors")) == set(trained.model.state_dict())
    monkeypatch.setattr(Halves, "check", lambda *a: pytest.fail("trained again"))
    again, its_fit = machine.train_classifier(study, settings, data, data, **HEAD)
    assert its_fit == fit
    np.testing.assert_array_equal(again.classify(data[0]), trained.classify(data[0]))
    machine.train_classifier(study, settings.model_copy(update={"frozen_layers": 0}), data, data, **HEAD)
    assert len(list(study.run.work("trained").iterdir())) == 2


def make_encoder(family, **settings):
    _, tokenizer = build_tiny("tiny-bert")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), max_position_embeddings=64, **sizes | settings)
    torch.manual_seed(0)
    return AutoModel.from_config(config).eval(), tokenizer


ROWS = (["Setting a fire", "Lying", "To tell a lie to one's mother"], None)


@pytest.mark.parametrize(
    ("family", "settings"),
    [("bert", {}), ("roberta", {}), ("mpnet", {}), ("deberta-v2", {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]})],
)  # fmt: skip
def test_encoders_of_the_bert_kind_can_be_cut_and_what_layers_share_is_frozen(family, settings):
    encoder, tokenizer = make_encoder(family, **settings)
    halves = Halves(encoder, 2, tokenizer, CPU)
    rows = encode(tokenizer, ROWS, 64)
    halves.check(rows)
    assert all(name.startswith("encoder.layer.0.") for name, p in encoder.named_parameters() if p.requires_grad)
    states = halves.compute_states(rows, torch.bfloat16)
    assert [tuple(row["inputs_embeds"].shape) for row in states] == [(len(row["input_ids"]), 32) for row in rows]
    assert states[0]["inputs_embeds"].dtype == torch.bfloat16 and encoder.dtype == torch.float32


@pytest.mark.parametrize(
    ("family", "settings", "why"),
    [
        ("bert", {}, "3 layers, and 4 are to be frozen"),
        ("distilbert", {"dim": 32, "hidden_dim": 64}, r"no `embeddings` and `encoder\.layer`"),
        (
            "electra",
            {"embedding_size": 16, "num_hidden_layers": 4},
            "shapes",
        ),  # its embeddings pass through a layer more
        (
            "deberta-v2",
            {"conv_kernel_size": 3, "num_hidden_layers": 5},
            "away from its own",
        ),  # one beside its first layer
    ],
)
def test_encoders_that_cannot_be_cut_there_are_refused(family, settings, why):
    encoder, tokenizer = make_encoder(family, **settings)
    with pytest.raises(ModelError, match=rf"above 4 frozen layers: .*{why}.*\n.*`frozen_layers`"):
        Halves(encoder, 4, tokenizer, CPU).check(encode(tokenizer, ROWS, 64))
