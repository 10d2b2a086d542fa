"""Tests of `batches`."""

import pandas as pd
import pytest
import torch
from conftest import CPU

from drot_utils.engine.batches import MOST_TARGETS, batch_loss, make_batches
from drot_utils.method import student


@pytest.fixture
def settings(smoke):
    return smoke.student


def plain_loss(model, tokenizer, student_rows, settings):
    """The loss as one would write it: a row at a time, through the model's own labels."""
    total = count = 0.0
    seq2seq = model.config.is_encoder_decoder
    for _, row in student_rows.iterrows():
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
def test_shared_prompts_give_the_losses_of_separate_rows(tiny_student, student_rows, settings, attention):
    model, tokenizer = tiny_student
    model.set_attn_implementation(attention)
    examples = student.make_examples(student_rows, tokenizer, settings, model.config.is_encoder_decoder)
    assert [len(e.targets) for e in examples] == [1, 2, 1]
    with torch.no_grad():
        loss, tokens = batch_loss(model, examples, CPU)
        assert loss.item() == pytest.approx(plain_loss(model, tokenizer, student_rows, settings), abs=1e-5)
    assert tokens == sum(len(t) for e in examples for t in e.targets)


def test_contexts_beyond_the_most_behind_one_prompt_get_a_copy_of_their_own(tiny_student, settings):
    model, tokenizer = tiny_student
    rows = pd.DataFrame(
        {"action_id": "a", "action": "Setting a fire", "moral_variance": 1, "context": [f"on day {i}" for i in range(9)],
         "rationale": "it is allowed then"}
    )  # fmt: skip
    examples = student.make_examples(rows, tokenizer, settings, model.config.is_encoder_decoder)
    assert [len(e.targets) for e in examples] == [MOST_TARGETS, MOST_TARGETS, 1]
    assert len({tuple(e.prompt) for e in examples}) == 1
    assert len({tuple(t) for e in examples for t in e.targets}) == len(rows)
    with torch.no_grad():
        loss, _ = batch_loss(model, examples, CPU)
        assert loss.item() == pytest.approx(plain_loss(model, tokenizer, rows, settings), abs=1e-5)


def test_every_epoch_holds_every_target_once(tiny_student, student_rows, settings):
    _model, tokenizer = tiny_student
    many = pd.concat(
        [student_rows.assign(action_id=student_rows["action_id"] + str(i)) for i in range(15)], ignore_index=True
    )
    examples = student.make_examples(many, tokenizer, settings, False)
    for epoch in range(2):
        batches = make_batches(examples, 4, 0, epoch)
        assert sum(len(e.targets) for b in batches for e in b) == len(many)
        assert sorted(sum(len(e.targets) for e in b) for b in batches)[1:] == [4] * (
            len(many) // 4 - (len(many) % 4 == 0)
        )
        learnt = sorted((tuple(e.prompt), tuple(t)) for b in batches for e in b for t in e.targets)
        assert learnt == sorted((tuple(e.prompt), tuple(t)) for e in examples for t in e.targets)
    assert make_batches(examples, 4, 0, 0) != make_batches(examples, 4, 0, 1)
