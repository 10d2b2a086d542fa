import pytest
import torch
from conftest import fit_student

from drot_utils import distill, models, parallel
from drot_utils.errors import DrotError, ModelError, ParamsError
from drot_utils.profiles import load_params
from drot_utils.settings import ModelRef, Parallel
from drot_utils.tiny import build_tiny


def test_it_learns(tiny_student, student_rows, smoke, tmp_path):
    training = fit_student(tiny_student, student_rows, smoke.student, tmp_path, epochs=30)
    assert training.losses[-1] < training.losses[0] / 2 and training.steps == len(training.losses) == 30
    assert not list(tmp_path.iterdir())


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


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-t5"])
def test_two_processes_give_the_losses_of_one(name, study, student_rows):
    # Three batches of one row, two a step: the last step of an epoch leaves a process without one.
    settings = study.params.student.model_copy(
        update={"base": ModelRef(source="random", name=name), "batch_size": 1, "accumulate": 2}
    )
    rows = student_rows.head(3)
    records, weights = [], []
    for processes in (1, 2):
        compute = study.params.compute.model_copy(
            update={
                "parallel": Parallel(processes=processes, fsdp=False),
                "device": "cpu",
                "dtype": "float32",
            }
        )
        study.params = study.params.model_copy(update={"student": settings, "compute": compute})
        student = f"student_{processes}"
        records.append(distill.fine_tune(study, rows, student, start=None, learning_rate=1e-3, epochs=3))
        weights.append(models.load_folder(study.run.model(student), "student")[0].state_dict())
    one, two = records
    assert len(one["losses"]) == 6 and two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert one["target_tokens"] == two["target_tokens"]
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-3, atol=1e-4)


def test_a_process_that_fails_is_a_clear_error(study, student_rows, tmp_path):
    compute = study.params.compute.model_copy(update={"parallel": Parallel(processes=2, fsdp=False)})
    settings = study.params.student.model_copy(update={"accumulate": 2})
    study.params = study.params.model_copy(update={"compute": compute, "student": settings})
    with pytest.raises(DrotError, match=r"log.txt: one of 2 training processes failed \(TypeError"):
        parallel.launch(study, student_rows, {"name": "x"}, tmp_path)


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
