"""Tests of `trainer`."""

import copy
import itertools
import math
import subprocess
import traceback

import pytest
import torch
from conftest import CPU, fit_student, make_adapter
from transformers import AutoConfig

from drot_utils.engine import batches, load, slots, trainer
from drot_utils.engine.batches import batch_loss
from drot_utils.engine.load import build_tiny, load_folder, round_weights
from drot_utils.engine.trainer import MasterWeights
from drot_utils.method.student import fine_tune, launch, read_training
from drot_utils.study.errors import DrotError, ModelError, ParamsError, StorageError
from drot_utils.study.params import ModelRef, Parallel, load_params


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


def test_what_a_model_keeps_in_float32_does_not_overflow_in_float16():
    model, _ = build_tiny("tiny-t5")
    kept = [weight for name, weight in model.named_parameters() if name.endswith(".wo.weight")]
    for name, weight in model.named_parameters():
        if ".wi." in name or ".wo." in name:
            weight.data *= 1000  # to outputs beyond 65,504, the most that float16 holds
    ids = torch.arange(5, 25).unsqueeze(0)
    with torch.inference_mode():
        expected = model(ids, decoder_input_ids=ids).logits
        found = round_weights(model, torch.float16)(ids, decoder_input_ids=ids).logits
    assert {w.dtype for w in kept} == {torch.float32} and found.dtype == torch.float16
    assert (found - expected).norm() < 0.01 * expected.norm()


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
    two = fit_student(rounded, student_rows, smoke.student, tmp_path / "b", learning_rate=1e-3, dtype=torch.bfloat16)
    assert two.losses == pytest.approx(one.losses, rel=0.02)
    assert {p.dtype for p in rounded[0].parameters()} == {torch.float32}
    moved = torch.cat([(exact[0].state_dict()[k] - v).flatten() for k, v in before.items()])
    apart = torch.cat([(exact[0].state_dict()[k] - rounded[0].state_dict()[k]).flatten() for k in before])
    assert apart.norm() < moved.norm() / 2


def test_a_compiled_student_has_the_losses_of_another(smoke, student_rows, tmp_path):
    if not trainer.can_compile(CPU):
        pytest.skip("no compiler")
    expected = fit_student(build_tiny("tiny-llama"), student_rows, smoke.student, tmp_path / "a", steps=3)
    model, tokenizer = build_tiny("tiny-llama")
    found = fit_student((model, tokenizer), student_rows, smoke.student, tmp_path / "b", steps=3, compiled=True)
    assert found.losses == pytest.approx(expected.losses, rel=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def test_without_a_compiler_it_says_so_before_the_work_and_continues(smoke, student_rows, tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("Python.h: no such file\nmore")

    monkeypatch.setattr(torch, "compile", fails)
    trainer.can_compile.cache_clear()
    with pytest.warns(
        UserWarning, match=r"nothing is compiled here, and the work continues without \(Python\.h: no such file\)"
    ):
        done = fit_student(build_tiny("tiny-llama"), student_rows, smoke.student, tmp_path, steps=1, compiled=True)
    assert done.steps == 1
    trainer.can_compile.cache_clear()


def dies_at(call):
    """A loss that stops the training at this call."""
    calls = itertools.count(1)

    def dies(*args):
        if next(calls) == call:
            raise KeyboardInterrupt
        return batch_loss(*args)

    return dies


def one_step():
    """An optimizer with moments, and what its training came to."""
    model, _ = build_tiny("tiny-llama")
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.arange(8).unsqueeze(0)).logits.sum().backward()
    optimizer.step()
    return optimizer, trainer.Training(3, 2, 20, [1.5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_killed_training_ends_with_the_same_weights(smoke, student_rows, tmp_path, monkeypatch, dtype):
    settings = smoke.student.model_copy(update={"batch_size": 2, "checkpoint_minutes": 1e-9, "accumulate": 2})
    whole = build_tiny("tiny-llama")
    expected = fit_student(whole, student_rows, settings, tmp_path / "whole", dtype=dtype)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer, "batch_loss", dies_at(6))
        fit_student(build_tiny("tiny-llama"), student_rows, settings, tmp_path / "killed", dtype=dtype)
    assert (tmp_path / "killed" / trainer.CHECKPOINT).exists()
    again = build_tiny("tiny-llama")
    resumed = fit_student(again, student_rows, settings, tmp_path / "killed", dtype=dtype)
    assert resumed == expected
    for a, b in zip(whole[0].parameters(), again[0].parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_half_written_checkpoint_is_not_used(smoke, student_rows, tmp_path):
    settings = smoke.student
    expected = fit_student(build_tiny("tiny-llama"), student_rows, settings, tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / trainer.CHECKPOINT).write_bytes(b"half")
    assert fit_student(build_tiny("tiny-llama"), student_rows, settings, tmp_path / "b") == expected


@pytest.mark.parametrize("where", [0.001, 0.3, 0.6, 0.999])
def test_a_changed_byte_of_a_checkpoint_is_seen(tmp_path, where):
    optimizer, result = one_step()
    trainer.save_checkpoint(tmp_path, optimizer, result)
    path = tmp_path / trainer.CHECKPOINT
    data = bytearray(path.read_bytes())
    assert trainer.restore_checkpoint(tmp_path, optimizer, result) == len(result.losses)
    data[int(where * len(data))] ^= 1
    path.write_bytes(data)
    assert trainer.restore_checkpoint(tmp_path, optimizer, result) == 0


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, full_disk):
    optimizer, result = one_step()
    trainer.save_checkpoint(tmp_path, optimizer, result)
    before = (tmp_path / trainer.CHECKPOINT).read_bytes()
    result.losses.append(0.0)
    with full_disk(1000), pytest.raises(StorageError, match="free some space"):
        trainer.save_checkpoint(tmp_path, optimizer, result)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [before]


def test_it_learns(tiny_student, student_rows, smoke, tmp_path):
    training = fit_student(tiny_student, student_rows, smoke.student, tmp_path, epochs=30)
    assert training.losses[-1] < training.losses[0] / 2 and training.steps == len(training.losses) == 30


def test_steps_instead_of_epochs(tiny_student, student_rows, smoke, tmp_path):
    assert fit_student(tiny_student, student_rows, smoke.student, tmp_path, steps=5).steps == 5


def test_a_loss_that_is_no_number_stops_the_training(tiny_student, student_rows, smoke, tmp_path):
    with torch.no_grad():
        next(tiny_student[0].parameters()).fill_(float("nan"))
    with pytest.raises(ModelError, match=r"the loss is nan at step 1 of"):
        fit_student(tiny_student, student_rows, smoke.student, tmp_path)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-t5"])
def test_gradient_checkpointing_changes_no_loss(name, student_rows, smoke, tmp_path):
    again = smoke.student.model_copy(update={"gradient_checkpointing": True})
    expected = fit_student(build_tiny(name), student_rows, smoke.student, tmp_path)
    found = fit_student(build_tiny(name), student_rows, again, tmp_path)
    assert found.losses == pytest.approx(expected.losses, rel=1e-5)


@pytest.mark.parametrize(("name", "accumulate"), [("tiny-llama", 2), ("tiny-t5", 4)])
def test_two_processes_give_the_losses_of_one(name, accumulate, study, student_rows, request):
    if name == "tiny-t5":  # the others are started by torch's launcher, as users start them
        request.getfixturevalue("forked")
    # Of three batches of one row, an epoch's last step leaves a process without one, or with one less than the other.
    settings = study.params.student.model_copy(
        update={"base": ModelRef(source="random", name=name), "batch_size": 1, "accumulate": accumulate}
    )
    rows = student_rows.head(3)
    records, weights = [], []
    for processes in (1, 2):
        compute = study.params.compute.model_copy(
            update={"parallel": Parallel(processes=processes, fsdp=False), "device": "cpu", "dtype": "float32"}
        )
        study.params = study.params.model_copy(update={"student": settings, "compute": compute})
        student = f"student_{processes}"
        records.append(fine_tune(study, rows, student, start=None, learning_rate=1e-3, epochs=3))
        weights.append(load_folder(study.run.model(student), "student")[0].state_dict())
    one, two = records
    assert len(one["losses"]) == 3 * math.ceil(3 / accumulate)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert one["target_tokens"] == two["target_tokens"]
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("started", ["forked", pytest.param("launcher", marks=pytest.mark.slow)])
def test_a_process_that_fails_is_a_clear_error(started, study, student_rows, tmp_path, request):
    if started == "forked":
        request.getfixturevalue("forked")
    compute = study.params.compute.model_copy(update={"parallel": Parallel(processes=2, fsdp=False)})
    settings = study.params.student.model_copy(update={"accumulate": 2})
    study.params = study.params.model_copy(update={"compute": compute, "student": settings})
    with pytest.raises(DrotError, match=r"log.txt: one of 2 training processes failed \(TypeError"):
        launch(study, student_rows, {"name": "x"}, tmp_path)


@pytest.mark.parametrize("rank", ["", "[rank1]: "])
def test_what_the_package_itself_says_in_a_process_is_said(rank, study, student_rows, tmp_path, monkeypatch):
    def run(command, stderr, **_):
        try:
            try:
                raise AttributeError("no _shift_right")
            except AttributeError as cause:
                raise ModelError("a model of the type bart", where="Bart", todo="choose another") from cause
        except ModelError:
            stderr.write("".join(f"{rank}{line}\n" for line in traceback.format_exc().splitlines()))
        stderr.flush()
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(DrotError, match=r"log.txt: Bart: a model of the type bart\n  what to do: choose another$"):
        launch(study, student_rows, {"name": "x"}, tmp_path)


def test_processes_must_divide_a_steps_batches(tmp_path):
    from conftest import write_params

    path = write_params(
        tmp_path / "p.yaml", "smoke", compute__parallel={"processes": 2, "fsdp": False}, student__accumulate=3
    )
    with pytest.raises(ParamsError, match="multiple of 2, not 3"):
        load_params(path)


def test_a_target_that_does_not_fit_the_model_is_refused(smoke, student_rows, tmp_path):
    model, tokenizer = build_tiny("tiny-llama")
    settings = smoke.student.model_copy(update={"max_target_length": model.config.max_position_embeddings})
    with pytest.raises(ModelError, match=r"positions\n.*student.max_target_length"):
        fit_student((model, tokenizer), student_rows, settings, tmp_path)


@pytest.mark.parametrize(
    ("family", "size", "why"),
    [
        ("opt", {"word_embed_proj_dim": 32, "ffn_dim": 64}, "AttributeError: .*get_seq_length"),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, "IndexError"),
        ("bart", {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "bos_token_id": 2}, "_shift_right"),
    ],
)
def test_a_base_of_a_type_that_cannot_be_a_student_is_refused(family, size, why, study, student_rows, tmp_path):
    sizes = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 256, "vocab_size": 600, "pad_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    config = AutoConfig.for_model(family, **({} if family == "bart" else sizes), **size)
    load.KINDS["seq2seq" if family == "bart" else "causal"].from_config(config).save_pretrained(tmp_path)
    build_tiny("tiny-llama")[1].save_pretrained(tmp_path)
    base = study.params.student.model_copy(update={"base": ModelRef(source="folder", name=str(tmp_path))})
    study.params = study.params.model_copy(update={"student": base})
    with pytest.raises(ModelError, match=rf"of the type {family} cannot be a student here \(.*{why}.*\)\n.*SmolLM"):
        fine_tune(study, student_rows, "x", start=None, learning_rate=1e-3, epochs=1)


@pytest.mark.parametrize(("module", "why"), [(batches, "not that of separate rows"), (slots, "writes in slots")])
def test_a_base_that_attends_to_what_it_must_not_is_refused(module, why, tiny_student, monkeypatch):
    batches.check_base(tiny_student[0], CPU)
    model, _ = build_tiny("tiny-llama")
    for weight in model.parameters():
        weight.data *= 8 if weight.dim() > 1 else 1  # so that it matters what is attended to
    batches.check_base(model, CPU)
    attention = model.config._attn_implementation
    monkeypatch.setattr(module, "fit_mask", lambda _, mask: torch.zeros(mask.shape))
    with pytest.raises(ModelError, match=f"type llama .*{why}"):
        batches.check_base(model, CPU)
    assert model.config._attn_implementation == attention


def with_adapter(settings, **changes):
    return settings.model_copy(update={"adapter": make_adapter(**changes)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_an_adapter_only_linear_layers_change_and_by_its_rank(tiny_student, smoke, student_rows, tmp_path, dtype):
    model, _ = tiny_student
    before = {name: p.detach().to(dtype).float().clone() for name, p in model.named_parameters()}
    settings = with_adapter(smoke.student, rank=2)
    training = fit_student(tiny_student, student_rows, settings, tmp_path, epochs=20, dtype=dtype)
    assert training.losses[-1] < training.losses[0] - 0.1
    linear = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    changed = set()
    for name, weight in model.named_parameters():
        assert weight.dtype == torch.float32 and weight.requires_grad
        difference = weight.detach() - before[name]
        if difference.any():
            changed.add(name)
            values = torch.linalg.svdvals(difference.double())
            assert values[2:].max() < 1e-4 * values[0]
    assert changed == linear


def test_with_an_adapter_a_checkpoint_holds_its_weights_only(smoke, student_rows, tmp_path, monkeypatch):
    shapes = []

    def look(work, optimizer, result, write):
        shapes.append([tuple(p.shape) for p in trainer._trained(optimizer)])

    monkeypatch.setattr(trainer, "save_checkpoint", look)
    settings = with_adapter(smoke.student, target=["q_proj"]).model_copy(update={"checkpoint_minutes": 1e-9})
    fit_student(build_tiny("tiny-llama"), student_rows, settings, tmp_path, steps=2)
    assert shapes == [[(4, 32), (32, 4)] * 2]  # of two layers


@pytest.mark.parametrize("change", [{"gradient_checkpointing": True}, pytest.param({}, marks=pytest.mark.slow)])
def test_checkpointed_or_compiled_an_adapter_has_the_losses_of_another(change, smoke, student_rows, tmp_path):
    if not change and not trainer.can_compile(CPU):
        pytest.skip("no compiler")
    settings = with_adapter(smoke.student)
    expected = fit_student(build_tiny("tiny-llama"), student_rows, settings, tmp_path / "a", steps=3)
    model, tokenizer = build_tiny("tiny-llama")
    changed = settings.model_copy(update=change)
    found = fit_student((model, tokenizer), student_rows, changed, tmp_path / "b", steps=3, compiled=not change)
    assert found.losses == pytest.approx(expected.losses, rel=1e-4)
    assert model(torch.arange(8).unsqueeze(0)).logits.isfinite().all()


def train_round(study, rows, name, *, start=None, adapter=None, processes=1, base="tiny-llama", steps=4):
    """Train a student of two batches a step with the saved settings of a study, and return its weights."""
    changes = {
        "base": ModelRef(source="random", name=base), "adapter": adapter, "batch_size": 1, "accumulate": 2, "checkpoint_minutes": 1e-9,
    }  # fmt: skip
    compute = {"parallel": Parallel(processes=processes, fsdp=False), "device": "cpu", "dtype": "float32"}
    study.params = study.params.model_copy(
        update={
            "student": study.params.student.model_copy(update=changes),
            "compute": study.params.compute.model_copy(update=compute),
        }
    )
    fine_tune(study, rows, name, start=start, learning_rate=1e-2, epochs=1, steps=steps)
    return load_folder(study.run.model(name), "student")[0].state_dict()


def kill_round(study, rows, name, monkeypatch, **changes):
    """Let a round die in its third step, and return its checkpoint."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer, "batch_loss", dies_at(5))
        train_round(study, rows, name, **changes)
    (place,) = study.run.work("checkpoints").glob(f"*/{trainer.CHECKPOINT}")
    return place


def test_a_trained_model_that_could_not_be_saved_is_not_trained_again(study, student_rows, monkeypatch):
    def full(*args, **options):
        raise StorageError("the disk is full", where="models", todo="free some space")

    with monkeypatch.context() as patch, pytest.raises(StorageError):
        patch.setattr(load, "save_model", full)
        train_round(study, student_rows, "round")
    steps, real = [], trainer.batch_loss
    monkeypatch.setattr(trainer, "batch_loss", lambda *args: steps.append(1) or real(*args))
    train_round(study, student_rows, "round")
    assert len(steps) == 2, "the last step's batches are all that is done again"
    assert not list(study.run.work("checkpoints").iterdir())
    train_round(study, student_rows, "round")
    assert len(steps) == 2 and read_training(study, "round")["steps"] > 2


@pytest.mark.parametrize("base", ["tiny-llama", "tiny-t5"])
def test_a_killed_adapter_ends_with_the_same_bytes(base, study, student_rows, monkeypatch):
    adapter = make_adapter(dropout=0.2)
    train_round(study, student_rows, "whole", adapter=adapter, base=base)
    expected = (study.run.model("whole") / "model.safetensors").read_bytes()
    assert kill_round(study, student_rows, "killed", monkeypatch, adapter=adapter, base=base, steps=4).exists()
    resumed, real = [], trainer.restore_checkpoint
    monkeypatch.setattr(trainer, "restore_checkpoint", lambda *args: resumed.append(real(*args)) or resumed[-1])
    train_round(study, student_rows, "killed", adapter=adapter, base=base)
    assert resumed == [2] and (study.run.model("killed") / "model.safetensors").read_bytes() == expected
    assert read_training(study, "killed")["losses"] == read_training(study, "whole")["losses"]


def test_another_rank_does_not_continue_from_the_checkpoint_of_one(study, student_rows, monkeypatch):
    expected = train_round(study, student_rows, "fresh", adapter=make_adapter(rank=2))
    place = kill_round(study, student_rows, "student", monkeypatch, adapter=make_adapter(rank=4))
    found = train_round(study, student_rows, "student", adapter=make_adapter(rank=2))
    assert place.exists() and all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_next_round_starts_from_the_merged_weights(study, student_rows, monkeypatch):
    adapter = make_adapter()
    first = train_round(study, student_rows, "distill_base", adapter=adapter)
    starts, real = [], trainer.train

    def look(study, model, *args, **named):
        starts.append({name: value.clone() for name, value in model.state_dict().items()})
        return real(study, model, *args, **named)

    monkeypatch.setattr(trainer, "train", look)
    second = train_round(study, student_rows, "self_distill_1", start="distill_base", adapter=adapter)
    assert starts[0].keys() == first.keys() and all(
        torch.equal(starts[0][name], value) for name, value in first.items()
    )
    assert any(not torch.equal(second[name], value) for name, value in first.items())
    card = (study.run.model("distill_base") / "README.md").read_text()
    assert "adapter (LoRA) of rank 4" in card


def test_two_processes_train_an_adapter_as_one_does(study, student_rows, forked):
    rows = student_rows.head(3)
    one, two = (
        train_round(study, rows, f"student_{n}", adapter=make_adapter(), processes=n, base="tiny-t5") for n in (1, 2)
    )
    records = [read_training(study, f"student_{n}")["losses"] for n in (1, 2)]
    assert records[1] == pytest.approx(records[0], rel=1e-4)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)


def test_an_adapter_under_fsdp_is_refused(tmp_path):
    from conftest import write_params

    changes = {"compute__parallel": {"processes": 2, "fsdp": True}, "student__accumulate": 2}
    path = write_params(tmp_path / "p.yaml", "smoke", student__adapter=make_adapter().model_dump(), **changes)
    with pytest.raises(ParamsError, match="fsdp`: an adapter is trained in one process, or in several with a copy"):
        load_params(path)
