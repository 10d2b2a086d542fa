import copy

import pytest
import torch
from conftest import fit_student

from drot_utils.precision import MasterWeights, round_weights
from drot_utils.tiny import build_tiny


def test_rounding_leaves_rotary_frequencies_and_tied_weights_alone():
    model, _ = build_tiny("tiny-llama")
    frequencies = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert frequencies and round_weights(model, torch.bfloat16) is model
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, frequencies[name], rtol=0, atol=0)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.config.tie_word_embeddings == (
        model.get_input_embeddings().weight is model.get_output_embeddings().weight
    )


def test_steps_too_small_for_bfloat16_add_up():
    # 1 + 1/1024 is 1 in bfloat16: only weights in float32 get anywhere by such steps.
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(layer.weight)
    weights = MasterWeights(layer, torch.bfloat16)
    optimizer = torch.optim.SGD(weights.parameters, lr=1 / 1024)
    for _ in range(64):
        layer(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
        weights.take_gradients()
        optimizer.step()
        weights.renew_copies()
        assert layer.weight.grad is None and layer.weight.dtype == torch.bfloat16
    weights.put_back()
    assert layer.weight.item() == pytest.approx(1 - 64 / 1024)


def test_in_float32_the_optimizer_changes_the_models_own_weights():
    layer = torch.nn.Linear(2, 2)
    weights = MasterWeights(layer, torch.float32)
    assert all(a is b for a, b in zip(weights.parameters, layer.parameters(), strict=True))


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-t5"])
def test_training_in_bfloat16_follows_training_in_float32(name, smoke, student_rows, tmp_path):
    exact, rounded = build_tiny(name), build_tiny(name)
    before = copy.deepcopy(exact[0].state_dict())
    one = fit_student(exact, student_rows, smoke.student, tmp_path / "a", learning_rate=1e-3)
    two = fit_student(
        rounded, student_rows, smoke.student, tmp_path / "b", learning_rate=1e-3, dtype=torch.bfloat16
    )
    assert two.losses == pytest.approx(one.losses, rel=0.02)
    assert {p.dtype for p in rounded[0].parameters()} == {torch.float32}
    moved = torch.cat([(exact[0].state_dict()[k] - v).flatten() for k, v in before.items()])
    apart = torch.cat([(exact[0].state_dict()[k] - rounded[0].state_dict()[k]).flatten() for k in before])
    assert apart.norm() < moved.norm() / 2
