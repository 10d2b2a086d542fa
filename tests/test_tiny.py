import pytest
import torch

from drot_utils.errors import ModelError
from drot_utils.tiny import build_tiny


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-t5", "tiny-bert"])
def test_same_seed_same_weights_and_the_outer_seed_is_left_alone(name):
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first, tokenizer = build_tiny(name)
    assert torch.equal(torch.rand(1), expected)
    second, _ = build_tiny(name)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    text = "Setting a fire: “at a campsite”, déjà vu"
    assert (
        tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True).strip() == text
        or name == "tiny-bert"
    )


def test_unknown_name():
    with pytest.raises(ModelError, match="tiny-llama, tiny-t5 or tiny-bert"):
        build_tiny("tiny-gpt")
