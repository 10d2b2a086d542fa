"""Tests of `record`."""

import json
import weakref
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from drot_utils.study.errors import DataError, ModelError, ParamsError
from drot_utils.study.paths import Run
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
    assert manifest["parameters"]["profile"] == "smoke" and len(manifest["lock_sha256"]) == 64
    assert manifest["packages"]["torch"].startswith("2.13.0")


def test_a_stage_run_again_replaces_its_record(smoke):
    close_stage(smoke, "01_a", {"rows": 1})
    (stage,) = json.loads(close_stage(smoke, "01_a", {"rows": 2}))["stages"].values()
    assert stage["rows"] == 2 and stage["summary"] == "done"


def test_the_manifest_is_json_for_every_reader(smoke):
    odd = {
        "mean": float("nan"), "most": np.float64("inf"), "shares": [np.float32("nan"), (0.5, -np.inf)], "rows": np.int64(3),
        "flags": {"any": np.bool_(True), "none": pd.NA}, "column": np.array([1.0, np.nan]), "path": Path("a/b"),
    }  # fmt: skip
    stage = json.loads(close_stage(smoke, "01_a", odd), parse_constant=pytest.fail)["stages"]["01_a"]
    assert {name: stage[name] for name in odd if name not in ("seconds", "summary")} == {
        "mean": None, "most": None, "shares": [None, [0.5, None]], "rows": 3,
        "flags": {"any": True, "none": None}, "column": [1.0, None], "path": "a/b",
    }  # fmt: skip


def test_open_note_close(capsys):
    study = open_study("04_distill_base", "params/smoke.yaml", "no_critic")
    study.account(10, 7, {"nli": 1, "critic": 2})
    study.note_data("data/demo/actions.tsv")
    study.close("seven rows")
    record = json.loads(study.run.manifest.read_text())["stages"]["04_distill_base-no_critic"]
    assert record["rows"] == {"in": 10, "kept": 7, "dropped": {"nli": 1, "critic": 2}}
    assert len(record["data_sha256"]["data/demo/actions.tsv"]) == 64 and record["seed"] == study.params.seed
    assert capsys.readouterr().out == "04_distill_base-no_critic: seven rows\n"


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
