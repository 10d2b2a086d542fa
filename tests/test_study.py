import pytest

from drot_utils.errors import DataError, ParamsError
from drot_utils.manifest import read_manifest
from drot_utils.study import open_study


def test_open_note_close(capsys):
    study = open_study("04_distill_base", "params/smoke.yaml", "no_critic")
    study.account(10, 7, {"nli": 1, "critic": 2})
    study.note_data("data/demo/actions.tsv")
    study.close("seven rows")
    record = read_manifest(study.run)["stages"]["04_distill_base-no_critic"]
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


def test_unknown_profile():
    with pytest.raises(ParamsError, match=r"params/demo\.yaml"):
        open_study("01", "params/none.yaml")


def test_cuda_without_cuda_is_a_clear_error(study):
    import torch

    from drot_utils.errors import ModelError
    from drot_utils.models import set_up

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ModelError, match="torch sees none"):
        set_up(study.params.compute.model_copy(update={"device": "cuda"}), 0)
