import pytest
import torch
from conftest import fit_student

from drot_utils import checkpoint, training
from drot_utils.errors import StorageError
from drot_utils.tiny import build_tiny


def one_step():
    """An optimizer with moments, and what its training came to."""
    model, _ = build_tiny("tiny-llama")
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.arange(8).unsqueeze(0)).logits.sum().backward()
    optimizer.step()
    return optimizer, checkpoint.Training(3, 2, 20, [1.5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_killed_training_ends_with_the_same_weights(smoke, student_rows, tmp_path, monkeypatch, dtype):
    settings = smoke.student.model_copy(update={"batch_size": 2, "checkpoint_minutes": 1e-9, "accumulate": 2})
    whole = build_tiny("tiny-llama")
    expected = fit_student(whole, student_rows, settings, tmp_path / "whole", dtype=dtype)
    calls, real = [], training.batch_loss

    def dies(*args):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(training, "batch_loss", dies)
    with pytest.raises(KeyboardInterrupt):
        fit_student(build_tiny("tiny-llama"), student_rows, settings, tmp_path / "killed", dtype=dtype)
    monkeypatch.setattr(training, "batch_loss", real)
    assert (tmp_path / "killed" / checkpoint.CHECKPOINT).exists()
    again = build_tiny("tiny-llama")
    resumed = fit_student(again, student_rows, settings, tmp_path / "killed", dtype=dtype)
    assert resumed == expected
    for a, b in zip(whole[0].parameters(), again[0].parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_half_written_checkpoint_is_not_used(smoke, student_rows, tmp_path):
    settings = smoke.student
    expected = fit_student(build_tiny("tiny-llama"), student_rows, settings, tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / checkpoint.CHECKPOINT).write_bytes(b"half")
    assert fit_student(build_tiny("tiny-llama"), student_rows, settings, tmp_path / "b") == expected


@pytest.mark.parametrize("where", [0.001, 0.3, 0.6, 0.999])
def test_a_changed_byte_of_a_checkpoint_is_seen(tmp_path, where):
    optimizer, result = one_step()
    checkpoint.save_checkpoint(tmp_path, optimizer, result)
    path = tmp_path / checkpoint.CHECKPOINT
    data = bytearray(path.read_bytes())
    assert checkpoint.restore_checkpoint(tmp_path, optimizer, result) == len(result.losses)
    data[int(where * len(data))] ^= 1
    path.write_bytes(data)
    assert checkpoint.restore_checkpoint(tmp_path, optimizer, result) == 0


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, full_disk):
    optimizer, result = one_step()
    checkpoint.save_checkpoint(tmp_path, optimizer, result)
    before = (tmp_path / checkpoint.CHECKPOINT).read_bytes()
    result.losses.append(0.0)
    with full_disk(1000), pytest.raises(StorageError, match="free some space"):
        checkpoint.save_checkpoint(tmp_path, optimizer, result)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [before]
