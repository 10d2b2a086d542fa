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
