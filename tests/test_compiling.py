import pytest
import torch
from conftest import CPU, fit_student

from drot_utils import compiling
from drot_utils.tiny import build_tiny


def test_a_compiled_student_has_the_losses_of_another(smoke, student_rows, tmp_path):
    if why := compiling._missing(CPU):
        pytest.skip(why)
    expected = fit_student(build_tiny("tiny-llama"), student_rows, smoke.student, tmp_path / "a", steps=3)
    model, tokenizer = build_tiny("tiny-llama")
    found = fit_student(
        (model, tokenizer), student_rows, smoke.student, tmp_path / "b", steps=3, compiled=True
    )
    assert found.losses == pytest.approx(expected.losses, rel=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def test_without_a_compiler_it_says_so_and_goes_on(smoke, student_rows, tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "_missing", lambda device: "no g++")
    with pytest.warns(
        UserWarning, match=r"nothing is compiled here, and the work goes on without \(no g\+\+\)"
    ):
        done = fit_student(
            build_tiny("tiny-llama"), student_rows, smoke.student, tmp_path, steps=1, compiled=True
        )
    assert done.steps == 1


def test_what_is_missing_is_found_before_the_work(monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("Python.h: no such file\nmore")

    monkeypatch.setattr(torch, "compile", fails)
    compiling._missing.cache_clear()
    assert compiling._missing(CPU) == "Python.h: no such file"
    compiling._missing.cache_clear()
