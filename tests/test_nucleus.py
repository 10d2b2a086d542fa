import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from drot_utils import nucleus
from drot_utils.nucleus import nucleus_sample

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
@settings(deadline=None, max_examples=150)
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
    monkeypatch.setattr(nucleus, "WIDTHS", ())
    full = nucleus_sample(logits, uniform, 0.9)
    if spread:  # without it all are equal, and any token of the nucleus is right
        assert torch.equal(fast, full)


def test_a_draw_hangs_on_its_own_row_only():
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
