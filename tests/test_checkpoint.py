import pytest
import torch
from conftest import fit_student

from drot_utils import checkpoint, training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_killed_training_ends_with_the_same_weights(smoke, student_rows, tmp_path, monkeypatch, dtype):
    from drot_utils.tiny import build_tiny

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
    from drot_utils.tiny import build_tiny

    settings = smoke.student
    expected = fit_student(build_tiny("tiny-llama"), student_rows, settings, tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / checkpoint.CHECKPOINT).write_bytes(b"half")
    assert fit_student(build_tiny("tiny-llama"), student_rows, settings, tmp_path / "b") == expected
