import pandas as pd
import pytest
import torch
from conftest import CPU

from drot_utils import student


@pytest.fixture
def rows():
    return pd.DataFrame(
        {
            "action_id": ["a1", "a1", "a1", "a2"],
            "action": ["Setting a fire"] * 3 + ["Telling a lie"],
            "moral_variance": [1, 1, -1, -1],
            "context": ["at a campsite", "to keep warm in winter", "in a dry field", "to a judge"],
            "rationale": [
                "it is safe there",
                "people may freeze",
                "it may spread fast",
                "courts need the truth",
            ],
        }
    )


@pytest.fixture
def settings(smoke):
    return smoke.student


def plain_loss(model, tokenizer, rows, settings):
    """The loss as one would write it: a row at a time, through the model's own labels."""
    total = count = 0.0
    seq2seq = model.config.is_encoder_decoder
    for _, row in rows.iterrows():
        (example,) = student.make_examples(row.to_frame().T, tokenizer, settings, seq2seq)
        target = example.targets[0]
        if seq2seq:
            out = model(input_ids=torch.tensor([example.prompt]), labels=torch.tensor([target]))
        else:
            ids = example.prompt + target
            labels = [-100] * len(example.prompt) + target
            out = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels]))
        total, count = total + out.loss.item() * len(target), count + len(target)
    return total / count


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_shared_prompts_give_the_losses_of_separate_rows(tiny_student, rows, settings, attention):
    model, tokenizer = tiny_student
    model.set_attn_implementation(attention)
    examples = student.make_examples(rows, tokenizer, settings, model.config.is_encoder_decoder)
    assert [len(e.targets) for e in examples] == [1, 2, 1]
    with torch.no_grad():
        loss, tokens = student.batch_loss(model, examples, CPU)
        assert loss.item() == pytest.approx(plain_loss(model, tokenizer, rows, settings), abs=1e-5)
    assert tokens == sum(len(t) for e in examples for t in e.targets)


def test_every_epoch_holds_every_target_once(tiny_student, rows, settings):
    _model, tokenizer = tiny_student
    many = pd.concat(
        [rows.assign(action_id=rows["action_id"] + str(i)) for i in range(15)], ignore_index=True
    )
    examples = student.make_examples(many, tokenizer, settings, False)
    for epoch in range(2):
        batches = student.make_batches(examples, 4, 0, epoch)
        assert sum(len(e.targets) for b in batches for e in b) == len(many)
        assert max(sum(len(e.targets) for e in b) for b in batches) <= 4
    assert student.make_batches(examples, 4, 0, 0) != student.make_batches(examples, 4, 0, 1)


def test_long_targets_are_cut_and_still_end(tiny_student, rows, settings):
    _, tokenizer = tiny_student
    short = settings.model_copy(update={"max_target_length": 6})
    for example in student.make_examples(rows, tokenizer, short, False):
        for target in example.targets:
            assert len(target) == 6 and target[-1] == tokenizer.eos_token_id


def fit(model_and_tokenizer, rows, settings, work, **changes):
    model, tokenizer = model_and_tokenizer
    options = {
        "learning_rate": 0.01,
        "epochs": 6,
        "work": work,
        "seed": 3,
        "device": CPU,
        "dtype": torch.float32,
        **changes,
    }
    return student.train(model, tokenizer, rows, settings, **options)


def test_it_learns(tiny_student, rows, settings, tmp_path):
    training = fit(tiny_student, rows, settings, tmp_path, epochs=30)
    assert training.losses[-1] < training.losses[0] / 2 and training.steps == len(training.losses) == 30
    assert not list(tmp_path.iterdir())


def test_a_killed_training_ends_with_the_same_weights(smoke, rows, settings, tmp_path, monkeypatch):
    from drot_utils.tiny import build_tiny

    settings = settings.model_copy(update={"batch_size": 2, "checkpoint_minutes": 1e-9, "accumulate": 2})
    whole = build_tiny("tiny-llama")
    expected = fit(whole, rows, settings, tmp_path / "whole")
    calls, real = [], student.batch_loss

    def dies(*args):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(student, "batch_loss", dies)
    with pytest.raises(KeyboardInterrupt):
        fit(build_tiny("tiny-llama"), rows, settings, tmp_path / "killed")
    monkeypatch.setattr(student, "batch_loss", real)
    assert (tmp_path / "killed" / student.CHECKPOINT).exists()
    again = build_tiny("tiny-llama")
    resumed = fit(again, rows, settings, tmp_path / "killed")
    assert resumed == expected
    for a, b in zip(whole[0].parameters(), again[0].parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_half_written_checkpoint_is_not_used(smoke, rows, settings, tmp_path):
    from drot_utils.tiny import build_tiny

    expected = fit(build_tiny("tiny-llama"), rows, settings, tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / student.CHECKPOINT).write_bytes(b"half")
    assert fit(build_tiny("tiny-llama"), rows, settings, tmp_path / "b") == expected


def test_steps_instead_of_epochs(tiny_student, rows, settings, tmp_path):
    assert fit(tiny_student, rows, settings, tmp_path, steps=5).steps == 5
