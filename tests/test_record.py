"""Tests of `record`."""

import json
import os
import shutil
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CPU, files_and_hashes, write_params

from drot_utils.engine import classifier
from drot_utils.method import student
from drot_utils.study import outputs, record
from drot_utils.study.errors import DataError, ModelError, ParamsError
from drot_utils.study.paths import Run, write_text
from drot_utils.study.record import Study, open_study, release_memory


class Knot:
    """Holds itself."""

    def __init__(self):
        self.me = self


def test_what_is_part_of_a_cycle_is_given_back():
    knot = weakref.ref(Knot())
    release_memory()
    assert knot() is None


def close_stage(smoke, stage, record):
    """Write a record as at the end of a notebook; return the manifest's text."""
    Study(smoke, Run("smoke"), stage, record).close("done")
    return Run("smoke").manifest.read_text()


def test_stages_come_together_and_unknown_is_null(smoke):
    close_stage(smoke, "01_a", {"cost_usd": None, "rows": {"in": 3}})
    manifest = json.loads(close_stage(smoke, "02_b", {}))
    assert list(manifest["stages"]) == ["01_a", "02_b"] and manifest["stages"]["01_a"]["cost_usd"] is None
    stage = manifest["stages"]["02_b"]
    assert stage["parameters"]["profile"] == "smoke" and stage["parameters"]["nli"]["threshold"] == 0.5
    machine = stage["machine"]
    assert machine["packages"]["torch"].startswith("2.13.0") and machine["dtype"] in ("float32", "bfloat16")
    assert (
        machine["cpu"] and machine["threads"] >= 1 and machine["device"] == "cpu" and len(machine["lock_sha256"]) == 64
    )


def test_a_stage_run_again_replaces_its_record(smoke):
    close_stage(smoke, "01_a", {"rows": 1})
    (stage,) = json.loads(close_stage(smoke, "01_a", {"rows": 2}))["stages"].values()
    assert stage["rows"] == 2 and stage["summary"] == "done"


def test_the_manifest_is_json_for_every_reader(smoke):
    odd = {
        "mean": float("nan"), "most": np.float64("inf"), "shares": [np.float32("nan"), (0.5, -np.inf)], "rows": np.int64(3),
        "flags": {"any": np.bool_(True), "none": pd.NA}, "column": np.array([1.0, np.nan]), "path": Path("a/b"),
    }  # fmt: skip
    names = list(odd)
    stage = json.loads(close_stage(smoke, "01_a", odd), parse_constant=pytest.fail)["stages"]["01_a"]
    assert {name: stage[name] for name in names} == {
        "mean": None, "most": None, "shares": [None, [0.5, None]], "rows": 3,
        "flags": {"any": True, "none": None}, "column": [1.0, None], "path": "a/b",
    }  # fmt: skip


def test_open_note_close(capsys):
    study = open_study("04_distill_base", "params/smoke.yaml", variant="no_critic")
    study.account(10, 7, {"nli": 1, "critic": 2})
    study.note_data("data/demo/actions.tsv")
    study.close("seven rows")
    record = json.loads(study.run.manifest.read_text())["stages"]["04_distill_base-no_critic"]
    assert record["rows"] == {"in": 10, "kept": 7, "dropped": {"nli": 1, "critic": 2}}
    assert len(record["data_sha256"]["data/demo/actions.tsv"]) == 64 and record["seed"] == study.params.seed
    by_hand, done = capsys.readouterr().out.splitlines()
    assert by_hand == "By hand: writes to runs/smoke-play/, and reads what is not there from runs/smoke/."
    assert done == "04_distill_base-no_critic: seven rows"


def test_by_hand_another_learning_rate_and_the_batch_run_stays(smoke):
    batch = Run("smoke")
    for name, stage in (("critic", "02_critic"), ("d0", "04_distill_base")):
        write_text(batch.data(name), f"batch {name}")
        outputs.finish(batch, stage, "a1", {"files": outputs.list_files(batch, [batch.data(name)]), "look": "a1"})
    before = files_and_hashes(batch)
    study = open_study("02_critic", "params/smoke.yaml", {"critic.learning_rate": 0.5})
    assert study.params.critic.learning_rate == 0.5 and study.run.data("critic").read_text() == "batch critic"
    write_text(study.run.data("critic"), "mine")
    study.close("mine")
    later = open_study("04_distill_base", "params/smoke.yaml")
    assert later.run.data("critic").read_text() == "mine" and later.run.data("d0").read_text() == "batch d0"
    record = outputs.read_records(later.run)["02_critic"]
    assert record["files"] == {"run/data/critic.parquet": 4} and record["parameters"]["critic"]["learning_rate"] == 0.5
    assert files_and_hashes(batch) == before
    shutil.rmtree(later.run.root)
    assert open_study("04_distill_base", "params/smoke.yaml").run.data("critic").read_text() == "batch critic"


def test_a_notebook_of_the_runner_writes_into_its_run(monkeypatch, capsys):
    monkeypatch.setenv(outputs.BATCH, "02_critic")
    study = open_study("02_critic", "params/smoke.yaml")
    study.close("done")
    assert study.run == Run("smoke") and capsys.readouterr().out == "02_critic: done\n"
    assert outputs.closing_path(study.run, "02_critic").exists() and not study.run.manifest.exists()


def test_rows_must_add_up(study):
    with pytest.raises(DataError, match="10 rows in, but 7 kept"):
        study.account(10, 7, {"nli": 1})


def test_show_prints_the_resolved_section(study, capsys):
    study.show("nli")
    out = capsys.readouterr().out
    assert "threshold: 0.5" in out and "student" not in out
    study.show("nli.threshold", "nli.base.name", "generation")
    assert capsys.readouterr().out.splitlines()[2:6] == ["nli:", "  threshold: 0.5", "  base:", "    name: tiny-bert"]


def test_unknown_profile():
    with pytest.raises(ParamsError, match=r"params/demo\.yaml"):
        open_study("01", "params/none.yaml")


def test_cuda_without_cuda_is_a_clear_error(study):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    compute = study.params.compute.model_copy(update={"device": "cuda"})
    study.params = study.params.model_copy(update={"compute": compute})
    with pytest.raises(ModelError, match="torch sees none"):
        _ = study.device


def on(monkeypatch, *, native, emulated=False):
    """Let this machine, and a GPU that is not there, say what they multiply: no GPU without bfloat16, such as a T4, was at hand."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or (emulated and including_emulation)
    )


@pytest.mark.parametrize(
    ("device", "native", "emulated", "asked", "train", "score", "why"),
    [
        ("cuda", True, True, "auto", "bfloat16", "bfloat16", "native"),
        ("cuda", False, True, "auto", "float32", "float16", "no native bfloat16; scoring and sampling in float16"),
        ("cuda", False, True, "bfloat16", "bfloat16", "bfloat16", "as asked"),
        ("cuda", False, False, "float32", "float32", "float32", "as asked"),
        ("cpu", True, False, "auto", "bfloat16", "bfloat16", "native"),
        ("cpu", False, False, "auto", "float32", "float32", "no native bfloat16"),
    ],
)
def test_dtypes_by_patched_capabilities(smoke, monkeypatch, device, native, emulated, asked, train, score, why):
    on(monkeypatch, native=native, emulated=emulated)
    compute = smoke.compute.model_copy(update={"dtype": asked})
    found = record.choose_dtypes(compute, torch.device(device))
    assert found == (getattr(torch, train), getattr(torch, score), why)


def test_a_plain_processor_can_be_imitated(smoke, monkeypatch):
    on(monkeypatch, native=True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")  # ATEN_CPU_CAPABILITY=avx2
    assert record.choose_dtypes(smoke.compute.model_copy(update={"dtype": "auto"}), CPU)[0] == torch.float32


def test_a_gpu_without_bfloat16_trains_in_float32_and_scores_and_writes_in_float16(study, monkeypatch):
    # On this machine's CPU, which is told the dtypes of such a GPU.
    monkeypatch.setattr(record, "choose_dtypes", lambda *_: (torch.float32, torch.float16, "patched"))
    settings = study.params.nli.model_copy(update={"max_steps": 4, "evaluations": 2})
    texts = (["a fire", "a lie"] * 8, None)
    rows = (texts, np.array([0, 1] * 8))
    head = {"classes": 2, "pooling": "mean", "hidden": 8, "dropout": 0.1}
    trained, _ = classifier.train_classifier(study, settings, rows, rows, **head)
    assert {p.dtype for p in trained.model.parameters()} == {torch.float32} and trained.dtype == torch.float16
    exact = classifier.Classifier(trained.model, trained.tokenizer, 64, CPU, torch.float32).classify(texts)
    np.testing.assert_allclose(trained.classify(texts), exact, atol=2e-3)
    author, ask, _ = student.open_author(study, "base", study.params.student.base)
    assert {p.dtype for p in author.model.parameters()} == {torch.float16}
    assert len(author.write([ask("Lying", 1)], 3, "nucleus", top_p=0.9, seed=1)[0]) == 3
    study.close("done")
    machine = json.loads((Run("smoke").manifest).read_text())["stages"]["test"]["machine"]
    assert (machine["dtype"], machine["scoring_dtype"]) == ("float32", "float16")


def test_bfloat16_that_is_not_native_is_measured_and_warned_of(monkeypatch, tmp_path, capsys):
    rates = {torch.bfloat16: 1e9, torch.float32: 120e9}
    monkeypatch.setattr(record, "measure_rate", lambda device, dtype, busy=False: rates[dtype])
    on(monkeypatch, native=False)
    warning = record.warn_slow(CPU)
    assert warning.startswith("Warning: `compute.dtype` is bfloat16") and "120 times as slow" in warning
    params_file = write_params(tmp_path / "p.yaml", "smoke", compute__dtype="bfloat16", compute__device="cpu")
    study = open_study("02_critic", params_file)
    assert warning in capsys.readouterr().out
    machine = record.measure_machine(study)
    assert (machine.warning, machine.dtype, machine.why, machine.rate) == (warning, "bfloat16", "as asked", 1e9)
    open_study("02_critic", "params/smoke.yaml")
    assert "Warning" not in capsys.readouterr().out
    rates[torch.bfloat16] = 121e9  # some processors have it under another name
    assert record.warn_slow(CPU) == ""
    on(monkeypatch, native=True)
    rates[torch.bfloat16] = 1e9
    assert record.warn_slow(CPU) == record.measure_machine(study).warning == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rate_is_measured_in_seconds_even_where_bfloat16_is_emulated(dtype):
    began = time.perf_counter()
    assert record.measure_rate(CPU, dtype, seconds=0.1) > 1e7
    assert time.perf_counter() - began < 20  # products of 640 rows took a minute there


def test_beside_other_processes_the_rate_is_still_the_machines(smoke, monkeypatch):
    alone = record.measure_rate(CPU, torch.float32, busy=True, seconds=0.3)
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4 * os.cpu_count())]
    try:
        beside = record.measure_rate(CPU, torch.float32, busy=True, seconds=1.0)
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert 0.3 < beside / alone < 3  # by the clock it is a tenth and less
    study = Study(smoke, Run("smoke"), "test")
    monkeypatch.setattr(record, "measure_rate", lambda device, dtype, busy: 2e9 if busy else 1e9)
    for load, rate, said in ((0.1, 1e9, 0.0), (99.0, 2e9, 99.0)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        machine = record.measure_machine(study)
        assert (machine.rate, machine.load) == (rate, said)
