import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from drot_utils.manifest import read_manifest, record_stage
from drot_utils.paths import Run


def test_stages_come_together_and_unknown_is_null(smoke):
    run = Run("smoke")
    assert read_manifest(run) == {}
    record_stage(run, smoke, "01_a", {"cost_usd": None, "rows": {"in": 3}})
    record_stage(run, smoke, "02_b", {"seconds": 1.5})
    manifest = read_manifest(run)
    assert list(manifest["stages"]) == ["01_a", "02_b"] and manifest["stages"]["01_a"]["cost_usd"] is None
    assert manifest["parameters"]["profile"] == "smoke" and len(manifest["lock_sha256"]) == 64
    assert manifest["packages"]["torch"].startswith("2.13.0")


def test_a_stage_run_again_replaces_its_record(smoke):
    run = Run("smoke")
    record_stage(run, smoke, "01_a", {"rows": 1})
    record_stage(run, smoke, "01_a", {"rows": 2})
    assert read_manifest(run)["stages"] == {"01_a": {"rows": 2}}


def test_the_manifest_is_json_for_every_reader(smoke):
    run = Run("smoke")
    odd = {
        "mean": float("nan"), "most": np.float64("inf"), "shares": [np.float32("nan"), (0.5, -np.inf)], "rows": np.int64(3),
        "flags": {"any": np.bool_(True), "none": pd.NA}, "column": np.array([1.0, np.nan]), "path": Path("a/b"),
    }  # fmt: skip
    text = record_stage(run, smoke, "01_a", odd).read_text()
    assert json.loads(text, parse_constant=pytest.fail)["stages"]["01_a"] == {
        "mean": None, "most": None, "shares": [None, [0.5, None]], "rows": 3,
        "flags": {"any": True, "none": None}, "column": [1.0, None], "path": "a/b",
    }  # fmt: skip
