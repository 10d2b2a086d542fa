"""Tests of `writer`."""

import numpy as np
import pytest
import torch
from conftest import CPU
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import AutoConfig, AutoModelForCausalLM, BartConfig, BartForConditionalGeneration

from drot_utils.engine import writer as machine
from drot_utils.engine.load import build_tiny, cut_prompt
from drot_utils.engine.writer import Writer, nucleus_sample
from drot_utils.method.prompts import student_source
from drot_utils.study.errors import ModelError

LOGITS = st.lists(st.sampled_from([-6.0, -1.5, 0.0, 0.25, 1.0, 1.0, 3.0]), min_size=1, max_size=40)


def definition(logits: torch.Tensor, top_p: float) -> np.ndarray:
    """Probabilities of nucleus sampling by its definition: sort, cut at the first token that reaches p, renormalise."""
    probs = torch.softmax(logits.double(), -1).numpy()
    order = np.argsort(-probs, kind="stable")
    size = int((probs[order].cumsum() < top_p - 1e-12).sum()) + 1
    out = np.zeros_like(probs)
    out[order[:size]] = probs[order[:size]] / probs[order[:size]].sum()
    return out


@given(LOGITS, st.floats(0.05, 1.0))
@settings(max_examples=150)
def test_support_is_the_smallest_set_that_reaches_p(values, top_p):
    logits = torch.tensor(values)
    grid = torch.linspace(0, 0.99999, 4001, dtype=torch.float64)
    drawn = nucleus_sample(logits.repeat(len(grid), 1), grid, top_p)
    expected = definition(logits, top_p)
    found = np.bincount(drawn.numpy(), minlength=len(values)) / len(grid)
    # Among equal logits any order is right: compare how many tokens of each value are in, and the shares by value.
    for value in set(values):
        same = np.array(values) == value
        if expected[same].sum() > 0:
            assert ((found > 0) & same).sum() <= (expected[same] > 0).sum() + 0
        assert abs(found[same].sum() - expected[same].sum()) < 2e-3


def test_distribution_by_chi_square():
    torch.manual_seed(0)
    logits = torch.randn(60) * 2
    n = 40_000
    drawn = nucleus_sample(logits.repeat(n, 1), torch.rand(n, dtype=torch.float64), 0.9)
    expected = definition(logits, 0.9)
    counts = np.bincount(drawn.numpy(), minlength=60)
    assert counts[expected == 0].sum() == 0
    assert chisquare(counts[expected > 0], expected[expected > 0] * n).pvalue > 1e-3


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0, 4.0])
def test_narrow_and_wide_nuclei_give_what_the_full_sort_gives(monkeypatch, spread):
    torch.manual_seed(1)
    logits, uniform = torch.randn(64, 9000) * spread, torch.rand(64)
    fast = nucleus_sample(logits, uniform, 0.9)
    monkeypatch.setattr(machine, "WIDTHS", ())
    full = nucleus_sample(logits, uniform, 0.9)
    if spread:  # without it all are equal, and any token of the nucleus is right
        assert torch.equal(fast, full)


def test_a_draw_depends_on_its_own_row_only():
    torch.manual_seed(2)
    logits, uniform = torch.randn(8, 700), torch.rand(8)
    together = nucleus_sample(logits, uniform, 0.9)
    alone = torch.cat([nucleus_sample(logits[i : i + 1], uniform[i : i + 1], 0.9) for i in range(8)])
    assert torch.equal(together, alone)


def test_temperature_and_small_p_become_greedy():
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    for u in (0.0, 0.5, 0.999):
        assert nucleus_sample(logits, torch.tensor([u]), 0.01).item() == 1
        assert nucleus_sample(logits, torch.tensor([u]), 0.999, temperature=0.01).item() == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_logits_are_an_error(value):
    with pytest.raises(ValueError, match="not finite"):
        nucleus_sample(torch.tensor([[1.0, value]]), torch.tensor([0.5]), 0.9)


def test_minus_infinity_is_never_drawn():
    logits = torch.tensor([[0.0, float("-inf"), 0.0]]).repeat(100, 1)
    assert not (nucleus_sample(logits, torch.rand(100), 1.0) == 1).any()


PROMPTS = ["Action: Setting a fire.\nModifier: more ethical.", "Action: Lying.\nModifier: more unethical.", "Hi"]


def writer(model_and_tokenizer, **changes):
    options = {"device": CPU, "dtype": torch.float32, "max_prompt_length": 64, "max_new_tokens": 12, "batch_size": 8}
    return Writer(*model_and_tokenizer, **{**options, **changes})


def test_greedy_is_what_transformers_generates(tiny_student):
    model, tokenizer = tiny_student
    ours = writer(tiny_student).write(PROMPTS, 1, "greedy")
    for prompt, (written,) in zip(PROMPTS, ours, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)[0]
        out = out[1:] if model.config.is_encoder_decoder else out[ids.shape[1] :]
        assert written.text == tokenizer.decode(out, skip_special_tokens=True).strip() and written.tokens == len(out)


def test_samples_do_not_depend_on_batches_or_company(tiny_student):
    sampling = {"top_p": 0.9, "temperature": 1.0, "seed": 5}
    wide = writer(tiny_student, batch_size=64).write(PROMPTS, 4, "nucleus", **sampling)
    narrow = writer(tiny_student, batch_size=4).write(PROMPTS, 4, "nucleus", **sampling)
    assert wide == narrow and all(len(group) == 4 for group in wide)
    assert wide != writer(tiny_student).write(PROMPTS, 4, "nucleus", **{**sampling, "seed": 6})


def test_sampling_with_tiny_p_is_greedy(tiny_student):
    w = writer(tiny_student)
    greedy = w.write(PROMPTS, 1, "greedy")
    assert all(
        c.text == g.text
        for (g,), group in zip(greedy, w.write(PROMPTS, 3, "nucleus", top_p=1e-6, seed=1), strict=True)
        for c in group
    )


def test_ten_beams_give_ten_candidates(tiny_student):
    groups = writer(tiny_student).write(PROMPTS[:2], 10, "beam")
    assert [len(g) for g in groups] == [10, 10] and len({c.text for c in groups[0]}) > 1


def test_no_text_is_longer_than_allowed(tiny_student):
    groups = writer(tiny_student, max_new_tokens=3).write(PROMPTS, 2, "nucleus", top_p=0.9)
    assert max(c.tokens for g in groups for c in g) <= 3


def test_prompts_longer_than_allowed_are_cut(tiny_student):
    long = "word " * 500
    assert len(writer(tiny_student).write([long], 1, "greedy")[0]) == 1


def test_a_cut_prompt_keeps_its_direction(tiny_student):
    _, tokenizer = tiny_student
    for direction in (1, -1):
        prompt = student_source("wandering " * 60, direction, seq2seq=False)
        ids = cut_prompt(tokenizer(prompt)["input_ids"], 48)
        assert len(ids) == 48 and ("unethical" in tokenizer.decode(ids)) == (direction == -1)
    assert cut_prompt([1, 2, 3], 3) == [1, 2, 3]


def test_a_text_that_does_not_fit_the_model_is_refused():
    model, tokenizer = build_tiny("tiny-llama")
    positions = model.config.max_position_embeddings
    with pytest.raises(ModelError, match=rf"{positions} positions\n.*max_prompt_length"):
        Writer(model, tokenizer, CPU, torch.float32, positions, 1, 4)


def test_prompt_and_text_must_fit_a_sliding_window_where_one_is_in_use():
    size = {
        "vocab_size": 600, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "sliding_window": 8, "pad_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    _, tokenizer = build_tiny("tiny-llama")
    for family in ("mistral", "qwen2"):  # all layers have the window, and none
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **size)).eval()
        for weight in model.parameters():
            weight.data *= 8 if weight.dim() > 1 else 1  # so that it matters what is attended to
        ids = [5, 6, 7, 8, 9]
        expected = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=3)[0, 5:]
        found = writer((model, tokenizer), max_prompt_length=5, max_new_tokens=3).write([ids], 1, "greedy")
        assert found[0][0].text == tokenizer.decode(expected, skip_special_tokens=True).strip()
        if family == "qwen2":
            writer((model, tokenizer), max_prompt_length=6, max_new_tokens=3)
            continue
        with pytest.raises(ModelError, match=r"8 tokens of a sliding window\n.*max_prompt_length or generation"):
            writer((model, tokenizer), max_prompt_length=6, max_new_tokens=3)


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_an_encoder_that_counts_positions_reads_a_prompt_as_if_alone(method):
    size = {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    config = BartConfig(
        vocab_size=600, d_model=32, encoder_layers=2, decoder_layers=2, max_position_embeddings=128, pad_token_id=0,
        bos_token_id=2, eos_token_id=1, decoder_start_token_id=2, forced_eos_token_id=None, init_std=0.2, **size,
    )  # fmt: skip
    torch.manual_seed(0)
    w = writer((BartForConditionalGeneration(config), build_tiny("tiny-llama")[1]))
    assert w.write(PROMPTS, 1, method) == [w.write([prompt], 1, method)[0] for prompt in PROMPTS]


def test_a_broken_model_writes_nothing(tiny_student):
    with torch.no_grad():
        next(tiny_student[0].parameters()).fill_(float("nan"))
    for method in ("greedy", "nucleus", "beam"):
        with pytest.raises(ValueError, match="not finite"):
            writer(tiny_student).write(PROMPTS, 1, method)


def test_greedy_writes_one(tiny_student):
    with pytest.raises(ValueError, match="one candidate a prompt"):
        writer(tiny_student).write(PROMPTS, 2, "greedy")


def test_a_text_ends_with_the_token_that_the_student_learnt_whatever_its_configuration_says(tiny_student):
    model, tokenizer = tiny_student
    for ends in (7, [7, 8], None):
        model.generation_config.eos_token_id = ends
        assert tokenizer.eos_token_id in writer(tiny_student).ends


def test_prompts_may_be_token_ids(tiny_student):
    _, tokenizer = tiny_student
    ids = tokenizer(PROMPTS)["input_ids"]
    assert writer(tiny_student).write(ids, 1, "greedy") == writer(tiny_student).write(PROMPTS, 1, "greedy")
