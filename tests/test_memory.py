"""Tests of the memory that `batches` counts: it is what torch keeps."""

import pytest
import torch
from conftest import make_adapter
from transformers import AutoConfig

from drot_utils.engine import batches
from drot_utils.engine.batches import Example, batch_loss, count_memory
from drot_utils.engine.load import add_adapter, build_tiny
from drot_utils.study.errors import ModelError
from drot_utils.study.params import ModelRef, Parallel

ALONE = Parallel(processes=1, fsdp=False)


def settings_of(smoke, name, **changes):
    changes = {"batch_size": 6, "max_prompt_length": 40, "max_target_length": 50, **changes}
    return smoke.student.model_copy(update={"base": ModelRef(source="random", name=name), **changes})


def measure(model):
    """Return the bytes that torch keeps of the forward pass of a longest batch on the CPU, with the kernels of sdpa."""
    model.train().set_attn_implementation("sdpa")
    for module in model.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0  # with dropout, a CPU's kernel keeps the attention's weights, and a GPU's does not
    own, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        shorter = Example([5] * 39, [[5] * 50, [5] * 49])  # without padding, a kernel gets no mask
        batch_loss(model, [Example([5] * 40, [[5] * 50] * 4), shorter], torch.device("cpu"))
    sizes = [storage.nbytes() for storage in kept.values()]
    return sum(sizes) + 2 * max(sizes)


@pytest.mark.parametrize("adapter", [None, make_adapter()])
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-t5"])
def test_activations_are_those_that_torch_keeps(name, adapter, smoke):
    model, _ = build_tiny(name)
    if adapter:
        add_adapter(model, adapter, 0)
    counted, again = count_memory(settings_of(smoke, name, adapter=adapter), ALONE, torch.float32)
    assert counted.activations * batches.GIB == pytest.approx(measure(model), rel=0.15)
    assert again.activations < counted.activations
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert again.activations * batches.GIB > measure(model)  # and a block's besides


def test_weights_gradients_and_moments(smoke):
    model, _ = build_tiny("tiny-llama")
    size = sum(p.numel() for p in model.parameters())

    def count(dtype, parallel=ALONE, **changes):
        found, _ = count_memory(settings_of(smoke, "tiny-llama", **changes), parallel, dtype)
        return [round(value * batches.GIB) for value in (found.weights, found.gradients, found.moments)]

    assert count(torch.float32) == [4 * size, 4 * size, 8 * size]
    assert count(torch.bfloat16) == [6 * size, 6 * size, 8 * size]
    shared = count(torch.bfloat16, Parallel(processes=2, fsdp=True))
    assert shared == [2 * size, 2 * size, 4 * size]
    add_adapter(model, make_adapter(), 0)
    own = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert count(torch.float32, adapter=make_adapter()) == [4 * (size + own), 4 * own, 8 * own]
    assert count(torch.bfloat16, adapter=make_adapter()) == [2 * size + 6 * own, 6 * own, 8 * own]
    copies = Parallel(processes=2, fsdp=False)
    assert count(torch.bfloat16, copies, adapter=make_adapter()) == [2 * size + 6 * own, 8 * own, 8 * own]


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("smollm2-135m-instruct", 0.1345), ("HuggingFaceTB/SmolLM3-3B", 3.075), ("google/flan-t5-xl", 2.850),
        ("meta-llama/Llama-3.1-8B-Instruct", 8.030),
    ],
)  # fmt: skip
def test_known_shapes_have_the_sizes_of_their_model_cards(name, billions, smoke):
    settings = smoke.student.model_copy(update={"base": ModelRef(source="package", name=name)})
    model = batches._sketch(settings.base)
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=6e-4)


def test_a_students_folder_is_enough(tmp_path, smoke):
    build_tiny("tiny-t5")[0].config.save_pretrained(tmp_path)  # no weights
    base = ModelRef(source="folder", name=str(tmp_path))
    found = count_memory(settings_of(smoke, "tiny-t5", base=base), ALONE, torch.float32)
    assert found == count_memory(settings_of(smoke, "tiny-t5"), ALONE, torch.float32)


def test_a_model_that_is_not_here_is_not_fetched(smoke):
    base = ModelRef(source="hub", name="someone/else", revision="a" * 40)
    with pytest.raises(
        ModelError, match=r"not on this machine\n.*hf download someone/else config.json --revision aaa.*SHAPES"
    ):
        count_memory(settings_of(smoke, "tiny-t5", base=base), ALONE, torch.float32)


def test_a_model_that_cannot_be_counted_is_said_to_be(tmp_path, smoke):
    size = {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    AutoConfig.for_model("bart", d_model=32, encoder_layers=1, decoder_layers=1, **size).save_pretrained(tmp_path)
    base = ModelRef(source="folder", name=str(tmp_path))
    with pytest.raises(ModelError, match=r"of the type bart takes cannot be counted \(.*_shift_right.*\)\n.*--gpu-gib"):
        count_memory(settings_of(smoke, "tiny-t5", base=base), ALONE, torch.float32)
