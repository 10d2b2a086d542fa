"""Tests of `slots`."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drot_utils.engine.load import build_tiny
from drot_utils.engine.slots import write_sequences

MODEL, TOKENIZER = build_tiny("tiny-llama")
PROMPTS = st.lists(st.lists(st.integers(5, 500), min_size=1, max_size=9), min_size=1, max_size=7)


def greedy(logits, sequence, step):
    return logits.argmax(-1)


def write(prompts, n, slots, *, ends=(1,), most=8, choose=greedy):
    return write_sequences(
        MODEL, prompts, n, choose, ends=torch.tensor(ends), pad=0, max_new_tokens=most, slots=slots
    )  # fmt: skip


def by_hand(prompt, ends, most):
    """One sequence, the whole of it read anew for every token."""
    ids = list(prompt)
    with torch.inference_mode():
        while len(ids) - len(prompt) < most:
            ids.append(int(MODEL(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in ends:
                break
    return ids[len(prompt) :]


@given(PROMPTS, st.integers(1, 3), st.integers(1, 8), st.sets(st.integers(0, 599), min_size=1, max_size=200))
@settings(max_examples=25)
def test_every_sequence_is_what_it_would_be_alone(prompts, n, slots, ends):
    found = write(prompts, n, slots, ends=tuple(ends))
    assert len(found) == len(prompts) * n
    for k, prompt in enumerate(prompts):
        expected = by_hand(prompt, ends, 8)
        assert all(row == expected for row in found[k * n : (k + 1) * n])


def test_attention_that_adds_its_mask_writes_the_same(monkeypatch):
    model, _ = build_tiny("tiny-llama")
    for weight in model.parameters():
        weight.data *= 8 if weight.dim() > 1 else 1  # so that it matters what is attended to
    monkeypatch.setitem(globals(), "MODEL", model)
    prompts = [[5], [7, 9, 11], list(range(20, 29))]
    expected = [by_hand(prompt, (1,), 8) for prompt in prompts]
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        assert write(prompts, 1, 3) == expected


def test_each_sequence_is_told_apart_by_number_and_step():
    seen = []

    def choose(logits, sequence, step):
        seen.extend(zip(sequence.tolist(), step.tolist(), strict=True))
        return torch.full((len(logits),), 7)

    found = write([[5], [6, 7], [8]], 2, 3, most=4, choose=choose)
    assert sorted(seen) == [(k, s) for k in range(6) for s in range(4)] and found == [[7] * 4] * 6


def test_broken_logits_stop_the_work():
    from drot_utils.engine.writer import nucleus_sample

    def choose(logits, sequence, step):
        return nucleus_sample(logits * float("nan"), torch.rand(len(logits)), 0.9)

    with pytest.raises(ValueError, match="not finite"):
        write([[5]], 2, 2, choose=choose)
